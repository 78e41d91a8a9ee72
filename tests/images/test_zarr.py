"""Zarr arrays and OME-Zarr."""

import json
import os
import pickle
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.images.image_files import find_images
from tests.support.image_files import (
    assert_reads,
    image_of,
    images_of,
    random_pixels,
    reason,
)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "u1", "f4", "?"])
def test_zarr_arrays(tmp_path, zarr, version, dtype):
    pixels = random_pixels(50, 70, dtype=np.dtype(dtype).newbyteorder("=")).astype(dtype)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(50, 70), chunks=(16, 32), dtype=dtype, zarr_format=version
    )
    array[:] = pixels
    image = image_of(tmp_path / "a.zarr")
    assert_reads(image, pixels)
    assert image.name == "a" and image.mpp is None


@pytest.mark.parametrize(
    "shape, names, axes",
    [
        ((50, 70, 3), None, "YXS"),
        ((50, 70, 4), None, "YXS"),
        ((3, 50, 70), None, "CYX"),
        ((7, 50, 70), None, "ZYX"),
        ((3, 50, 70), ["z", "y", "x"], "ZYX"),
        ((70, 50, 3), ["x", "y", "c"], "XYC"),
        ((2, 3, 50, 70), ["time", "channel", "y", "x"], "TCYX"),
    ],
)
def test_zarr_axes(tmp_path, zarr, shape, names, axes):
    pixels = random_pixels(*shape, dtype=np.uint16)
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=shape,
        dtype=np.uint16,
        chunks=tuple(-(-size // 3) for size in shape),
        zarr_format=3,
        dimension_names=names,
    )
    array[:] = pixels
    beyond = [axis for axis in axes if axis not in "YXCS"]
    channels = [axis for axis in axes if axis in "CS"]
    order = [axes.index(axis) for axis in (*beyond, "Y", "X", *channels)]
    planes = pixels.transpose(order).reshape(
        -1, 50, 70, shape[axes.index(channels[0])] if channels else 1
    )
    planes = planes[..., :3] if axes == "YXS" else planes
    channel = None
    if "C" in axes:
        assert "choose one with --channel" in reason(tmp_path / "a.zarr")
        channel, planes = 2, planes[..., 1:2]
    images = images_of(tmp_path / "a.zarr", channel=channel)
    assert len(images) == len(planes)
    for image, plane in zip(images[:2], planes, strict=False):
        assert_reads(image, plane)


def ome_zarr(zarr, path, pixels, version, axes="tczyx", **attributes):
    """An OME-Zarr image of two levels."""
    units = {"x": "micrometer", "y": "micrometer", "z": "nanometer", "t": "second"}
    types = {"c": "channel", "t": "time"}
    described = [
        {
            "name": axis,
            "type": types.get(axis, "space"),
            **({"unit": units[axis]} if axis in units else {}),
        }
        for axis in axes
    ]
    scale = [{"x": 0.5, "y": 0.5, "z": 300}.get(axis, 1.0) for axis in axes]
    multiscales = [
        {
            "axes": described,
            "datasets": [
                {
                    "path": f"{level}",
                    "coordinateTransformations": [
                        {
                            "type": "scale",
                            "scale": [
                                one * 2**level if axis in "yx" else one
                                for one, axis in zip(scale, axes, strict=True)
                            ],
                        }
                    ],
                }
                for level in (0, 1)
            ],
            "coordinateTransformations": [{"type": "scale", "scale": [1.3] * len(axes)}],
        }
    ]
    ome = {"multiscales": multiscales, **attributes}
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    group.attrs.update({"ome": {"version": version, **ome}} if version == "0.5" else ome)
    for level in (0, 1):
        part = pixels[..., :: 2**level, :: 2**level]
        array = group.create_array(
            str(level), shape=part.shape, dtype=part.dtype, chunks=(1,) * (part.ndim - 2) + (16, 32)
        )
        array[:] = part
    return group


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, zarr, version):
    pixels = random_pixels(2, 3, 2, 50, 70, dtype=np.uint16)
    names = [{"label": "DAPI"}, {"label": "GFP"}, {"label": "RFP"}]
    ome_zarr(zarr, tmp_path / "movie.ome.zarr", pixels, version, omero={"channels": names})
    assert "1 DAPI, 2 GFP, 3 RFP" in reason(tmp_path / "movie.ome.zarr")
    images = images_of(tmp_path, channel=3)
    assert [image.name for image in images] == [
        f"movie_t{t:04d}_z{z:03d}" for t in (1, 2) for z in (1, 2)
    ]
    for index, image in enumerate(images):
        assert_reads(image, pixels[index // 2, 2, index % 2])
        assert image.channels == ("RFP",) and image.about.mpp_from == "OME-Zarr"
        assert image.mpp == pytest.approx(0.65)
    chosen = images_of(tmp_path, channel="gfp")
    assert_reads(chosen[3], pixels[1, 1, 1])


def test_ome_zarr_plates_and_label_images(tmp_path, zarr):
    pixels = random_pixels(1, 50, 70)
    root = tmp_path / "plate.zarr"
    zarr.open_group(root, mode="w", zarr_format=2)
    for well in ("B/10", "B/2"):
        for field in "01":
            ome_zarr(zarr, root / well / field, pixels, "0.4", "cyx")
    zarr.open_group(root / "B/2/0/labels", mode="w", zarr_format=2)
    ome_zarr(zarr, root / "B/2/0/labels/cells", pixels, "0.4", "cyx")
    for folder in (root / "B", root / "B/10", root / "B/2"):
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
    images = images_of(root)
    assert [image.name for image in images] == [
        "plate_B_2_0",
        "plate_B_2_1",
        "plate_B_10_0",
        "plate_B_10_1",
    ]
    assert_reads(images[0], pixels[0])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_plates_give_the_wells_and_fields_that_they_name(tmp_path, zarr, version):
    pixels = random_pixels(2, 50, 70)
    root = tmp_path / "plate.zarr"
    kind = 3 if version == "0.5" else 2

    def described(path, **ome):
        group = zarr.open_group(path, mode="a", zarr_format=kind)
        group.attrs.update({"ome": {"version": version, **ome}} if kind == 3 else ome)

    wells = [{"path": path, "rowIndex": 1, "columnIndex": 0} for path in ("B/10", "B/2", "C/1")]
    described(root, plate={"wells": wells, "rows": [{"name": "B"}, {"name": "C"}]})
    for well in ("B/10", "B/2"):
        described(root / well, well={"images": [{"path": "0"}, {"path": "1"}]})
    for field in ("B/10/0", "B/10/1", "B/2/1", "B/2/unnamed"):
        ome_zarr(zarr, root / field, pixels, version, "cyx")
    images, unreadable = find_images([root], 2)
    assert [image.name for image in images] == ["plate_B_2_1", "plate_B_10_0", "plate_B_10_1"]
    assert_reads(images[0], pixels[1])
    assert "2 wells or fields of the plate are missing: B_2_0, C_1" in unreadable[0].reason


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_of_ome_zarr_are_read_at_the_scale_that_is_wanted(tmp_path, zarr, version):
    pixels = random_pixels(2, 2, 50, 70)
    ome_zarr(zarr, tmp_path / "a.zarr", pixels, version, "tcyx")
    image = images_of(tmp_path / "a.zarr", channel=2)[1]
    assert image.levels == ((50, 70), (25, 35))
    reduced = image.reduced(0.5)
    assert reduced.mpp == pytest.approx(2 * image.mpp) and reduced.levels == ((25, 35),)
    assert_reads(reduced, pixels[1, 1, ::2, ::2])
    assert image.reduced(0.51) is image


def test_zarr_windows_read_only_their_chunks(tmp_path, zarr):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(100_000, 100_000), chunks=(256, 256), dtype=np.uint16
    )
    tile = random_pixels(256, 256, dtype=np.uint16)
    array[512:768, 256:512] = tile
    image = image_of(tmp_path / "a.zarr")
    image.read((slice(0, 9), slice(0, 9)))  # what zarr sets up at first
    tracemalloc.start()
    try:
        found = image.read((slice(500, 780), slice(250, 520)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6
    np.testing.assert_array_equal(found[..., 0], np.pad(tile, ((12, 12), (6, 8))))


def test_zarr_threads(tmp_path, zarr):
    pixels = random_pixels(300, 400, dtype=np.uint16)
    array = zarr.create_array(tmp_path / "a.zarr", shape=(300, 400), chunks=(64, 64), dtype="u2")
    array[:] = pixels
    image, found = image_of(tmp_path / "a.zarr"), {}
    threads = [
        threading.Thread(
            target=lambda n=n: found.update(
                {n: image.read((slice(n, n + 99), slice(9 * n, 9 * n + 70)))}
            )
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, part in found.items():
        np.testing.assert_array_equal(
            part[..., 0], pixels[number : number + 99, 9 * number : 9 * number + 70]
        )
    assert len(found) == 8


def test_zarrs_that_are_refused(tmp_path, zarr, monkeypatch):
    (tmp_path / "none.zarr").mkdir()
    assert "not a Zarr array" in reason(tmp_path / "none.zarr")
    group = zarr.open_group(tmp_path / "group.zarr", mode="w")
    group.create_array("pixels", shape=(50, 70), dtype="u1")
    assert "without multiscales" in reason(tmp_path / "group.zarr")
    assert image_of(tmp_path / "group.zarr" / "pixels").shape == (50, 70, 1)
    zarr.create_array(tmp_path / "complex.zarr", shape=(50, 70), dtype="c8")
    assert "complex64" in reason(tmp_path / "complex.zarr")
    zarr.create_array(tmp_path / "deep.zarr", shape=(2, 2, 50, 70), dtype="u1")
    assert "4 dimensions" in reason(tmp_path / "deep.zarr")
    zarr.create_array(tmp_path / "long.zarr", shape=(2**31, 70), chunks=(9, 9), dtype="u1")
    assert "claims 150323855360 bytes" in reason(tmp_path / "long.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    assert reason(tmp_path / "broken.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert 'pip install "mrcnn-keras[formats]"' in reason(tmp_path / "deep.zarr")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("dtype", ["|u1", "|O"])
@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_zarr_is_never_unpickled(tmp_path, zarr, place, dtype):
    """Format 2 has a codec that would."""
    path, sprung = tmp_path / "a.zarr", tmp_path / "sprung"
    zarr.create_array(path, shape=(50, 70), chunks=(50, 70), dtype="u1", zarr_format=2)
    described = json.loads((path / ".zarray").read_text())
    codec = {"id": "pickle", "protocol": 5}
    described |= {place: [codec] if place == "filters" else codec, "dtype": dtype}
    (path / ".zarray").write_text(json.dumps(described))
    (path / "0.0").write_bytes(pickle.dumps(Trap(sprung)))
    assert reason(path)
    assert not sprung.exists()
    pickle.loads((path / "0.0").read_bytes())
    assert sprung.exists()


def test_broken_zarr_chunks(tmp_path, zarr):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(50, 70), chunks=(50, 70), dtype="u2", compressors=None
    )
    array[:] = 1
    chunk = tmp_path / "a.zarr" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(UserError, match="a.zarr: is broken"):
        image_of(tmp_path / "a.zarr").read()
