"""Crowded images made from real ones: copies of an image's nuclei are pasted into it, edges soft.

After Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation for Instance Segmentation
(CVPR 2021). Nuclei that crowd and touch as in tissue are rare in the competition's images;
here every copy keeps the texture, the exposure and the background of the image that it comes from.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

LEAST_SHARE = 0.3  # of the median area, for a nucleus to be copied
MARGIN = 3  # pixels around a nucleus that its soft edge fades over
TRIES = 8  # places per copy before it is given up
MOST_OVERLAP = 0.15  # share of a copy's own pixels that may lie on other nuclei
MOST_HIDDEN = 0.25  # share of a nucleus that a copy may hide
TOUCHING = 0.7  # share of the copies that are placed beside a nucleus
DEFOCUSED = 0.25  # share of the copies that lie a little out of focus


def crowd(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paste copies of an image's nuclei into it: from half to twice as many as there are.

    Args:
        image: uint8 [H, W, C].
        labels: int32 [H, W], nuclei 1..N, 0 is background.

    Returns:
        Both with the copies, labelled N+1.. (the same arrays if no nucleus is whole).
    """
    boxes = ndimage.find_objects(labels)
    areas = np.bincount(labels.ravel())
    sources = whole_nuclei(boxes, areas, labels.shape)
    if not sources:
        return image, labels
    canvas, labels = image.astype(np.float32), labels.copy()
    top = int(labels.max())
    for _ in range(round(len(sources) * rng.uniform(0.5, 2))):
        number = int(rng.choice(sources))
        pixels, mask = cut_out(image, labels == number, boxes[number - 1], rng)
        for _ in range(TRIES):
            centre = draw_place(boxes, sources, mask.shape, labels.shape, rng)
            if fits(labels, mask, centre, areas):
                top += 1
                paste(canvas, labels, pixels, mask, centre, top)
                areas = np.append(areas, np.count_nonzero(labels == top))
                break
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), labels


def whole_nuclei(boxes, areas: np.ndarray, frame: tuple[int, int]) -> list[int]:
    """The labels of nuclei that are neither cut by the frame nor slivers next to the others."""
    typical = np.median(areas[1:][areas[1:] > 0]) if areas[1:].any() else 0
    return [
        number for number, box in enumerate(boxes, 1)
        if box is not None and areas[number] >= LEAST_SHARE * typical
        and all(part.start > 0 and part.stop < size for part, size in zip(box, frame, strict=True))
    ]  # fmt: skip


def cut_out(
    image: np.ndarray, mask: np.ndarray, box: tuple[slice, slice], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A nucleus with a margin, turned, mirrored and dimmed at random, some out of focus.

    Returns float32 [h, w, C] and its mask, bool [h, w].
    """
    window = tuple(slice(max(part.start - MARGIN, 0), part.stop + MARGIN) for part in box)
    pixels, mask = image[window].astype(np.float32), mask[window]
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    pixels, mask = np.rot90(pixels, turns), np.rot90(mask, turns)
    if mirrored:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    around = pixels[~mask].mean(axis=0) if not mask.all() else 0
    pixels = around + (pixels - around) * rng.uniform(0.7, 1.1)
    if rng.random() < DEFOCUSED:
        sigma = rng.uniform(0.02, 0.1) * np.sqrt(mask.sum())
        pixels = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
    return pixels, mask


def draw_place(boxes, sources, shape, frame, rng: np.random.Generator) -> tuple[int, int]:
    """A centre (y, x) for a copy of `shape`: beside a random nucleus, or anywhere in the frame."""
    if rng.random() > TOUCHING:
        return tuple(int(rng.integers(size)) for size in frame)
    box = boxes[int(rng.choice(sources)) - 1]
    angle, slack = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.1)
    direction = (np.sin(angle), np.cos(angle))
    return tuple(
        int(np.clip((part.start + part.stop) / 2
                    + slack * unit * (part.stop - part.start + size - 2 * MARGIN) / 2,
                    0, limit - 1))
        for part, size, unit, limit in zip(box, shape, direction, frame, strict=True)
    )  # fmt: skip


def overlap(shape, centre, frame) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch about a centre lies in the frame, and which part of the patch that is."""
    starts = [place - size // 2 for place, size in zip(centre, shape, strict=True)]
    inside = tuple(
        slice(max(start, 0), min(start + size, limit))
        for start, size, limit in zip(starts, shape, frame, strict=True)
    )
    part = tuple(
        slice(there.start - start, there.stop - start)
        for there, start in zip(inside, starts, strict=True)
    )
    return inside, part


def fits(labels: np.ndarray, mask: np.ndarray, centre, areas: np.ndarray) -> bool:
    """Whether a copy there neither hides much of a nucleus nor overlaps the others much."""
    inside, part = overlap(mask.shape, centre, labels.shape)
    there = labels[inside][mask[part]]
    hidden = np.bincount(there, minlength=len(areas))
    hidden[0] = 0
    # At least half of the copy must be in the image: otherwise the frame leaves only a sliver.
    return (
        2 * there.size >= mask.sum()
        and hidden.sum() <= MOST_OVERLAP * there.size
        and bool((hidden <= MOST_HIDDEN * areas).all())
    )


def paste(canvas: np.ndarray, labels: np.ndarray, pixels, mask, centre, number: int) -> None:
    """Draw a copy in place: float32 canvas [H, W, C] and labels [H, W]."""
    inside, part = overlap(mask.shape, centre, labels.shape)
    soft = np.clip(2 * ndimage.gaussian_filter(mask.astype(np.float32), 1.0), 0, 1)
    soft = soft[part][..., None]
    canvas[inside] += soft * (pixels[part] - canvas[inside])
    labels[inside][mask[part]] = number
