"""What a weight file needs besides its numbers, in one text file: its network's configuration.

`model.json` in the folder of a training run, or `<name>.json` next to `<name>.h5`:

    {"classes": ["nucleus"], "plural": "nuclei", "config": {"BACKBONE": "resnet50", ...},
     "code": [], "postprocessing": {...}, "training": {...}}

config has the keys that differ from `Config`'s defaults, code the names of keys whose values are
functions and cannot be written down, training the settings of the run. With it `mrcnn.load` builds
the network without any code of the application that trained it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrcnn.atomic import atomic_path
from mrcnn.config import Config
from mrcnn.config_rules import RULES
from mrcnn.errors import UserError, one_line
from mrcnn.files import require_regular

RUN_FILE = "model.json"
MOST_BYTES = 2**20
# What a description has, as JSON.
KINDS = {
    "classes": list,
    "config": dict,
    "postprocessing": dict,
    "plural": str,
    "code": list,
    "training": dict,
}
# Keys that belong to the machine, or are computed from others.
LEFT_OUT = ("CACHE_DIR", "DATA_WORKERS", "BATCH_SIZE", "IMAGE_SHAPE", "IMAGE_META_SIZE")
# What the weights depend on, whatever the recipe of a further training: the layers and their
# sizes, and how images and boxes are turned into numbers.
NETWORK = (
    "NAME", "NUM_CLASSES", "ARCHITECTURE", "BACKBONE", "COMPUTE_BACKBONE_SHAPE",
    "BACKBONE_STRIDES", "DILATED_STAGE5", "TOP_DOWN_PYRAMID_SIZE", "RPN_CONV_CHANNELS",
    "RPN_ANCHOR_SCALES", "RPN_ANCHOR_RATIOS", "RPN_ANCHOR_STRIDE", "RPN_BBOX_STD_DEV",
    "FPN_CLASSIF_FC_LAYERS_SIZE", "FPN_CLASSIF_FC_RANKS", "POOL_SIZE", "MASK_POOL_SIZE",
    "MASK_SHAPE", "MASK_CONV_CHANNELS", "MASK_ROI_SCALE", "BBOX_STD_DEV", "ROI_POOLING",
    "ROI_SAMPLES", "ROI_SAMPLES_JOIN", "ROI_SPATIAL_TRANSFORMER", "IMAGE_CHANNEL_COUNT",
    "MEAN_PIXEL", "PIXEL_CONVENTION", "INTENSITY_PERCENTILES", "DARK_GROUND", "OBJECT_SIZE",
    "IMAGE_MIN_SCALE",
)  # fmt: skip


@dataclass(frozen=True)
class Description:
    """What is known about a network.

    Attributes:
        classes: names of class ids 1, 2, ...
        config: keys and values of the inference network that differ from `Config`'s.
        postprocessing: settings of `inference.postprocess.PostProcessing` by name.
        plural: what several objects are called; empty for "objects".
        code: keys whose values are functions.
        training: the settings of the training run, see `cli.settings`.
    """

    classes: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    postprocessing: dict[str, Any] = field(default_factory=dict)
    plural: str = ""
    code: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def nouns(self) -> tuple[str, str]:
        """What one object and several objects are called."""
        return nouns_of(self.classes, self.plural)

    def make_config(self, source: object = "this description") -> Config:
        """The configuration of the inference network. source: the description's name in errors.

        Raises UserError for keys and values that a configuration cannot have, and where some are
        functions of an application.
        """
        if self.code:
            raise UserError(
                f"{source}: {' and '.join(self.code)} of this network are functions of the "
                "application that trained it: pass its Config"
            )
        return self.config_class()()

    def config_class(
        self, base: type[Config] = Config, keys: Collection[str] | None = None
    ) -> type[Config]:
        """A subclass of `base` with the described values; functions stay as `base` has them.

        keys: those to take over, by default all of them.
        """
        values = {**Config().to_dict(), **self.config}
        for key in [*LEFT_OUT, *self.code]:
            values.pop(key, None)
        taken = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if keys is None or key in keys
        }
        return type(base.__name__, (base,), taken)


def nouns_of(classes: Sequence[str], plural: str = "") -> tuple[str, str]:
    """What one and several objects of these classes are called; plural: "" for the usual one."""
    noun = classes[0] if len(classes) == 1 else "object"
    return noun, plural or noun + "s"


def describe(
    config: Config,
    classes: Sequence[str],
    postprocessing: Mapping[str, Any] | None = None,
    plural: str = "",
    training: Mapping[str, Any] | None = None,
) -> Description:
    """The description of a network that was built with `config` (of inference)."""
    ours, defaults = config.to_dict(), Config().to_dict()
    code = tuple(key for key in ours if callable(getattr(config, key, None)))
    changed = {
        key: value
        for key, value in ours.items()
        # An application's own keys have no effect on the network.
        if key in RULES and key not in (*LEFT_OUT, *code) and value != defaults.get(key)
    }
    return Description(
        tuple(classes), changed, dict(postprocessing or {}), plural, code, dict(training or {})
    )


def write(path: str | Path, description: Description) -> None:
    """Write a description, whole or not at all."""
    values = {
        key: value
        for key, value in dataclasses.asdict(description).items()
        if value or key in ("classes", "config", "postprocessing")
    }
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def own_file(weights: str | Path) -> Path:
    """Where a weight file's own description is."""
    return Path(weights).with_suffix(".json")


