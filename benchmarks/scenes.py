"""Synthetic images with known objects: bright ellipses on a dark background. NumPy only.

Shapes: H, W pixels of an image, N objects.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cache

import numpy as np

# Pixels between the circles around two objects.
GAP = 2.0
ATTEMPTS_PER_OBJECT = 2000


@dataclass(frozen=True)
class Scene:
    """What to draw: a square image of `side` pixels with `count` objects, the long half axes
    drawn evenly from `radii` in pixels. The same values always give the same image."""

    side: int
    count: int
    radii: tuple[float, float]
    seed: int

    def to_json(self) -> list:
        """Plain values, for a request to a worker."""
        return list(astuple(self))


def from_json(values: list) -> Scene:
    """The scene whose `to_json` came over a pipe."""
    side, count, radii, seed = values
    return Scene(side, count, tuple(radii), seed)


def image_of(values: list) -> np.ndarray:
    """The image of a scene given as JSON, drawn once."""
    return _image(from_json(values))


@cache
def _image(scene: Scene) -> np.ndarray:
    return draw(scene)[0]


# What benchmarks/compare.py measures. "small" is enlarged twice by the networks.
SPARSE = Scene(512, 50, (6.0, 14.0), 1)
DENSE = Scene(512, 300, (5.0, 9.0), 2)
SMALL = Scene(256, 50, (3.5, 7.0), 3)

LESSON_SIDE = 128


def training_scene(seed: int) -> Scene:
    """One of the small images that both sides learn from: 1 to 15 objects."""
    rng = np.random.default_rng([seed, 1])
    radii = (5.0, float(rng.uniform(8, 14)))
    return Scene(LESSON_SIDE, int(rng.integers(1, 16)), radii, seed + 1000)


def draw(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: image uint8 [H, W, 3] and labels int32 [H, W], 0 background, 1 to N.

    Raises ValueError if the objects do not fit next to each other.
    """
    rng = np.random.default_rng(scene.seed)
    side = scene.side
    labels = np.zeros((side, side), np.int32)
    light = np.full((side, side), 30.0, np.float32)
    placed = np.zeros((0, 3))  # y, x, radius
    for label in range(1, scene.count + 1):
        y, x, radius = _place(rng, side, scene.radii, placed)
        placed = np.vstack([placed, (y, x, radius)])
        reach = int(radius) + 2
        top, left = max(0, int(y) - reach), max(0, int(x) - reach)
        rows, columns = np.mgrid[top : min(side, int(y) + reach), left : min(side, int(x) + reach)]
        angle, flatness = rng.uniform(0, np.pi), rng.uniform(0.7, 1.0)
        along = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = along**2 + (across / flatness) ** 2 < radius**2
        labels[rows[inside], columns[inside]] = label
        light[rows[inside], columns[inside]] = rng.uniform(120, 220)
    light += rng.normal(0, 6, (side, side))
    image = np.clip(light, 0, 255).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2), labels


def _place(rng, side: int, radii: tuple[float, float], placed: np.ndarray) -> np.ndarray:
    """(y, x, radius) of a circle inside the image that touches none of the placed ones."""
    for _ in range(ATTEMPTS_PER_OBJECT):
        radius = rng.uniform(*radii)
        y, x = rng.uniform(radius, side - radius, 2)
        distances = np.hypot(placed[:, 0] - y, placed[:, 1] - x)
        if (distances > placed[:, 2] + radius + GAP).all():
            return np.array([y, x, radius])
    raise ValueError(f"no room for {len(placed) + 1} objects in {side} x {side} pixels")


def masks_and_boxes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool [N, H, W] and boxes int64 [N, 4] (x1, y1, x2, y2, exclusive ends)."""
    masks = labels[None] == np.arange(1, labels.max() + 1)[:, None, None]
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return masks, np.array(boxes, np.int64).reshape(-1, 4)
