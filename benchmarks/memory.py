"""Whether memory grows: detects thousands of images of mixed sizes in one process.

    python benchmarks/memory.py                     5000 images of 256 to 1024 pixels
    python benchmarks/memory.py --images 600 --largest 512

Prints the resident memory of the process as it goes and its growth after the first images. The
network is narrow and its weights are random: what is watched is memory, not what is found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

from benchmarks import ours, scenes, workers  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.report import MIB  # noqa: E402

# The nucleus application's way with images, in a network that is cheap beside its backbone.
LIGHT = {
    "IMAGE_MIN_SCALE": 0,
    "IMAGE_MIN_DIM": 0,
    "TOP_DOWN_PYRAMID_SIZE": 32,
    "RPN_CONV_CHANNELS": 32,
    "FPN_CLASSIF_FC_LAYERS_SIZE": 64,
    "MASK_CONV_CHANNELS": 16,
    "PRE_NMS_LIMIT": 400,
    "POST_NMS_ROIS_INFERENCE": 100,
    "DETECTION_MAX_INSTANCES": 50,
}


def resident_memory() -> int:
    """Resident memory of this process in bytes; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError):
        return workers.peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def random_sides(count: int, smallest: int, largest: int) -> np.ndarray:
    """int [count, 2]: heights and widths in pixels, even over the range, always the same."""
    return np.random.default_rng(0).integers(smallest, largest + 1, (count, 2))


def watch(detect, sides: np.ndarray, big_picture: np.ndarray, every: int) -> list[tuple[int, int]]:
    """Detect in a part of `big_picture` of every size; (images so far, resident bytes) after
    every `every` images and at the end. Prints each."""
    readings = []
    start = time.perf_counter()
    for number, (height, width) in enumerate(sides, 1):
        detect(big_picture[:height, :width])
        if number % every == 0 or number == len(sides):
            readings.append((number, resident_memory()))
            shapes = len({tuple(-(-s // 64)) for s in sides[:number]})
            print(
                f"{number:6d} images  {readings[-1][1] / MIB:8.0f} MiB  {shapes:4d} shapes  "
                f"{time.perf_counter() - start:7.0f} s",
                flush=True,
            )
    return readings


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=int, default=5000)
    add("--smallest", type=int, default=256, help="pixels of a side")
    add("--largest", type=int, default=1024, help="pixels of a side")
    add("--every", type=int, default=200, help="pictures between two readings")
    chosen = parser.parse_args(arguments)
    if chosen.images < 1 or chosen.every < 1 or not 1 <= chosen.smallest <= chosen.largest:
        parser.error("--images and --every must be at least 1, --smallest at most --largest")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    setup = parse(arguments)
    return exit_code("memory.py", lambda: report_growth(setup), ValueError)


def report_growth(setup: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    model = ours.make_detector(ours.configuration("nucleus", **LIGHT))
    side = setup.largest
    picture, _ = scenes.draw(scenes.Scene(side, (side // 32) ** 2, (3.0, 8.0), 7))
    sides = random_sides(setup.images, setup.smallest, setup.largest)
    readings = watch(lambda part: model.detect([part]), sides, picture, setup.every)
    first, last = readings[0], readings[-1]
    print(
        f"Growth after the first {first[0]} images: {(last[1] - first[1]) / MIB:.0f} MiB; "
        f"peak {workers.peak_memory() / MIB:.0f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
