"""What a weight file needs beside its numbers: the configuration of its network, in a text file.

`model.json` in the folder of a training run, or `<name>.json` beside `<name>.h5`:

    {"classes": ["nucleus"], "config": {"BACKBONE": "resnet50", ...}, "postprocessing": {...}}

config has the keys that differ from `Config`'s defaults. With it `mrcnn.load` builds the network
without any code of the application that trained it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrcnn.atomic import atomic_path
from mrcnn.config import Config
from mrcnn.errors import UserError

RUN_FILE = "model.json"
# They belong to the machine, or are computed from other keys.
LEFT_OUT = ("CACHE_DIR", "DATA_WORKERS", "BATCH_SIZE", "IMAGE_SHAPE", "IMAGE_META_SIZE")


@dataclass(frozen=True)
class Description:
    """What is known of a network.

    classes: names of class ids 1, 2, ...; config: keys and values of the inference network;
    postprocessing: settings of `inference.postprocess.PostProcessing` by name.
    """

    classes: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    postprocessing: dict[str, Any] = field(default_factory=dict)

    def make_config(self) -> Config:
        """Raises UserError for keys and values that a configuration cannot have."""
        values = {key: tuple(value) if isinstance(value, list) else value
                  for key, value in self.config.items()}
        return type("DescribedConfig", (Config,), values)()


def describe(config: Config, classes: Sequence[str],
             postprocessing: Mapping[str, Any] | None = None) -> Description:
    """The description of a network that was built with `config` (of inference)."""
    ours, defaults = config.to_dict(), Config().to_dict()
    changed = {key: value for key, value in ours.items()
               if key not in LEFT_OUT and value != defaults.get(key)}
    return Description(tuple(classes), changed, dict(postprocessing or {}))


def write(path: str | Path, description: Description) -> None:
    """Write a description, whole or not at all."""
    text = json.dumps(dataclasses.asdict(description), indent=1)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text + "\n")


def own_file(weights: str | Path) -> Path:
    """Where the description of a weight file of its own is."""
    return Path(weights).with_suffix(".json")


def beside(weights: str | Path) -> Description | None:
    """The description of a weight file: its own, or that of the run it lies in; None without.

    Raises UserError for a damaged file.
    """
    for path in (own_file(weights), Path(weights).parent / RUN_FILE):
        if path.is_file():
            return read(path)
    return None


def read(path: str | Path) -> Description:
    """Raises UserError for a file that is no description."""
    try:
        found = json.loads(Path(path).read_text())
        return Description(tuple(map(str, found["classes"])), dict(found["config"]),
                           dict(found["postprocessing"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the description of a network ({error})") from error
