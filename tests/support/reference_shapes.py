"""Shapes at known sub-pixel positions, for tests of whatever touches coordinates."""

import numpy as np

from mrcnn.config import Config


def make_config(**keys):
    return type("TestConfig", (Config,), {"NUM_CLASSES": 2, **keys})()


def coverage(start, stop, size):
    """How much of each pixel of an axis lies in [start, stop)."""
    pixels = np.arange(size)
    return np.clip(np.minimum(stop, pixels + 1) - np.maximum(start, pixels), 0, 1)


def rectangle(box, shape):
    """An anti-aliased rectangle: float [H, W], each pixel's covered share."""
    return np.outer(coverage(box[0], box[2], shape[0]), coverage(box[1], box[3], shape[1]))


def centroid(image):
    """Centre of mass (y, x) in continuous coordinates."""
    image = np.asarray(image, float)
    rows, columns = (np.arange(size) + 0.5 for size in image.shape)
    return np.array([rows @ image.sum(1), columns @ image.sum(0)]) / image.sum()


def soft_disc(box, centre, radius, cells=28):
    """Probabilities [cells, cells] of a disc's mask inside a float box, .5 on its outline."""
    steps = (np.arange(cells) + 0.5) / cells
    y = box[0] + steps * (box[2] - box[0]) - centre[0]
    x = box[1] + steps * (box[3] - box[1]) - centre[1]
    distance = np.hypot(y[:, None], x[None, :])
    return (1 / (1 + np.exp((distance - radius) / 2))).astype(np.float32)


def disc(centre, radius, shape):
    """The pixels whose centres lie inside a disc."""
    rows, columns = (np.arange(size) + 0.5 for size in shape)
    return np.hypot(rows[:, None] - centre[0], columns[None, :] - centre[1]) <= radius
