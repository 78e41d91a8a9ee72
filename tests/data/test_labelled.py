"""Training data of the user's own: real files, read back as the instances that were written."""

import csv
import json
import os
import re
import sys
import time
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrcnn.config import Config
from mrcnn.data.labelled import LabelledImages
from mrcnn.data.labels import number_instances
from mrcnn.data.pairs import check_pairs, find_pairs
from mrcnn.data.sources import load_arrays
from mrcnn.data.split import read_split, split, write_split
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.images.image_files import find_pictures
from mrcnn.pixels.exposure import measure
from mrcnn.pixels.masks import layers_to_masks
from mrcnn.pixels.polygons import decode_run_lengths, fill, fill_runs, pack, union
from mrcnn.results import result_files

SIZE = (40, 56)


def label_image(seed=0, size=SIZE):
    """About ten instances; one in two pieces that lie far apart, one with a concave outline.

    Without holes, which ROIs of ImageJ do not have.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.int32)
    for number in range(1, 9):
        cy, cx = rng.integers(0, size)
        radius_y, radius_x = rng.uniform(2, 6, 2)
        inside = ((y - cy) / radius_y) ** 2 + ((x - cx) / radius_x) ** 2 < 1
        if not (labels[inside] != 0).any():
            labels[inside] = number
    labels[:3, :3] = labels[-3:, -4:] = 20
    labels[10:20, 30:38] = 21
    labels[12:14, 34:38] = 0
    return labels


def instances(labels):
    """The instances of a label map as a set of masks."""
    return {(labels == number).tobytes() for number in np.unique(labels[labels > 0])}


def masks_of(layers, count):
    return {mask.tobytes() for mask in np.moveaxis(layers_to_masks(layers, count), -1, 0)}


def write_picture(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, grey)
    else:
        Image.fromarray(grey).save(path)


def write_labels(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        result_files.write_label_image(path, labels)
    else:
        Image.fromarray(labels.astype(np.uint16)).save(path)


def load(pairs):
    dataset = LabelledImages()
    dataset.load_pairs(pairs, "nucleus")
    dataset.prepare()
    return dataset


def labels_of(dataset, number):
    """The label layers of an image, and how many instances it has."""
    layers, class_ids = dataset.load_layers(number)
    return layers, len(class_ids)


def read(images, labels):
    """name -> instances, of all pairs."""
    dataset = load(find_pairs(images, labels))
    found = {}
    for i in dataset.image_ids:
        layers, class_ids = dataset.load_layers(i)
        assert layers.dtype == class_ids.dtype == np.int32 and (class_ids == 1).all()
        assert layers.shape[:2] == dataset.load_image(i).shape[:2]
        found[dataset.image_reference(i)] = masks_of(layers, len(class_ids))
        assert len(found[dataset.image_reference(i)]) == len(class_ids)
    return found


@pytest.fixture
def images(tmp_path):
    """Two images in one folder and one in a folder inside, of different kinds."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(("a.tif", "b.png", "plate/a.jpg")):
        write_picture(folder / name, seed=number)
    return folder


TRUTH = {"a": label_image(0), "b": label_image(1), "plate/a": label_image(2)}


def expected(*names):
    return {name: instances(TRUTH[name]) for name in names or TRUTH}


# ---- Round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_label_images(images, tmp_path, ending):
    for name, labels in TRUTH.items():
        write_labels(tmp_path / "labels" / f"{name}{ending}", labels)
    assert read(images, tmp_path / "labels") == expected()


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_imagej_rois(images, tmp_path, form):
    pytest.importorskip("roifile")
    for name, labels in TRUTH.items():
        path = tmp_path / "rois" / f"{name}.zip"
        result_files.write_imagej_rois(path, labels)
        if form == "folder":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(path.with_suffix(""))
            path.unlink()
    assert read(images, tmp_path / "rois") == expected()


def coco_file(path, truth, change=None):
    """Writes label maps as COCO's annotations; `change` gets the content beforehand."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    for number, (name, labels) in enumerate(truth.items(), 1):
        content["images"].append(
            {"id": number, "file_name": name, "height": labels.shape[0], "width": labels.shape[1]}
        )
        content["annotations"] += result_files.coco_annotations(
            labels, None, number, len(content["annotations"]) + 1
        )
    if change:
        change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("form", ["runs", "compressed", "polygons"])
def test_coco(images, tmp_path, form):
    def change(content):
        for annotation in content["annotations"]:
            runs = annotation["segmentation"]
            if form == "compressed":
                mask = pytest.importorskip("pycocotools.mask")
                packed = mask.frPyObjects(runs, *runs["size"])
                annotation["segmentation"]["counts"] = packed["counts"].decode()
            elif form == "polygons":
                (rows, columns), inside = fill_runs(runs["counts"], runs["size"])
                whole = np.zeros(runs["size"], np.int32)
                whole[rows, columns] = inside
                ((_, pieces),) = result_files.instance_polygons(whole)
                annotation["segmentation"] = [outer.ravel().tolist() for outer, _ in pieces]

    truth = {f"{name}.png": labels for name, labels in TRUTH.items()}
    assert read(images, coco_file(tmp_path / "coco.json", truth, change)) == expected()


# ---- Outlines and run lengths ------------------------------------------------------------------


def even_odd(rings, size):
    """Pixel by pixel: how many edges does a ray from its centre to the left meet?"""
    found = np.zeros(size, bool)
    for row, column in np.ndindex(*size):
        x, y = column + 0.5, row + 0.5
        for ring in rings:
            for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True):
                if (y1 <= y) != (y2 <= y) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) <= x:
                    found[row, column] ^= True
    return found


def whole(patch, size):
    mask = np.zeros(size, bool)
    if patch is not None:
        window, inside = patch
        mask[window] = inside
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_outlines_against_counting(seed):
    """Any corners: concave, crossing itself, a ring in a ring, beyond the image."""
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-6, 22, (rng.integers(3, 9), 2)).tolist() for _ in range(1 + seed % 3)]
    found = whole(fill(rings, (14, 17)), (14, 17))
    np.testing.assert_array_equal(found, even_odd(rings, (14, 17)))
    assert found.any()


def test_outlines_that_share_edges_share_no_pixel():
    """A fan of triangles around a pixel's centre, with edges along rows and through centres."""
    corners = [(0, 0), (5.5, 0), (9, 0), (9, 5.5), (9, 9), (3, 9), (0, 9), (0, 5.5)]
    middle = (4.5, 5.5)
    covered = sum(
        whole(fill([[middle, one, other]], (9, 9)), (9, 9)).astype(int)
        for one, other in zip(corners, corners[1:] + corners[:1], strict=True)
    )
    assert (covered == 1).all()


def test_outlines_without_pixels():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    for ring in (square * 0.4, square + [20, 0], square - [9, 9], square[:2], square[:0]):
        assert fill([ring], (8, 8)) is None
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="no numbers"):
            fill([square, [[0, 0], [1, bad], [1, 1]]], (8, 8))


