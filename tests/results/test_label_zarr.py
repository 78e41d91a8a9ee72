"""Labels as OME-Zarr, read back by zarr and by this package's own reader."""

import sys

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.images import image_files
from mrcnn.results import label_zarr
from mrcnn.results.label_zarr import write_label_zarr

zarr = pytest.importorskip("zarr")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(label_zarr, "CHUNK", 32)


def blocks(shape, most=9):
    labels = np.arange(np.prod(shape)).reshape(shape) // 40 % (most + 1)
    labels[0, 0] = most
    return labels.astype(np.int32)


@pytest.mark.parametrize("most, kind", [(9, np.uint16), (65535, np.uint16), (65536, np.uint32)])
@pytest.mark.parametrize(
    "shape, levels", [((70, 130), 4), ((32, 32), 1), ((1, 33), 2), ((5, 1), 1)]
)
def test_levels_are_every_second_pixel(tmp_path, shape, levels, most, kind):
    labels = blocks(shape, most)
    write_label_zarr(tmp_path / "a.ome.zarr", labels)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    assert sorted(group.array_keys()) == [str(number) for number in range(levels)]
    for number in range(levels):
        level = group[str(number)]
        assert level.dtype == kind and max(level.chunks) <= 32
        np.testing.assert_array_equal(level[:], labels[:: 2**number, :: 2**number])


def test_metadata_are_those_of_ome_zarr(tmp_path):
    write_label_zarr(tmp_path / "a.ome.zarr", blocks((70, 130)), microns=0.25)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    assert group.metadata.zarr_format == 2
    [multiscale] = group.attrs["multiscales"]
    assert multiscale["axes"] == [
        {"name": name, "type": "space", "unit": "micrometer"} for name in "yx"
    ]
    scales = [one["coordinateTransformations"][0]["scale"] for one in multiscale["datasets"]]
    assert scales == [[0.25 * 2**n] * 2 for n in range(4)]
    assert (tmp_path / "a.ome.zarr" / "0" / "2" / "4").is_file()  # chunks in folders by row


def test_our_own_reader_takes_it_for_an_image(tmp_path):
    labels = blocks((70, 130), 60000)
    write_label_zarr(tmp_path / "a.ome.zarr", labels, microns=0.25)
    image = image_files.open_image(tmp_path / "a.ome.zarr")
    assert image.mpp == 0.25
    assert image.levels == ((70, 130), (35, 65), (18, 33), (9, 17))
    np.testing.assert_array_equal(image[:, :][..., 0], labels)


def test_an_earlier_one_is_replaced_and_half_a_one_never_there(tmp_path, monkeypatch):
    path = tmp_path / "a.ome.zarr"
    write_label_zarr(path, blocks((70, 130)))
    write_label_zarr(path, blocks((20, 20)))
    assert sorted(zarr.open_group(path, mode="r").array_keys()) == ["0"]
    monkeypatch.setattr(label_zarr, "_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_label_zarr(path, blocks((70, 130)))
    assert [one.name for one in tmp_path.iterdir()] == ["a.ome.zarr"]
    assert zarr.open_group(path, mode="r")["0"].shape == (20, 20)


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(UserError, match="needs the package zarr: pip install"):
        write_label_zarr(tmp_path / "a.ome.zarr", blocks((5, 5)))
    assert not list(tmp_path.iterdir())
