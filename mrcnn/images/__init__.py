"""Image files in: found, listed, and read with their planes, channels and pixel sizes."""
