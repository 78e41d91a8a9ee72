"""Detections on Dask whose workers, client and scheduler are killed, and what is left of them.

Right is: workers that are killed change nothing but the time; what a killed client or scheduler
leaves is whole, and the same command then finishes the run; no image is lost or doubled, and all
files are those of the run that nobody disturbed, without a cluster, to the last bit.

    workers    a run on a local cluster, of which random workers are killed at random moments
    client     SIGKILL for the program itself, then the same command with --resume
    scheduler  a cluster of its own processes, whose scheduler is killed, then another one
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.campaigns.common import Tally, import_commands, leftovers, parse, torn_file
from tests.campaigns.kill import content
from tests.campaigns.network import Launched, make_images, make_weights, mrcnn

KINDS = ("workers", "client", "scheduler")
# Runs of each kind; in each of the first, so many workers are killed.
COUNTS = {"workers": 4, "client": 5, "scheduler": 1}
KILLS = 5
BETWEEN_KILLS = 1, 5  # seconds
LONGEST_RUN = 600
IMAGES = 30
FORMATS = "report,pictures,labels,coco,measurements"
ROOT = Path(__file__).resolve().parents[2]


def command(data: Path, folder: Path, *more: str) -> list:
    return [
        *("detect", data / "images", "--output", folder, "--format", FORMATS, "--diameter", 32),
        *("--weights", data / "start.h5", "--precision", "float32", "--min-confidence", 0, *more),
    ]


def finished(folder: Path) -> int:
    """Images of a run that are done."""
    with contextlib.suppress(OSError):
        return max(0, (folder / ".mrcnn-run.jsonl").read_bytes().count(b"\n") - 1)
    return 0


def workers_of(pid: int) -> list[int]:
    """Worker processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            line = (path.parent / "cmdline").read_bytes()
            if parent == str(pid) and b"spawn_main" in line:
                found.append(int(path.parent.name))
    return found


def wrong_with(folder: Path, right: dict) -> list[str]:
    """What is wrong with the files of a finished run."""
    found = content(folder)
    differing = [name for name in right if found.get(name) != right[name]]
    wrong = [torn_file(folder)]
    if differing:
        lost = sum(name not in found for name in differing)
        wrong.append(f"changed or lost: {len(differing)}, of them lost {lost}: {differing[0]}")
    if more := sorted(found.keys() - right.keys()):
        wrong.append(f"files that should not be there: {more[0]}")
    if left := leftovers(folder):
        wrong.append(f"temporary files left: {left[0]}")
    rows = (folder / ".mrcnn-run.jsonl").read_text().count('\n{"name"')
    if rows != IMAGES:
        wrong.append(f"images lost or doubled: {rows} in place of {IMAGES}")
    return [text for text in wrong if text]


def kill_workers(data: Path, folder: Path, rng: np.random.Generator) -> list[str]:
    """One run, of which KILLS workers are killed; what is wrong."""
    run = Launched(mrcnn(*command(data, folder, "--workers", "2")))
    killed = 0
    while killed < KILLS and not run.ended():
        time.sleep(rng.uniform(*BETWEEN_KILLS))
        workers = workers_of(run.pid)
        if workers and finished(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(rng.choice(workers)), signal.SIGKILL)
                killed += 1
    code = run.wait(LONGEST_RUN)
    print(f"  {killed} workers killed, {run.seconds:.0f} s", flush=True)
    if code != 0:
        return [f"exit code {code}: {run.last_line()}"]
    return wrong_with(folder, right_of(data))


