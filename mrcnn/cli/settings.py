"""Changes of the configuration from the command line: --preset and --config KEY=VALUE.

A training run writes them beside its checkpoints (`weights.description`), so that it resumes
with the same ones without their being named again.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrcnn.config import Config
from mrcnn.config_rules import RULES, check_value
from mrcnn.data.micrographs import MicrographAugmentation
from mrcnn.errors import UserError, quoted
from mrcnn.presets import PRESETS
from mrcnn.weights import description

# Where earlier versions kept the settings of a run; a weight file elsewhere had
# FILE.h5.settings.json.
OLD_FILE = "settings.json"

# Keys that have flags of their own, or that everything else relies on.
FLAGS = {
    "STEPS_PER_EPOCH": "--steps",
    "SEED": "--seed",
    "DATA_WORKERS": "--workers",
    "CACHE_DIR": "--cache",
    "PRECISION": "--precision",
    "IMAGES_PER_GPU": "--batch-size",
    "DETECTION_MIN_CONFIDENCE": "--min-confidence",
}
FIXED = ("NAME", "NUM_CLASSES", "GPU_COUNT", "VALIDATION_STEPS", "IMAGE_RESIZE_MODE")


@dataclass(frozen=True)
class Settings:
    """What differs from the application's configuration, and the way of training."""

    preset: str | None = None
    config: tuple[str, ...] = ()  # KEY=VALUE; if a key is repeated, the last one counts
    schedule: str | None = None
    augment: tuple[str, ...] = ()  # NAME=VALUE, likewise

    def to_dict(self) -> dict[str, Any]:
        """As stored in the description of a weight file."""
        return asdict(self)

    def over(self, older: Settings) -> Settings:
        """These on top of older ones."""
        return Settings(
            self.preset or older.preset,
            _latest(*older.config, *self.config),
            self.schedule or older.schedule,
            _latest(*older.augment, *self.augment),
        )

    def augmentation(self, base: MicrographAugmentation) -> MicrographAugmentation:
        """`base` with the changes of `augment`.

        Raises UserError for an unknown name and for a wrong value.
        """
        return base.changed(self.augment)

    def applied_to(self, base: type[Config], keep: Collection[str] = ()) -> type[Config]:
        """A subclass of `base` with the preset's values and, over them, those of `config`.

        Values are Python literals, (0.5, 2); anything else is read as a string: pool. keep: keys
        that stay as `base` has them.
        Raises UserError for a key that is unknown or may not be changed, and for a wrong value.
        """
        values = {}
        if self.preset:
            preset = vars(PRESETS[self.preset])
            values = {key: value for key, value in preset.items() if key.isupper()}
        values |= dict(_parsed(setting) for setting in self.config)
        made = type(base.__name__, (base,), {k: v for k, v in values.items() if k not in keep})
        made()  # checks the values
        return made


def _latest(*settings: str) -> tuple[str, ...]:
    """KEY=VALUEs, only the last one for each key."""
    return tuple({setting.partition("=")[0]: setting for setting in settings}.values())


def _parsed(setting: str) -> tuple:
    """(key, value) of "KEY=VALUE"."""
    key, equals, text = setting.partition("=")
    if not equals or key not in RULES:
        near = difflib.get_close_matches(key, RULES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--config {quoted(setting)}: expected KEY=VALUE with a key of the configuration{hint}"
        )
    if key in FLAGS or key in FIXED:
        instead = f"use {FLAGS[key]}" if key in FLAGS else "it is part of the application"
        raise UserError(f"--config {quoted(setting)}: {key} cannot be changed this way: {instead}")
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return key, text
    except (RecursionError, MemoryError):
        raise UserError(f"--config {quoted(setting)}: nested too deeply") from None


def beside(weights: str | Path | None) -> Settings:
    """The settings that the weights were trained with; `Settings()` if they are not known.

    Raises UserError for a damaged file.
    """
    if weights is None:
        return Settings()
    described = description.beside(weights)
    if described is not None and described.training:
        return _of(described.training, weights)
    for path in (Path(f"{weights}.{OLD_FILE}"), Path(weights).parent / OLD_FILE):
        if path.is_file():
            return _of(_read(path), path)
    return Settings()


def _read(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _of(found: Mapping[str, Any], path: str | Path) -> Settings:
    try:
        settings = Settings(
            found["preset"],
            tuple(map(str, found["config"])),
            found["schedule"],
            tuple(map(str, found.get("augment", ()))),
        )
        if settings.preset is not None and settings.preset not in PRESETS:
            raise ValueError(f"there is no preset {settings.preset}")
        for setting in settings.config:
            check_value(*_parsed(setting))
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    return settings


def _damaged(path: str | Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: its settings are damaged ({quoted(error)}); delete the file and name them with "
        "--preset and --config"
    )
