"""Damaged files of every kind that is read.

A small whole file is cut, or has bytes flipped, blocks zeroed, doubled or lost, or the header of
another kind of file; text also has its numbers and names replaced; in a few cases a pipe, a device
or a folder has the file's name. Right is: it is read, or it is
refused with one UserError that names the file. Wrong is any other exception, a hang, more memory
than --megabytes, and weights that load without a word although some are absent or no numbers.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from mrcnn.errors import UserError
from tests.campaigns.common import Case, parse, tally_of, verdict

SIDE = 64
REPLACED = 0.03  # share of the cases in which the file is none
# What weights hold before they are loaded, and in files that are none of the user's choice.
UNLIKELY, FOREIGN = 0.734375, 0.21875


class Kind(NamedTuple):
    """One kind of file.

    make: writes a whole file, and what belongs to it, into an empty folder; returns its path.
    use: what the product does with it; its second argument is what `prepare` returned once.
    text: whether it is text.
    spoil: changes what a whole file says; returns how. In place of damage, for some.
    """

    make: Callable[[Path, np.random.Generator], Path]
    use: Callable[[Path, object], str | None]
    text: bool = False
    prepare: Callable[[], object] = lambda: None
    spoil: Callable[[Path, np.random.Generator], str] | None = None


# ---- Whole files -------------------------------------------------------------------------------


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8 image [H, W] and label map uint8 [H, W] of two squares."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[6:22, 8:24], labels[36:56, 30:52] = 1, 2
    image = rng.integers(0, 50, labels.shape) + 160 * (labels > 0)
    return image.astype(np.uint8), labels


def make_image(folder: Path, rng: np.random.Generator) -> Path:
    grey, labels = scene(rng)
    colours = np.stack([grey, grey // 2, grey // 3], axis=-1)
    return IMAGES[rng.integers(len(IMAGES))](folder, grey, colours)


def _pillow(ending: str, pick: Callable, **how) -> Callable:
    def write(folder: Path, grey: np.ndarray, colours: np.ndarray) -> Path:
        path = folder / f"image{ending}"
        pick(grey, colours).save(path, **how)
        return path

    return write


def _tiff(pick: Callable, **how) -> Callable:
    def write(folder: Path, grey: np.ndarray, colours: np.ndarray) -> Path:
        path = folder / ("image.ome.tif" if how.get("ome") else "image.tif")
        tifffile.imwrite(path, pick(grey, colours), **how)
        return path

    return write


IMAGES = (
    _pillow(".png", lambda grey, colours: Image.fromarray(grey)),
    _pillow(".png", lambda grey, colours: Image.fromarray(grey.astype(np.uint16) * 200)),
    _pillow(".png", lambda grey, colours: Image.fromarray(colours)),
    _pillow(".png", lambda grey, colours: Image.fromarray(colours).quantize(16)),
    _pillow(".jpg", lambda grey, colours: Image.fromarray(colours), quality=90),
    _pillow(".jpg", lambda grey, colours: Image.fromarray(grey), progressive=True),
    _pillow(".bmp", lambda grey, colours: Image.fromarray(colours)),
    _tiff(lambda grey, colours: grey),
    _tiff(lambda grey, colours: grey.astype(np.float32), compression="zlib", predictor=True),
    _tiff(lambda grey, colours: colours, photometric="rgb", compression="lzw"),
    _tiff(lambda grey, colours: grey.astype(np.uint16), tile=(32, 32), compression="deflate"),
    _tiff(lambda grey, colours: np.stack([grey.astype(np.uint16)] * 3), imagej=True),
    _tiff(lambda grey, colours: np.stack([grey] * 4).reshape(2, 2, SIDE, SIDE), ome=True,
          metadata={"axes": "ZCYX", "PhysicalSizeX": 0.5, "Channel": {"Name": ["a", "b"]}}),
    _tiff(lambda grey, colours: np.stack([grey] * 3), bigtiff=True, photometric="minisblack"),
)  # fmt: skip


def make_microscope(folder: Path, rng: np.random.Generator) -> Path:
    """A file as microscopes and scanners write it."""
    from tests.images import test_czi, test_lif, test_nd2, test_slides

    grey, labels = scene(rng)
    deep = grey.astype(np.uint16) * 200
    path = folder / ("image.czi", "image.lif", "image.nd2", "image.ndpi")[rng.integers(4)]
    if path.suffix == ".czi":
        tiles = [(deep[:, x : x + 32, None], (x, 0), {"Z": z}, 0) for z in (0, 1) for x in (0, 32)]
        compression = test_czi.ZSTD if rng.random() < 0.5 else "uncompressed:"
        test_czi.write(path, tiles, compression, **test_czi.MICRONS)
    elif path.suffix == ".lif":
        stack = np.stack([deep, deep // 2])
        test_lif.write(path, *((name, stack, "ZYX", ("Gray",), (0,)) for name in ("a", "b")))
    elif path.suffix == ".nd2":
        frames = np.stack([deep] * 6)[..., np.newaxis]
        places = test_nd2.loop(2, test_nd2.POSITIONS, test_nd2.loop(4, test_nd2.DEPTHS))
        test_nd2.write(path, frames, ("DAPI",), places)
    else:
        colours = np.stack([grey, grey // 2, grey // 3], axis=-1)
        test_slides.write_ndpi(path, (colours, 0.25, 40), (colours[::2, ::2], 0.5, 20))
    return path


def labelled_image(folder: Path, rng: np.random.Generator) -> np.ndarray:
    """Writes images/a.png; returns its label map."""
    image, labels = scene(rng)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    Image.fromarray(image).save(folder / "images" / "a.png")
    return labels


def make_label_image(folder: Path, rng: np.random.Generator) -> Path:
    labels = labelled_image(folder, rng)
    form = rng.integers(5)
    path = folder / "labels" / ("a.tif" if form < 3 else "a.png")
    if form == 0:
        tifffile.imwrite(path, labels.astype(np.uint16), compression="zlib")
    elif form == 1:
        tifffile.imwrite(path, labels.astype(np.float32))
    elif form == 2:
        tifffile.imwrite(path, labels.astype(np.int32), tile=(16, 16))
    elif form == 3:
        Image.fromarray(labels).save(path)
    else:
        image = Image.fromarray(labels, "P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        image.save(path)
    return path


def make_coco(folder: Path, rng: np.random.Generator) -> Path:
    labels = labelled_image(folder, rng)
    from mrcnn.results.result_files import coco_annotations

    annotations = coco_annotations(labels, None, 1, 1)
    corners = [8, 6, 24, 6, 24, 22, 8, 22]
    annotations[0]["segmentation"] = [corners]
    if rng.random() < 0.3:
        annotations[1]["segmentation"]["counts"] = "PPYo1" + "3" * int(rng.integers(9))
    path = folder / "labels.json"
    image = {"id": 1, "file_name": "a.png", "height": SIDE, "width": SIDE}
    categories = [{"id": 1, "name": "cell"}]
    path.write_text(
        json.dumps({"images": [image], "categories": categories, "annotations": annotations})
    )
    return path


def make_roi(folder: Path, rng: np.random.Generator) -> Path:
    labels = labelled_image(folder, rng)
    from mrcnn.results.result_files import write_imagej_rois

    path = folder / "labels" / "a.zip"
    write_imagej_rois(path, labels.astype(np.int32))
    if rng.random() < 0.3:
        return path
    with zipfile.ZipFile(path) as archive:
        data = archive.read("0001.roi")
    path.unlink()
    path = path.with_suffix(".roi")
    path.write_bytes(data)
    return path


def kaggle_folder(folder: Path, rng: np.random.Generator) -> Path:
    """One image in Kaggle's layout; returns one of its masks."""
    image, labels = scene(rng)
    place = folder / "stage1_train" / "a"
    for name in ("images", "masks"):
        (place / name).mkdir(parents=True)
    Image.fromarray(np.stack([image] * 3, axis=-1)).save(place / "images" / "a.png")
    for label in (1, 2):
        mask = np.where(labels == label, 255, 0).astype(np.uint8)
        if rng.random() < 0.3:
            path = place / "masks" / f"{label}.tif"
            tifffile.imwrite(path, mask)
        else:
            path = place / "masks" / f"{label}.png"
            Image.fromarray(mask).convert("1" if rng.random() < 0.3 else "L").save(path)
    return path