def kill_client(data: Path, folder: Path, rng: np.random.Generator) -> list[str]:
    """A run that is killed when some images are done, and gone on with; what is wrong."""
    run = Launched(mrcnn(*command(data, folder, "--workers", "2")))
    wanted = int(rng.integers(1, IMAGES - 5))
    while finished(folder) < wanted and not run.ended():
        time.sleep(0.02)
    workers = workers_of(run.pid)
    run.send(signal.SIGKILL)
    run.wait(10)
    done, wrong = finished(folder), [torn_file(folder)]
    time.sleep(5)
    alive = [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]
    if alive:
        wrong.append(f"workers go on after their client: {len(alive)}")
    run = Launched(mrcnn(*command(data, folder, "--workers", "2", "--resume")))
    if run.wait(LONGEST_RUN) != 0:
        return [*filter(None, wrong), f"does not go on: {run.last_line()}"]
    print(f"  killed after {done} of {IMAGES}", flush=True)
    if f"{done} of {IMAGES} images are in" not in run.output:
        wrong.append(f"does not go on from {done}: {run.output[:200]}")
    return [*filter(None, wrong), *wrong_with(folder, right_of(data))]


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a scheduler in a process of its own, with two workers; and the process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"}
    dask = [sys.executable, "-m", "dask"]
    quiet = {"env": environment, "stderr": subprocess.STDOUT, "stdout": subprocess.PIPE}
    local = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    scheduler = subprocess.Popen([*dask, "scheduler", *local, "--port", "0"], text=True, **quiet)
    started = [scheduler]
    try:
        address = next(
            found[0] for line in scheduler.stdout if (found := re.findall(r"tcp://[\d.:]+", line))
        )
        quiet["stdout"] = subprocess.DEVNULL
        how = ["--nworkers", "2", "--nthreads", "1", "--death-timeout", "300"]
        started.append(subprocess.Popen([*dask, "worker", address, *local, *how], **quiet))
        yield address, scheduler
    finally:
        for process in started:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def kill_scheduler(data: Path, folder: Path, rng: np.random.Generator) -> list[str]:
    """A run whose scheduler is killed, and that goes on with another one; what is wrong."""
    wrong = []
    with cluster() as (address, scheduler):
        run = Launched(mrcnn(*command(data, folder, "--scheduler", address)))
        wanted = int(rng.integers(1, IMAGES - 10))
        while finished(folder) < wanted and not run.ended():
            time.sleep(0.02)
        scheduler.kill()
        code = run.wait(90)
        if code != 2 or "Traceback" in run.output:
            wrong.append(f"exit code {code} without a scheduler: {run.last_line()}")
        elif "is gone" not in run.output:
            wrong.append(f"says another thing: {run.output[-300:]}")
        wrong.append(torn_file(folder))
    gone = [line for line in run.output.splitlines() if "is gone" in line]
    print(f"  killed after {finished(folder)} of {IMAGES}: {gone}", flush=True)
    with cluster() as (address, _):
        run = Launched(mrcnn(*command(data, folder, "--scheduler", address, "--resume")))
        if run.wait(LONGEST_RUN) != 0:
            wrong.append(f"does not go on: {run.last_line()}")
    return [*filter(None, wrong), *wrong_with(folder, right_of(data))]


def undisturbed(data: Path) -> None:
    """Make what `right_of` reads."""
    run = Launched(mrcnn(*command(data, data / "undisturbed")))
    assert run.wait(LONGEST_RUN) == 0, run.output


def right_of(data: Path) -> dict:
    """What a run without a cluster has found."""
    return content(data / "undisturbed")


def main(arguments: list[str] | None = None) -> int:
    options = parse("cluster", __doc__.split("\n\n")[0], KINDS, 0, arguments)
    # Scores depend on the number of threads in their last bits.
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    import_commands()

    tally = Tally(options)
    cases = {"workers": kill_workers, "client": kill_client, "scheduler": kill_scheduler}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "data")
        make_images(data, IMAGES)
        make_weights(data / "start.h5")
        undisturbed(data)
        for number_of_kind, kind in enumerate(KINDS):
            count = options.count or COUNTS[kind]
            for number in range(options.first, options.first + count):
                if kind not in options.only or tally.time_is_up:
                    break
                rng = np.random.default_rng([options.seed, number_of_kind, number])
                folder = Path(name, f"{kind}_{number}")
                print(f"{kind} {number}:", flush=True)
                wrong = cases[kind](data, folder, rng)
                tally.add(kind, number, kind, *wrong)
                shutil.rmtree(folder, ignore_errors=True)
    return tally.finish()


if __name__ == "__main__":
    sys.exit(main())
