"""What every configuration key may be, as one table of rules; see mrcnn/config.py for the keys."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from mrcnn.errors import MRCNNWarning, UserError

# The largest values: numbers of 32 bits, counts, and sizes of a network along one axis.
MOST, MOST_COUNT, MOST_SIZE = float(np.finfo(np.float32).max), 2**31 - 1, 2**16
# The longest list of numbers: scales and ratios of anchors.
MOST_NUMBERS = 64
# Threads that load images, and devices: more would only overload the machine.
MOST_WORKERS = 1024

# Six halvings lie between the input and the coarsest pyramid level P6.
SIZE_MULTIPLE = 64

LOSS_NAMES = (
    "rpn_class_loss",
    "rpn_bbox_loss",
    "mrcnn_class_loss",
    "mrcnn_bbox_loss",
    "mrcnn_mask_loss",
)


def mask_side(config: Any) -> int:
    """Cells along a side of a predicted mask.

    The last layer of the mask branch doubles its input: the pooled region, or for "c4" what stage
    5 leaves of it, half as many cells unless it is dilated.
    """
    side = int(config.MASK_POOL_SIZE)
    if config.ARCHITECTURE == "c4" and not config.DILATED_STAGE5:
        side = -(-side // 2)
    return 2 * side


# ---- Kinds of values: a test, and what it allows in words --------------------------------------

Rule = tuple[Callable[[Any], bool], str]


def is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether it is a number of 32 bits, as used by the network; not NaN or infinite."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return abs(float(value)) <= MOST
    except OverflowError:  # whole numbers have any number of digits
        return False


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _integer(minimum: int, maximum: int = MOST_COUNT) -> Rule:
    return (
        lambda v: is_integer(v) and minimum <= v <= maximum,
        f"a whole number, {minimum} or more, up to {maximum}",
    )


def _number(test: Callable[[float], bool], words: str) -> Rule:
    return lambda v: bool(_is_number(v) and test(v)), f"a number {words}"


def _choice(*values: str) -> Rule:
    words = ", ".join(f'"{value}"' for value in values)
    return lambda v: isinstance(v, str) and v in values, f"one of {words}"


def _positive_numbers(length: int | None = None) -> Rule:
    words = "a list of positive numbers" if length is None else f"{length} positive numbers"

    def test(value: Any) -> bool:
        if not _is_sequence(value) or length not in (None, len(value)):
            return False
        if not 0 < len(value) <= MOST_NUMBERS:
            return False
        return all(_is_number(v) and 1e-6 <= v <= 1e6 for v in value)

    return test, words


def _size() -> Rule:
    def test(value: Any) -> bool:
        return (
            _is_sequence(value)
            and len(value) == 2
            and all(is_integer(v) and 1 <= v <= MOST_SIZE for v in value)
        )

    return test, f"(height, width), two whole numbers from 1 to {MOST_SIZE}"


def _optional(rule: Rule) -> Rule:
    test, words = rule
    return lambda v: v is None or test(v), f"{words}, or None"


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and os.fspath(value) != ""


def _are_loss_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name in LOSS_NAMES and _is_number(weight) and weight >= 0 for name, weight in value.items()
    )


def _are_rising_shares(value: Any) -> bool:
    if not _is_sequence(value) or not all(_is_number(v) and 0 < v < 1 for v in value):
        return False
    return all(low < high for low, high in zip(value, value[1:], strict=False))


def _are_ious(value: Any) -> bool:
    pair = _is_sequence(value) and len(value) == 2 and all(_is_number(v) for v in value)
    return pair and 0 <= value[0] < value[1] <= 0.5


def _are_ranks(value: Any) -> bool:
    pair = _is_sequence(value) and len(value) == 2
    return pair and all(is_integer(v) and 0 <= v <= MOST_SIZE for v in value)


def _is_mean_pixel(value: Any) -> bool:
    return _is_number(value) or (_is_sequence(value) and all(_is_number(v) for v in value))


def _are_percentiles(value: Any) -> bool:
    pair = _is_sequence(value) and len(value) == 2 and all(_is_number(v) for v in value)
    return pair and 0 <= value[0] < value[1] <= 100


_COUNT = _integer(1)
_COUNT_OR_ZERO = _integer(0)
_LENGTH = _integer(1, MOST_SIZE)  # of one axis of an array
_WORKERS = _integer(1, MOST_WORKERS)
_FLAG: Rule = (_is_flag, "True or False")
_FRACTION = _number(lambda v: 0 < v <= 1, "in (0, 1]")
_FRACTION_OR_ZERO = _number(lambda v: 0 <= v <= 1, "in [0, 1]")
_POSITIVE = _number(lambda v: v > 0, "above 0")
_NOT_NEGATIVE = _number(lambda v: v >= 0, "of 0 or more")
# Ranges of pixels and factors: beyond these a network learns nothing, or no machine has the memory.
_PIXELS = _number(lambda v: 0.01 <= v <= MOST_SIZE, f"from 0.01 to {MOST_SIZE}")
_SCALE_OR_ZERO = _number(lambda v: 0 <= v <= 100, "from 0 to 100")
_FACTOR = _number(lambda v: 1e-12 <= v <= 1000, "above 0: from 1e-12 to 1000")
_FACTOR_OR_ZERO = _number(lambda v: 0 <= v <= 1000, "from 0 to 1000")

# ---- The table ---------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    "NAME": (lambda v: v is None or isinstance(v, str), "a string, or None"),
    "GPU_COUNT": _WORKERS,
    "IMAGES_PER_GPU": _LENGTH,
    "SEED": _COUNT_OR_ZERO,
    "IMAGE_RESIZE_MODE": _choice("none", "square", "pad64", "crop"),
    "IMAGE_MIN_DIM": _optional(_integer(0, MOST_SIZE)),
    "IMAGE_MAX_DIM": _LENGTH,
    "IMAGE_MIN_SCALE": _optional(_SCALE_OR_ZERO),
    "OBJECT_SIZE": _optional(_PIXELS),
    "SCALE_LIMITS": _positive_numbers(2),
    "IMAGE_SCALE_JITTER": _positive_numbers(2),
    "IMAGE_CHANNEL_COUNT": _LENGTH,
    "MEAN_PIXEL": (_is_mean_pixel, "a number, or a list of numbers, one per channel"),
    "INTENSITY_PERCENTILES": _optional(
        (_are_percentiles, "(low, high) with 0 <= low < high <= 100")
    ),
    "DARK_GROUND": _FLAG,
    "PIXEL_CONVENTION": _choice("matterport", "exact"),
    "ARCHITECTURE": _choice("fpn", "c4"),
    "DILATED_STAGE5": _FLAG,
    "BACKBONE": (
        lambda v: callable(v) or (isinstance(v, str) and v in ("resnet50", "resnet101")),
        'one of "resnet50", "resnet101", or a callable',
    ),
    "COMPUTE_BACKBONE_SHAPE": (lambda v: v is None or callable(v), "a callable, or None"),
    "BACKBONE_STRIDES": _positive_numbers(),
    "TOP_DOWN_PYRAMID_SIZE": _LENGTH,
    "TRAIN_BN": (lambda v: v is None or _is_flag(v), "True, False or None"),
    "PRECISION": _choice("float32", "bfloat16", "auto"),
    "RPN_ANCHOR_SCALES": _positive_numbers(),
    "RPN_ANCHOR_RATIOS": _positive_numbers(),
    "RPN_ANCHOR_STRIDE": _LENGTH,
    "RPN_CONV_CHANNELS": _LENGTH,
    "RPN_NMS_THRESHOLD": _FRACTION,
    "RPN_TRAIN_ANCHORS_PER_IMAGE": _integer(2),
    "PRE_NMS_LIMIT": _COUNT,
    "POST_NMS_ROIS_TRAINING": _COUNT,
    "POST_NMS_ROIS_INFERENCE": _COUNT,
    "LIMITS_PER_MEGAPIXEL": _FLAG,
    "RPN_BBOX_STD_DEV": _positive_numbers(4),
    "NUM_CLASSES": _LENGTH,
    "POOL_SIZE": _LENGTH,
    "MASK_POOL_SIZE": _LENGTH,
    "FPN_CLASSIF_FC_LAYERS_SIZE": _LENGTH,
    "MASK_CONV_CHANNELS": _LENGTH,
    "MASK_SHAPE": _size(),
    "MASK_ROI_SCALE": _number(lambda v: 1 <= v <= 100, "from 1 to 100"),
    "ROI_POOLING": _choice("align", "pool"),
    "ROI_SAMPLES": (lambda v: is_integer(v) and v in (1, 4), "1 or 4"),
    "ROI_SAMPLES_JOIN": _choice("average", "max"),
    "ROI_SPATIAL_TRANSFORMER": _FLAG,
    "FPN_CLASSIF_FC_RANKS": (_are_ranks, "two whole numbers of 0 or more"),
    "GAUSSIAN_HEADS": _FLAG,
    "BBOX_STD_DEV": _positive_numbers(4),
    "MAX_GT_INSTANCES": _LENGTH,
    "USE_MINI_MASK": _FLAG,
    "MINI_MASK_SHAPE": _size(),
    "TRAIN_ROIS_PER_IMAGE": _LENGTH,
    "ROI_POSITIVE_RATIO": _FRACTION,
    "ROI_BACKGROUND_IOU": (_are_ious, "(low, high) with 0 <= low < high <= 0.5"),
    "TRAIN_GT_AS_ROIS": _FLAG,
    "USE_RPN_ROIS": _FLAG,
    "DATA_WORKERS": _WORKERS,
    "CACHE_MB": _NOT_NEGATIVE,
    "CACHE_DIR": _optional((_is_path, "the path of a folder")),
    "STEPS_PER_EPOCH": _COUNT,
    "VALIDATION_STEPS": _COUNT_OR_ZERO,
    "OPTIMIZER": _choice("sgd", "adam"),
    "LEARNING_RATE": _FACTOR,
    "LEARNING_MOMENTUM": _number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "LEARNING_SCHEDULE": _choice("constant", "cosine", "step", "plateau"),
    "LEARNING_DROPS": (_are_rising_shares, "a list of ascending numbers in (0, 1)"),
    "LEARNING_PATIENCE": _COUNT,
    "LEARNING_BIAS_FACTOR": _FACTOR,
    "LEARNING_WARMUP_STEPS": _COUNT_OR_ZERO,
    "WEIGHT_DECAY": _FACTOR_OR_ZERO,
    "GRADIENT_CLIP_NORM": _optional(_POSITIVE),
    "WEIGHT_AVERAGING": _optional(_number(lambda v: 0 < v < 1, "in (0, 1)")),
    "LOSS_WEIGHTS": (
        _are_loss_weights,
        f"a dict of numbers of 0 or more with the names {', '.join(LOSS_NAMES)}",
    ),
    "CHECKPOINTS_TO_KEEP": _optional(_COUNT),
    "BOX_LOSS_MEAN": _choice("positives", "paper"),
    "DETECTION_MAX_INSTANCES": _LENGTH,
    "DETECTION_MIN_CONFIDENCE": _optional(_FRACTION_OR_ZERO),
    "DETECTION_NMS_THRESHOLD": _FRACTION_OR_ZERO,
    "MASK_THRESHOLD": _number(lambda v: 0 < v < 1, "in (0, 1)"),
}

# (key to name, test of the whole configuration, what is allowed in words)
RULES_BETWEEN_KEYS: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "IMAGE_MAX_DIM",
        lambda c: c.IMAGE_RESIZE_MODE != "square" or c.IMAGE_MAX_DIM % SIZE_MULTIPLE == 0,
        f'a multiple of {SIZE_MULTIPLE} when IMAGE_RESIZE_MODE is "square"',
    ),
    (
        "IMAGE_MIN_DIM",
        lambda c: c.IMAGE_RESIZE_MODE != "pad64" or (c.IMAGE_MIN_DIM or 0) % SIZE_MULTIPLE == 0,
        f'a multiple of {SIZE_MULTIPLE} (or 0) when IMAGE_RESIZE_MODE is "pad64"',
    ),
    (
        "IMAGE_MIN_DIM",
        lambda c: (
            c.IMAGE_RESIZE_MODE != "crop"
            or bool(c.IMAGE_MIN_DIM and c.IMAGE_MIN_DIM % SIZE_MULTIPLE == 0)
        ),
        f'a multiple of {SIZE_MULTIPLE} above 0 when IMAGE_RESIZE_MODE is "crop"',
    ),
    (
        "SCALE_LIMITS",
        lambda c: c.SCALE_LIMITS[0] <= c.SCALE_LIMITS[1],
        "(low, high) with low <= high",
    ),
    (
        "IMAGE_SCALE_JITTER",
        lambda c: c.IMAGE_SCALE_JITTER[0] <= c.IMAGE_SCALE_JITTER[1],
        "(low, high) with low <= high",
    ),
    (
        "MEAN_PIXEL",
        lambda c: np.size(c.MEAN_PIXEL) in (1, c.IMAGE_CHANNEL_COUNT),
        "one number, or as many as IMAGE_CHANNEL_COUNT says",
    ),
    (
        "COMPUTE_BACKBONE_SHAPE",
        lambda c: not callable(c.BACKBONE) or callable(c.COMPUTE_BACKBONE_SHAPE),
        "a callable, since BACKBONE is one",
    ),
    (
        "ARCHITECTURE",
        lambda c: c.ARCHITECTURE == "fpn" or not callable(c.BACKBONE),
        '"fpn", since BACKBONE is a callable',
    ),
    (
        "DILATED_STAGE5",
        lambda c: c.ARCHITECTURE == "c4" or not c.DILATED_STAGE5,
        'True only with ARCHITECTURE = "c4"',
    ),
    (
        "FPN_CLASSIF_FC_RANKS",
        lambda c: c.ARCHITECTURE == "fpn" or not any(c.FPN_CLASSIF_FC_RANKS),
        '(0, 0) with ARCHITECTURE = "c4", which has no such layers',
    ),
    (
        "RPN_ANCHOR_SCALES",
        lambda c: c.ARCHITECTURE == "c4" or len(c.RPN_ANCHOR_SCALES) == len(c.BACKBONE_STRIDES),
        "one scale per pyramid level, as many as BACKBONE_STRIDES has",
    ),
    (
        "LEARNING_WARMUP_STEPS",
        lambda c: c.LEARNING_SCHEDULE != "plateau" or not c.LEARNING_WARMUP_STEPS,
        '0 with LEARNING_SCHEDULE = "plateau"',
    ),
    (
        "MASK_SHAPE",
        lambda c: tuple(c.MASK_SHAPE) == (mask_side(c),) * 2,
        'twice MASK_POOL_SIZE in both directions (the same as MASK_POOL_SIZE for "c4" unless its '
        "stage 5 is dilated)",
    ),
]

KNOWN_KEYS = frozenset(RULES) | {"BATCH_SIZE", "IMAGE_SHAPE", "IMAGE_META_SIZE"}

_warned_keys: set[str] = set()


def validate(config: Any, keys: list[str]) -> None:
    """Check a configuration, and warn once per name about unknown keys.

    Raises:
        UserError: one line that names the key, its value and what is allowed.
    """
    for key in RULES:
        check_value(key, getattr(config, key))
    for key, is_allowed, allowed in RULES_BETWEEN_KEYS:
        if not is_allowed(config):
            raise UserError(f"{key} = {_shown(getattr(config, key))} is not allowed: {allowed}")
    _warn_about_unknown_keys(keys)


def check_value(key: str, value: Any) -> None:
    """Raise UserError where a key cannot have this value, whatever the other keys are."""
    is_allowed, allowed = RULES[key]
    if not is_allowed(value):
        raise UserError(f"{key} = {_shown(value)} is not allowed: {allowed}")


def _warn_about_unknown_keys(keys: list[str]) -> None:
    for key in keys:
        if key in KNOWN_KEYS or key in _warned_keys:
            continue
        _warned_keys.add(key)
        nearest = difflib.get_close_matches(key, sorted(KNOWN_KEYS), n=1, cutoff=0.0)[0]
        warnings.warn(
            f"{key} is not a configuration key and has no effect on the model; "
            f"the nearest key is {nearest}",
            MRCNNWarning,
            stacklevel=5,
        )


def _shown(value: Any) -> str:
    """Return a value as it is written in an error message, on one line."""
    try:
        text = " ".join(repr(plain(value)).split())
    except (RecursionError, ValueError):  # too deep; a whole number of thousands of digits
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else text[:77] + "..."


def plain(value: Any) -> Any:
    """Return value with lists for tuples and arrays, names for callables, Python numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if callable(value):
        return getattr(value, "__qualname__", repr(value))
    return str(value)
