"""Data sets of synthetic nuclei in the layout of the 2018 Data Science Bowl, with exact masks.

    <output>/<subset>/<ImageId>/images/<ImageId>.png     RGBA, like the competition's files
    <output>/<subset>/<ImageId>/masks/<MaskId>.png       one nucleus each, 0 or 255, disjoint

The kinds of image are those of the competition: small nuclei in fluorescence, large ones with
texture, stained tissue, and cells in bright field. The images of one seed, subset and size are
always the same, and the first images of a large set are those of a small one.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from skimage.io import imsave

from mrcnn.atomic import atomic_folder, locked
from mrcnn.cli.application import Application
from mrcnn.cli.flag_values import names_of, positive, whole
from mrcnn.cli.summary import Summary
from mrcnn.console import Progress
from mrcnn.data.dataset import Dataset
from mrcnn.data.sampling import sampling_weights
from mrcnn.errors import UserError, quoted
from samples.nucleus import synthetic_kinds
from samples.nucleus.dsb2018 import load_dataset
from samples.nucleus.kinds import LEFT_OUT, kept_kinds
from samples.nucleus.pasting import crowd
from samples.nucleus.synthetic_shapes import Scene

KINDS = {
    "fluorescence-small": synthetic_kinds.fluorescence_small,
    "fluorescence-large": synthetic_kinds.fluorescence_large,
    "tissue": synthetic_kinds.tissue,
    "bright-field": synthetic_kinds.bright_field,
    "tissue-fluorescence": synthetic_kinds.tissue_fluorescence,
    "haematoxylin-eosin": synthetic_kinds.haematoxylin_eosin,
}
# The kinds of the competition's training images; the others widen what is trained on.
DEFAULT_KINDS = ("fluorescence-small", "fluorescence-large", "tissue", "bright-field")
MIN_SIZE, MAX_SIZE = 64, 4096


def synthesize(
    output: str | Path,
    count: int = 16,
    size: int = 256,
    seed: int = 0,
    subset: str = "stage1_train",
    kinds: Sequence[str] = DEFAULT_KINDS,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write `count` images of size x size pixels into `<output>/<subset>`.

    kinds: names from KINDS, taken in turn; a name may be given several times to get more of it.
    progress: called with (images done, count) after each image.
    Returns the image ids, hexadecimal names that depend on seed, subset and number only.
    Raises UserError for values that are not allowed and for a subset folder that is not empty.
    """
    _check(count, size, seed, subset, kinds)
    folder = _empty_folder(output, subset)
    image_ids = []
    for index in range(count):
        image_id = _name(seed, subset, index)
        image, labels = draw_image(kinds[index % len(kinds)], size, (seed, subset, index))
        with atomic_folder(folder / image_id) as new:
            _write(new, image_id, image, labels)
        image_ids.append(image_id)
        if progress:
            progress(index + 1, count)
    return image_ids


