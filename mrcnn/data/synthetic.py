"""Synthetic images of nuclei, for those who have none at hand."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def bright_ellipses(side: int = 512, seed: int = 0) -> np.ndarray:
    """A fluorescence image uint8 [side, side] of bright blurred ellipses of 15 to 34 pixels."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:side, :side]
    image, step = np.zeros((side, side)), 48
    for y, x in np.argwhere(rng.random((side // step, side // step)) < 0.8) * step + step / 2:
        y, x = y + rng.uniform(-8, 8), x + rng.uniform(-8, 8)
        angle, long, ratio = rng.uniform(0, np.pi), rng.uniform(11, 17), rng.uniform(0.7, 1)
        along = (xs - x) * np.cos(angle) + (ys - y) * np.sin(angle)
        across = (ys - y) * np.cos(angle) - (xs - x) * np.sin(angle)
        inside = along**2 + (across / ratio) ** 2 < long**2
        image[inside] = np.maximum(image[inside], rng.uniform(70, 170))
    image *= 1 + 0.6 * ndimage.gaussian_filter(rng.standard_normal(image.shape), 2)  # texture
    image = 18 + ndimage.gaussian_filter(image, 1.2) + rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
