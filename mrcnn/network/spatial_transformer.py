"""A spatial transformer: features learn to turn, move and scale themselves before they are used.

From the features of every region a small network predicts six numbers, an affine transform;
a grid of points is moved by it; the features are resampled at these points. It starts as the
identity, which changes nothing.

It serves the class and box head only: a mask is predicted cell by cell, and would have to be turned
back.

Source: paper section 3.6, equations 8 to 11; Jaderberg et al., "Spatial Transformer Networks".
Shape shorthand: N regions, H W rows and columns, C channels, P points.
"""

import keras
import numpy as np
from keras import layers, ops

from mrcnn.network.boxes import constant
from mrcnn.network.layers import LayerBank

LOCALISATION_CHANNELS = 32
WINDOW = 3  # cells; the paper (3.6.2) has 3x3 grids in its example
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def affine_points(transform, height: int, width: int):
    """Where every cell of a grid is sampled after an affine transform.

    Args:
        transform: [N, 6], the rows (a11, a12, a13) and (a21, a22, a23) of the matrix that maps
            (x, y, 1) to the sampled place; x and y are -1 and 1 at the edges of the features.

    Returns:
        y, x: [N, height * width] in cells, 0 being the centre of the first.
    """
    ys = (2.0 * np.arange(height) + 1.0) / height - 1.0
    xs = (2.0 * np.arange(width) + 1.0) / width - 1.0
    grid_y, grid_x = np.meshgrid(ys, xs, indexing="ij")
    grid = constant(np.stack([grid_x.ravel(), grid_y.ravel(), np.ones(height * width)]))
    places = ops.matmul(ops.reshape(ops.cast(transform, "float32"), (-1, 2, 3)), grid)
    x, y = places[:, 0], places[:, 1]
    return ((y + 1.0) * height - 1.0) / 2.0, ((x + 1.0) * width - 1.0) / 2.0


def sample_points(features, y, x):
    """Bilinear samples at any points (paper equation 8).

    A sample is the sum over all cells (n, m) of their value times max(0, 1 - |x - m|) times
    max(0, 1 - |y - n|): what lies outside the features counts as zero. Its gradients are the
    paper's equations 9 (features), 10 (x) and 11 (y).

    Args:
        features: [N, H, W, C].
        y, x: float32 [N, P], in cells, 0 being the centre of the first.

    Returns:
        [N, P, C], of the features' dtype.
    """
    height, width, channels = features.shape[1:]
    top, left = ops.floor(y), ops.floor(x)
    table = ops.reshape(features, (-1, channels))
    region = ops.arange(ops.shape(y)[0], dtype="int32")[:, None] * (height * width)

    # The kernel is written with the fractions: at whole numbers, where the identity puts all
    # points, its derivative is then the one to the right, not a mixture of both.
    down, right = y - top, x - left

    def corner(row, column, weight):
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row = ops.cast(ops.clip(row, 0, height - 1), "int32")
        column = ops.cast(ops.clip(column, 0, width - 1), "int32")
        cells = ops.take(table, region + row * width + column, axis=0)
        return cells * ops.cast(ops.where(inside, weight, 0.0)[..., None], cells.dtype)

    return (
        corner(top, left, (1.0 - down) * (1.0 - right))
        + corner(top, left + 1.0, (1.0 - down) * right)
        + corner(top + 1.0, left, down * (1.0 - right))
        + corner(top + 1.0, left + 1.0, down * right)
    )


class AffineSampler(layers.Layer):
    """Grid generator and sampler. Inputs: features [N, H, W, C] and transforms [N, 6]."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.autocast = False  # points must not be rounded to the compute dtype

    def call(self, inputs):
        features, transform = inputs
        height, width = features.shape[1:3]
        y, x = affine_points(transform, height, width)
        return ops.reshape(sample_points(features, y, x), (-1, *features.shape[1:]))

    def compute_output_shape(self, input_shape):
        return input_shape[0]


def transform_regions(features, bank: LayerBank):
    """The spatial transformer: [N, H, W, C] -> the same shape."""
    x = bank(
        layers.Conv2D,
        LOCALISATION_CHANNELS,
        (WINDOW, WINDOW),
        padding="same",
        activation="relu",
        name="roi_transformer_conv",
    )(features)
    x = bank(layers.Flatten, name="roi_transformer_flatten")(x)
    transform = bank(
        layers.Dense,
        6,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(IDENTITY),
        name="roi_transformer_affine",
        dtype="float32",  # bfloat16 has 8 significant bits: too few for 1.002
    )(x)
    return bank(AffineSampler, name="roi_transformer_sample")([features, transform])
