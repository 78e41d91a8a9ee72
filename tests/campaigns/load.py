"""Many images, several threads, two runs in one folder.

images      one detector over --images images: memory is flat after the first 200
threads     8 threads find what one finds
detections  two detections into one folder at once: the second says so and stops, and the
            results of the first are whole
trainings   two trainings in one --logs at once: each has a folder of its own, or the second
            says so and stops
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.campaigns.common import (
    Tally,
    files_below,
    import_commands,
    leftovers,
    parse,
    resident_megabytes,
    torn_file,
)
from tests.campaigns.kill import LONGEST_RUN, content, detection, training, training_content
from tests.campaigns.network import Launched, make_images, make_weights, mrcnn, refused

KINDS = ("images", "threads", "detections", "trainings")
THREADS = 8
WARM_UP = 200  # images after which memory is flat
GROWTH = 25  # MB that memory may differ afterwards: what an allocator gives back and takes again
SIZES = ((64, 64), (96, 64), (64, 128), (150, 90))  # of images, again and again


# ---- One detector ------------------------------------------------------------------------------


def image(number: int) -> np.ndarray:
    """uint8 [H, W] with some squares."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, SIZES[number % len(SIZES)]).astype(np.uint8)
    for _ in range(4):
        top, left = rng.integers(0, 44, 2)
        pixels[top : top + 16, left : left + 16] = 200
    return pixels


def detector():
    from dataclasses import replace

    from mrcnn.inference.postprocess import DEFAULTS
    from mrcnn.segmenter import Segmenter
    from tests.campaigns.network import small_model

    return Segmenter(small_model(), ("cell",), replace(DEFAULTS, min_score=0.0))