def make_zip(folder: Path, rng: np.random.Generator) -> Path:
    kaggle_folder(folder, rng)
    path = folder / "stage1_train.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / "stage1_train").rglob("*.*")):
            archive.write(file, file.relative_to(folder / "stage1_train"))
            file.unlink()
    for place in sorted((folder / "stage1_train").rglob("*"), reverse=True):
        place.rmdir()
    (folder / "stage1_train").rmdir()
    return path


def make_submission(folder: Path, rng: np.random.Generator) -> Path:
    from samples.nucleus.submission import SubmissionWriter

    _, labels = scene(rng)
    path = folder / "submit.csv"
    writer = SubmissionWriter(path)
    writer.add("a", labels, np.array([0.9, 0.8]))
    writer.add("b", np.zeros_like(labels), np.zeros(0))
    writer.close()
    return path if rng.random() < 0.8 else folder / "scores.csv"


def make_sidecar(folder: Path, rng: np.random.Generator) -> Path:
    from mrcnn.presets import inference_config
    from mrcnn.weights import description
    from tests.campaigns.network import SmallRecipe

    path = folder / "weights.json"
    how = {"min_score": 0.2}
    training = {"preset": None, "config": ["LEARNING_RATE=.01"], "schedule": None, "augment": []}
    described = description.describe(inference_config(SmallRecipe)(), ("cell",), how, "", training)
    values = {**described.__dict__, "code": []}
    path.write_text(json.dumps(values, default=list, indent=1))
    return path