def test_masks_that_would_fill_the_memory(monkeypatch):
    monkeypatch.setattr("mrcnn.pixels.masks.MAX_LAYER_PIXELS", 10 * 48)
    patch = (slice(0, 2), slice(0, 2)), np.ones((2, 2), bool)
    assert pack([patch] * 10, (6, 8))[0].shape == (6, 8, 10)
    with pytest.raises(UserError, match="masks overlap each other more than 10 times .* 6 x 8"):
        pack([patch] * 11, (6, 8))


def test_union_and_layers():
    square = np.array([[0, 0], [3, 0], [3, 3], [0, 3]])
    one, two, apart = (fill([square + offset], (9, 9)) for offset in (0, 2, 6))
    np.testing.assert_array_equal(
        whole(union([two, None, one]), (9, 9)), whole(one, (9, 9)) | whole(two, (9, 9))
    )
    assert union([None]) is None
    corner, opposite = ([[0, 0], [9, 0], [0, 9]], [[9, 9], [9, 0], [0, 9]])
    for pair in ((corner, opposite), (opposite, corner)):  # each in the box of the other
        assert whole(union(fill([ring], (9, 9)) for ring in pair), (9, 9)).all()
    layers, count, empty = pack([one, two, None, apart], (9, 9))
    assert layers.shape == (9, 9, 2) and (count, empty) == (3, 1)
    masks = layers_to_masks(layers, count)
    for number, patch in enumerate((one, two, apart)):
        np.testing.assert_array_equal(masks[..., number], whole(patch, (9, 9)))


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 1])
def test_run_lengths_of_coco(share):
    mask_api = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(3)
    for size in ((1, 1), (7, 5), (90, 80)):
        mask = rng.random(size) < share
        packed = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = decode_run_lengths(packed["counts"].decode())
        np.testing.assert_array_equal(whole(fill_runs(counts, size), size), mask)


def test_run_lengths_by_hand():
    assert decode_run_lengths("") == []
    assert decode_run_lengths("T3") == [4 + 3 * 32]
    assert decode_run_lengths("592J") == [5, 9, 2, 9 - 6]


def test_wrong_run_lengths():
    for text in ("6 1", "6\x7f", "P", "é"):
        with pytest.raises(ValueError, match="run lengths"):
            decode_run_lengths(text)
    for counts in ([3, 4], [-3, 9], [2**62, 6], []):
        with pytest.raises(ValueError, match="do not add up"):
            fill_runs(counts, (2, 3))
    assert fill_runs([6], (2, 3)) is None and fill_runs([6, 0], (2, 3)) is None
    assert whole(fill_runs([0, 2, 0, 1, 3], (2, 3)), (2, 3)).tolist() == [
        [True, True, False],
        [True, False, False],
    ]


# ---- Label images ------------------------------------------------------------------------------

NUMBERS = np.array([[0, 7, 7, 0], [0, 3, 0, 900], [7, 0, 0, 900]])
NUMBERED = [[0, 2, 2, 0], [0, 1, 0, 3], [2, 0, 0, 3]]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.int16, np.int32, np.float32, np.float64])
def test_numbers_of_any_type(kind, tmp_path):
    assert number_instances(NUMBERS.astype(kind), "x")[0].tolist() == NUMBERED
    write_picture(tmp_path / "a.png", NUMBERS.shape)
    tifffile.imwrite(tmp_path / "a_mask.tif", NUMBERS.astype(kind))
    layers, class_ids = load(find_pairs(tmp_path, tmp_path)).load_layers(0)
    assert layers[..., 0].tolist() == NUMBERED and len(class_ids) == 3
    assert (number_instances(NUMBERS.astype(kind) + kind(1), "x")[0] > 0).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_colour_is_an_instance(mode, tmp_path):
    """Colours that differ in one channel only; alpha differs everywhere and does not count."""
    colours = np.array([[0, 0, 0], [0, 0, 9], [0, 9, 0], [9, 0, 0]], np.uint8)
    picture = colours[np.array(NUMBERED)]
    if mode == "RGBA":
        alpha = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
        picture = np.concatenate([picture, alpha], axis=2)
    made = Image.fromarray(picture)
    made.save(tmp_path / "a_mask.png")
    write_picture(tmp_path / "a.png", NUMBERS.shape)
    layers, _ = load(find_pairs(tmp_path, tmp_path)).load_layers(0)
    assert instances(layers[..., 0]) == instances(NUMBERS)


def test_grey_with_alpha_and_deep_colours(tmp_path):
    alpha = np.arange(12).reshape(3, 4)
    Image.fromarray(np.stack([NUMBERS, alpha], -1).astype(np.uint8)).save(tmp_path / "a_mask.png")
    write_picture(tmp_path / "a.png", NUMBERS.shape)
    layers, _ = load(find_pairs(tmp_path, tmp_path)).load_layers(0)
    assert instances(layers[..., 0]) == instances(NUMBERS)
    deep = np.stack([NUMBERS * 0, NUMBERS * 70, NUMBERS * 0 + 65535 * (NUMBERS > 0)], -1)
    assert number_instances(deep.astype(np.uint16), "x")[0].tolist() == NUMBERED


@pytest.mark.parametrize("value, word", [(-1, "-1"), (0.5, "0.5"), (np.nan, "nan")])
def test_values_that_are_no_labels(value, word, tmp_path):
    array = NUMBERS.astype(np.float32)
    array[1, 2] = value
    write_picture(tmp_path / "a.png", NUMBERS.shape)
    tifffile.imwrite(tmp_path / "a_mask.tif", array)
    with pytest.raises(UserError, match=f"a_mask.tif: holds {word}, but"):
        load(find_pairs(tmp_path, tmp_path)).load_layers(0)


@pytest.mark.parametrize("kind", ["photograph", "complex", "empty"])
def test_images_that_are_no_label_images(kind):
    noise = np.random.default_rng(0).integers(0, 60000, (40, 56))
    array, words = {
        "photograph": (noise, "values in .* pixels are no instances"),
        "complex": (NUMBERS.astype(np.complex64), "type complex64"),
        "empty": (np.zeros((0, 5), np.uint8), "no pixels"),
    }[kind]
    with pytest.raises(UserError, match=f"x.tif: .*{words}"):
        number_instances(array, "x.tif")


def test_binary_images_are_taken_apart_with_one_warning(tmp_path):
    for name in "abc":
        write_picture(tmp_path / f"{name}.png")
        binary = np.uint8(255) * (TRUTH["a"] > 0) if name != "c" else (TRUTH["a"] == 21)
        Image.fromarray(binary).save(tmp_path / f"{name}_mask.png")
    dataset = load(find_pairs(tmp_path, tmp_path))
    with pytest.warns(MRCNNWarning, match="a_mask.png: holds one value") as seen:
        counts = [len(dataset.load_layers(i)[1]) for i in (0, 1, 2, 0)]
    assert len(seen) == 1
    from skimage.measure import label

    assert counts == [label(TRUTH["a"] > 0).max()] * 2 + [1, counts[0]]


