"""Outlines of synthetic nuclei, and how they are placed so that their masks are disjoint.

A nucleus is an ellipse whose radius is modulated by a few sine waves. Everything is computed
from that outline at the centres of the pixels: pixel (i, j) belongs to a nucleus when the point
(i + 0.5, j + 0.5) lies inside, so masks are exact and the image is drawn from the same numbers.

Shapes: H, W pixels of the image, h, w pixels of a window around one nucleus, N nuclei.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

MIN_VISIBLE_PIXELS = 16  # smaller remainders, such as slivers at the image edge, are not placed
MAX_LOSS = 0.2  # the share of its pixels that a nucleus may lose to touching neighbours


@dataclass
class Nucleus:
    """One outline, in pixels. `waves` are (number of periods, relative amplitude, phase)."""

    y: float
    x: float
    major: float
    minor: float
    angle: float
    waves: tuple[tuple[int, float, float], ...] = ()
    style: str = "plain"
    window: tuple[slice, slice] = field(default=(slice(0), slice(0)), repr=False)
    area: int = 0  # pixels inside the outline and the image, before neighbours take theirs

    @property
    def reach(self) -> float:
        """A radius that is certain to contain the whole outline."""
        return max(self.major, self.minor) * (1 + sum(abs(a) for _, a, _ in self.waves))

    def polar(self, ys: np.ndarray, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance from the centre and the outline's distance in the same direction, in pixels."""
        dy, dx = ys - self.y, xs - self.x
        along = (dx * np.cos(self.angle) + dy * np.sin(self.angle)) / self.major
        across = (dy * np.cos(self.angle) - dx * np.sin(self.angle)) / self.minor
        direction = np.arctan2(across, along)
        outline = np.ones_like(direction)
        for periods, amplitude, phase in self.waves:
            outline += amplitude * np.cos(periods * direction + phase)
        scaled = np.maximum(np.hypot(along, across), 1e-6)
        distance = np.maximum(np.hypot(dy, dx), 1e-6)
        return distance, distance / scaled * outline

    def depth(self, window: tuple[slice, slice]) -> np.ndarray:
        """Pixels to the outline along the ray from the centre: [h, w], positive inside."""
        ys = np.arange(window[0].start, window[0].stop)[:, None] + 0.5
        xs = np.arange(window[1].start, window[1].stop)[None, :] + 0.5
        distance, outline = self.polar(ys, xs)
        return outline - distance

    def cut(self, shape: tuple[int, int], margin: float = 3.0) -> tuple[slice, slice]:
        """The part of an image of this shape that can hold the nucleus and `margin` pixels more."""
        reach = self.reach + margin
        return tuple(
            slice(int(np.clip(c - reach, 0, n)), int(np.clip(np.ceil(c + reach), 0, n)))
            for c, n in zip((self.y, self.x), shape, strict=True)
        )


def random_nucleus(
    rng: np.random.Generator,
    position: tuple[float, float],
    radius: float,
    elongation: tuple[float, float] = (1.0, 1.6),
    roughness: float = 0.03,
    angle: float | None = None,
    style: str = "plain",
) -> Nucleus:
    """A nucleus of about `radius` pixels at `position` (y, x).

    `elongation` is the range of long over short axis, `roughness` the amplitude of the outline's
    waves relative to the radius, `angle` the direction of the long axis (None: any).
    """
    ratio = rng.uniform(*elongation)
    waves = [
        (k, roughness * (3 / k) ** 1.5 * rng.normal(), rng.uniform(0, 2 * np.pi))
        for k in range(3, 8)
    ]
    return Nucleus(
        y=position[0],
        x=position[1],
        major=radius * np.sqrt(ratio),
        minor=radius / np.sqrt(ratio),
        angle=rng.uniform(0, np.pi) if angle is None else angle,
        waves=tuple(waves),
        style=style,
    )


