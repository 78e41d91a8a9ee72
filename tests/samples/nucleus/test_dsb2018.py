"""NucleusDataset: folders, zip files and every kind of image."""

import io
import os
import re
import struct
import threading
import zipfile
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrcnn.errors import MRCNNWarning, UserError
from samples.nucleus.dsb2018 import VAL_IMAGE_IDS, NucleusDataset, read_mask
from samples.nucleus.kinds import (
    BRIGHT_FIELD,
    FLUORESCENCE,
    LARGE,
    ON_PURPLE,
    ON_WHITE,
    SMALL,
    kind_of,
)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(buffer, "PNG")
    return buffer.getvalue()


def png16(array):
    """A 16-bit PNG of 1, 2, 3 or 4 channels, written by hand: Pillow cannot."""
    height, width, channels = array.shape
    rows = array.astype(">u2").reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks
    )


def disjoint_masks(size=(12, 10), count=3):
    masks = np.zeros((count, *size), np.uint8)
    for n in range(count):
        masks[n, 3 * n : 3 * n + 2, 1 : 4 + n] = 255
    return masks


def write_image(folder, image_id, image, masks=None):
    (folder / image_id / "images").mkdir(parents=True)
    (folder / image_id / "images" / f"{image_id}.png").write_bytes(image)
    if masks is not None:
        (folder / image_id / "masks").mkdir()
        for n, mask in enumerate(masks):
            (folder / image_id / "masks" / f"{n}.png").write_bytes(png(mask))


@pytest.fixture
def data(tmp_path):
    """Three images in stage1_train, one of them a validation image, one without nuclei."""
    folder = tmp_path / "stage1_train"
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    write_image(folder, "zz", png(image), disjoint_masks())
    write_image(folder, "aa", png(image[..., 0]), [])
    write_image(folder, VAL_IMAGE_IDS[3], png(image[..., :3]), disjoint_masks(count=2))
    write_image(tmp_path / "stage1_test", "t", png(image))
    return tmp_path


def zipped(folder, archive, top=""):
    with zipfile.ZipFile(archive, "w") as file:
        for directory, _, names in os.walk(folder):
            relative = os.path.relpath(directory, folder)
            file.writestr(f"{top}{relative}/", b"")
            for name in names:
                file.write(os.path.join(directory, name), f"{top}{relative}/{name}")
        file.writestr("__MACOSX/zz/images/._zz.png", b"rubbish")
    return archive


def load(folder, subset):
    dataset = NucleusDataset()
    dataset.load_nucleus(folder, subset)
    dataset.prepare()
    return dataset


def ids(dataset):
    return [dataset.image_reference(i) for i in dataset.image_ids]


def test_subsets(data, capsys):
    assert ids(load(data, "stage1_train")) == sorted(["zz", "aa", VAL_IMAGE_IDS[3]])
    assert ids(load(data, "train")) == ["aa", "zz"]
    assert capsys.readouterr().err == ""
    dataset = load(data, "val")
    assert ids(dataset) == [VAL_IMAGE_IDS[3]]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "24 of 25" in lines[0]
    assert dataset.class_names == ["BG", "nucleus"] and dataset.num_classes == 2
    assert len(set(VAL_IMAGE_IDS)) == 25


