"""The folder of a training run: its checkpoints, their training state, and the newest of them.

    logs/nucleus20180214T1105/mask_rcnn_nucleus_0012.h5   weights after 12 epochs
    logs/nucleus20180214T1105/state_0012.npz              optimizer and progress, newest only

With WEIGHT_AVERAGING the weights are the average, and the state has those being trained.

Source: matterport `MaskRCNN.find_last`, `set_log_dir`.
"""

import datetime
import math
import re
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import keras

from mrcnn.atomic import file_system_errors
from mrcnn.errors import MissingFileError
from mrcnn.training import state
from mrcnn.training.averaging import WeightAverage
from mrcnn.weights import weight_files

# Start of the run (from its folder's name), and epochs done.
CHECKPOINT_PATTERN = re.compile(
    r"[\w-]+?(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})[/\\]mask_rcnn_[\w-]+?_(\d{4})\.h5$"
)


def run_of(path: str | None) -> tuple[datetime.datetime, int] | None:
    """When the run of a checkpoint began and the epochs it had done; None for other files."""
    match = CHECKPOINT_PATTERN.search(str(path)) if path else None
    if not match:
        return None
    *when, epoch = (int(group) for group in match.groups())
    try:
        return datetime.datetime(*when), epoch
    except ValueError:  # the digits are not a date
        return None


class Run(NamedTuple):
    """Where a run writes, and how far it has got."""

    folder: Path
    epoch: int = 0
    seconds: float = 0.0
    saved: dict | None = None  # see `progress_of`


def run_at(model_dir: str, name: str, path: str | None, resume: bool) -> Run:
    """The run that a checkpoint belongs to, or a new one.

    As in matterport, a checkpoint of another experiment sets the date and epoch, too; only for a
    checkpoint of this one, by its name, are its folder and, with `resume`, its state used.
    Raises UserError where the state is damaged.
    """
    found = run_of(path)
    if found is None:
        return Run(new_run_folder(model_dir, name))
    (started, epoch), own = found, Path(path).parent
    folder = run_folder(model_dir, name, started)
    if own.name == folder.name:
        folder = own
    saved = progress_of(folder, epoch) if own == folder and resume else None
    return Run(folder, epoch, (saved or {}).get("seconds", 0.0), saved)


def run_folder(model_dir: str, name: str, started: datetime.datetime) -> Path:
    """Where a run writes."""
    return Path(model_dir) / f"{name}{started:%Y%m%dT%H%M}"


def new_run_folder(model_dir: str, name: str) -> Path:
    """A folder for a run that starts now; that of a later minute where this one has checkpoints."""
    started = datetime.datetime.now()
    while newest(run_folder(model_dir, name, started)):
        started += datetime.timedelta(minutes=1)
    return run_folder(model_dir, name, started)


def claim_run_folder(model_dir: str, name: str, wanted: str | None = None) -> Path:
    """Make the folder of a run that starts now; two runs at the same time get one each.

    wanted: the folder to take unless another run has it.
    """
    started = datetime.datetime.now()
    with file_system_errors(model_dir):
        Path(model_dir).mkdir(parents=True, exist_ok=True)
        folder = Path(wanted) if wanted else run_folder(model_dir, name, started)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                folder = run_folder(model_dir, name, started)
                started += datetime.timedelta(minutes=1)


def checkpoint_path(folder, name: str) -> str:
    """Path of a run's checkpoints with a field for the epoch."""
    return str(Path(folder) / f"mask_rcnn_{name}_{{epoch:04d}}.h5")


def state_path(folder, epoch: int) -> Path:
    """Training state of a checkpoint; its name never looks like a weight file's."""
    return Path(folder) / f"state_{epoch:04d}.npz"


def progress_of(folder, epoch: int) -> dict | None:
    """What `StageRun.save` stored with a checkpoint; None where there is no state.

    Raises UserError where the state is damaged.
    """
    path = state_path(folder, epoch)
    progress = state.read_progress(path)
    if progress is None:
        return None
    try:
        stage, seen = progress["stage"], progress.get("plateau")
        numbers = [progress["epoch"], progress["seconds"], stage["epochs"], stage["learning_rate"]]
        numbers += [progress.get(key, 0) for key in ("stage_start", "stage_seconds")]
        numbers += [] if stage.get("seconds") is None else [stage["seconds"]]
        numbers += [] if seen is None else [seen["divisions"], seen["waited"]]
        right = all(math.isfinite(number) and number >= 0 for number in numbers)
        right = right and isinstance(stage["layers"], str) and (seen is None or seen["best"] >= 0)
        right = right and all(isinstance(number, int) for number in (numbers[0], numbers[2]))
    except Exception:  # something is missing, or not a number
        right = False
    if not right:
        raise state.damaged(path)
    return progress


def newest(folder) -> str | None:
    """Path of the newest checkpoint in a run's folder."""
    found = sorted(Path(folder).glob("mask_rcnn*.h5"))
    return str(found[-1]) if found else None


def find_last(model_dir: str, name: str | None = None) -> str:
    """Path of the newest checkpoint of the newest run that has one.

    name: of the runs, by default any.

    Raises:
        MissingFileError: there is none (a FileNotFoundError, as in matterport).
    """
    root = Path(model_dir)
    pattern = re.compile((r".*" if name is None else re.escape(name)) + r"\d{8}T\d{4}")
    folders = root.iterdir() if root.is_dir() else ()
    # By their time, which is the end of their names.
    runs = sorted(
        (p for p in folders if p.is_dir() and pattern.fullmatch(p.name)),
        key=lambda p: (p.name[-13:], p.name),
    )
    for run in reversed(runs):
        if newest(run):
            return newest(run)
    raise MissingFileError(
        f"{root}: no checkpoint mask_rcnn*.h5 in a folder {name or ''}*: train first, or name a "
        "weight file"
    )


def save(
    model: keras.Model,
    folder,
    name: str,
    epoch: int,
    progress: dict,
    keep: int | None,
    average: WeightAverage | None = None,
):
    """Write weights and training state of a finished epoch; drop what is no longer wanted.

    keep: how many checkpoints to keep; None keeps all. average: to write instead of the weights.
    """
    folder = Path(folder)
    # The state first: a checkpoint that exists has its state.
    state.save_state(state_path(folder, epoch), model, progress, weights=average is not None)
    with average.applied() if average else nullcontext():
        weight_files.save_weights(model, checkpoint_path(folder, name).format(epoch=epoch))
    for old in folder.glob("state_*.npz"):
        if old != state_path(folder, epoch):
            old.unlink()
    if keep:
        for old in sorted(folder.glob("mask_rcnn*.h5"))[:-keep]:
            old.unlink()


def continues(saved: dict, stage: dict) -> bool:
    """Whether a stage of training resumes with the optimizer of a checkpoint.

    What is trained must be the same, and either the learning rate is too (perhaps for longer), or
    the saved stage was not finished and only its rate is changed.
    """
    old = saved["stage"]
    time_is_up = old.get("seconds") is not None and saved["seconds"] >= old["seconds"]
    unfinished = saved["epoch"] < old["epochs"] and not time_is_up
    same_rate = old["learning_rate"] == stage["learning_rate"]
    same_parts = (
        old["layers"] == stage["layers"]
        and old.get("freeze_bn", False) == stage.get("freeze_bn", False)
        and old.get("losses") == stage.get("losses")
    )
    return same_parts and (same_rate or unfinished)
