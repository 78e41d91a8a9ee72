"""Training data: data sets, sampling, augmentation, examples and batches."""
