"""Fine-tuning in a process of its own: whatever happens to it, the viewer and what is unsaved stay.

TensorFlow has crashed where a second network was made in another thread of the viewer's process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from mrcnn.errors import UserError
from mrcnn.fine_tuning import fine_tune
from mrcnn.training.corrections import IMAGES, LABELS

RUNS = "runs"  # below a training set: the weights that were made of it
# Seconds between two looks at whether the user has cancelled, and those that the process then has.
PATIENCE, TO_END = 0.2, 20


def teach(folder: Path, weights: str, minutes: float, progress: Callable[[int, int], None]) -> Path:
    """Fine-tune weights on a training set; see `mrcnn.fine_tuning.fine_tune`.

    progress: called some times a second with the steps done and their number, 0 and 0 before it is
        known. An error that it raises ends the training and leaves nothing.

    Returns the new weight file, which is below the training set's folder. Raises UserError where
    that holds nothing to train on, and where the process ends in another way.
    """
    if not (folder / IMAGES).is_dir():
        raise UserError(f"{folder}: no training set yet: add corrected images first")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, folder, weights, minutes), daemon=True)
    process.start()
    there.close()
    try:
        return _follow(here, progress)
    except EOFError:
        process.join()
        raise UserError(
            f"fine-tuning ended without a result (exit code {process.exitcode}); `mrcnn train "
            "--fine-tune` with the same folder shows why"
        ) from None
    finally:
        here.close()  # a process that still trains notices with its next step
        process.join(TO_END)
        process.kill()


def _follow(here: Connection, progress: Callable[[int, int], None]) -> Path:
    """The result that a process sends. Raises EOFError where it ends without one."""
    done, total = 0, 0
    while True:
        progress(done, total)
        if not here.poll(PATIENCE):
            continue
        what, *values = here.recv()
        if what == "wrong":
            raise UserError(*values)
        if what == "done":
            return Path(*values)
        done, total = values


def _work(there: Connection, folder: Path, weights: str, minutes: float) -> None:
    """The process."""
    try:
        path = fine_tune(
            folder / IMAGES,
            folder / LABELS,
            weights,
            minutes=minutes,
            logs=folder / RUNS,
            progress=lambda done, total: there.send(("steps", done, total)),
        )
        there.send(("done", str(path)))
    except UserError as error:
        there.send(("wrong", str(error)))
    except BrokenPipeError:  # cancelled
        pass