def make_weights(folder: Path, rng: np.random.Generator) -> Path:
    path = folder / "weights.h5"
    path.write_bytes(_weights_of_small_model())
    return path


def spoil_weights(path: Path, rng: np.random.Generator) -> str:
    """Change what a weight file holds, in a file that is whole for HDF5."""
    import h5py

    with h5py.File(path, "r+") as file:
        layers = list(file.attrs["layer_names"])
        layer = layers[rng.integers(len(layers))]
        tensors = list(file[layer].attrs["weight_names"])
        ways = ("a layer not listed", "one layer alone", "a tensor gone", "no numbers", "a link")
        way = ways[rng.integers(len(ways))]
        if way == "a layer not listed":
            file.attrs["layer_names"] = np.array([one for one in layers if one != layer])
        elif way == "one layer alone":
            file.attrs["layer_names"] = np.array([layer])
        elif tensors:
            shape = file[layer][tensors[0]].shape
            del file[layer][tensors[0]]
            if way == "no numbers":  # or too large for float32
                value = rng.choice([np.nan, np.inf, 1e300])
                file[layer].create_dataset(tensors[0], data=np.full(shape, value))
            elif way == "a link":
                with h5py.File(path.with_name("elsewhere.h5"), "w") as other:
                    other["data"] = np.full(shape, FOREIGN, np.float32)
                file[layer][tensors[0]] = h5py.ExternalLink("elsewhere.h5", "/data")
    return f"{way}: {layer.decode()}"


_whole: list[bytes] = []


def _weights_of_small_model() -> bytes:
    if not _whole:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "weights.h5")
            _model().save_weights(path)
            _whole.append(path.read_bytes())
    return _whole[0]


_models: list = []


def _model():
    from tests.campaigns.network import small_model

    if not _models:
        _models.append(small_model())
    return _models[0]


# ---- What the product does with them -----------------------------------------------------------


def use_image(path: Path, segmenter) -> str | None:
    """As `detect` does, with a network that finds nothing."""
    from mrcnn.images.image_files import find_images

    images, unreadable = find_images([path])
    for one in unreadable:  # `detect` prints both
        raise UserError(f"{one.path}: {one.reason}")
    for image in images[:8]:
        pixels = image.read()
        if pixels.shape != image.shape:
            return f"another shape than announced: {pixels.shape} for {image.shape}"
        try:
            segmenter.detect(pixels, diameter=30)
        except UserError as error:  # `detect` names the image
            raise UserError(f"{path}: {error}") from error
    return None


def blind_segmenter():
    from tests.support.nucleus_models import Finder, segmenter

    class Blind(Finder):
        def detect_patches(self, images, probabilities=False, scales=None):
            return [{"scores": np.zeros(0), "patches": []} for _ in images]

    return segmenter(Blind())


def use_pair(path: Path, _) -> None:
    """As `train` does, with the images and labels of a folder."""
    from mrcnn.data.labelled import LabelledImages
    from mrcnn.data.pairs import find_pairs

    folder = next(place for place in path.parents if (place / "images").is_dir())
    labels = path if path.suffix == ".json" else folder / "labels"
    dataset = LabelledImages()
    dataset.load_pairs(find_pairs(folder / "images", labels), "cell")
    dataset.prepare()
    for number in dataset.image_ids:
        dataset.load_image(number)
        dataset.load_layers(number)


def use_kaggle(path: Path, _) -> None:
    from samples.nucleus.dsb2018 import load_dataset

    folder = path.parent if path.suffix == ".zip" else path.parents[3]
    dataset = load_dataset(str(folder), "stage1_train")
    for number in dataset.image_ids:
        dataset.load_image(number)
        if dataset.is_labelled(number):
            dataset.load_layers(number)


