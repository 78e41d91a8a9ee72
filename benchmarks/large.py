"""Large images: tiles against one forward pass, and the time and memory for an image of any size.

    python benchmarks/large.py seams --dataset DIR
    python benchmarks/large.py slide --dataset DIR --side 20000 --output FOLDER

`seams` enlarges the images of a subset twofold and scores them detected as a whole and in tiles,
at the same scale: the score, and the paired difference with its interval.

`slide` lays the fluorescence images of a subset side by side, turned at random, as a tiled 16-bit
TIFF, and runs `nucleus.py detect` on it in a process of its own, whose time and peak memory it
prints.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.command import exit_code  # noqa: E402
from mrcnn.cli.flag_values import above_zero, positive  # noqa: E402
from samples.nucleus.nucleus import load_dataset  # noqa: E402

TIFF_TILE = 512
ENLARGED = 2
# Side of the tiles of `seams`, in pixels of the scaled image: several for most images.
SEAMS_TILE = 384


# ---- Seams -------------------------------------------------------------------------------------


def enlarged(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 [H, W, C] (resized smoothly) and label layers [H, W, L], twice as large."""
    from mrcnn.pixels.resampling import resize_smooth

    shape = tuple(ENLARGED * side for side in image.shape[:2])
    smooth = np.rint(resize_smooth(image, shape)).astype(np.uint8)
    return smooth, truth.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def seams(options: argparse.Namespace) -> None:
    """Compare tiles with one forward pass."""
    import mrcnn
    from mrcnn.console import Progress
    from mrcnn.evaluation import metrics
    from mrcnn.evaluation.bootstrap import paired_difference
    from mrcnn.pixels.overlaps import iou_matrix

    dataset = load_dataset(options.dataset, options.subset, labelled=True)
    numbers = list(dataset.image_ids)[: options.limit]
    detector, progress = mrcnn.load(options.weights), Progress(len(numbers), "seams")
    scores, counts, tiles = {"whole": [], "tiled": []}, {"whole": 0, "tiled": 0}, 0
    for number in numbers:
        image, truth = enlarged(dataset.load_image(number), dataset.load_layers(number)[0])
        whole = detector.detect(image)
        # The same scale for both.
        diameter = detector.model.config.OBJECT_SIZE / whole.scale
        seen = []
        tiled = detector.detect(
            image,
            diameter=diameter,
            tile=SEAMS_TILE,
            progress=lambda done, total, seen=seen: seen.append(total),
        )
        tiles += seen[-1]
        for name, result in (("whole", whole), ("tiled", tiled)):
            iou = iou_matrix(truth, result.labels)
            scores[name].append(metrics.threshold_scores(iou).mean())
            counts[name] += len(result)
        progress.step()
    mean, interval = paired_difference(scores["tiled"], scores["whole"])
    print(f"{len(numbers)} images of {options.subset}, {ENLARGED} times as large, {tiles} tiles")
    for name in scores:
        print(f"{name}: score {np.mean(scores[name]):.4f}, {counts[name]} nuclei")
    print(f"tiled - whole: {mean:+.4f} (95 %: {interval.low:+.4f} to {interval.high:+.4f})")


# ---- A slide -----------------------------------------------------------------------------------


def write_slide(path: Path, side: int, dataset_dir: str, subset: str) -> None:
    """Write a square image of `side` pixels, uint16 in a tiled TIFF, tile by tile."""
    import tifffile

    from samples.nucleus.kinds import kind_of

    dataset = load_dataset(dataset_dir, subset, labelled=True)
    parts, rng = [], np.random.default_rng(0)
    for number in dataset.image_ids:
        truth = dataset.load_layers(number)[0]
        image = dataset.load_image(number)
        areas = np.bincount(truth[truth > 0])
        if kind_of(image, areas[areas > 0]).startswith("fluorescence"):
            grey = image[..., 0]
            if min(grey.shape) >= 256:
                parts.append(grey[:256, :256])
    blocks = -(-side // TIFF_TILE)

    def tiles():
        for _ in range(blocks * blocks):
            four = [np.rot90(parts[rng.integers(len(parts))], rng.integers(4)) for _ in range(4)]
            tile = np.block([[four[0], four[1]], [four[2], four[3]]])
            yield tile.astype(np.uint16) * 16 + 100  # a 12-bit camera

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side),
        dtype=np.uint16,
        compression="zlib",
        tile=(TIFF_TILE, TIFF_TILE),
    )


def slide(options: argparse.Namespace) -> None:
    """Time `nucleus.py detect` on a large image."""
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"slide_{options.side}.tif"
    if not path.is_file():
        write_slide(path, options.side, options.dataset, options.subset)
    started = time.monotonic()
    command = [
        sys.executable,
        str(Path(ROOT_DIR, "samples", "nucleus", "nucleus.py")),
        "detect",
        str(path),
        "--diameter",
        str(options.diameter),
        "--weights",
        options.weights,
        "--format",
        options.format,
        "--output",
        str(options.output / "found"),
    ]
    subprocess.run(command, check=True)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{options.side} x {options.side} pixels: {seconds:.0f} s, "
        f"{seconds / (options.side / 1000) ** 2:.2f} s per million pixels, peak {peak:.2f} GB"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in ("seams", "slide")}
    for name, subset in (("seams", "val"), ("slide", "train")):
        made[name].add_argument("--dataset", required=True, metavar="DIR")
        made[name].add_argument("--subset", default=subset, help="(default: %(default)s)")
        made[name].add_argument("--weights", default="nucleus", metavar="W")
    made["seams"].add_argument("--limit", type=positive, metavar="N")
    made["slide"].add_argument("--side", type=positive, default=20_000, metavar="PIXELS")
    made["slide"].add_argument(
        "--diameter",
        type=above_zero,
        default=24.0,
        metavar="PIXELS",
        help="24 is scale 1 (default)",
    )
    made["slide"].add_argument("--format", default="labels,geojson")
    made["slide"].add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    return exit_code("large.py", lambda: {"seams": seams, "slide": slide}[options.command](options))


if __name__ == "__main__":
    sys.exit(main())