@pytest.mark.filterwarnings("error")
def test_one_piece_and_none_are_no_reason_to_warn(tmp_path):
    for name, truth in (("a", TRUTH["a"] == 21), ("b", TRUTH["a"] < 0)):
        write_picture(tmp_path / f"{name}.png")
        Image.fromarray(truth).save(tmp_path / f"{name}_mask.png")
    dataset = load(find_pairs(tmp_path, tmp_path))
    assert [len(dataset.load_layers(i)[1]) for i in (0, 1)] == [1, 0]
    assert dataset.load_mask(1)[0].shape == (*SIZE, 0)


def test_a_label_image_without_background(tmp_path):
    write_picture(tmp_path / "a.png", (3, 4))
    Image.fromarray(np.arange(1, 13, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "a_gt.png")
    with pytest.warns(MRCNNWarning, match="a_gt.png: no pixel is 0"):
        load(find_pairs(tmp_path, tmp_path)).load_layers(0)


# ---- Images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.float32])
@pytest.mark.parametrize("shape", [(40, 56), (40, 56, 3)])
def test_pictures_of_any_depth(tmp_path, kind, shape):
    values = np.random.default_rng(0).random(shape)
    values = (values if kind == np.float32 else values * np.iinfo(kind).max).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb" if len(shape) == 3 else None)
    write_labels(tmp_path / "a_mask.tif", TRUTH["a"])
    image = load(find_pairs(tmp_path, tmp_path)).load_image(0)
    assert image.shape == (40, 56, 3) and image.dtype == np.uint8
    close = np.abs(image.astype(float) - np.reshape(values, (40, 56, -1)) / values.max() * 255)
    assert close.mean() < 3


def stack_of(count, seed=0):
    """uint16 [count, *SIZE], no two planes alike."""
    return np.random.default_rng(seed).integers(0, 4000, (count, *SIZE)).astype(np.uint16)


LABEL_STACK = np.stack([label_image(seed) for seed in range(3)]).astype(np.uint16)


def test_a_stack_and_its_label_stack_are_pairs_of_planes(tmp_path):
    """Of the same names, or else in the same order."""
    planes = stack_of(3)
    tifffile.imwrite(tmp_path / "a.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    for axes in ("ZYX", "TYX"):
        tifffile.imwrite(tmp_path / "a_mask.tif", LABEL_STACK, imagej=True, metadata={"axes": axes})
        pairs = find_pairs(tmp_path, tmp_path)
        assert [pair.name for pair in pairs] == ["a_z001", "a_z002", "a_z003"]
        assert check_pairs(pairs) == []
        dataset = load(pairs)
        for number in range(3):
            np.testing.assert_array_equal(dataset.open_image(number)[:, :][..., 0], planes[number])
            assert masks_of(*labels_of(dataset, number)) == instances(LABEL_STACK[number])
        assert len({dataset.fingerprint(number) for number in range(3)}) == 3
    tifffile.imwrite(
        tmp_path / "a_mask.tif", LABEL_STACK[:2], imagej=True, metadata={"axes": "ZYX"}
    )
    with pytest.raises(UserError, match="a_mask.tif: labels of 2 planes for an image of 3"):
        find_pairs(tmp_path, tmp_path)


def test_planes_with_labels_of_their_own(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", stack_of(3), imagej=True, metadata={"axes": "ZYX"})
    write_labels(tmp_path / "a_z002_mask.tif", LABEL_STACK[1].astype(np.int32))
    with pytest.warns(MRCNNWarning, match="without labels, left out: 2"):
        (pair,) = find_pairs(tmp_path, tmp_path)
    assert pair.name == "a_z002"
    assert masks_of(*labels_of(load([pair]), 0)) == instances(LABEL_STACK[1])
    (tmp_path / "a_z002_mask.tif").unlink()
    write_labels(tmp_path / "a_mask.tif", LABEL_STACK[1].astype(np.int32))
    with pytest.raises(UserError, match="a_mask.tif: labels of 1 planes for an image of 3"):
        find_pairs(tmp_path, tmp_path)


def test_a_label_stack_of_one_image_is_refused(tmp_path):
    write_picture(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a_mask.tif", LABEL_STACK, photometric="minisblack")
    (line,) = check_pairs(find_pairs(tmp_path, tmp_path))
    assert "a_mask.tif: holds 3 images" in line


def test_one_channel_of_several(tmp_path):
    channels = stack_of(2)
    tifffile.imwrite(tmp_path / "a.tif", channels, imagej=True, metadata={"axes": "CYX"})
    write_labels(tmp_path / "a_mask.tif", TRUTH["a"])
    (line,) = check_pairs(find_pairs(tmp_path, tmp_path))
    assert "a.tif: has 2 channels" in line
    (pair,) = find_pairs(tmp_path, tmp_path, channel=2)
    np.testing.assert_array_equal(pair.open().read()[..., 0], channels[1])


def test_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    values, labels = stack_of(1)[0], LABEL_STACK[0]
    for name, array in (("a", values), ("a_mask", labels)):
        stored = zarr.open(str(tmp_path / f"{name}.zarr"), mode="w", shape=SIZE, dtype=array.dtype)
        stored[:] = array
    dataset = load(find_pairs(tmp_path, tmp_path))
    np.testing.assert_array_equal(dataset.open_image(0)[:, :][..., 0], values)
    assert masks_of(*labels_of(dataset, 0)) == instances(labels)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_training_and_detection_see_the_same_grey_levels(kind, tmp_path):
    """What the network learns from is what `Segmenter.detect` shows it."""
    config = type("Nuclei", (Config,), {"INTENSITY_PERCENTILES": (1, 99.8), "DARK_GROUND": True})()
    values = (3000 - stack_of(1)[0] / 2).clip(0, None)
    values = values / 20 if kind == np.uint8 else values
    tifffile.imwrite(tmp_path / "a.tif", values.astype(kind))
    write_labels(tmp_path / "a_mask.tif", TRUTH["a"])
    dataset = load(find_pairs(tmp_path, tmp_path))
    (picture,), _ = find_pictures([tmp_path / "a.tif"])
    seen = measure(picture, config).apply(picture.read())
    trained = load_arrays(dataset, 0, config)[0]
    np.testing.assert_array_equal(trained, np.broadcast_to(seen, trained.shape))


def test_a_folder_that_links_to_itself_comes_to_an_end(images, tmp_path):
    (images / "plate" / "again").symlink_to(images)
    for name, labels in TRUTH.items():
        write_labels(tmp_path / "labels" / f"{name}.tif", labels)
    assert [pair.name for pair in find_pairs(images, tmp_path / "labels")] == ["a", "b", "plate/a"]


def palettes():
    """Palettes [256, 3] in which colours say something else than the numbers."""
    rng = np.random.default_rng(1)
    ten = np.concatenate([[[0, 0, 0]], np.resize(rng.integers(40, 255, (10, 3)), (255, 3))])
    white_first = rng.integers(1, 250, (256, 3))
    white_first[0] = 255
    black_twice = rng.integers(1, 250, (256, 3))
    black_twice[[0, 3]] = 0
    inverting = np.repeat(np.arange(255, -1, -1)[:, None], 3, axis=1)
    return {"ten": ten, "white": white_first, "black": black_twice, "inverting": inverting}


@pytest.mark.parametrize("colours", palettes())
def test_of_a_palette_the_numbers_count(colours, tmp_path):
    labels = label_image().astype(np.uint8)
    made = Image.frombytes("P", SIZE[::-1], labels.tobytes())
    made.putpalette(palettes()[colours].astype(np.uint8).ravel().tolist())
    made.save(tmp_path / "a_mask.png")
    write_picture(tmp_path / "a.png")
    assert masks_of(*labels_of(load(find_pairs(tmp_path, tmp_path)), 0)) == instances(labels)


def test_sizes_that_differ(images, tmp_path):
    for name, labels in TRUTH.items():
        write_labels(tmp_path / "labels" / f"{name}.tif", labels[:, :-1] if name == "b" else labels)
    pairs = find_pairs(images, tmp_path / "labels")
    (line,) = check_pairs(pairs)
    assert "b.tif: labels of 40 x 55 pixels" in line and "b.png, which has 40 x 56" in line
    with pytest.raises(UserError) as caught:
        load(pairs).load_layers(1)
    assert str(caught.value) == line


def test_broken_files(images, tmp_path):
    for name, labels in TRUTH.items():
        write_labels(tmp_path / "labels" / f"{name}.tif", labels)
    (images / "b.png").write_bytes(b"no picture")
    (tmp_path / "labels" / "a.tif").write_bytes(b"II*\0 broken")
    pairs = find_pairs(images, tmp_path / "labels")
    assert [line.partition(": ")[2][:22] for line in check_pairs(pairs)] == [
        "has no image in it",
        "is no image (PNG, JPEG",
    ]
    (images / "plate" / "a.jpg").unlink()
    dataset = load(pairs)
    for step, number, name in (
        (dataset.load_layers, 0, "labels/a.tif: has no image"),
        (dataset.load_image, 1, "b.png: is no image"),
        (dataset.load_image, 2, "plate/a.jpg: "),
        (dataset.fingerprint, 2, "plate/a.jpg: "),
    ):
        with pytest.raises(UserError, match=name):
            step(number)


# ---- Which belong together ---------------------------------------------------------------------


def matched(images, labels):
    """name -> label files, relative to the folder of labels."""
    return {
        pair.name: [str(file.relative_to(labels)) for file in pair.labels.files]
        for pair in find_pairs(images, labels)
    }


@pytest.mark.parametrize(
    "labels",
    [
        "a.png",
        "a.tiff",
        "a_mask.tif",
        "a_masks.png",
        "a_label.tif",
        "A_labels.tif",
        "a_gt.png",
        "a_seg.png",
        "a_cp_masks.png",
        "a_MASK.png",
        "a.zip",
        "a_rois.zip",
        "a.roi",
        "a/1.roi",
        "a_rois/1.roi",
        "a.ome.tif",
    ],
)
def test_customary_names(labels, tmp_path):
    if "roi" in labels or "zip" in labels:
        pytest.importorskip("roifile")
    name = labels[0]
    for there in (tmp_path / "labels" / "x", tmp_path / "images" / "x"):
        there.mkdir(parents=True)
    (tmp_path / "labels" / "x" / labels).parent.mkdir(exist_ok=True)
    (tmp_path / "labels" / "x" / labels).touch()
    for picture in (f"{name}.tif", f"{name}_img.PNG", f"{name}.ome.tif", f"{name}_image.jpg"):
        path = tmp_path / "images" / "x" / picture
        path.touch()
        found = matched(tmp_path / "images", tmp_path / "labels")
        assert list(found.values()) == [[f"x/{labels}"]]
        path.unlink()


def test_labels_in_the_same_folder(tmp_path):
    pytest.importorskip("roifile")
    for file in (
        "a.tif",
        "a_mask.tif",
        "b.jpg",
        "b_cp_masks.png",
        "b_rois.zip",
        "c.png",
        "c.zip",
        "d.png",
        "d/0001.roi",
        "d/0002.roi",
        "p/a.png",
        "p/a_Label.png",
        ".a.tif",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert matched(tmp_path, tmp_path) == {
        "a": ["a_mask.tif"],
        "b": ["b_cp_masks.png"],
        "c": ["c.zip"],
        "d": ["d/0001.roi", "d/0002.roi"],
        "p/a": ["p/a_Label.png"],
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("images, labels", [("", "labels"), ("images", "labels"), ("images", "")])
def test_folders_inside_each_other(images, labels, tmp_path):
    """Labels inside the folder of images are no images, and the other way round."""
    images, labels = tmp_path / images, tmp_path / labels
    for file in (images / "a.png", labels / "a.png" if labels != tmp_path else labels / "a.tif"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert list(matched(images, labels)) == ["a"]


def test_whole_names_go_before_suffixes(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in ("cell", "cell_seg", "cell_img"):
            (tmp_path / folder / f"{name}.png").touch()
    assert matched(tmp_path / "images", tmp_path / "labels") == {
        name: [f"{name}.png"] for name in ("cell", "cell_img", "cell_seg")
    }


@pytest.mark.parametrize(
    "files", [("a_mask.png", "a_gt.png"), ("a.png", "a.tif"), ("a.zip", "a.roi")]
)
def test_two_labels_of_one_picture(files, images, tmp_path):
    (tmp_path / "labels").mkdir()
    for file in files:
        (tmp_path / "labels" / file).touch()
    with pytest.raises(UserError, match="both a.*may be the labels of a.tif; keep one"):
        find_pairs(images, tmp_path / "labels")


def test_two_pictures_of_one_name(images):
    write_picture(images / "b.bmp")
    with pytest.raises(UserError, match="both b.bmp and b.png; keep one"):
        find_pairs(images, images)


def test_what_has_no_partner_is_left_out(images, tmp_path):
    for name in ("b", "x", "plate/y"):
        write_labels(tmp_path / "labels" / f"{name}.tif", TRUTH["b"])
    with pytest.warns(MRCNNWarning) as seen:
        assert read(images, tmp_path / "labels") == expected("b")
    first, second = (str(warning.message) for warning in seen)
    assert first.startswith("Pictures without labels, left out: 2 (first: ") and "a.tif" in first
    assert second.startswith("Labels without image, left out: 2 (first: ") and "y.tif" in second


def test_folders_that_may_not_be_listed(images, tmp_path, monkeypatch):
    """As root every folder may be listed: the refusal is made here."""
    write_labels(tmp_path / "labels" / "shut" / "a.png", TRUTH["a"])
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="shut: cannot be read .Permission denied"):
        find_pairs(images, tmp_path / "labels")


def test_nothing_fits(images, tmp_path):
    labels = tmp_path / "labels"
    write_labels(labels / "x.tif", TRUTH["a"])
    with pytest.raises(UserError) as caught:
        find_pairs(images, labels)
    line = str(caught.value)
    assert "3 images" in line and "\n" not in line
    for tried in ("for a.tif were tried a.png", "a.zip", "a/*.roi", "_cp_masks"):
        assert tried in line
    coco_file(labels / "notes.json", {})
    with pytest.raises(UserError, match="It holds notes.json: if that is a COCO file"):
        find_pairs(images, labels)
    (labels / "notes.json").rename(labels / "a_seg.npy")
    with pytest.raises(UserError, match="Cellpose's _seg.npy"):
        find_pairs(images, labels)
    with pytest.raises(UserError, match="first of them is a.tif, and the first of 1 .* is 'x.png'"):
        find_pairs(images, coco_file(tmp_path / "coco.json", {"x.png": TRUTH["a"]}))
    with pytest.raises(UserError, match="lists no pictures"):
        find_pairs(images, coco_file(tmp_path / "coco.json", {}))


def test_wrong_places(images, tmp_path):
    with pytest.raises(UserError, match="absent: no such folder of pictures"):
        find_pairs(tmp_path / "absent", images)
    with pytest.raises(UserError, match="absent: no such folder or file of labels"):
        find_pairs(images, tmp_path / "absent")
    with pytest.raises(UserError, match="a.tif: labels are a folder, or a COCO file"):
        find_pairs(images, images / "a.tif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images"):
        find_pairs(tmp_path / "empty", images)


# ---- COCO --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("a.tif", "b.png", "plate/a.jpg"),
        ("a.png", "b.png", "plate/a.png"),
        ("./a.tif", "/data/b.png", "x\\plate\\a.jpg"),
    ],
)
def test_file_names_of_coco(names, images, tmp_path):
    truth = dict(zip(names, TRUTH.values(), strict=True))
    assert read(images, coco_file(tmp_path / "coco.json", truth)) == expected()


@pytest.mark.filterwarnings("ignore:Images without labels")
def test_file_names_that_fit_no_or_several_pictures(images, tmp_path):
    write_picture(images / "deep" / "b.png")
    write_picture(images / "c" / "x.png")
    write_picture(images / "d" / "x.png")
    file = tmp_path / "coco.json"
    with pytest.warns(MRCNNWarning, match="Labels without image, left out: 1 .first: other/a"):
        assert read(
            images,
            coco_file(
                file,
                {
                    "other/a.tif": TRUTH["b"],
                    "a.tif": TRUTH["a"],
                    "b.png": TRUTH["b"],
                },
            ),
        ) == expected("a", "b")
    with pytest.warns(MRCNNWarning, match="Labels without image, left out: 2 .first: val/a"):
        assert read(
            images,
            coco_file(
                file,
                {
                    "val/a.tif": TRUTH["b"],
                    "train/a.tif": TRUTH["b"],
                    "pictures/a.tif": TRUTH["a"],
                },
            ),
        ) == expected("a")
    with pytest.raises(UserError, match="x.png may be c/x.png or d/x.png in .*more of its path"):
        find_pairs(images, coco_file(file, {"x.png": TRUTH["a"]}))
    with pytest.raises(UserError, match="lists a.tif twice, as a.tif and as a.png"):
        find_pairs(images, coco_file(file, {"a.tif": TRUTH["a"], "a.png": TRUTH["a"]}))


def one_picture(tmp_path, annotations, **entry):
    """A COCO data set of one image of 6 x 8 pixels with these annotations."""
    write_picture(tmp_path / "a.png", (6, 8))
    content = {
        "images": [{"id": "p", "file_name": "a.png", **entry}],
        "annotations": [
            {"id": 5, "image_id": "p", "category_id": 1, **annotation} for annotation in annotations
        ],
    }
    (tmp_path / "coco.json").write_text("\ufeff" + json.dumps(content))
    return load(find_pairs(tmp_path, tmp_path / "coco.json"))


SQUARE = {"segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}


def test_overlapping_annotations_and_several_polygons(tmp_path):
    two = {"segmentation": [[0, 0, 2, 0, 2, 2, 0, 2], [6, 4, 8, 4, 8, 6, 6, 6]]}
    dataset = one_picture(tmp_path, [SQUARE, two])
    masks, class_ids = dataset.load_mask(0)
    assert dataset.load_layers(0)[0].shape == (6, 8, 2) and class_ids.tolist() == [1, 1]
    truth = np.zeros((6, 8, 2), bool)
    truth[1:4, 1:4, 0] = truth[:2, :2, 1] = truth[4:, 6:, 1] = True
    np.testing.assert_array_equal(masks, truth)


def test_what_coco_files_have_besides(tmp_path):
    away = {"segmentation": [[90, 90, 99, 90, 99, 99]]}
    with pytest.warns(MRCNNWarning) as seen:
        dataset = one_picture(
            tmp_path,
            [
                SQUARE,
                {**SQUARE, "iscrowd": 1},
                {**SQUARE, "image_id": "q"},
                {**SQUARE, "category_id": 2},
                away,
            ],
        )
        for _ in range(3):
            assert dataset.load_layers(0)[1].tolist() == [1, -1, 1]
    texts = [str(warning.message) for warning in seen]
    assert len(texts) == 4
    for text, words in zip(
        texts,
        (
            "1 annotations of 5 are crowds .iscrowd 1.: their pixels are neither",
            "1 annotations belong to no image of the file and are left out .first: of image .q",
            "2 categories, all taken as nuclei",
            "a.png: 1 of 4 outlines hold no pixel",
        ),
        strict=True,
    ):
        assert re.search(words, text)
    with pytest.warns(MRCNNWarning, match="without any annotation, taken as .* without nuclei: 1"):
        layers, class_ids = one_picture(tmp_path, []).load_layers(0)
    assert layers.shape == (6, 8, 1) and not layers.any() and not len(class_ids)


@pytest.mark.parametrize(
    "segmentation, words",
    [
        ([], "no outline"),
        (None, "no outline"),
        ([[1, 2, 3]], "reshape"),
        ([[1, 2, 3, 4, 5, "x"]], "could not convert"),
        ([[1, 2, float("nan"), 4, 5, 6]], "no numbers"),
        ({"size": [6, 8], "counts": [5]}, "do not add up"),
        ({"size": [6, 8], "counts": "P"}, "cut short"),
        ({"size": [8, 6], "counts": [48]}, r"for \[8, 6\] pixels, its image has \[6, 8\]"),
        ({"counts": [48]}, "size"),
        ({"size": [6, 8], "counts": [2**99]}, ""),
        ({"size": [6, 8], "counts": [20.5, 27.5]}, "not all whole numbers"),
        ({"size": [6, 8], "counts": "P" * 99}, "too many digits"),
        (3, ""),
    ],
)
def test_annotations_that_cannot_be_read(segmentation, words, tmp_path):
    dataset = one_picture(tmp_path, [{"segmentation": segmentation}])
    with pytest.raises(UserError, match=f"annotation .?5.? of .?a.png.? cannot be read: .*{words}"):
        dataset.load_layers(0)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "not a JSON file"),
        ("[]", "not a COCO file"),
        ("{}", "not a COCO file"),
        ('{"images": [{}], "annotations": []}', "not a COCO file"),
        ('{"images": [], "annotations": [{}]}', "not a COCO file"),
        ('{"images": 1, "annotations": []}', "not a COCO file"),
        ("\x80", "not a JSON file"),
        ("[" * 100_000, "not a JSON file of labels: too deeply nested"),
        ("9" * 5000, "not a JSON file"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 1e999, "width": 9}]}', "not a COCO"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"iscrowd": "x"}]}', "not a"),
        ('{"images": [{"id": 1, "file_name": ["a"]}], "annotations": []}', "not a COCO"),
        ('{"images": [{"id": 1, "file_name": "a\\nb"}], "annotations": []}', "not a COCO"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], '
            '"annotations": []}',
            "several images have the id",
        ),
    ],
)
def test_files_that_are_no_coco(text, words, images, tmp_path):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"x.json: {words}"):
        find_pairs(images, tmp_path / "x.json")