def use_submission(path: Path, _) -> str | None:
    from samples.nucleus.submission import Submission

    path = path.with_name("submit.csv")
    submission = Submission(path)
    for image_id in submission.image_ids:
        pixels = np.count_nonzero(submission.labels(image_id, (SIDE, SIDE)))
        submission.scores(image_id)
        said = _pixels_of(path, image_id)
        if pixels != said:
            return f"overlapping runs are read without a word: {pixels} pixels of {said}"
    return None


def _pixels_of(path: Path, image_id: str) -> int:
    """The lengths of all runs of an image in a submission, added."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row and row[0].strip() == image_id]
    return sum(int(length) for row in rows for length in row[1].split()[1::2])


def use_sidecar(path: Path, _) -> None:
    from mrcnn.cli import settings
    from mrcnn.inference.postprocess import PostProcessing
    from mrcnn.presets import MicrographConfig
    from mrcnn.weights import description

    weights = path.with_suffix(".h5")
    found = description.beside(weights)
    if found is None:  # what lies there is no file
        return
    found.make_config(path)
    PostProcessing.of(found.postprocessing, path)
    settings.beside(weights).applied_to(MicrographConfig)


def use_weights(path: Path, model) -> str | None:
    from mrcnn.weights.legacy_h5 import ranks_in_file

    variables = model.keras_model.weights
    for variable in variables:
        variable.assign(np.full(variable.shape, UNLIKELY, np.float32))
    ranks_in_file(path)
    model.bank.unfilled = None  # as in a new model
    model.load_weights(str(path), by_name=True)
    try:
        model.check_weights()  # as detecting does
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for variable in variables:
        values = np.asarray(variable)
        if not np.isfinite(values).all():
            return f"weights that are no numbers are loaded without a word: {variable.path}"
        if (values == np.float32(UNLIKELY)).all():
            return f"weights that the file lacks are left out without a word: {variable.path}"
        if (values == np.float32(FOREIGN)).all():
            return f"weights of another file are read: {variable.path}"
    return None


KINDS = {
    "image": Kind(make_image, use_image, prepare=blind_segmenter),
    "mask": Kind(kaggle_folder, use_kaggle),
    "label": Kind(make_label_image, use_pair),
    "weights": Kind(make_weights, use_weights, prepare=_model, spoil=spoil_weights),
    "sidecar": Kind(make_sidecar, use_sidecar, text=True),
    "zip": Kind(make_zip, use_kaggle),
    "submission": Kind(make_submission, use_submission, text=True),
    "coco": Kind(make_coco, use_pair, text=True),
    "roi": Kind(make_roi, use_pair),
    "microscope": Kind(make_microscope, use_image, prepare=blind_segmenter),
}


# ---- Damage ------------------------------------------------------------------------------------

HEADERS = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"BM", b"PK\x03\x04", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n",
    b"Iout\0\xe3", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", b"\x1f\x8b\x08", b"\x93NUMPY",
    b"<html>", b"version https://git-lfs", b"\xef\xbb\xbf", b"\xff\xfe", b"\0" * 16, b"{", b"",
)  # fmt: skip
NUMBERS = (
    "0", "-1", "1e999", "-1e999", "NaN", "1e-320", "123456789012345678901234", "2147483648", "1.5",
    "null", "true", "[]", "{}", '""', '"x"', "9" * 400, "[" * 3000 + "]" * 3000,
)  # fmt: skip
NAMES = (
    '""', '"__init__"', '"validate"', '"_keys"', '"a/../../b"', '"\\u0000"', '"\\ud800"',
    '"' + "x" * 200_000 + '"', '"=1+1"', '"\\n\\u001b[31m"', "1", "null",
)  # fmt: skip


# What marks directories and chunks inside of HDF5, PNG and zip files.
MARKS = re.compile(rb"TREE|SNOD|HEAP|GCOL|IHDR|PLTE|IDAT|PK\x01\x02|PK\x03\x04|PK\x05\x06")


def place(data: bytes, rng: np.random.Generator) -> int:
    """A position in a file: two of three where headers and directories are."""
    end = max(1, len(data))
    where = rng.integers(3)
    if where == 0:
        at = int(rng.integers(min(end, 256)))
        return at if rng.random() < 0.6 else end - 1 - at
    marks = [match.start() for match in MARKS.finditer(data)] if where == 1 else []
    if marks:
        return min(end - 1, marks[rng.integers(len(marks))] + int(rng.integers(120)))
    return int(rng.integers(end))


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: place(data, rng)]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    """Two or four bytes with a number that means much: 0, -1, the largest."""
    changed = bytearray(data)
    width = int(rng.choice([1, 2, 4, 8]))
    start = min(place(data, rng), max(0, len(data) - width))
    value = [b"\0", b"\xff", b"\x7f", rng.bytes(1)][rng.integers(4)] * width
    changed[start : start + width] = value
    return bytes(changed[: len(data)])


def zero(data: bytes, rng: np.random.Generator) -> bytes:
    start, size = place(data, rng), int(rng.integers(1, 600))
    gone = data[start : start + size]
    return data[:start] + bytes(len(gone)) + data[start + size :]


def double(data: bytes, rng: np.random.Generator) -> bytes:
    start, size = place(data, rng), int(rng.integers(1, 600))
    return data[: start + size] + data[start:]


def lose(data: bytes, rng: np.random.Generator) -> bytes:
    start, size = place(data, rng), int(rng.integers(1, 600))
    return data[:start] + data[start + size :]


def swap_header(data: bytes, rng: np.random.Generator) -> bytes:
    header = HEADERS[rng.integers(len(HEADERS))]
    if rng.random() < 0.3:
        return header + rng.bytes(int(rng.integers(200)))
    return header + data[len(header) :]


def replace_number(data: bytes, rng: np.random.Generator) -> bytes:
    return _replace(data, rb"-?\d+\.?\d*", NUMBERS, rng)


def replace_name(data: bytes, rng: np.random.Generator) -> bytes:
    return _replace(data, rb'"[^"]*"', NAMES, rng)


def _replace(data: bytes, pattern: bytes, values: tuple, rng: np.random.Generator) -> bytes:
    found = list(re.finditer(pattern, data))
    if not found:
        return flip(data, rng)
    match = found[rng.integers(len(found))]
    return data[: match.start()] + values[rng.integers(len(values))].encode() + data[match.end() :]


BINARY = (cut, flip, flip, overwrite, overwrite, zero, double, lose, swap_header)
TEXT = (*BINARY, *[replace_number, replace_name] * 4)


def with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have right checksums again, so that damage goes further in."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    made, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + size]
        if at + 12 + size > len(data):
            break
        made += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(made) + data[at:]


def damaged(data: bytes, text: bool, rng: np.random.Generator) -> tuple[bytes, str]:
    """A damaged file, and what was done to it."""
    done = []
    for _ in range(1 + int(rng.random() < 0.3)):
        ways = TEXT if text else BINARY
        way = ways[rng.integers(len(ways))]
        data = way(data, rng)
        done.append(way.__name__)
    if rng.random() < 0.5:
        data = with_checksums(data)
    return data, " and ".join(done)


def replaced(path: Path, rng: np.random.Generator) -> str:
    """Put something that is no file in the place of a file."""
    path.unlink()
    way = ("a pipe", "a link to a pipe", "a link to a device", "a folder")[rng.integers(4)]
    if way == "a folder":
        path.mkdir()
    elif way == "a link to a device":
        path.symlink_to("/dev/zero")
    elif way == "a link to a pipe":
        pipe = path.with_name(".pipe")
        os.mkfifo(pipe)
        path.symlink_to(pipe.name)
    else:
        os.mkfifo(path)
    return way


# ---- The campaign ------------------------------------------------------------------------------


def cases(kind: str, seed: int, first: int, end: int) -> Iterator[Case]:
    """The cases of a kind by number; made in the process that judges them."""
    make, use, text, prepare, spoil = KINDS[kind]
    prepared = prepare()
    for number in range(first, end):
        rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
        with tempfile.TemporaryDirectory(prefix="damage_") as name:
            path = make(Path(name), rng)
            if rng.random() < REPLACED:
                how = replaced(path, rng)
            elif spoil and rng.random() < 0.3:
                how = spoil(path, rng)
            else:
                content, how = damaged(path.read_bytes(), text, rng)
                path.write_bytes(content)
            yield Case(f"{path.name}, {how}", lambda path=path: _judge(use, path, prepared))


def _judge(use: Callable, path: Path, prepared: object) -> str | None:
    said: list[str | None] = []
    with contextlib.redirect_stdout(io.StringIO()):
        wrong = verdict(lambda: said.append(use(path, prepared)), *names_of(path))
    return wrong or (said[0] if said else None)


def names_of(path: Path) -> list[str]:
    """The names by one of which an error has to call a file."""
    others = {
        "weights.json": ["weights.h5"],  # whose description it is
        "stage1_train.zip": ["stage1_train"],
        "submit.csv": ["scores.csv"],
        "scores.csv": ["submit.csv"],
    }
    return [path.name, *others.get(path.name, [])]


def main(arguments: list[str] | None = None) -> int:
    options = parse(
        "damage", __doc__.split("\n\n")[0], list(KINDS), 300, arguments, in_process=True
    )
    return tally_of(options, cases)


if __name__ == "__main__":
    sys.exit(main())
