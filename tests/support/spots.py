"""Images of bright discs, and a stand-in for the network that finds them."""

import threading

import numpy as np
from scipy import ndimage

from tests.support.nucleus_models import Finder


class Spots(Finder):
    """Finds bright spots just as they are; the first score is the highest."""

    def detect_patches(self, images, probabilities=False, scales=None):
        return [self._detect(image[..., 0] > 127) for image in images]

    def _detect(self, mask):
        labels, count = ndimage.label(mask)
        patches = [
            (b[0].start, b[1].start, (labels[b] == i).astype(np.float32))
            for i, b in enumerate(ndimage.find_objects(labels), 1)
        ]
        return {"scores": np.linspace(0.9, 0.8, count), "patches": patches}


class Held(Spots):
    """Waits before it looks at an image."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def detect_patches(self, images, probabilities=False, scales=None):
        self.begun.set()
        assert self.go.wait(60)
        return super().detect_patches(images)


def make_image(places, shape=(90, 120)):
    """Discs of 81 pixels on a dark background, uint8."""
    image = np.zeros(shape, np.uint8)
    for y, x in places:
        image[y, x] = 1
    disc = np.hypot(*np.mgrid[-5:6, -5:6]) <= 5
    return ndimage.binary_dilation(image, disc).astype(np.uint8) * 150 + 20


STACK = np.stack(
    [
        make_image([(20, 20), (50, 80)]),
        make_image([]),
        make_image([(20, 30), (40, 60), (70, 9)]),
        make_image([(60, 60)]),
    ]
)
COUNTS = [2, 0, 3, 1]


def shows(labels, image):
    """Whether every disc of an image has one label of its own."""
    return same_objects(labels, ndimage.label(image > 100)[0])


def same_objects(one, other):
    pairs = np.unique(np.stack([np.ravel(one), np.ravel(other)]), axis=1)
    return len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