def many_images(count: int, seconds: float) -> str | None:
    """What is wrong with the memory of one detector over so many images."""

    def work() -> int:
        segmenter, memory, end = detector(), [], time.monotonic() + seconds
        for number in range(count):
            segmenter.detect(image(number))
            memory.append(resident_megabytes())
            if time.monotonic() > end:
                print(f"only {number + 1} images in {seconds:.0f} seconds", file=sys.stderr)
                return 2
        after = memory[min(WARM_UP, count // 2) :]
        # The last part against the first: single peaks do not count.
        part = max(1, len(after) // 4)
        growth = float(np.median(after[-part:]) - np.median(after[:part]))
        print(f"memory grows by {growth:.1f} MB in {len(after)} images: {after[-1]:.0f} MB")
        return 0 if growth <= GROWTH else 3

    return _told(Launched(work), seconds + 60)


def many_threads(seed: int, count: int, seconds: float) -> str | None:
    """What is wrong where 8 threads share a detector."""

    def work() -> int:
        segmenter = detector()
        images = [image(1000 * seed + number) for number in range(count)]
        alone = [segmenter.detect(one) for one in images]
        with ThreadPoolExecutor(THREADS) as threads:
            together = list(threads.map(segmenter.detect, images))
        differing = [
            number
            for number, (one, other) in enumerate(zip(alone, together, strict=True))
            if not np.array_equal(one.labels, other.labels)
            or not np.array_equal(one.scores, other.scores)
        ]
        found = sum(len(one) for one in alone)
        print(f"{len(differing)} of {count} images differ in threads ({found} objects in all)")
        return 3 if differing or not found else 0

    return _told(Launched(work), seconds + 60)


def _told(run: Launched, seconds: float) -> str | None:
    code = run.wait(seconds)
    return None if code == 0 else f"exit code {code}: {run.last_line()}"


# ---- Two runs at once --------------------------------------------------------------------------

REFUSAL = ("another", "in use", "already", "running", "second")  # words of which one is said


def both(work, delay: float) -> list[tuple[Launched, int | None]]:
    """Two runs of the same work, the second after some seconds; the second comes last."""
    first = Launched(work)
    first.wait_at_most(delay)
    second = Launched(work)
    second_code = second.wait(LONGEST_RUN)
    return [(first, first.wait(LONGEST_RUN)), (second, second_code)]


def two_detections(data: Path, folder: Path, right: dict, delay: float) -> Iterator[str | None]:
    """What is wrong where two detections write into one folder."""
    (first, first_code), (second, second_code) = both(
        mrcnn(*detection(data).command(folder)), delay
    )
    overlapped = second.started < first.started + first.seconds
    codes = sorted((str(first_code), str(second_code)))
    if overlapped and codes == ["0", "0"]:
        yield "both end with 0: neither says that the other is there"
    for run, code in ((first, first_code), (second, second_code)):
        if code != 0:
            yield refused(run, code, REFUSAL)
    if "0" not in codes:
        yield f"neither works: {first.last_line()}; {second.last_line()}"
    found = content(folder / "found")
    differing = [name for name in right if found.get(name) != right[name]]
    if differing:
        yield f"results are not whole: {differing[0]}"
    left = leftovers(folder)
    if left:
        yield f"temporary files left: {left[0]}"


def two_trainings(data: Path, folder: Path, right: dict, delay: float) -> Iterator[str | None]:
    """What is wrong where two trainings begin in one --logs."""
    kind = training(data, epochs=2, eager=True)
    runs = both(mrcnn(*kind.command(folder), eager=True), delay)
    worked = 0
    for run, code in runs:
        worked += code == 0
        if code != 0:
            yield refused(run, code, REFUSAL)
    if not worked:
        yield "neither works"
    yield torn_file(folder)
    places = [path for path in folder.iterdir() if list(path.glob("mask_rcnn*.h5"))]
    if len(places) != worked:
        yield f"trainings share a folder: {worked} trainings, {len(places)} folders"
    for place in places:
        found = training_content(place)
        differing = [name for name in right if found.get(name) != right[name]]
        if differing:
            yield f"not as a training alone: {len(differing)} of {len(right)}: {differing[0]}"
        extra = [path.name for path in files_below(place / "train")]
        if len(extra) > 1:
            yield f"logs of two runs in one folder: {len(extra)}"


def alone(kind, folder: Path) -> tuple[dict, float]:
    """What a run leaves that has its folder for itself, and its seconds."""
    run = Launched(mrcnn(*kind.command(folder), eager=kind.eager))
    assert run.wait(LONGEST_RUN) == 0, run.output
    return kind.content(folder), run.seconds


# ---- The campaign ------------------------------------------------------------------------------


def try_runs(tally: Tally, options: argparse.Namespace, root: Path) -> None:
    """Two runs at once, for both kinds of runs."""
    data = root / "data"
    make_images(data, 8)
    make_weights(data / "start.h5")
    ways = {
        "detections": (detection(data), two_detections),
        "trainings": (training(data, epochs=2, eager=True), two_trainings),
    }
    for number_of_kind, (name, (kind, judge)) in enumerate(ways.items()):
        if name not in options.only or tally.time_is_up:
            continue
        right, seconds = alone(kind, root / f"{name}_alone")
        for number in range(options.first, options.first + options.count):
            if tally.time_is_up:
                break
            rng = np.random.default_rng([options.seed, number_of_kind, number])
            delay = 0.0 if number == 0 else float(rng.uniform(0, 0.8 * seconds))
            folder = root / f"{name}_{number}"
            wrong = list(judge(data, folder, right, delay))
            tally.add(name, number, f"the second {delay:.1f} s later", *wrong)
            shutil.rmtree(folder)


def main(arguments: list[str] | None = None) -> int:
    options = parse("load", __doc__.split("\n\n")[0], KINDS, 5, arguments, images=2000)
    import_commands()

    tally = Tally(options)
    if "images" in options.only:
        wrong = many_images(options.images, options.seconds)
        tally.add("images", options.first, f"{options.images} images", wrong)
    if "threads" in options.only:
        for number in range(options.first, options.first + options.count):
            if tally.time_is_up:
                break
            wrong = many_threads(options.seed + number, 6 * THREADS, options.seconds)
            tally.add("threads", number, f"{6 * THREADS} images", wrong)
    if {"detections", "trainings"} & set(options.only):
        with tempfile.TemporaryDirectory() as name:
            try_runs(tally, options, Path(name))
    return tally.finish()


if __name__ == "__main__":
    sys.exit(main())