def crowd_images(
    dataset: Dataset,
    output: str | Path,
    count: int = 16,
    size: int = 256,
    seed: int = 0,
    subset: str = "stage1_train",
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write `count` images of a labelled data set with copies of their nuclei pasted in.

    dataset: prepared; its images are drawn by their sampling weights, those without nuclei left
    out, and cut to `size` pixels per side. The other arguments, and what is returned and
    raised, are those of `synthesize`.
    """
    _check(count, size, seed, subset, list(KINDS))
    folder = _empty_folder(output, subset)
    weights = sampling_weights(dataset)
    image_ids: list[str] = []
    attempt = 0
    while len(image_ids) < count:
        rng = np.random.default_rng((seed, attempt))
        number = int(rng.choice(dataset.image_ids, p=weights / weights.sum()))
        image, labels = _window(dataset, number, size, rng)
        attempt += 1
        if not labels.any():
            if attempt > 100 * count:
                raise UserError("the images to paste nuclei from have no nuclei")
            continue
        image_id = _name(seed, subset, "crowd", len(image_ids))
        with atomic_folder(folder / image_id) as new:
            _write(new, image_id, *crowd(image, labels, rng))
        image_ids.append(image_id)
        if progress:
            progress(len(image_ids), count)
    return image_ids


def _window(dataset: Dataset, number: int, size: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """A random window of an image: uint8 [h, w, 3] and labels int32 [h, w], nothing overlaps."""
    image = dataset.load_image(number)
    labels = dataset.load_layers(number)[0].max(axis=-1)
    y, x = (int(rng.integers(max(length - size, 0) + 1)) for length in labels.shape)
    part = slice(y, y + size), slice(x, x + size)
    return image[part], labels[part]


def draw_image(kind: str, size: int, key: tuple) -> tuple[np.ndarray, np.ndarray]:
    """One image of a kind: image uint8 [size, size, 3], labels int32 [size, size].

    Labels are 0 for background and 1 to N for the N nuclei. `key` (numbers and words) selects
    the image.
    """
    rng = np.random.default_rng(int(_name(*key), 16))
    scene = Scene((size, size))
    image = KINDS[kind](scene, rng)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return image, scene.labels


def _check(count: int, size: int, seed: int, subset: str, kinds: Sequence[str]) -> None:
    if count < 1:
        raise UserError(f"--count {count} is not allowed: a whole number from 1")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"--size {size} is not allowed: from {MIN_SIZE} to {MAX_SIZE} pixels")
    if seed < 0:
        raise UserError(f"--seed {seed} is not allowed: a whole number from 0")
    if not subset or Path(subset).name != subset or subset in (".", ".."):
        raise UserError(f"--subset {quoted(subset)} is not allowed: the name of one folder")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(f"kinds {quoted(unknown)} are unknown: choose from {', '.join(KINDS)}")


def _empty_folder(output: str | Path, subset: str) -> Path:
    folder = Path(output) / subset
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: remove it or choose another --output")
    return folder


def _name(*key) -> str:
    return hashlib.sha256("/".join(map(str, key)).encode()).hexdigest()


def _write(folder: Path, image_id: str, image: np.ndarray, labels: np.ndarray) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    opaque = np.full((*labels.shape, 1), 255, np.uint8)
    rgba = np.concatenate([image, opaque], axis=2)
    imsave(folder / "images" / f"{image_id}.png", rgba, check_contrast=False)
    for number in np.unique(labels[labels > 0]):
        mask = np.where(labels == number, 255, 0).astype(np.uint8)
        path = folder / "masks" / f"{_name(image_id, number)}.png"
        imsave(path, mask, check_contrast=False)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command `synthesize`."""
    add = parser.add_argument
    add("--output", metavar="DIR", required=True, help="data set folder to write into")
    add(
        "--subset",
        metavar="NAME",
        default="stage1_train",
        help="folder inside it (default: %(default)s)",
    )
    add("--count", type=positive, default=40, metavar="N", help="images (default: %(default)s)")
    add(
        "--kinds",
        type=names_of(KINDS),
        metavar="NAME,...",
        help=f"some of {', '.join(KINDS)}, taken in turn; one that is named twice comes twice as "
        "often (default: the first four)",
    )
    add(
        "--size",
        type=positive,
        default=256,
        metavar="N",
        help="pixels per side (default: %(default)s)",
    )
    add("--seed", type=whole, default=0, metavar="N", help="(default: %(default)s)")
    add(
        "--crowd",
        metavar="DIR/SUBSET",
        help="instead of drawn nuclei: real images of this data set, with copies of their nuclei "
        "pasted in next to each other, cut to --size",
    )
    add("--leave-out", choices=tuple(LEFT_OUT), help="with --crowd: no images of this kind")


def run(options: argparse.Namespace, app: Application) -> Summary:
    """The command `synthesize`."""
    if options.crowd and options.kinds:
        raise UserError("--kinds is for drawn nuclei: it has no effect with --crowd")
    if options.leave_out and not options.crowd:
        raise UserError("--leave-out needs --crowd")
    how = (options.count, options.size, options.seed, options.subset)
    with locked(options.output), Progress(options.count, "synthesize") as line:
        if options.crowd:
            source, kinds = Path(options.crowd), kept_kinds(options.leave_out)
            dataset = load_dataset(str(source.parent), source.name, True, kinds)
            crowd_images(dataset, options.output, *how, progress=lambda done, total: line.step())
        else:
            kinds = options.kinds or DEFAULT_KINDS
            synthesize(options.output, *how, kinds, progress=lambda done, total: line.step())
    folder = Path(options.output) / options.subset
    facts = {"images": options.count, "output": folder}
    return Summary(f"{options.count} images in {folder}", facts)
