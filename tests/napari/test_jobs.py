"""What the widget has done, on arrays; the manifest."""

import importlib
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import mrcnn
from mrcnn.errors import UserError
from mrcnn.napari import jobs
from mrcnn.presets import MicrographConfig
from tests.support.spots import COUNTS, STACK, make_image, same_objects, shows

MANIFEST = Path(mrcnn.__file__).with_name("napari.yaml")


def test_the_manifest_names_functions_that_exist():
    text = MANIFEST.read_text()
    named = re.findall(r"python_name: (\S+):(\w+)", text)
    assert len(named) == 2
    for module, function in named:
        assert callable(getattr(importlib.import_module(module), function))
    declared = re.findall(r"- id: (\S+)", text)
    assert sorted(declared) == sorted(re.findall(r"command: (\S+)", text))


def test_npe2_reads_the_manifest():
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert manifest.name == "mrcnn-keras"
    assert [widget.display_name for widget in manifest.contributions.widgets] == [
        "Mask R-CNN: find nuclei"
    ]
    [sample] = manifest.contributions.sample_data
    assert sample.display_name == "Synthetic nuclei"


@pytest.mark.parametrize("channels", [0, 3, 4])
def test_an_image_gives_what_the_detector_gives(detector, channels):
    image = STACK[2].astype(np.uint16) * 30
    if channels:
        image = np.stack([image] * channels, -1)
    labels, features, metadata = jobs.find(image, detector, rgb=bool(channels), microns=0.5)
    result = detector.detect(image, microns=0.5)
    assert labels.dtype == np.int32 and labels.shape == (90, 120)
    np.testing.assert_array_equal(labels, result.labels)
    assert features.equals(result.to_dataframe().rename(columns={"label": "index"}))
    assert len(features) == 3 and (features["area_um2"] == 81 / 4).all()
    assert metadata == {"microns": 0.5, "scales": [result.scale], "inverted": [False]}


def test_settings_reach_the_detector(detector):
    light = 255 - STACK[0]
    _, features, metadata = jobs.find(light, detector, diameter=MicrographConfig.OBJECT_SIZE / 2)
    assert len(features) == 2 and metadata["scales"] == [2.0] and metadata["inverted"] == [True]
    assert jobs.find(light, detector, inverted=False)[2]["inverted"] == [False]


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("leading", [(4,), (2, 2)])
def test_all_planes_of_a_stack(detector, leading, rgb):
    stack = STACK.reshape(*leading, 90, 120)
    data = np.stack([stack] * 3, -1) if rgb else stack
    labels, features, metadata = jobs.find(data, detector, rgb=rgb)
    assert labels.shape == stack.shape and labels.dtype == np.int32
    assert features["index"].tolist() == [1, 2, 3, 4, 5, 6] and len(metadata["scales"]) == 4
    for place in np.ndindex(*leading):
        assert shows(labels[place], stack[place])
        for axis, number in enumerate(place):
            rows = features[np.isin(features["index"], labels[place])]
            assert (rows[f"axis_{axis}"] == number).all()
    assert [len(np.unique(plane)) - 1 for plane in labels.reshape(4, 90, 120)] == COUNTS
    assert features["area"].tolist() == np.bincount(labels.ravel())[1:].tolist()


def test_one_plane_of_a_stack(detector):
    labels, features, _ = jobs.find(STACK, detector, plane=(2,))
    assert labels.shape == (1, 90, 120)
    np.testing.assert_array_equal(labels[0], detector.detect(STACK[2]).labels)
    assert features["index"].tolist() == [1, 2, 3] and (features["axis_0"] == 2).all()


def test_nothing_found(detector):
    labels, features, _ = jobs.find(STACK[1], detector)
    assert not labels.any() and len(features) == 0 and {"index", "score"} <= set(features)


def test_what_is_no_image(detector):
    with pytest.raises(UserError, match="complex64"):
        jobs.find(np.zeros((20, 20), np.complex64), detector)


class File:
    """Gives slices only."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.sizes = array, array.shape, array.dtype, []

    def __getitem__(self, window):
        part = self.array[window]
        self.sizes.append(part.size)
        return part


def test_large_planes_are_read_in_parts_and_small_ones_once(detector, monkeypatch):
    data = np.stack([make_image([(30, 40), (350, x), (480, 600)], (500, 700)) for x in (30, 300)])
    small = File(data)
    expected, features, _ = jobs.find(small, detector)
    assert small.sizes == [500 * 700] * 2

    monkeypatch.setattr(jobs, "MOST_BYTES", 500 * 700 - 1)
    monkeypatch.setattr("mrcnn.inference.scale.WHOLE_PIXELS", 300 * 300)
    monkeypatch.setattr("mrcnn.inference.view.TILE", 256)
    monkeypatch.setattr("mrcnn.pixels.exposure.BAND_VALUES", 1)
    large, seen = File(data), []
    labels, measured, _ = jobs.find(large, detector, progress=lambda *at: seen.append(at))
    assert max(large.sizes) <= 256 * 700
    assert all(same_objects(one, other) for one, other in zip(labels, expected, strict=True))
    assert sorted(measured["area"]) == sorted(features["area"])
    parts = [done / total for done, total in seen]
    assert parts == sorted(parts) and parts[-1] == 1 and len(set(parts)) > 2 * 9


def test_zarr_and_dask_arrays(detector, tmp_path):
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=STACK.shape, chunks=(1, 64, 64), dtype="uint8"
    )
    stored[:] = STACK
    expected = jobs.find(STACK, detector)
    np.testing.assert_array_equal(jobs.find(stored, detector)[0], expected[0])
    dask = pytest.importorskip("dask.array")
    labels, features, _ = jobs.find(dask.from_array(STACK, chunks=50), detector)
    np.testing.assert_array_equal(labels, expected[0])
    assert features.equals(expected[1])


def test_the_last_detector_is_kept_until_its_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(mrcnn, "load", lambda weights: object())
    jobs._load.cache_clear()
    path = tmp_path / "a.h5"
    path.write_text("")
    first = jobs.load_detector(str(path))
    assert jobs.load_detector(str(path)) is first
    os.utime(path, (1, 1))
    assert jobs.load_detector(str(path)) is not first
    jobs._load.cache_clear()


@pytest.mark.skipif(not hasattr(os, "RTLD_DEEPBIND"), reason="not Linux")
def test_own_symbols_lasts_only_while_it_is_entered():
    before = sys.getdlopenflags()
    with pytest.raises(KeyError), jobs.own_symbols():
        assert sys.getdlopenflags() == before | os.RTLD_DEEPBIND
        raise KeyError
    assert sys.getdlopenflags() == before


def test_the_shipped_weights_find_the_sample_nuclei():
    [(image, keywords, kind)] = jobs.synthetic_nuclei(192)
    assert image.dtype == np.uint8 and kind == "image" and keywords["name"]
    np.testing.assert_array_equal(jobs.synthetic_nuclei(192)[0][0], image)
    assert not np.array_equal(jobs.synthetic_nuclei(192, seed=1)[0][0], image)
    spots, count = ndimage.label(ndimage.gaussian_filter(image, 1) > 45)
    labels, features, _ = jobs.find(image, jobs.load_detector("nucleus"))
    assert count > 8 and len(features) == count
    assert same_objects(labels[(labels > 0) & (spots > 0)], spots[(labels > 0) & (spots > 0)])
    assert (features["score"] > 0.9).all()
