"""The console command `mrcnn`: flags and what each command does with them."""
