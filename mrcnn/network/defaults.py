"""Keras's global settings as this package needs them."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import config


@contextmanager
def keras_defaults() -> Iterator[None]:
    """Within the block Keras's global settings are its defaults; then they are restored.

    A `keras.json` of another project, or a program that has set a data format or precision for its
    other networks, changes the layers and tensors that do not set these themselves, those of a
    user's BACKBONE among them. Precision here is what `Config.PRECISION` says.
    """
    found = config.image_data_format(), config.floatx(), config.dtype_policy()
    if found[:2] == ("channels_last", "float32") and found[2].name == "float32":
        yield  # nothing to set; other threads would see it
        return
    _set("channels_last", "float32", keras.DTypePolicy("float32"))
    try:
        yield
    finally:
        _set(*found)


def _set(data_format: str, floatx: str, policy: keras.DTypePolicy) -> None:
    config.set_image_data_format(data_format)
    config.set_floatx(floatx)
    config.set_dtype_policy(policy)
