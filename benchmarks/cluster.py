"""Detection on a Dask cluster: speed with one and two workers, overhead, memory, a large image.

    python benchmarks/cluster.py images --images DIR --output FOLDER
    python benchmarks/cluster.py overhead
    python benchmarks/cluster.py slide --side 20000 --output FOLDER

`images` runs `mrcnn detect` on a folder with one worker and with two, one thread each, alternately,
and prints images per second, their ratio, and the peak memory of client (with the scheduler) and
workers. `overhead` sends empty tasks the same way. `slide` writes an OME-Zarr of discs, detects in
it without and with a cluster, and compares counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT_DIR = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT_DIR)

from benchmarks.command import exit_code  # noqa: E402
from mrcnn.cli.flag_values import positive  # noqa: E402
from mrcnn.distributed.cluster import THREADS, local_cluster  # noqa: E402

CHUNK = 512
EMPTY_TASKS = 2000


def peak_of(process: subprocess.Popen, peaks: dict[str, int]) -> None:
    """Keep the peak memory in bytes of a program and of all its workers together."""
    import psutil

    try:
        parent = psutil.Process(process.pid)
        workers = sum(child.memory_info().rss for child in parent.children(recursive=True))
        for name, size in (("client", parent.memory_info().rss), ("workers", workers)):
            peaks[name] = max(peaks.get(name, 0), size)
    except psutil.NoSuchProcess:
        pass


def detect(images: Path, output: Path, *more: str) -> tuple[dict, dict[str, int]]:
    """Run the command; returns its JSON summary and the peak memory."""
    command = [sys.executable, "-m", "mrcnn", "detect", str(images), "--output", str(output)]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": ROOT_DIR}
    flags = ["--json", "--overwrite", "--precision", "float32", "--format", "labels"]
    process = subprocess.Popen([*command, *flags, *more], env=environment, stdout=subprocess.PIPE)
    peaks: dict[str, int] = {}
    while process.poll() is None:
        peak_of(process, peaks)
        time.sleep(0.1)
    return json.loads(process.stdout.read()), peaks


def said(name: str, done: dict, peaks: dict[str, int]) -> float:
    """Print a line; returns the images per second."""
    rate = done["images"] / done["seconds"]
    memory = ", ".join(f"{who} {size / 1e6:.0f} MB" for who, size in peaks.items())
    print(f"{name}: {rate:.3f} images/s, {done['objects']} objects, peak {memory}", flush=True)
    return rate


def images(options: argparse.Namespace) -> None:
    """Speed with these numbers of workers, alternately."""
    rates: dict[int, list[float]] = {count: [] for count in options.workers}
    for turn in range(options.turns):
        for workers, found in rates.items():
            output = options.output / f"workers_{workers}"
            more = ["--workers", str(workers), "--diameter", str(options.diameter)]
            more += ["--limit", str(options.limit)] if options.limit else []
            found.append(
                said(f"turn {turn + 1}, {workers} workers", *detect(options.images, output, *more))
            )
    median = {workers: float(np.median(found)) for workers, found in rates.items()}
    for workers in options.workers[1:]:
        ratio = median[workers] / median[options.workers[0]]
        print(f"{workers} workers / {options.workers[0]}: {ratio:.2f}")


def nothing() -> None:
    """An empty task."""


def overhead(options: argparse.Namespace) -> None:
    """Milliseconds per empty task, sent the way of an image."""
    from mrcnn.distributed.team import Team, in_order

    with local_cluster(2) as client:
        team = Team(client, "", None, ())
        for name in ("first", "second"):
            start = time.perf_counter()
            tasks = in_order([nothing] * EMPTY_TASKS, team._give_out, team._of, team.ahead)
            count = sum(1 for _ in tasks)
            each = (time.perf_counter() - start) / count
            print(f"{name} {count} empty tasks: {1000 * each:.2f} ms each", flush=True)


def write_slide(path: Path, side: int) -> None:
    """An OME-Zarr uint8 [side, side] of bright discs, chunk by chunk."""
    import zarr

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:CHUNK, :CHUNK]
    group = zarr.create_group(path)
    array = group.create_array("0", shape=(side, side), chunks=(CHUNK, CHUNK), dtype=np.uint8)
    axes = [{"name": name, "type": "space"} for name in "yx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    for top in range(0, side, CHUNK):
        for left in range(0, side, CHUNK):
            pixels = rng.integers(5, 25, (CHUNK, CHUNK)).astype(np.uint8)
            for centre in rng.uniform(20, CHUNK - 20, (60, 2)):
                pixels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < rng.uniform(10, 17) ** 2] = 150
            part = array[top : top + CHUNK, left : left + CHUNK]
            array[top : top + CHUNK, left : left + CHUNK] = pixels[: part.shape[0], : part.shape[1]]


def slide(options: argparse.Namespace) -> None:
    """One large image without and with a cluster."""
    path = options.output / f"slide_{options.side}.zarr"
    if not path.exists():
        write_slide(path, options.side)
    more = ["--diameter", str(options.diameter), "--weights", options.weights]
    counts = []
    for name, how in (("here", []), ("workers", ["--workers", str(options.workers)])):
        done, peaks = detect(path, options.output / name, *more, *how)
        said(name, done, peaks)
        counts.append(done["objects"])
    print("counts equal" if counts[0] == counts[1] else f"counts differ: {counts}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in ("images", "overhead", "slide")}
    made["images"].add_argument("--images", type=Path, required=True, metavar="DIR")
    made["images"].add_argument("--limit", type=positive, metavar="N")
    made["images"].add_argument("--workers", type=positive, nargs="+", default=(1, 2), metavar="N")
    made["images"].add_argument("--turns", type=positive, default=3, metavar="N")
    made["slide"].add_argument("--side", type=positive, default=20_000, metavar="PIXELS")
    made["slide"].add_argument("--workers", type=positive, default=2, metavar="N")
    made["slide"].add_argument("--weights", default="nucleus", metavar="W")
    for name in ("images", "slide"):
        made[name].add_argument("--output", type=Path, required=True, metavar="FOLDER")
        made[name].add_argument(
            "--diameter",
            type=float,
            default=24.0,
            metavar="PIXELS",
            help="24 is scale 1 (default)",
        )
    options = parser.parse_args(arguments)
    work = {"images": images, "overhead": overhead, "slide": slide}[options.command]
    return exit_code("cluster.py", lambda: work(options))


if __name__ == "__main__":
    sys.exit(main())
