"""From detections with probability masks to a label map without overlaps.

The steps, each of which can be switched off (see `PostProcessing`):

    1. drop detections with a low score
    2. binarise the masks
    3. non-maximum suppression on masks
    4. give every pixel that several instances claim to one of them
    5. keep the largest connected piece of each instance
    6. drop instances far smaller than the image's typical one
    7. fill holes

Shapes: N detections, H, W pixels of the image, h, w pixels of one detection's patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array

from mrcnn.errors import UserError, one_line
from mrcnn.pixels.masks import Patch

OVERLAPS = ("score", "probability", "product")
OFF = "off"
_WITH_DIAGONALS = np.ones((3, 3), bool)


class Detections(NamedTuple):
    """The detections of one image, in any order."""

    scores: np.ndarray  # float [N]
    patches: Sequence[Patch]  # N, float32 probabilities; zero outside a patch
    class_ids: np.ndarray | None = None  # int [N]


class Instances(NamedTuple):
    """The instances of one image, or of a part of it."""

    labels: np.ndarray  # int32 [H, W] of 1 to n; 0 is background
    scores: np.ndarray  # float64 [n]
    class_ids: np.ndarray  # int32 [n]


@dataclass(frozen=True)
class PostProcessing:
    """The settings, with the defaults of `detect` and `evaluate`. None switches a step off."""

    # Detections with a lower score are dropped.
    min_score: float = 0.7
    # Probability from which a pixel belongs to a mask: lower makes nuclei larger.
    mask_threshold: float = 0.5
    # Largest part of the smaller of two masks that may lie in the other one; beyond it the
    # detection with the lower score is dropped. (This part is never less than the masks' IoU.)
    max_covered: float | None = 0.3
    # Which instance gets a pixel that several masks claim: the one with the highest "score", the
    # highest "probability" at the pixel, or the highest "product" of the two.
    overlaps: str = "probability"
    # Keep only the largest connected piece of an instance (pixels that touch at a corner are
    # connected).
    largest_piece: bool = True
    # Smallest area of an instance, as a share of the median area in its image.
    min_typical_area: float | None = 0.1
    # Smallest area of an instance in pixels. The competition's ground truth has none below 21;
    # switch it off for images of a lower magnification.
    min_area: int | None = 20
    # Give the background that an instance encloses to the instance.
    fill_holes: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), str(field.type))

    @classmethod
    def of(cls, values: Mapping[str, Any], source: object) -> PostProcessing:
        """Settings from their names and values; those not named keep their defaults.

        Raises UserError, which names the source, for a name or a value that is not allowed.
        """
        unknown = [key for key in values if key not in {f.name for f in dataclasses.fields(cls)}]
        if unknown:
            raise UserError(
                f"{source}: its post-processing is not valid (no setting is called "
                f"{one_line(unknown[0])})"
            )
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: its post-processing is not valid ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """Names and values, as `of` takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def plain(cls) -> PostProcessing:
        """All steps off: scores and probabilities of .5 and above count, the higher score wins."""
        return cls(
            min_score=0.5,
            mask_threshold=0.5,
            max_covered=None,
            overlaps="score",
            largest_piece=False,
            min_typical_area=None,
            min_area=None,
            fill_holes=False,
        )

    def changed(self, settings: Sequence[str]) -> PostProcessing:
        """A copy with "name=value" settings applied; the value "off" switches a step off.

        Raises UserError for a name or a value that is not allowed.
        """
        types = {field.name: str(field.type) for field in dataclasses.fields(self)}
        values = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if name not in types or not equals:
                raise UserError(
                    f"{setting}: expected NAME=VALUE with NAME one of " + ", ".join(types)
                )
            values[name] = _parse(name, text, types[name])
        return dataclasses.replace(self, **values)

    def text(self, name: str) -> str:
        """One setting as "name=value", as `changed` takes it."""
        value = getattr(self, name)
        if value is None or isinstance(value, bool):
            value = "on" if value else OFF
        return f"{name}={value}"

    def __str__(self) -> str:
        return " ".join(self.text(field.name) for field in dataclasses.fields(self))


