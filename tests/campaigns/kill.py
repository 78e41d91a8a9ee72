"""Trainings and detections that signals end, and what the next run makes of what they left.

A run is ended by SIGKILL, SIGTERM or SIGINT, either after a random time or when it opens, renames
or removes a file for the n-th time: before, between and after the parts of a checkpoint or result.
Then the same command goes on. Right is: no torn file under its final name; the next run ends well;
its table, weights and results are those of the run that nobody disturbed, to the last bit; no
temporary file is left; SIGINT and SIGTERM end a run with their exit codes, within seconds.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.campaigns.common import Tally, files_below, import_commands, leftovers, parse, torn_file
from tests.campaigns.network import Launched, make_images, make_weights, mrcnn

KINDS = ("training", "detection")
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")
# A run may finish what is at hand after a signal; twice what is promised, on a busy machine.
PATIENCE = 20
LONGEST_RUN = 150
EPOCHS = 3
FORMATS = "report,pictures,labels,rois,geojson,coco,measurements"


class Kind(NamedTuple):
    """What is run, and what it leaves."""

    eager: bool
    command: Callable[[Path], list]  # of a folder: the first run, and every one after it
    content: Callable[[Path], dict]  # of a folder: what must be equal
    own: Callable[[Path], Path]  # of a folder: what must hold no temporary files at the end


class Ending(NamedTuple):
    """How a run is ended: by a signal after so many seconds or so many events."""

    signal: signal.Signals
    seconds: float | None
    event: int | None

    def __str__(self) -> str:
        moment = f"{self.seconds:.2f} s" if self.event is None else f"file operation {self.event}"
        return f"{self.signal.name} at {moment}"


# ---- Runs --------------------------------------------------------------------------------------


def watched(kind: Kind, folder: Path, count, ending: Ending | None = None):
    """The work of a command that counts its file operations below a folder, and ends at one."""
    work = mrcnn(*kind.command(folder), eager=kind.eager)

    def hook(event: str, arguments: tuple) -> None:
        if event not in EVENTS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if str(folder) in os.fspath(arguments[0]):
            count.value += 1
            if ending and count.value == ending.event:
                os.kill(os.getpid(), ending.signal)

    def watched_work() -> int:
        sys.addaudithook(hook)  # for good: the process is a child of its own
        return work()

    return watched_work


def end(kind: Kind, folder: Path, ending: Ending) -> str | None:
    """Start a command and end it. Returns what is wrong with how it ends."""
    count = multiprocessing.RawValue("i", 0)
    run = Launched(watched(kind, folder, count, ending))
    if ending.seconds is not None and run.wait_at_most(ending.seconds) is None:
        run.send(ending.signal)
        code = run.wait(PATIENCE)
    else:
        code = run.wait(LONGEST_RUN)
    if code is None:
        return f"does not end by {ending.signal.name}"
    if code not in (0, CODES[ending.signal]):  # it may have been done already
        return f"exit code {code} after {ending.signal.name}: {run.last_line()}"
    if "Traceback (most recent call last)" in run.output:
        return f"traceback after {ending.signal.name}: {run.last_line()}"
    return None


def choose(rng: np.random.Generator, seconds: float, events: int) -> Ending:
    chosen = list(CODES)[rng.integers(3)]
    if rng.random() < 0.5:
        # Before that, the process is not yet the program: Python's own start.
        return Ending(chosen, float(rng.uniform(0.2, max(0.3, seconds))), None)
    return Ending(chosen, None, int(rng.integers(1, events + 1)))


# ---- Training ----------------------------------------------------------------------------------


def training(data: Path, epochs: int, eager: bool) -> Kind:
    images, labels = data / "images", data / "labels"

    def command(folder: Path) -> list:
        weights = "last" if list(folder.glob("*/mask_rcnn*.h5")) else data / "start.h5"
        return [
            *("train", "--images", images, "--labels", labels, "--logs", folder),
            *("--weights", weights, "--schedule", "joint", "--epochs", epochs, "--steps", 1),
            *("--batch-size", 1, "--workers", 1, "--precision", "float32"),
            *(("--val-share", 0) if eager else ()),  # 24 steps an epoch
        ]

    def last_run(folder: Path) -> Path:
        return max(path for path in folder.iterdir() if list(path.glob("mask_rcnn*.h5")))

    return Kind(eager, command, lambda folder: training_content(last_run(folder)), last_run)


def training_content(run: Path) -> dict:
    """Rows of the table without the times, and the arrays of the last checkpoint and its state."""
    from tests.support.weight_arrays import read_weights

    with open(run / "training.csv", newline="") as file:
        rows = [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in csv.DictReader(file)
        ]
    found = {f"row {row['epoch']} of training.csv": row for row in rows}
    newest = max(run.glob("mask_rcnn*.h5"))
    for layer, tensors in read_weights(newest).layers.items():
        found |= {f"{newest.name} {layer}/{k}": array.tobytes() for k, array in tensors.items()}
    with np.load(max(run.glob("state_*.npz"))) as state:
        found |= {f"state {k}": state[k].tobytes() for k in state.files if k != "header"}
    return found


# ---- Detection ---------------------------------------------------------------------------------


def detection(data: Path) -> Kind:
    def command(folder: Path) -> list:
        return [
            *("detect", data / "images", "--output", folder / "found", "--format", FORMATS),
            *("--weights", data / "start.h5", "--precision", "float32", "--min-confidence", 0),
        ]

    return Kind(False, command, lambda folder: content(folder / "found"), lambda folder: folder)


def content(folder: Path) -> dict:
    """What the files below a folder hold, but for times."""
    return {str(path.relative_to(folder)): _content(path) for path in files_below(folder)}


def _content(path: Path) -> object:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    if path.suffix == ".html":
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", path.read_text())
    return path.read_bytes()


# ---- The campaign ------------------------------------------------------------------------------


def undisturbed(kind: Kind, folder: Path) -> tuple[dict, float, int]:
    """(content, seconds, file operations) of a run that nobody ends."""
    count = multiprocessing.RawValue("i", 0)
    run = Launched(watched(kind, folder, count))
    assert run.wait(LONGEST_RUN) == 0, run.output
    return kind.content(folder), run.seconds, count.value


def judge(kind: Kind, folder: Path, endings: list[Ending], right: dict) -> list[str]:
    """What is wrong after a run was ended once or several times, and then left alone."""
    wrong = []
    for ending in endings:
        wrong += [end(kind, folder, ending), torn_file(folder)]
    run = Launched(mrcnn(*kind.command(folder), eager=kind.eager))
    code = run.wait(LONGEST_RUN)
    if code != 0:
        return [*wrong, f"the next run ends with {code}: {run.last_line()}"]
    found = kind.content(folder)
    differing = [name for name in right if found.get(name) != right[name]]
    if differing:
        lost = [name for name in differing if name not in found]
        if lost:
            wrong.append(f"lost: {len(lost)} of {len(right)}, first: {lost[0]}")
        else:
            wrong.append(f"changed: {len(differing)} of {len(right)}, first: {differing[0]}")
    left, more = leftovers(kind.own(folder)), sorted(found.keys() - right.keys())
    if left:
        wrong.append(f"temporary files left: {left[0]}")
    elif more:
        wrong.append(f"files that should not be there: {more[0]}")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    options = parse("kill", __doc__.split("\n\n")[0], KINDS, 50, arguments, trains=True)
    import_commands()

    tally = Tally(options)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "data")
        make_images(data, 6)
        make_weights(data / "start.h5")
        kinds = {"training": training(data, EPOCHS, options.eager), "detection": detection(data)}
        for number_of_kind, kind in enumerate(KINDS):
            if kind not in options.only:
                continue
            right, seconds, events = undisturbed(kinds[kind], Path(name, f"{kind}_undisturbed"))
            for number in range(options.first, options.first + options.count):
                if tally.time_is_up:
                    break
                rng = np.random.default_rng([options.seed, number_of_kind, number])
                endings = [choose(rng, seconds, events) for _ in range(1 + (rng.random() < 0.25))]
                folder = Path(name, f"{kind}_{number}")
                wrong = judge(kinds[kind], folder, endings, right)
                tally.add(kind, number, ", then ".join(map(str, endings)), *wrong)
                shutil.rmtree(folder, ignore_errors=True)
    return tally.finish()


if __name__ == "__main__":
    sys.exit(main())