@pytest.mark.parametrize("kind", ["run lengths", "polygons"])
def test_where_all_are_crowds_they_are_nuclei(kind, tmp_path):
    """CVAT's brush writes every mask so; real crowds lie among nuclei."""
    runs = {"segmentation": {"size": [6, 8], "counts": [7, 3, 38]}}
    one = runs if kind == "run lengths" else SQUARE
    with pytest.warns(MRCNNWarning, match="all 2 annotations are crowds .* taken as one nucleus"):
        dataset = one_picture(tmp_path, [{**one, "iscrowd": 1}] * 2)
    layers, class_ids = dataset.load_layers(0)
    assert class_ids.tolist() == [1, 1] and layers.any()


def test_work_follows_the_size_of_the_image():
    """Many corners, and long strings, neither fill the memory nor take for ever."""
    corners = np.zeros((200_000, 2))
    corners[:, 0] = np.arange(200_000) / 20_000
    corners[::2, 1] = 4000
    start = time.monotonic()
    with pytest.raises(ValueError, match="200000 corners .* simplify"):
        fill([corners], (4000, 4000))
    with pytest.raises(ValueError, match="too many digits"):
        decode_run_lengths("P" * 3_000_000)
    assert time.monotonic() - start < 5
    few = corners[:2000] * [100, 1]  # eight times what is looked at together
    _, inside = fill([few], (4000, 4000))
    assert abs(inside.sum() / (4000 * 10 / 2) - 1) < 0.01


