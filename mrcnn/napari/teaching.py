"""Fine-tuning in a process of its own: if it crashes, the viewer and unsaved work are not lost.

TensorFlow has crashed where a second network was made in another thread of the viewer's process.

    python -m mrcnn.napari.teaching SET WEIGHTS MINUTES

is that process. It prints a line of JSON for each step, for the result, or for what is wrong, among
the lines of the training, and ends when its standard input does.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from mrcnn.errors import UserError, one_line
from mrcnn.fine_tuning import fine_tune
from mrcnn.training.corrections import IMAGES, LABELS

RUNS = "runs"  # below a training set: the weights that were trained on it
# Seconds between two checks whether the user has cancelled, and those that the process then has.
PATIENCE, TO_END = 0.2, 20
MESSAGE = '{"teaching": '  # how lines for the viewer begin


class Cancelled(Exception):
    """The weights are no longer wanted."""


def teach(folder: Path, weights: str, minutes: float, progress: Callable[[int, int], None]) -> Path:
    """Fine-tune weights on a training set; see `mrcnn.fine_tuning.fine_tune`.

    progress: called several times per second with the number of steps done and in all, 0 and 0
        before it is known. An error that it raises ends the training and leaves nothing behind.

    Returns the new weight file, which is below the training set's folder. Raises UserError where
    that holds nothing to train on, and where the process ends without a result.
    """
    if not (folder / IMAGES).is_dir():
        raise UserError(f"{folder}: no training set yet: add corrected images first")
    # Not multiprocessing, which would run the script that opened the viewer again.
    process = subprocess.Popen(
        [sys.executable, "-m", "mrcnn.napari.teaching", str(folder), weights, str(minutes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    try:
        return _follow(lines, progress)
    finally:
        process.stdin.close()  # the process ends after the current step
        try:
            process.wait(TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Put the lines of a stream into a queue, and None after them."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _follow(lines: queue.SimpleQueue[str | None], progress: Callable[[int, int], None]) -> Path:
    """The result that a process prints. Raises UserError where it prints none, or an error."""
    done, total, last = 0, 0, "nothing was printed"
    while True:
        progress(done, total)
        try:
            line = lines.get(timeout=PATIENCE)
        except queue.Empty:
            continue
        if line is None:
            raise UserError(f"fine-tuning ended without a result: {one_line(last, 200)}")
        if not line.startswith(MESSAGE):
            last = line.strip() or last
            continue
        what, *values = json.loads(line)["teaching"]
        if what == "wrong":
            raise UserError(*values)
        if what == "done":
            return Path(*values)
        done, total = values


def work(arguments: Iterable[str]) -> None:
    """What the process runs."""
    folder, weights, minutes = arguments
    cancelled = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        cancelled.set()

    def say(*message: str | int) -> None:
        print(MESSAGE + json.dumps(message) + "}", flush=True)

    def report(done: int, total: int) -> None:
        if cancelled.is_set():
            raise Cancelled
        say("steps", done, total)

    threading.Thread(target=wait_for_end, daemon=True).start()
    images, labels = (Path(folder, part) for part in (IMAGES, LABELS))
    try:
        runs = Path(folder, RUNS)
        new = fine_tune(images, labels, weights, minutes=float(minutes), logs=runs, progress=report)
        say("done", str(new))
    except UserError as error:
        say("wrong", str(error))
    except Cancelled:
        pass


if __name__ == "__main__":
    work(sys.argv[1:])
