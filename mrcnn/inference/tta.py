"""Test-time augmentation: detect on several variants of an image and merge what is found.

Flips and quarter turns are undone exactly: masks return to the pixels they were found on. Scales
change the scale at which the network sees the image; masks are sampled at the image's own
pixel centres, so nothing is resized twice. (Inverted copies would add nothing: images with a
light background are inverted anyway, see `mrcnn.pixels.exposure`.)

Shapes: N detections, H, W pixels of the image, h, w pixels of one detection's patch, V variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrcnn.inference.postprocess import Detections, mask_pairs
from mrcnn.pixels.masks import Patch
from mrcnn.pixels.molding import scale_factor

# Masks of different variants with a larger IoU are of the same nucleus.
SAME_NUCLEUS = 0.5


@dataclass(frozen=True)
class Variant:
    """One way to change an image: mirror it, then turn it, then scale it."""

    mirrored: bool = False  # left and right are swapped
    turns: int = 0  # quarter turns, counter-clockwise
    scale: float = 1.0  # multiplies the scale that the image would have otherwise

    def __str__(self) -> str:
        changes = [
            ("mirrored", self.mirrored),
            (f"turned {90 * self.turns}", self.turns),
            (f"scaled {self.scale:g}", self.scale != 1),
        ]
        return ", ".join(name for name, changed in changes if changed) or "as it is"

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The changed image, [H, W, C] or, after an odd number of turns, [W, H, C]; not scaled.

        image: uint8 [H, W, C].
        """
        image = image[:, ::-1] if self.mirrored else image
        image = np.rot90(image, self.turns)
        return np.ascontiguousarray(image)

    def restore(self, patch: Patch, shape: Sequence[int]) -> Patch:
        """A patch of the changed image as a patch of the image itself.

        shape: (H, W) or longer, of the image itself.
        """
        y, x, array = patch
        height, width = int(shape[0]), int(shape[1])
        if self.turns % 2:
            height, width = width, height
        for _ in range(self.turns % 4):
            y, x = x, height - y - array.shape[0]
            array = np.rot90(array, -1)
            height, width = width, height
        if self.mirrored:
            x, array = width - x - array.shape[1], array[:, ::-1]
        return y, x, array


UNCHANGED = Variant()
NONE = (UNCHANGED,)
FLIPS = (UNCHANGED, Variant(mirrored=True), Variant(mirrored=True, turns=2), Variant(turns=2))
QUARTER_TURNS = (
    Variant(turns=1),
    Variant(turns=3),
    Variant(mirrored=True, turns=1),
    Variant(mirrored=True, turns=3),
)
SCALES = (
    Variant(scale=0.8),
    Variant(scale=1.25),
    Variant(mirrored=True, scale=0.8),
    Variant(mirrored=True, scale=1.25),
)

# What --tta NAME stands for: each set contains the ones before it.
SETS = {
    "flips": FLIPS,
    "turns": FLIPS + QUARTER_TURNS,
    "scales": FLIPS + QUARTER_TURNS + SCALES,
}


def variants_of(name: str | None) -> tuple[Variant, ...]:
    """The variants of a set of SETS, or for None the image alone."""
    return SETS[name] if name else NONE


def detect(
    model, image: np.ndarray, variants: Sequence[Variant] = NONE, scale: float | None = None
) -> Detections:
    """Detect on every variant of an image and merge.

    model: a `MaskRCNN` in "inference" mode. image: uint8 [H, W, C]. With several variants the
    model's DETECTION_MIN_CONFIDENCE should be far below the score wanted in the end, so that less
    confident variants count too. scale: factor of enlargement; None: from the size of the objects,
    or what the model's configuration asks for.
    """
    found = detect_variants(model, image, variants, scale)
    return found[0] if len(variants) == 1 else merge(found, image.shape)