@pytest.mark.parametrize("top", ["", "some/top/"])
def test_zip_equals_folder(data, tmp_path, top):
    other = tmp_path / "zips"
    other.mkdir()
    zipped(data / "stage1_train", other / "stage1_train.zip", top)
    one, two = load(data, "stage1_train"), load(other, "stage1_train")
    assert ids(one) == ids(two)
    for i in one.image_ids:
        np.testing.assert_array_equal(one.load_image(i), two.load_image(i))
        for a, b in zip(one.load_layers(i), two.load_layers(i), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not (other / "stage1_train").exists()  # nothing was unpacked
    assert ids(load(other / "stage1_train.zip", "train")) == ["aa", "zz"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_fingerprints_follow_the_files(data, tmp_path, kind):
    source = data / "stage1_train" / "zz"

    def fingerprints():
        if kind == "folder":
            dataset = load(data, "stage1_train")
        else:
            (tmp_path / "packed").mkdir(exist_ok=True)
            zipped(data / "stage1_train", tmp_path / "packed" / "stage1_train.zip")
            dataset = load(tmp_path / "packed", "stage1_train")
        return {dataset.image_reference(i): dataset.fingerprint(i) for i in dataset.image_ids}

    before = fingerprints()
    assert fingerprints() == before and len(set(before.values())) == 3
    other = disjoint_masks()[::-1]
    changes = [
        lambda: (source / "masks" / "0.png").write_bytes(png(other[0])),
        lambda: (source / "masks" / "2.png").unlink(),
        lambda: (source / "masks" / "new.png").write_bytes(png(other[2])),
        lambda: (source / "images" / "zz.png").write_bytes(png(np.zeros((12, 10), np.uint8))),
    ]
    seen = {before["zz"]}
    for change in changes:
        change()
        now = fingerprints()
        seen.add(now.pop("zz"))
        assert now.items() <= before.items()
    assert len(seen) == 5


def test_layers_and_masks(data):
    dataset = load(data, "stage1_train")
    number = ids(dataset).index("zz")
    layers, class_ids = dataset.load_layers(number)
    assert layers.shape == (12, 10, 1) and layers.dtype == np.int32
    assert class_ids.tolist() == [1, 1, 1] and class_ids.dtype == np.int32
    masks, _ = dataset.load_mask(number)
    np.testing.assert_array_equal(masks, np.moveaxis(disjoint_masks() > 0, 0, -1))
    empty, none = dataset.load_mask(ids(dataset).index("aa"))
    assert empty.shape == (12, 10, 0) and len(none) == 0


def test_overlapping_masks_go_to_layers(tmp_path):
    masks = disjoint_masks()
    masks[1, 1, 1] = 255  # a stray pixel on mask 0
    write_image(tmp_path / "s", "a", png(masks[0]), masks)
    dataset = load(tmp_path, "s")
    layers, _ = dataset.load_layers(0)
    assert layers.shape[-1] == 2
    np.testing.assert_array_equal(dataset.load_mask(0)[0], np.moveaxis(masks > 0, 0, -1))


def test_empty_masks_are_left_out_with_a_warning(tmp_path):
    masks = disjoint_masks()
    masks[1] = 0
    write_image(tmp_path / "s", "a", png(masks[0]), masks)
    with pytest.warns(MRCNNWarning, match="1 of its masks"):
        layers, class_ids = load(tmp_path, "s").load_layers(0)
    assert len(class_ids) == 2 and set(np.unique(layers)) == {0, 1, 2}


def test_images_without_masks_folder(data):
    dataset = load(data, "stage1_test")
    assert dataset.load_image(0).shape == (12, 10, 3) and not dataset.is_labelled(0)
    with pytest.raises(UserError, match="no masks folder"):
        dataset.load_mask(0)


def test_mask_of_another_size(tmp_path):
    masks = list(disjoint_masks())
    masks[1] = masks[1][:-1]
    write_image(tmp_path / "s", "a", png(masks[0]), masks)
    with pytest.raises(UserError, match="1.png: 11 x 10 pixels"):
        load(tmp_path, "s").load_layers(0)


def test_masks_are_measured_before_they_are_decoded(tmp_path, monkeypatch):
    """A kilobyte may claim a hundred million pixels."""
    masks = list(disjoint_masks())
    write_image(tmp_path / "s", "a", png(masks[0]), masks)
    folder = tmp_path / "s" / "a"
    bomb = Image.new("L", (9000, 9000))
    bomb.save(folder / "masks" / "0.png")
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image.size))
    with pytest.raises(UserError, match="0.png: 9000 x 9000 pixels, its image has 12 x 10"):
        load(tmp_path, "s").load_layers(0)
    assert not decoded