def _parse(name: str, text: str, type_name: str):
    """The value of a setting given as text."""
    if type_name == "bool":
        if text not in ("on", OFF):
            raise UserError(f"{name}={text}: expected on or {OFF}")
        return text == "on"
    if text == OFF:
        if "None" not in type_name:
            raise UserError(f"{name} cannot be switched off")
        return None
    if type_name == "str":
        return text
    try:
        return int(text) if "int" in type_name else float(text)
    except ValueError:
        kind = "a whole number" if "int" in type_name else "a number"
        raise UserError(f"{name}={text}: {kind} is needed") from None


def _check(name: str, value: Any, type_name: str) -> None:
    """Raise UserError for a value of the wrong type, or out of its range."""
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if value is None:
        allowed, words = "None" in type_name, "a value is needed"
    elif type_name == "bool":
        allowed, words = isinstance(value, bool | np.bool_), "true or false is needed"
    elif type_name == "str":
        allowed = isinstance(value, str) and value in OVERLAPS
        words = f"expected one of {', '.join(OVERLAPS)}"
    elif "int" in type_name:
        allowed, words = is_number and value >= 0, "must not be negative"
    else:
        allowed, words = is_number and 0 <= value <= 1, "must lie between 0 and 1"
    if not allowed:
        raise UserError(f"{name}={one_line(repr(value))}: {words}")


DEFAULTS = PostProcessing()


def postprocess(
    detections: Detections, shape: Sequence[int], settings: PostProcessing = DEFAULTS
) -> tuple[np.ndarray, np.ndarray]:
    """Label map int32 [H, W] and the scores float64 [n] of its labels 1 to n, descending.

    detections: in any order; of two with equal scores the first counts as the higher.
    shape: (H, W) or longer.
    """
    labels, chosen = resolve(detections, shape, settings)
    return labels, np.asarray(detections.scores, np.float64)[chosen]


def instances_of(
    detections: Detections, shape: Sequence[int], settings: PostProcessing
) -> Instances:
    """Like `postprocess`, with classes: 1 where the detections have none."""
    labels, chosen = resolve(detections, tuple(int(side) for side in shape[:2]), settings)
    ids, scores = detections.class_ids, np.asarray(detections.scores, np.float64)[chosen]
    known = np.ones(len(chosen)) if ids is None else np.asarray(ids)[chosen]
    return Instances(labels, scores, known.astype(np.int32))


def resolve(
    detections: Detections, shape: Sequence[int], settings: PostProcessing = DEFAULTS
) -> tuple[np.ndarray, np.ndarray]:
    """Like `postprocess`, but with the detections of labels 1 to n, as indices int [n]."""
    scores = np.asarray(detections.scores, np.float64)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= settings.min_score]
    patches = [detections.patches[i] for i in order.tolist()]

    if settings.max_covered is not None:
        masks = [(y, x, patch >= settings.mask_threshold) for y, x, patch in patches]
        keep = suppress(masks, shape, settings.max_covered)
        order, patches = order[keep], [patches[i] for i in keep.tolist()]
    labels = _resolve_overlaps(patches, scores[order], shape, settings)
    if settings.largest_piece:
        _keep_largest_pieces(labels)
    present = _drop_small(labels, len(order), settings)
    if settings.fill_holes:
        _fill_holes(labels)
    return labels, order[present]


# --- suppression ----------------------------------------------------------------------------


def suppress(masks: Sequence[Patch], shape: Sequence[int], max_covered: float) -> np.ndarray:
    """Greedy non-maximum suppression: indices of the masks that stay, ascending.

    masks: (y, x, bool [h, w]) each, by descending score. Each mask that stays removes all later
    ones with which it shares more than `max_covered` of the smaller one's area.
    """
    pairs = mask_pairs(masks, shape)
    above = (pairs.covered > max_covered) & (pairs.second > pairs.first)
    first, second = pairs.first[above], pairs.second[above]
    starts = np.searchsorted(first, np.arange(len(masks) + 1))
    alive = np.ones(len(masks), bool)
    for i in range(len(masks)):
        if alive[i]:
            alive[second[starts[i] : starts[i + 1]]] = False
    return np.flatnonzero(alive)


class MaskPairs(NamedTuple):
    """The ordered pairs of different masks that share pixels; P of them, sorted by `first`."""

    first: np.ndarray  # int [P]
    second: np.ndarray  # int [P]
    shared: np.ndarray  # int [P], pixels in both
    iou: np.ndarray  # float [P]
    covered: np.ndarray  # float [P], shared pixels / area of the smaller mask


