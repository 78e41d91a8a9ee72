"""Images per second that the training loader makes from images with hundreds of nuclei.

    python benchmarks/loader.py                                    synthetic images, in memory
    python benchmarks/loader.py --dataset DIR --subset stage1_train    the fullest real ones
    python benchmarks/loader.py --profile                          where the time goes

An image is all that `mrcnn.data.batches.BatchLoader` makes for a training step: a crop of 512x512
pixels scaled to OBJECT_SIZE with scale jitter, flips, quarter turns and colour changes, its boxes
and mini masks, molded, in batches as samples/nucleus trains on them (IMAGES_PER_GPU). Decoded
images are in memory, as after the first epoch; with --dataset the first reading is timed too, from
the files and from a CACHE_DIR.

One thread is one core: libraries may not use threads of their own. The rows of several threads and
processes count finished batches in the main process, which is where training needs them.
"""

from __future__ import annotations

import argparse
import os
import sys

if __name__ == "__main__":  # before NumPy is imported; worker processes inherit it
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[_name] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cProfile  # noqa: E402
import multiprocessing  # noqa: E402
import pstats  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)

import numpy as np  # noqa: E402

from mrcnn.cli.flag_values import positive  # noqa: E402
from mrcnn.data.augment import RandomAugmentation  # noqa: E402
from mrcnn.data.batches import BatchLoader  # noqa: E402
from mrcnn.data.dataset import Dataset  # noqa: E402
from mrcnn.data.sources import ImageReader  # noqa: E402
from mrcnn.errors import UserError  # noqa: E402
from samples.nucleus.nucleus import NucleusConfig, load_dataset  # noqa: E402

MANY = 200  # nuclei from which an image counts as full
SHAPE = (520, 696)  # pixels, the size of most full images of the Data Science Bowl


