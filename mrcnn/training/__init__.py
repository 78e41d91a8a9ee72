"""Training: the fit, its optimizers, callbacks, checkpoints, state, averaging and logs."""