def test_masks_that_overlap_many_times_over(tmp_path, monkeypatch):
    monkeypatch.setattr("mrcnn.pixels.masks.MAX_LAYER_PIXELS", 3 * 120)
    write_image(
        tmp_path / "s", "a", png(np.zeros((12, 10), np.uint8)), [np.ones((12, 10), np.uint8)] * 4
    )
    with pytest.raises(UserError, match="a.png: its masks overlap each other more than 3 times"):
        load(tmp_path, "s").load_layers(0)


def damaged_tiffs():
    """TIFF masks whose tags say something else than their pixels."""
    whole = io.BytesIO()
    tifffile.imwrite(whole, np.ones((12, 10), np.uint8))
    data = bytearray(whole.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        tags = {tag.name: tag.valueoffset for tag in tiff.pages[0].tags}
    for name, value in (
        ("ImageWidth", 0),
        ("ImageLength", 0),
        ("SamplesPerPixel", 0),
        ("BitsPerSample", 3),
        ("Compression", 5),
        ("StripOffsets", 2**31),
        ("PhotometricInterpretation", 99),
    ):
        changed = bytearray(data)
        changed[tags[name] : tags[name] + 2] = (value % 65536).to_bytes(2, "little")
        if value > 65535:
            changed[tags[name] : tags[name] + 4] = value.to_bytes(4, "little")
        yield bytes(changed)
    yield bytes(data[:100])
    yield bytes(data[:-60])


def test_damaged_masks_are_one_line(tmp_path):
    folder = tmp_path / "s" / "a"
    write_image(tmp_path / "s", "a", png(np.zeros((12, 10), np.uint8)), [])
    for content in damaged_tiffs():
        (folder / "masks" / "0.tif").write_bytes(content)
        try:
            layers, class_ids = load(tmp_path, "s").load_layers(0)
        except UserError as error:
            assert "0.tif: " in str(error) and "\n" not in str(error)
        else:  # the damage is where nothing hangs on it
            assert layers.shape == (12, 10, 1) and layers.all()
    (folder / "masks" / "0.tif").unlink()
    os.mkfifo(folder / "masks" / "0.png")
    with pytest.raises(UserError, match="0.png: not a regular file, but a named pipe"):
        load(tmp_path, "s").load_layers(0)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_is_not_used_is_said(data, tmp_path, kind):
    store = data / "stage1_train"
    (store / "zz" / "masks" / "more.gif").touch()
    (store / "zz" / "masks" / "Thumbs.db").touch()
    (store / "zz" / "images" / "other.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    (store / "lost" / "masks").mkdir(parents=True)
    (store / "lost" / "masks" / "0.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    if kind == "zip":
        zipped(store, tmp_path / "t.zip")
    with pytest.warns(MRCNNWarning) as seen:
        load(*((data, "stage1_train") if kind == "folder" else (tmp_path, "t")))
    texts = "\n".join(str(warning.message) for warning in seen)
    for words in (
        "1 files that are not images of a kind .*more.gif",
        "1 folders of masks without an image, left out .*lost",
        "1 folders with several images, of which one is used .*zz",
    ):
        assert re.search(words, texts)


def test_one_image_twice_in_a_zip(tmp_path):
    write_image(tmp_path / "s" / "one", "a", png(np.zeros((4, 4), np.uint8)), [])
    write_image(tmp_path / "s" / "two", "a", png(np.zeros((4, 4), np.uint8)), [])
    zipped(tmp_path / "s", tmp_path / "t.zip")
    with pytest.raises(UserError, match="t.zip: holds .?a.? twice, in .*one/a.* and in .*two/a"):
        load(tmp_path, "t")


def test_folders_that_may_not_be_listed(data, monkeypatch):
    listed = os.listdir

    def listing(folder):
        if str(folder).endswith("zz/masks"):
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", listing)
    with pytest.raises(UserError, match="zz/masks: cannot be read .Permission denied"):
        load(data, "stage1_train")


def test_many_threads_read_one_zip(data, tmp_path):
    zipped(data / "stage1_train", tmp_path / "t.zip")
    dataset = load(tmp_path, "t")
    expected = [dataset.load_layers(i)[0].sum() for i in dataset.image_ids]
    found, problems = [], []

    def read():
        try:
            for _ in range(30):
                found.append([dataset.load_layers(i)[0].sum() for i in dataset.image_ids])
        except Exception as error:  # reported below, in the main thread
            problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and len(found) == 180 and all(f == expected for f in found)


def test_wrong_places(data, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "absent", "train")
    with pytest.raises(UserError, match="it holds: stage1_test, stage1_train"):
        load(data, "stage2")
    (data / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        load(data, "empty")
    (data / "bad.zip").write_bytes(b"PK rubbish")
    with pytest.raises(UserError, match="not a readable zip"):
        load(data, "bad")
    write_image(data / "only", VAL_IMAGE_IDS[0], png(np.zeros((4, 4), np.uint8)))
    (data / "stage1_train").rename(data / "away")
    (data / "only").rename(data / "stage1_train")
    with pytest.raises(UserError, match="no images are left"):
        load(data, "train")


def test_broken_members_are_named(data, tmp_path):
    archive = zipped(data / "stage1_train", tmp_path / "t.zip")
    raw = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("zz/images/zz.png")
    raw[info.header_offset + 60] ^= 0xFF
    archive.write_bytes(raw)
    dataset = load(tmp_path, "t")
    with pytest.raises(UserError, match="zz.png: cannot be read"):
        dataset.load_image(ids(dataset).index("zz"))
    (data / "stage1_train" / "zz" / "images" / "zz.png").write_bytes(b"not an image")
    dataset = load(data, "train")
    with pytest.raises(UserError, match="zz.png: is not an image"):
        dataset.load_image(1)


def test_absurd_sizes_are_refused(data, monkeypatch):
    dataset = load(data, "train")
    monkeypatch.setattr("mrcnn.files.MAX_FILE_BYTES", 50)
    with pytest.raises(UserError, match="more than the 50"):
        dataset.load_image(0)
    monkeypatch.undo()
    monkeypatch.setattr("mrcnn.images.pillow.MAX_PIXELS", 100)
    with pytest.raises(UserError, match="12 x 10 pixels"):
        dataset.load_image(0)


# --- images -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "I;16"])
def test_masks_of_any_colour(mode):
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:8] = True
    mask[3, 4] = False
    if mode == "I;16":
        data = png16(mask[..., None].astype(np.uint16) * 7)
    elif mode == "1":
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        image = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    patch, (y, x), size = read_mask(data, "x")
    assert (y, x) == (2, 3) and size == (8, 9)
    np.testing.assert_array_equal(patch, mask[2:5, 3:8])
    empty, _, size = read_mask(png(np.zeros((4, 5), np.uint8)), "x")
    assert empty.size == 0 and size == (4, 5)


def test_kinds():
    def flat(*colour):
        return np.full((20, 20, 3), colour, np.uint8)

    assert kind_of(flat(8, 8, 8)) == FLUORESCENCE
    assert kind_of(flat(8, 8, 8), np.array([40, 60, 2000])) == SMALL
    assert kind_of(flat(8, 8, 8), np.array([900])) == LARGE
    assert kind_of(flat(225, 225, 225)) == BRIGHT_FIELD
    assert kind_of(flat(240, 220, 240)) == ON_WHITE
    assert kind_of(flat(190, 120, 200)) == ON_PURPLE


# --- the real data ------------------------------------------------------------------------


def test_real_data(shared_dir):
    dataset = load(shared_dir / "dsb2018", "val")
    listed = (shared_dir / "dsb2018" / "val_ids.txt").read_text().split()
    assert listed == VAL_IMAGE_IDS
    assert len(dataset.image_ids) == 24
    assert len(load(shared_dir / "dsb2018", "train").image_ids) == 591
    for i in dataset.image_ids[:4]:
        layers, class_ids = dataset.load_layers(i)
        assert layers.shape[:2] == dataset.load_image(i).shape[:2]
        assert layers.max() == len(class_ids) > 0