class ManyNuclei(Dataset):
    """Images of ellipses of any colour on a noisy background, drawn from their number alone."""

    def fill(self, images: int, nuclei: int) -> ManyNuclei:
        self.add_class("ellipses", 1, "ellipse")
        for number in range(images):
            labels = draw_labels(np.random.default_rng(number), nuclei)
            self.add_image("ellipses", f"image{number}", None, labels=labels)
        self.prepare()
        return self

    def load_image(self, image_id: int) -> np.ndarray:
        rng = np.random.default_rng(image_id)
        inside = self.image_info[image_id]["labels"][..., None] > 0
        light = 30 + inside * rng.uniform(60, 150, 3) + rng.normal(0, 8, (*SHAPE, 3))
        return np.clip(light, 0, 255).astype(np.uint8)

    def load_layers(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        labels = self.image_info[image_id]["labels"]
        return labels[..., None], np.ones(labels.max(), np.int32)


def draw_labels(rng: np.random.Generator, nuclei: int) -> np.ndarray:
    """Label map int32 [*SHAPE] of at least `nuclei` ellipses, one per cell of a grid."""
    cell = np.sqrt(SHAPE[0] * SHAPE[1] / nuclei)
    grid = np.ceil(np.array(SHAPE) / cell).astype(int)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    cells = (rows * grid[0] / SHAPE[0]).astype(int), (columns * grid[1] / SHAPE[1]).astype(int)
    spacing = (np.array(SHAPE) / grid)[:, None, None]
    centre = np.stack(np.mgrid[: grid[0], : grid[1]] + 0.5) * spacing
    centre += rng.uniform(-0.1, 0.1, centre.shape) * cell
    radius = rng.uniform(0.22, 0.38, centre.shape) * cell
    distance = np.hypot(
        (rows - centre[0][cells]) / radius[0][cells],
        (columns - centre[1][cells]) / radius[1][cells],
    )
    number = cells[0] * grid[1] + cells[1] + 1
    return np.where(distance < 1, number, 0).astype(np.int32)


def fullest(dataset: Dataset, images: int) -> Dataset:
    """Keep the images with MANY nuclei or, if there are none, the `images` with the most."""
    counts = np.array([len(info["entry"].masks) for info in dataset.image_info])
    order = np.argsort(-counts, kind="stable")
    kept = order[: int((counts >= MANY).sum()) or images]
    dataset.image_info = [dataset.image_info[i] for i in kept]
    dataset.prepare()
    return dataset


def make_dataset(options: argparse.Namespace) -> Dataset:
    if options.dataset is None:
        return ManyNuclei().fill(options.images, options.nuclei)
    return fullest(load_dataset(options.dataset, options.subset, labelled=True), options.images)


def make_config(options: argparse.Namespace, **values) -> NucleusConfig:
    values |= {"IMAGE_MIN_DIM": options.side, "IMAGE_MAX_DIM": options.side}
    return type("LoaderConfig", (NucleusConfig,), values)()


def make_loader(options: argparse.Namespace) -> BatchLoader:
    """A loader with all images in memory and its lookup tables filled."""
    loader = BatchLoader(
        make_dataset(options), make_config(options), augmentation=RandomAugmentation(), steps=10**6
    )
    for image_id in loader.dataset.image_ids:
        loader.reader.read(image_id)
    loader[0]
    return loader


# ---- Workers -----------------------------------------------------------------------------------

_loader: BatchLoader | None = None  # of a worker process


def _start_process(options: argparse.Namespace) -> None:
    global _loader
    _loader = make_loader(options)


def _batch_in_process(index: int) -> dict[str, np.ndarray]:
    return _loader[index][0]


def rate(get_batch, pool: Executor | None, options: argparse.Namespace) -> float:
    """Images per second: the median of several runs over as many batches."""
    seconds = []
    indices = range(options.batches)
    for _ in range(options.repeat):
        start = time.perf_counter()
        for batch in map(get_batch, indices) if pool is None else pool.map(get_batch, indices):
            images = len(batch["input_image"])
        seconds.append(time.perf_counter() - start)
    return options.batches * images / statistics.median(seconds)


def time_workers(loader: BatchLoader, options: argparse.Namespace) -> list[tuple[str, int, float]]:
    """Rows of the table: (what, cores it may use, images per second)."""

    def get_batch(index: int) -> dict[str, np.ndarray]:
        return loader[index][0]

    cores = os.cpu_count() or 1
    rows = [("1 thread", 1, rate(get_batch, None, options))]
    for workers in options.workers:
        with ThreadPoolExecutor(workers) as pool:
            row = (f"{workers} threads", min(workers, cores), rate(get_batch, pool, options))
        rows.append(row)
    for workers in options.workers:
        context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
        with ProcessPoolExecutor(workers, context, _start_process, (options,)) as pool:
            list(pool.map(_batch_in_process, range(2 * workers)))  # until all have started
            row = (
                f"{workers} processes", min(workers, cores), rate(_batch_in_process, pool, options)
            )  # fmt: skip
        rows.append(row)
    return rows


def time_reading(dataset: Dataset, options: argparse.Namespace) -> list[tuple[str, int, float]]:
    """The first reading of every image: from its files, and from a folder of decoded ones."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(options, CACHE_DIR=folder)
        for what in ("first reading, files", "first reading, CACHE_DIR"):
            reader = ImageReader(dataset, config)
            start = time.perf_counter()
            for image_id in dataset.image_ids:
                reader.read(image_id)
            rows.append((what, 1, len(dataset.image_ids) / (time.perf_counter() - start)))
    return rows


def profile(loader: BatchLoader, options: argparse.Namespace) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    for index in range(options.batches):
        loader[index]
    profiler.disable()
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(25)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", metavar="DIR", help="as for nucleus.py train (default: synthetic images)")
    add("--subset", metavar="NAME", default="stage1_train")
    add("--side", type=positive, default=512, help="pixels of a crop, a multiple of 64")
    add("--images", type=positive, default=8, help="synthetic images, or real ones if none is full")
    add("--nuclei", type=positive, default=300, help="least number of nuclei in a synthetic image")
    add("--batches", type=positive, default=50, help="batches that are timed")
    add("--repeat", type=positive, default=3, help="timed runs; the median counts")
    add("--workers", type=positive, nargs="*", default=[2, 4], help="threads or processes to try")
    add("--profile", action="store_true", help="print where the time of one thread goes")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    try:
        loader = make_loader(options)
    except UserError as error:
        print(f"loader.py: {error}", file=sys.stderr)
        return 2
    if options.profile:
        profile(loader, options)
        return 0
    nuclei = [len(loader.reader.read(i)[2]) for i in loader.dataset.image_ids]
    crops = [(loader[i][0]["input_gt_class_ids"] > 0).sum(axis=1).mean() for i in range(20)]
    side = options.side
    print(f"{len(nuclei)} images of {min(nuclei)} to {max(nuclei)} nuclei (mean "
          f"{np.mean(nuclei):.0f}); crops of {side}x{side}, {np.mean(crops):.0f} nuclei each on "
          f"average; {os.cpu_count()} cores\n")  # fmt: skip
    rows = time_workers(loader, options)
    if options.dataset:
        rows += time_reading(loader.dataset, options)
    print("| | images/s | per core |\n| --- | ---: | ---: |")
    for what, cores, speed in rows:
        print(f"| {what} | {speed:.1f} | {speed / cores:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
