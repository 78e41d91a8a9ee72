"""Images in files for tests: random pixels, and what reading gives."""

import numpy as np

from mrcnn.images.image_files import find_images

WINDOWS = [
    (slice(0, 1), slice(0, 1)),
    (slice(3, 20), slice(5, 33)),
    (slice(15, 33), slice(31, 65)),
    (slice(None), slice(7, 8)),
    (slice(30, 31), slice(None)),
    (slice(-4, None), slice(-9, -2)),
    (slice(10, 1000), slice(20, 1000)),
    (slice(5, 5), slice(0, 9)),
    (slice(9, 4), slice(1, 2)),
]


def random_pixels(*shape, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "b":
        return rng.random(shape) < 0.5
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def images_of(*inputs, channel=None):
    images, unreadable = find_images(inputs, channel)
    assert not unreadable
    return images


def image_of(path, channel=None):
    [image] = images_of(path, channel=channel)
    return image


def reason(path, channel=None):
    images, [unreadable] = find_images([path], channel)
    assert not images and unreadable.path == path and "\n" not in unreadable.reason
    return unreadable.reason


def assert_reads(image, truth):
    """All pixels and every window are what the truth [H, W] or [H, W, C] has."""
    truth = truth.reshape(*truth.shape[:2], -1)
    assert image.shape == truth.shape
    assert image.dtype == truth.dtype.newbyteorder("=")
    for window in (None, *WINDOWS):
        part = image.read(window)
        assert part.dtype == image.dtype and part.dtype.isnative
        assert part.flags.c_contiguous
        np.testing.assert_array_equal(part, truth[window or ...])
        part[...] = 0  # is the caller's own: the next window does not see it