def test_coco_for_pictures_of_another_size(tmp_path):
    (pair,) = [
        info["pair"] for info in one_picture(tmp_path, [SQUARE], height=6, width=9).image_info
    ]
    (line,) = check_pairs([pair])
    assert "labels of 6 x 9 pixels" in line and "a.png, which has 6 x 8" in line
    assert check_pairs([one_picture(tmp_path, [SQUARE]).image_info[0]["pair"]]) == []


# ---- ImageJ ROIs -------------------------------------------------------------------------------


@pytest.fixture
def roi():
    """Makes a ROI of ImageJ, with the attributes that its file has."""
    roifile = pytest.importorskip("roifile")

    def make(kind, box=(0, 0, 0, 0), points=None, **attributes):
        made = roifile.ImagejRoi() if points is None else roifile.ImagejRoi.frompoints(points)
        made.version, made.roitype = 228, roifile.ROI_TYPE[kind]
        if points is None:
            made.top, made.left, made.bottom, made.right = box
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    return make


def roi_set(tmp_path, rois):
    """A data set of one image of 20 x 24 pixels with ROIs by name."""
    write_picture(tmp_path / "a.png", (20, 24))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, made in rois.items():
            archive.writestr(f"{name}.roi", made if isinstance(made, bytes) else made.tobytes())
    return load(find_pairs(tmp_path, tmp_path))


