"""What a checkpoint needs besides weights to resume exactly: optimizer, random streams, progress.

One `.npz` file, without pickle: the optimizer's variables, the states of the model's seed
generators, the weights being trained where the checkpoint holds others (their average), and the
caller's progress as JSON.
"""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mrcnn.atomic import atomic_path
from mrcnn.errors import UserError, one_line

FORMAT = 1
WEIGHTS = "weight"
SEED_STATE = "seed_generator_state"  # what Keras calls the variable of a SeedGenerator


def save_state(
    path: str | os.PathLike, model: keras.Model, progress: dict[str, Any], *, weights: bool = False
) -> None:
    """Writes the training state, atomically.

    Args:
        path: an `.npz` file.
        model: the model that trains; without an optimizer only seeds and progress are saved.
        progress: anything that JSON can hold.
        weights: save the weights too.

    Raises:
        UserError: the file cannot be written.
    """
    arrays, paths = {}, {}
    for kind, variables in _variables(model, weights).items():
        paths[kind] = [variable.path for variable in variables]
        for number, variable in enumerate(variables):
            arrays[f"{kind}_{number}"] = _storable(keras.ops.convert_to_numpy(variable))
    header = {"format": FORMAT, "paths": paths, "progress": progress}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def load_state(
    path: str | os.PathLike, model: keras.Model, *, optimizer: bool = True
) -> dict[str, Any]:
    """Restores what `save_state` wrote and returns the progress.

    The learning rate is not restored: it is what the model was compiled with, so that a new rate
    can be given on resuming; schedules follow the optimizer's step counter, which is restored.
    Weights are restored where the file has them. Nothing is assigned unless everything fits.

    Args:
        model: compiled as when the state was saved: same optimizer, same trainable layers.
        optimizer: False leaves optimizer and weights alone, e.g. for another stage of training.

    Raises:
        UserError: the file is absent or damaged, or belongs to another model or optimizer.
    """
    header, arrays = _read(Path(path))
    plan = []
    for kind, variables in _variables(model, WEIGHTS in header["paths"]).items():
        if kind != "seed" and not optimizer:
            continue
        stored = [
            (name, arrays.get(f"{kind}_{number}"))
            for number, name in enumerate(header["paths"].get(kind, []))
            if not _is_rate(name)
        ]
        _compare_paths(Path(path), kind, [v.path for v in variables], [name for name, _ in stored])
        for variable, (_, array) in zip(variables, stored, strict=True):
            if array is None or array.shape != tuple(variable.shape):
                shape = "nothing" if array is None else array.shape
                raise UserError(
                    f"{path} holds {shape} for {variable.path}, which has {tuple(variable.shape)}; "
                    "resume with the configuration that the run was started with"
                )
            plan.append((variable, array))
    for variable, array in plan:
        variable.assign(array)
    return header["progress"]


def read_progress(path: str | os.PathLike) -> dict[str, Any] | None:
    """The progress in a state file; None where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not Path(path).exists():
        return None
    return _read(Path(path))[0]["progress"]


def seeds(model: keras.Model) -> list[keras.Variable]:
    """The states of the model's random streams."""
    # By path, because they are among `variables` and `non_trainable_variables`, not `weights`.
    return [v for v in model.non_trainable_variables if v.path.endswith(SEED_STATE)]


def _variables(model: keras.Model, weights: bool) -> dict[str, list[keras.Variable]]:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    of_optimizer = [] if optimizer is None else optimizer.variables
    found = {"optimizer": [v for v in of_optimizer if not _is_rate(v.path)], "seed": seeds(model)}
    return {**found, WEIGHTS: list(model.weights)} if weights else found


def _is_rate(path: str) -> bool:
    # An optimizer has this variable only if its rate is a number, not a schedule.
    return path.rpartition("/")[2] == "learning_rate"


def _storable(array: np.ndarray) -> np.ndarray:
    # NumPy's files do not support bfloat16; float32 holds all its values.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.exists():
        raise UserError(f"{path}: there is no such state file; training cannot resume from it")
    try:
        with zipfile.ZipFile(path) as members:
            # np.savez compresses nothing, so that no member is larger than the file.
            if any(member.compress_type for member in members.infolist()):
                raise ValueError("compressed")
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
        found, lists = header["format"], header["paths"].values()
        header["progress"]  # noqa: B018  (a KeyError means damage)
        if not all(isinstance(name, str) for names in lists for name in names):
            raise TypeError("a path is not text")
        if any(array.dtype.kind not in "biuf" for array in arrays.values()):
            raise TypeError("an array does not hold numbers")
    except Exception as error:  # zip files, NumPy and JSON raise a dozen kinds of errors
        raise damaged(path) from error
    if found != FORMAT:
        raise UserError(
            f"{path} has format {one_line(found)}, this version reads {FORMAT}; update mrcnn"
        )
    return header, arrays


def damaged(path: Path) -> UserError:
    """The error for a state file that cannot be used."""
    return UserError(
        f"{path} is damaged or not a training state; delete it to resume from the weights alone"
    )


def _without_counter(path: str) -> str:
    # Keras numbers optimizers and seed generators as they are made: seed_generator_14/...
    return re.sub(r"^([^/]*?)_\d+/", r"\1/", path)


def _compare_paths(path: Path, kind: str, ours: list[str], theirs: list[str]) -> None:
    """Values are assigned by position; the paths must agree with that."""
    ours, theirs = ([_without_counter(name) for name in names] for names in (ours, theirs))
    if ours == theirs:
        return
    differ = sorted(set(ours) ^ set(theirs)) or ["their order"]
    raise UserError(
        f"{path} does not fit: {len(theirs)} {kind} variables in the file, {len(ours)} in the "
        f"model (e.g. {differ[0]}); resume with the same OPTIMIZER and the same layers"
    )
