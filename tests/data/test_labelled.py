"""Training data of the user's own: real files, read back as the instances that were written."""

import os
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrcnn.config import Config
from mrcnn.data.pairs import check_pairs, find_pairs
from mrcnn.data.sources import load_arrays
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.images.image_files import find_images
from mrcnn.pixels.exposure import measure
from mrcnn.pixels.polygons import fill_runs
from mrcnn.results import result_files
from tests.support.labelled_files import (
    SIZE,
    TRUTH,
    coco_file,
    expected,
    instances,
    label_image,
    labels_of,
    load,
    masks_of,
    read,
    write_image,
    write_labels,
)

# ---- Round trips ---------------------------------------------------------------------------------


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


# ---- Images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.float32])
@pytest.mark.parametrize("shape", [(40, 56), (40, 56, 3)])
def test_images_of_any_depth(tmp_path, kind, shape):
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


def test_an_image_without_finite_values_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full(SIZE, np.nan, np.float32))
    write_labels(tmp_path / "a_mask.tif", label_image())
    dataset = load(find_pairs(tmp_path, tmp_path))
    with pytest.raises(UserError, match="^a: the image has no finite values"):
        dataset.load_image(0)


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
    write_image(tmp_path / "a.tif")
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
    (image,), _ = find_images([tmp_path / "a.tif"])
    seen = measure(image, config).apply(image.read())
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
    write_image(tmp_path / "a.png")
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
    (images / "b.png").write_bytes(b"no image")
    (tmp_path / "labels" / "a.tif").write_bytes(b"II*\0 broken")
    pairs = find_pairs(images, tmp_path / "labels")
    assert [line.partition(": ")[2][:22] for line in check_pairs(pairs)] == [
        "has no image in it",
        "is not an image (PNG, ",
    ]
    (images / "plate" / "a.jpg").unlink()
    dataset = load(pairs)
    for step, number, name in (
        (dataset.load_layers, 0, "labels/a.tif: has no image"),
        (dataset.load_image, 1, "b.png: is not an image"),
        (dataset.load_image, 2, "plate/a.jpg: "),
        (dataset.fingerprint, 2, "plate/a.jpg: "),
    ):
        with pytest.raises(UserError, match=name):
            step(number)


# ---- The data set --------------------------------------------------------------------------------


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