def mask_pairs(masks: Sequence[Patch], shape: Sequence[int]) -> MaskPairs:
    """Overlaps of masks, (y, x, bool [h, w]) each, in an image of (H, W) or longer."""
    width = int(shape[1])
    areas = np.array([np.count_nonzero(mask) for _, _, mask in masks], np.int64)
    pixels = [np.zeros(0, np.int64)]
    for y, x, mask in masks:
        rows, columns = np.nonzero(mask)
        pixels.append((rows + y) * width + columns + x)
    indices = np.concatenate(pixels)
    starts = np.concatenate([[0], np.cumsum(areas)])
    planes = csr_array(
        (np.ones(len(indices), np.int32), indices, starts),
        shape=(len(masks), int(shape[0]) * width),
    )
    table = (planes @ planes.T).tocoo()
    first, second = table.row, table.col
    others = np.flatnonzero(first != second)
    others = others[np.lexsort((second[others], first[others]))]
    first, second, shared = first[others], second[others], table.data[others]
    one, other = areas[first], areas[second]
    return MaskPairs(
        first, second, shared, shared / (one + other - shared), shared / np.minimum(one, other)
    )


# --- label maps -----------------------------------------------------------------------------


def _resolve_overlaps(
    patches: Sequence[Patch], scores: np.ndarray, shape: Sequence[int], settings: PostProcessing
) -> np.ndarray:
    """Label map int32 [H, W]: k + 1 for patch k; patches are sorted by descending score."""
    labels = np.zeros((int(shape[0]), int(shape[1])), np.int32)
    best = np.full(labels.shape, -1.0)  # claim of the instance that holds the pixel
    for label, ((y, x, patch), score) in enumerate(zip(patches, scores, strict=True), 1):
        window = slice(y, y + patch.shape[0]), slice(x, x + patch.shape[1])
        claim = {"score": score, "probability": patch, "product": patch * score}[settings.overlaps]
        wins = (patch >= settings.mask_threshold) & (claim > best[window])
        labels[window][wins] = label
        best[window] = np.where(wins, claim, best[window])
    return labels


def _keep_largest_pieces(labels: np.ndarray) -> None:
    """Set all but the largest connected piece of every instance to background, in place."""
    for label, window in _windows(labels):
        mask = labels[window] == label
        pieces, count = ndimage.label(mask, _WITH_DIAGONALS)
        if count > 1:
            sizes = np.bincount(pieces.ravel())
            labels[window][mask & (pieces != 1 + np.argmax(sizes[1:]))] = 0


def _drop_small(labels: np.ndarray, count: int, settings: PostProcessing) -> np.ndarray:
    """Remove small instances and number the others 1, 2, ... in their order, in place.

    Returns the indices (from 0) of the instances that are left.
    """
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    present = large_enough(areas, settings)
    numbers = np.concatenate([[0], np.cumsum(present) * present]).astype(np.int32)
    labels[:] = numbers[labels]
    return np.flatnonzero(present)


def large_enough(areas: np.ndarray, settings: PostProcessing) -> np.ndarray:
    """Which of an image's instances, with areas [N] in pixels, are not specks: bool [N]."""
    smallest = max(settings.min_area or 0, 1)
    if settings.min_typical_area is not None and areas.any():
        smallest = max(smallest, settings.min_typical_area * np.median(areas[areas > 0]))
    return areas >= smallest


def _fill_holes(labels: np.ndarray) -> None:
    """Give background pixels that an instance encloses to that instance, in place."""
    for label, window in _windows(labels):
        outside = np.pad(labels[window] != label, 1, constant_values=True)
        pieces, count = ndimage.label(outside)
        if count > 1:
            enclosed = (pieces != pieces[0, 0])[1:-1, 1:-1]
            labels[window][enclosed & (labels[window] == 0)] = label


def _windows(labels: np.ndarray) -> list[tuple[int, tuple[slice, slice]]]:
    """(label, box) of every instance that occurs."""
    boxes = ndimage.find_objects(labels)
    return [(label, box) for label, box in enumerate(boxes, 1) if box is not None]
