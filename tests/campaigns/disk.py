"""Full disks at every file that is written.

Each command runs with a limit on the size of its files (RLIMIT_FSIZE), or, where this user may
mount one, on a file system of a few kilobytes; the limits are chosen so that every file is hit.
Right is: exit code 2, one line, no torn file under its final name, no temporary file left; or exit
code 0 where everything fits.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.campaigns.common import Tally, files_below, import_commands, leftovers, parse, torn_file
from tests.campaigns.kill import FORMATS
from tests.campaigns.network import Launched, make_images, make_weights, mrcnn, refused

LONGEST_RUN = 300


def commands(data: Path, eager: bool) -> dict[str, Callable[[Path], Callable[[], int]]]:
    """By the name of a kind, from the folder that it writes into to the work of a command."""
    weights = ("--weights", data / "start.h5")
    pairs = ("--images", data / "images", "--labels", data / "labels")
    exact = ("--precision", "float32")

    def training(folder: Path) -> Callable[[], int]:
        how = ("--epochs", 2, "--steps", 1, "--batch-size", 1, "--workers", 1)
        places = ("--logs", folder / "logs", "--cache", folder / "cache")
        return mrcnn(
            *("train", *pairs, *weights, *places, *how, *exact, "--schedule", "joint"),
            *("--val-share", 0),
            eager=eager,
        )

    def detection(folder: Path) -> Callable[[], int]:
        wanted = ("--output", folder / "found", "--format", FORMATS, "--min-confidence", 0)
        return mrcnn("detect", data / "images", *weights, *exact, *wanted)

    def evaluation(folder: Path) -> Callable[[], int]:
        return mrcnn("evaluate", *pairs, *weights, *exact, "--output", folder / "scores")

    def compression(folder: Path) -> Callable[[], int]:
        return mrcnn("compress", *weights, "--rank", 4, "--output", folder / "smaller.h5")

    def exporter(name: str, place: str) -> Callable[[Path], Callable[[], int]]:
        how = ("--format", name, "--size", 64)
        return lambda folder: mrcnn("export", *weights, *how, "--output", folder / place)

    return {
        "training": training,
        "detection": detection,
        "evaluation": evaluation,
        "compression": compression,
        "onnx": exporter("onnx", "network.onnx"),
        "saved_model": exporter("saved_model", "network"),
        "synthesis": synthesis,
    }


def synthesis(folder: Path) -> Callable[[], int]:
    """The work of the sample's command `synthesize`."""

    def work() -> int:
        from samples.nucleus import nucleus

        how = ["--count", "3", "--size", "64"]
        return nucleus.main(["synthesize", "--output", str(folder / "synthetic"), *how])

    return work


KINDS = tuple(commands(Path(), False))


class Limit(NamedTuple):
    """A disk that is full after so many bytes: of one file, or of all files together."""

    of_all: bool
    size: int

    def __str__(self) -> str:
        return f"{'file system' if self.of_all else 'files'} of {self.size} bytes"


def choose(rng: np.random.Generator, sizes: list[int], may_mount: bool) -> Limit:
    """A limit that one of the files of these sizes hits, any of them alike."""
    if may_mount and rng.random() < 0.5:
        return Limit(True, int(rng.uniform(4096, max(8192, sum(sizes)))))
    return Limit(False, int(rng.uniform(0, sizes[rng.integers(len(sizes))])))


def limited(work: Callable[[], int], limit: Limit) -> Callable[[], int]:
    def limited_work() -> int:
        if not limit.of_all:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit.size, hard))
        return work()

    return limited_work


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[bool]:
    """An empty file system of so many bytes on a folder; False where this user may not have it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        done = False
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def judge(work: Callable[[], int], folder: Path, limit: Limit, sizes: list[int]) -> list:
    """What is wrong with how a command ends on a disk that is full."""
    with mounted(folder, limit.size) if limit.of_all else contextlib.nullcontext():
        folder.mkdir(exist_ok=True)
        run = Launched(limited(work, limit))
        code = run.wait(LONGEST_RUN)
        wrong = [torn_file(folder)]
        left = leftovers(folder, (".tmp",))
    if left:
        wrong.append(f"temporary files left: {left[0]}")
    too_small = limit.size < 0.9 * (sum(sizes) if limit.of_all else max(sizes))
    if code != 0:
        wrong.append(refused(run, code))
    elif too_small:
        wrong.append(f"exit code 0 on a full disk: {run.last_line()}")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    options = parse("disk", __doc__.split("\n\n")[0], KINDS, 20, arguments, trains=True)
    import_commands()

    tally = Tally(options)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "data")
        make_images(data, 3)
        make_weights(data / "start.h5")
        work_of = commands(data, options.eager)
        with mounted(Path(name, "try"), 2**16) as may_mount:
            pass
        for number_of_kind, kind in enumerate(KINDS):
            if kind not in options.only or tally.time_is_up:
                continue
            whole = Path(name, f"{kind}_whole")
            whole.mkdir()
            run = Launched(work_of[kind](whole))
            assert run.wait(LONGEST_RUN) == 0, run.output
            sizes = [path.stat().st_size for path in files_below(whole)]
            for number in range(options.first, options.first + options.count):
                if tally.time_is_up:
                    break
                rng = np.random.default_rng([options.seed, number_of_kind, number])
                limit = choose(rng, sizes, may_mount)
                folder = Path(name, f"{kind}_{number}")
                wrong = judge(work_of[kind](folder), folder, limit, sizes)
                tally.add(kind, number, str(limit), *wrong)
                shutil.rmtree(folder)
    return tally.finish()


if __name__ == "__main__":
    sys.exit(main())