def detect_variants(
    model, image: np.ndarray, variants: Sequence[Variant], scale: float | None = None
) -> list[Detections]:
    """The detections of each variant, brought back to the image; arguments as for `detect`."""
    scales = None
    if any(variant.scale != 1 for variant in variants):
        scale = scale or model.find_scales([image])[0] or _configured_scale(image, model.config)
        scales = [
            float(np.clip(scale * variant.scale, *model.config.SCALE_LIMITS))
            for variant in variants
        ]
    elif scale is not None:
        scales = [scale] * len(variants)
    elif len(variants) > 1:  # one search for the scale serves all
        scales = model.find_scales([image]) * len(variants)
    found = []
    for i, variant in enumerate(variants):  # one at a time: molded images are large
        [result] = model.detect_patches(
            [variant.apply(image)],
            probabilities=True,
            scales=None if scales is None else scales[i : i + 1],
        )
        patches = [variant.restore(patch, image.shape) for patch in result["patches"]]
        found.append(Detections(result["scores"], patches, result.get("class_ids")))
    return found


def _configured_scale(image: np.ndarray, config) -> float:
    return scale_factor(
        image.shape,
        config.IMAGE_MIN_DIM,
        config.IMAGE_MAX_DIM,
        config.IMAGE_MIN_SCALE,
        config.IMAGE_RESIZE_MODE,
    )


def merge(
    found: Sequence[Detections], shape: Sequence[int], same: float = SAME_NUCLEUS
) -> Detections:
    """The detections of several variants of one image -> one detection per nucleus.

    By descending score, each detection that is still free takes from every other variant the free
    one whose mask (probability .5 and above) overlaps its own most, if their IoU is above `same`.
    The probabilities of a group are averaged over its members (0 outside a member's patch). Its
    score is the sum of its members' scores divided by the number of variants: what only a few
    variants find has a low score. Its class is that of its best member.

    found: V, in the frame of the image. shape: (H, W) or longer.
    """
    scores = np.concatenate([np.zeros(0), *(np.asarray(f.scores, np.float64) for f in found)])
    order = np.argsort(-scores, kind="stable")
    variant = np.repeat(np.arange(len(found)), [len(f.scores) for f in found])[order]
    patches = [patch for f in found for patch in f.patches]
    patches = [patches[i] for i in order.tolist()]
    scores = scores[order]

    masks = [(y, x, patch >= 0.5) for y, x, patch in patches]
    groups = _groups(mask_pairs(masks, shape), variant, same)
    class_ids = None
    if all(f.class_ids is not None for f in found):
        best = [group[0] for group in groups]
        class_ids = np.concatenate([f.class_ids for f in found])[order][best]
    return Detections(
        np.array([scores[group].sum() / len(found) for group in groups]),
        [mean_patch([patches[i] for i in group]) for group in groups],
        class_ids,
    )


def _groups(pairs, variant: np.ndarray, same: float) -> list[list[int]]:
    """Groups of detections of one nucleus, as indices; detections are by descending score."""
    near = pairs.iou > same
    first, second, iou = pairs.first[near], pairs.second[near], pairs.iou[near]
    starts = np.searchsorted(first, np.arange(len(variant) + 1))
    free = np.ones(len(variant), bool)
    groups = []
    for seed in range(len(variant)):
        if not free[seed]:
            continue
        group, seen = [seed], {variant[seed]}
        others = slice(starts[seed], starts[seed + 1])
        for other in second[others][np.argsort(-iou[others], kind="stable")].tolist():
            if free[other] and variant[other] not in seen:
                group.append(other)
                seen.add(variant[other])
        free[group] = False
        groups.append(group)
    return groups


def mean_patch(patches: Sequence[Patch]) -> Patch:
    """The mean of patches of different positions and sizes; each is 0 outside its own area."""
    top, left = (min(patch[axis] for patch in patches) for axis in (0, 1))
    bottom = max(y + array.shape[0] for y, _, array in patches)
    right = max(x + array.shape[1] for _, x, array in patches)
    total = np.zeros((bottom - top, right - left), np.float32)
    for y, x, array in patches:
        total[y - top : y - top + array.shape[0], x - left : x - left + array.shape[1]] += array
    return top, left, total / len(patches)