def beside(weights: str | Path) -> Description | None:
    """The description of a weight file: its own, or that of the run it lies in; None without one.

    Raises UserError for a damaged file.
    """
    for path in (own_file(weights), Path(weights).parent / RUN_FILE):
        if os.path.exists(path):
            return read(path)
    return None


def read(path: str | Path) -> Description:
    """Raises UserError for a file that is not a description, or has invalid keys or values."""
    if os.path.exists(path):
        require_regular(path)
    try:
        found = _checked(_parse(Path(path)), KINDS)
        for key in found["config"]:
            if key not in RULES:
                raise ValueError(f"unknown key {one_line(key)} in config")
        for key in _texts(found, "code"):
            if key not in RULES:
                raise ValueError(f"unknown key {one_line(key)} in code")
        classes, number = len(found["classes"]), found["config"].get("NUM_CLASSES")
        if not classes or (number is not None and number != 1 + classes):
            raise ValueError(f"{classes} classes, but NUM_CLASSES is {one_line(number)}")
        description = Description(
            tuple(_texts(found, "classes")),
            found["config"],
            found["postprocessing"],
            found.get("plural", ""),
            tuple(_texts(found, "code")),
            found.get("training", {}),
        )
        description.config_class()()  # raises for values that a configuration cannot have
        return description
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error, 300)
        raise UserError(f"{path}: not the description of a network ({reason})") from error


def _parse(path: Path) -> Any:
    """The values of a JSON file of finite numbers. Raises OSError, ValueError, RecursionError."""
    with open(path, "rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    return json.loads(text.decode("utf-8"), parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{one_line(text)} is not a finite number")
    return number


def _checked(found: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """`found`, where it is a dictionary with values of these types. Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError("it is not a dictionary")
    for key in ("classes", "config", "postprocessing"):
        if key not in found:
            raise ValueError(f"{key} is missing")
    for key, value in found.items():
        if key not in kinds:
            raise ValueError(f"unknown key {one_line(key)}")
        if not isinstance(value, kinds[key]):
            raise ValueError(f"{key} is {one_line(repr(value))}, not a {kinds[key].__name__}")
    return found


def _texts(found: Mapping[str, Any], key: str) -> list[str]:
    texts = found.get(key, [])
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key} has values that are not strings: {one_line(repr(texts))}")
    return texts