class Scene:
    """Nuclei placed on an image, and the label map that says which pixel belongs to which.

    Where two outlines overlap, a pixel belongs to the nucleus in which it lies deeper, which
    gives touching nuclei the straight common border of real ones.
    """

    def __init__(self, shape: tuple[int, int]):
        self.shape = shape
        self.nuclei: list[Nucleus] = []
        self.labels = np.zeros(shape, np.int32)  # [H, W], 0 background, n the n-th nucleus
        self._deepest = np.zeros(shape)  # [H, W], depth of the pixel in its nucleus

    def place(self, nucleus: Nucleus, crowd: float = 0.0) -> bool:
        """Add the nucleus unless it is outside the image or covers too much of the others.

        `crowd` is the share of the new nucleus that may lie over others (0: it must stay clear
        of them by a pixel). Returns whether it was placed; a refused nucleus leaves no trace.
        """
        window = nucleus.cut(self.shape)
        labels, deepest = self.labels[window], self._deepest[window]
        depth = nucleus.depth(window)
        inside = depth >= 0
        area = int(inside.sum())
        if area < MIN_VISIBLE_PIXELS:
            return False
        if crowd == 0 and np.any(labels[depth >= -1.5]):
            return False
        if np.count_nonzero(labels[inside]) > crowd * area:
            return False
        taken = inside & ((labels == 0) | (depth > deepest))
        if taken.sum() < MIN_VISIBLE_PIXELS or not _is_whole(taken):
            return False
        before = labels[taken]
        labels[taken] = len(self.nuclei) + 1
        if not all(self._is_intact(other) for other in np.unique(before) if other):
            labels[taken] = before
            return False
        deepest[taken] = depth[taken]
        nucleus.window, nucleus.area = window, area
        self.nuclei.append(nucleus)
        return True

    def _is_intact(self, number: int) -> bool:
        """Whether nucleus `number` is still large enough and in one piece."""
        nucleus = self.nuclei[number - 1]
        remaining = self.labels[nucleus.window] == number
        least = max(MIN_VISIBLE_PIXELS, (1 - MAX_LOSS) * nucleus.area)
        return remaining.sum() >= least and _is_whole(remaining)

    def patches(self) -> Iterator[tuple[Nucleus, tuple[slice, slice], np.ndarray, np.ndarray]]:
        """For each nucleus what is needed to draw it: nucleus, window, depth and own pixels.

        depth [h, w] as from Nucleus.depth; own bool [h, w] is False on pixels of other nuclei.
        """
        for number, nucleus in enumerate(self.nuclei, start=1):
            window = nucleus.cut(self.shape)
            labels = self.labels[window]
            yield nucleus, window, nucleus.depth(window), (labels == 0) | (labels == number)

    def neighbour(
        self, rng: np.random.Generator, radius: float, closeness: tuple[float, float]
    ) -> tuple[float, float] | None:
        """A position (y, x) beside a nucleus already placed, or None if there is none yet.

        `closeness` is the range of the distance between the centres in units of the sum of the
        radii: just under 1 touches.
        """
        if not self.nuclei:
            return None
        host = self.nuclei[rng.integers(len(self.nuclei))]
        direction = rng.uniform(0, 2 * np.pi)
        far = np.array([[host.y + 1e3 * np.sin(direction)], [host.x + 1e3 * np.cos(direction)]])
        _, outline = host.polar(far[0], far[1])
        distance = (outline[0] + radius) * rng.uniform(*closeness)
        return host.y + distance * np.sin(direction), host.x + distance * np.cos(direction)


def _is_whole(mask: np.ndarray) -> bool:
    """Whether the mask is a single 4-connected piece."""
    return ndimage.label(mask)[1] == 1


def scatter(
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    make: Callable[[tuple[float, float]], Nucleus],
    touching: float,
    crowd: float = 0.12,
    clusters: Iterable[tuple[float, float, float]] = (),
) -> None:
    """Place about `count` nuclei made by `make(position)`.

    A share `touching` of them is put against a nucleus already there. The others fall anywhere
    in the image or, if `clusters` (y, x, spread in pixels) are given, around one of these.
    Crowded images end up with fewer than `count`; at least one nucleus is always placed.
    """
    height, width = scene.shape
    clusters = list(clusters)
    tries = 0
    while len(scene.nuclei) < count and (tries < 6 * count or not scene.nuclei):
        tries += 1
        position = None
        against = rng.random() < touching
        if against:
            probe = make((0.0, 0.0))
            position = scene.neighbour(rng, (probe.major + probe.minor) / 2, (0.85, 1.02))
        if position is None:
            if clusters:
                y, x, spread = clusters[rng.integers(len(clusters))]
                position = (rng.normal(y, spread), rng.normal(x, spread))
            else:
                position = (rng.uniform(-4, height + 4), rng.uniform(-4, width + 4))
        scene.place(make(position), crowd if against else 0.0)