def test_kinds_of_roi(roi, tmp_path):
    import roifile

    corners = np.array([[2, 3], [9, 3], [9, 8], [2, 8]])
    path = [0, 1, 1, 1, 9, 1, 1, 9, 9, 1, 1, 9, 4, 0, 3, 3, 1, 6, 3, 1, 6, 6, 1, 3, 6, 4]
    made = {
        "polygon": roi("POLYGON", points=corners),
        "freehand": roi("FREEHAND", points=corners),
        "traced": roi("TRACED", points=corners),
        "fractional": roi("POLYGON", points=corners + 0.3),
        "rectangle": roi("RECT", (3, 2, 8, 9)),
        "moved rectangle": roi(
            "RECT",
            (3, 2, 9, 10),
            xd=2.3,
            yd=3.3,
            widthd=7,
            heightd=5,
            options=roifile.ROI_OPTIONS.SUB_PIXEL_RESOLUTION,
        ),
        "oval": roi("OVAL", (2, 3, 17, 20)),
        "composite": roi(
            "RECT",
            (1, 1, 9, 9),
            shape_roi_size=len(path),
            multi_coordinates=np.array(path, np.float32),
        ),
        "over the edge": roi("RECT", (15, -5, 30, 4)),
    }
    masks, class_ids = roi_set(tmp_path, made).load_mask(0)
    assert len(class_ids) == len(made)
    masks = dict(zip(made, np.moveaxis(masks, -1, 0), strict=True))
    square = np.zeros((20, 24), bool)
    square[3:8, 2:9] = True
    for name in ("polygon", "freehand", "traced", "fractional", "rectangle", "moved rectangle"):
        np.testing.assert_array_equal(masks[name], square, err_msg=name)
    y, x = np.mgrid[:20, :24] + 0.5
    oval = ((y - 9.5) / 7.5) ** 2 + ((x - 11.5) / 8.5) ** 2 < 1
    np.testing.assert_array_equal(masks["oval"], oval)
    ring = np.zeros((20, 24), bool)
    ring[1:9, 1:9] = True
    ring[3:6, 3:6] = False
    np.testing.assert_array_equal(masks["composite"], ring)
    edge = np.zeros((20, 24), bool)
    edge[15:, :4] = True
    np.testing.assert_array_equal(masks["over the edge"], edge)


