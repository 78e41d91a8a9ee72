"""Whole weight files as arrays, for tests that look at or change what is in them."""

from mrcnn.weights import legacy_h5


def read_weights(path):
    """A `LegacyFile` whose layers are arrays."""
    with legacy_h5.open_weights(path) as file:
        layers = {
            layer: {tensor: legacy_h5.values(file, layer, tensor) for tensor in tensors}
            for layer, tensors in file.layers.items()
        }
    return file._replace(layers=layers)
