"""Keras's global settings of other projects do not reach the network."""

import keras
import pytest
from keras import config, layers

from mrcnn.network.defaults import keras_defaults


@pytest.fixture
def other_settings():
    """channels_first and float64, as another project may have left them."""
    before = config.image_data_format(), config.floatx(), config.dtype_policy()
    config.set_image_data_format("channels_first")
    config.set_floatx("float64")
    config.set_dtype_policy("mixed_float16")
    yield
    config.set_image_data_format(before[0])
    config.set_floatx(before[1])
    config.set_dtype_policy(before[2])


def test_within_the_block_only(other_settings):
    with pytest.raises(KeyError), keras_defaults():
        layer = layers.Conv2D(3, 1)
        assert (layer.data_format, layer.compute_dtype) == ("channels_last", "float32")
        assert keras.Input((3,)).dtype == "float32"
        raise KeyError
    layer = layers.Conv2D(3, 1)
    assert (layer.data_format, layer.compute_dtype) == ("channels_first", "float16")
    assert config.floatx() == "float64"