@pytest.mark.parametrize("kind", ["LINE", "FREELINE", "POLYLINE", "ANGLE", "POINT", "NOROI"])
def test_rois_without_area_are_refused_by_name(kind, roi, tmp_path):
    points = None if kind in ("LINE", "NOROI") else [[1, 1], [5, 5], [9, 2]]
    dataset = roi_set(
        tmp_path, {"fine": roi("RECT", (1, 1, 5, 5)), "mine": roi(kind, points=points)}
    )
    with pytest.raises(UserError, match=f"ROI .?mine.? cannot be used: it is of type {kind}, "):
        dataset.load_layers(0)


def test_other_rois_that_are_no_outlines(roi, tmp_path):
    import roifile

    curve = [0, 1, 1, 2, 1, 9, 1, 1, 4]
    for made, words in (
        (
            roi("POLYGON", points=[[1, 1], [5, 5], [9, 2]], options=roifile.ROI_OPTIONS.SPLINE_FIT),
            "fitted spline",
        ),
        (roi("RECT", (1, 1, 5, 5), subtype=roifile.ROI_SUBTYPE.TEXT), "note of type TEXT"),
        (
            roi(
                "RECT",
                (1, 1, 9, 9),
                shape_roi_size=len(curve),
                multi_coordinates=np.array(curve, np.float32),
            ),
            "not supported",
        ),
        (b"Iout", "too short"),
        (b"x" * 99, "not an ImageJ ROI"),
    ):
        with pytest.raises(UserError, match=f"a.zip: ROI .?mine.? cannot be used: .*{words}"):
            roi_set(tmp_path, {"mine": made}).load_layers(0)
    planes = {str(i): roi("RECT", (1, 1, 5, 5), position=i) for i in range(3)}
    with pytest.raises(UserError, match="a.zip: ROIs of several planes"):
        roi_set(tmp_path, planes).load_layers(0)
    planes.pop("2")
    assert len(roi_set(tmp_path, planes).load_layers(0)[1]) == 2


def test_names_of_rois_merge_nothing(roi, tmp_path):
    """Only the property that this project writes makes pieces: names are anybody's."""
    names = ["0001", "0001-2", "0123-0456", "0123-0456-1", "0002", "0002-0003", "0007-2", "x-2"]
    made = {name: roi("RECT", (i, i, i + 1, i + 1)) for i, name in enumerate(names)}
    made["0002-2"] = roi("RECT", (18, 0, 19, 1), props="mrcnn.piece_of: 0002\n")
    with pytest.warns(MRCNNWarning, match="ROIs 0001-2 .of 1 like it. and 0001 are taken as two"):
        masks, class_ids = roi_set(tmp_path, made).load_mask(0)
    assert masks.sum(axis=(0, 1)).tolist() == [1, 1, 1, 1, 2, 1, 1, 1] and (class_ids == 1).all()


def test_zip_files_that_claim_too_much(roi, tmp_path):
    with pytest.raises(UserError, match="ROI .?bomb.? claims 9000000 bytes"):
        roi_set(tmp_path, {"bomb": bytes(9_000_000)}).load_layers(0)


def test_zip_files_of_other_kinds(roi, tmp_path):
    assert len(roi_set(tmp_path, {}).load_layers(0)[1]) == 0
    with pytest.warns(MRCNNWarning, match="1 of 2 outlines hold no pixel"):
        dataset = roi_set(
            tmp_path, {"a": roi("OVAL", (90, 90, 99, 99)), "b": roi("OVAL", (2, 2, 9, 9))}
        )
        assert len(dataset.load_layers(0)[1]) == 1
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(UserError, match="a.zip: holds no .roi files"):
        dataset.load_layers(0)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="a.zip: not a readable zip file"):
        dataset.load_layers(0)


def test_rois_without_roifile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "roifile", None)
    write_picture(tmp_path / "a.png")
    (tmp_path / "a.zip").touch()
    with pytest.raises(UserError, match="pip install roifile"):
        find_pairs(tmp_path, tmp_path)
    write_labels(tmp_path / "a_mask.png", TRUTH["a"])
    assert len(find_pairs(tmp_path, tmp_path)) == 1  # the ROIs are not needed


# ---- The split ---------------------------------------------------------------------------------


def pairs_of(names):
    from mrcnn.data.pairs import Pair

    return [Pair(name, None, None) for name in names]


NAMES = [f"plate{i % 3}/{i:03}" for i in range(400)]


def test_split_follows_names_and_seed_only():
    whole_split = split(pairs_of(NAMES), 0.2, 7)
    assert list(whole_split) == NAMES and set(whole_split.values()) == {"train", "val"}
    assert split(pairs_of(NAMES[::-1]), 0.2, 7) == whole_split
    part = split(pairs_of(NAMES[::3]), 0.2, 7)
    assert part.items() <= whole_split.items()
    share = list(whole_split.values()).count("val") / len(NAMES)
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(NAMES)) ** 0.5
    assert split(pairs_of(NAMES), 0.2, 8) != whole_split
    larger = split(pairs_of(NAMES), 0.3, 7)
    assert all(larger[name] == "val" for name in NAMES if whole_split[name] == "val")
    # What the rule gives is part of the interface: other versions must not mix the subsets.
    assert [name for name in NAMES[:20] if whole_split[name] == "val"] == PINNED


PINNED = ["plate2/002", "plate0/006", "plate2/017"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_subsets_have_pictures(share):
    for seed in range(40):
        assert set(split(pairs_of("ab"), share, seed).values()) == {"train", "val"}
        assert split(pairs_of("a"), share, seed) == {"a": "train"}
        # What is moved to have one is what a larger share would have moved.
        few, more = (split(pairs_of("abcdef"), s, seed) for s in (0.001, max(share, 0.3)))
        assert {name for name in few if few[name] == "val"} <= {
            name for name in more if more[name] == "val"
        }
    assert split([], share, 0) == {}


def test_shares():
    assert set(split(pairs_of(NAMES), 0, 7).values()) == {"train"}
    for share in (1, -0.1, 2, float("nan")):
        with pytest.raises(UserError, match="for validation"):
            split(pairs_of(NAMES), share, 7)


def test_split_file(tmp_path):
    subsets = split(pairs_of(NAMES), 0.2, 7)
    write_split(tmp_path / "run" / "split.csv", subsets)
    assert read_split(tmp_path / "run" / "split.csv", pairs_of(NAMES), 0.5, 9) == subsets
    with open(tmp_path / "run" / "split.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "subset"] and [row[0] for row in rows[1:]] == sorted(NAMES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text",
    [
        "image,subset\na,val\nb,train\n",
        "\ufeffimage;subset\r\nb;train\r\na;val\r\n",
        "subset,image,note\nval,a.tif,x\n\nTrain , b.png,\n",
        "image,subset\na,val\na,val\nb,train",
    ],
)
def test_split_file_edited_by_hand(text, tmp_path):
    (tmp_path / "split.csv").write_text(text, encoding="utf-8", newline="")
    assert read_split(tmp_path / "split.csv", pairs_of("ab"), 0, 0) == {"a": "val", "b": "train"}


def test_split_file_of_other_pictures(tmp_path):
    """New images come where they would have come without the file."""
    names = NAMES[:40]
    (tmp_path / "split.csv").write_text(
        "image,subset\ngone,val\n" + "\n".join(f"{name},train" for name in names[:20])
    )
    with pytest.warns(MRCNNWarning) as seen:
        found = read_split(tmp_path / "split.csv", pairs_of(names), 0.5, 7)
    assert "rows of images that are not there, left out: 1 (first: gone)" in str(seen[0].message)
    assert f"not list, divided at random: 20 (first: {names[20]})" in str(seen[1].message)
    assert set(list(found.values())[:20]) == {"train"}
    fresh = split(pairs_of(names), 0.5, 7)
    assert [found[name] for name in names[20:]] == [fresh[name] for name in names[20:]]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "first line must name"),
        ("a,val\nb,train", "first line must name"),
        ("image,subset\na,test\nb,train", "line 2: the subset of .?a.? is .?test.?; it must"),
        ("image,subset\na,train\nb", "line 3: the subset of .?b.? is missing"),
        ("image,subset\na,val\na,train\nb,train", "line 3: .?a.? is in both subsets"),
        ("image,subset\n" + "a" * 200_000 + ",val\nb,train", ""),
        ("image,subset\na," + "v" * 200_000, ""),
        ("image,subset\nx,val", r"lists none of the 2 images \(first: a\)"),
        ("image,subset\na,val\nb,val", "leaves no image for training"),
        ("image,subset\n\xe4,val", "not in UTF-8"),
    ],
)
def test_wrong_split_files(text, words, tmp_path):
    (tmp_path / "split.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"split.csv.*{words}"):
        read_split(tmp_path / "split.csv", pairs_of("ab"), 0.2, 0)


def test_split_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="split.csv: no such file"):
        read_split(tmp_path / "split.csv", pairs_of("ab"), 0.2, 0)
    os.mkfifo(tmp_path / "split.csv")
    with pytest.raises(UserError, match="split.csv: not a regular file, but a named pipe"):
        read_split(tmp_path / "split.csv", pairs_of("ab"), 0.2, 0)


def test_split_of_names_that_are_no_utf_8(tmp_path):
    names = [os.fsdecode(b"a\xff"), "b\u2028c"]
    subsets = dict(zip(names, ("val", "train"), strict=True))
    write_split(tmp_path / "split.csv", subsets)
    assert read_split(tmp_path / "split.csv", pairs_of(names), 0, 0) == subsets


# ---- The data set ------------------------------------------------------------------------------


def test_classes_and_names(images, tmp_path):
    for name, labels in TRUTH.items():
        write_labels(tmp_path / "labels" / f"{name}.tif", labels)
    dataset = load(find_pairs(images, tmp_path / "labels"))
    assert dataset.class_names == ["BG", "nucleus"] and dataset.num_classes == 2
    assert [dataset.image_reference(i) for i in dataset.image_ids] == ["a", "b", "plate/a"]
    assert dataset.source_image_link(1) == str(images / "b.png")
    assert all(dataset.is_labelled(i) for i in dataset.image_ids)
    masks, class_ids = dataset.load_mask(0)
    assert masks.dtype == bool and masks.shape == (*SIZE, len(class_ids))


def test_fingerprints_follow_the_files(images, tmp_path):
    pytest.importorskip("roifile")
    truth = {f"{name}.png": labels for name, labels in TRUTH.items()}
    coco = coco_file(tmp_path / "coco.json", truth)
    for name, labels in TRUTH.items():
        write_labels(tmp_path / "labels" / f"{name}.tif", labels)
        result_files.write_imagej_rois(tmp_path / "rois" / f"{name}.zip", labels)
    with zipfile.ZipFile(tmp_path / "rois" / "b.zip") as archive:
        archive.extractall(tmp_path / "rois" / "b")
    (tmp_path / "rois" / "b.zip").unlink()

    def fingerprints(labels):
        dataset = load(find_pairs(images, labels))
        return [dataset.fingerprint(i) for i in dataset.image_ids]

    def touch(path):
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))

    def change(content):
        content["annotations"][0]["segmentation"]["counts"] = [SIZE[0] * SIZE[1]]

    for labels, changes in (
        (tmp_path / "labels", [lambda: touch(tmp_path / "labels" / "a.tif")]),
        (tmp_path / "rois", [lambda: touch(tmp_path / "rois" / "a.zip")]),
        (coco, [lambda: coco_file(coco, truth, change)]),
    ):
        before = fingerprints(labels)
        assert fingerprints(labels) == before and len(set(before)) == 3
        for change_files in changes:
            change_files()
            after = fingerprints(labels)
            assert after[0] != before[0] and after[1:] == before[1:]
    before = fingerprints(tmp_path / "rois")
    (tmp_path / "rois" / "b" / "0001.roi").unlink()
    assert [a == b for a, b in zip(before, fingerprints(tmp_path / "rois"), strict=True)] == [
        True,
        False,
        True,
    ]
    before = fingerprints(coco)
    touch(images / "b.png")
    touch(coco)  # the same annotations in a newer file
    assert fingerprints(coco)[1] != before[1] and fingerprints(coco)[::2] == before[::2]


def test_training_batches(images, tmp_path, tiny_config):
    """Through the loader of training, by way of a cache that one image's labels outdate."""
    from mrcnn.data.batches import BatchLoader

    class Config(type(tiny_config)):
        NUM_CLASSES = 2
        IMAGES_PER_GPU = 3
        MAX_GT_INSTANCES = 20
        CACHE_DIR = str(tmp_path / "cache")

    def batch(labels):
        loader = BatchLoader(load(find_pairs(images, labels)), Config(), training=False)
        return loader[0][0]

    for name, labels in TRUTH.items():
        write_labels(tmp_path / "labels" / f"{name}.png", labels)
    truth = {f"{name}.png": labels for name, labels in TRUTH.items()}
    first = batch(tmp_path / "labels")
    counts = (first["input_gt_class_ids"] == 1).sum(axis=1)
    assert counts.tolist() == [len(instances(labels)) for labels in TRUTH.values()]
    stored = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    assert len(stored) == 3
    for source in (tmp_path / "labels", coco_file(tmp_path / "coco.json", truth)):
        for key, values in batch(source).items():
            np.testing.assert_array_equal(values, first[key], err_msg=key)
    truth["b.png"] = np.where(TRUTH["b"] == 20, 20, 0)
    changed = (batch(coco_file(tmp_path / "coco.json", truth))["input_gt_class_ids"] == 1).sum(1)
    assert changed.tolist() == [counts[0], 1, counts[2]]
    assert {path for path in (tmp_path / "cache").iterdir()} == set(stored)
