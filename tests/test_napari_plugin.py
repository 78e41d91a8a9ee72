"""The napari plugin: its work on arrays, and, where napari is installed, its widget."""

import importlib
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import mrcnn
from mrcnn import napari_plugin as plugin
from mrcnn.errors import UserError
from tests.support.nucleus_models import Finder, segmenter

MANIFEST = Path(plugin.__file__).with_name("napari.yaml")


class Spots(Finder):
    """Finds bright spots just as they are; the first score is the highest."""

    def detect_patches(self, images, probabilities=False, scales=None):
        return [self._detect(image[..., 0] > 127) for image in images]

    def _detect(self, mask):
        labels, count = ndimage.label(mask)
        patches = [
            (b[0].start, b[1].start, (labels[b] == i).astype(np.float32))
            for i, b in enumerate(ndimage.find_objects(labels), 1)
        ]
        return {"scores": np.linspace(0.9, 0.8, count), "patches": patches}


class Held(Spots):
    """Waits before it looks at an image."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def detect_patches(self, images, probabilities=False, scales=None):
        self.begun.set()
        assert self.go.wait(60)
        return super().detect_patches(images)


@pytest.fixture
def detector():
    return segmenter(Spots())


def picture(places, shape=(90, 120)):
    """Discs of 81 pixels on a dark background, uint8."""
    image = np.zeros(shape, np.uint8)
    for y, x in places:
        image[y, x] = 1
    disc = np.hypot(*np.mgrid[-5:6, -5:6]) <= 5
    return ndimage.binary_dilation(image, disc).astype(np.uint8) * 150 + 20


STACK = np.stack(
    [
        picture([(20, 20), (50, 80)]),
        picture([]),
        picture([(20, 30), (40, 60), (70, 9)]),
        picture([(60, 60)]),
    ]
)
COUNTS = [2, 0, 3, 1]


def shows(labels, image):
    """Whether every disc of an image has one label of its own."""
    return same_objects(labels, ndimage.label(image > 100)[0])


def same_objects(one, other):
    pairs = np.unique(np.stack([np.ravel(one), np.ravel(other)]), axis=1)
    return len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


# ---- The manifest ------------------------------------------------------------------------------


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


# ---- The work, on arrays -----------------------------------------------------------------------


@pytest.mark.parametrize("channels", [0, 3, 4])
def test_a_picture_gives_what_the_detector_gives(detector, channels):
    image = STACK[2].astype(np.uint16) * 30
    if channels:
        image = np.stack([image] * channels, -1)
    labels, features, metadata = plugin.find(image, detector, rgb=bool(channels), microns=0.5)
    result = detector.detect(image, microns=0.5)
    assert labels.dtype == np.int32 and labels.shape == (90, 120)
    np.testing.assert_array_equal(labels, result.labels)
    assert features.equals(result.to_dataframe().rename(columns={"label": "index"}))
    assert len(features) == 3 and (features["area_um2"] == 81 / 4).all()
    assert metadata == {"microns": 0.5, "scales": [result.scale], "inverted": [False]}


def test_settings_reach_the_detector(detector):
    light = 255 - STACK[0]
    _, features, metadata = plugin.find(light, detector, diameter=16)
    assert len(features) == 2 and metadata["scales"] == [2.0] and metadata["inverted"] == [True]
    assert plugin.find(light, detector, inverted=False)[2]["inverted"] == [False]


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("leading", [(4,), (2, 2)])
def test_all_planes_of_a_stack(detector, leading, rgb):
    stack = STACK.reshape(*leading, 90, 120)
    data = np.stack([stack] * 3, -1) if rgb else stack
    labels, features, metadata = plugin.find(data, detector, rgb=rgb)
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
    labels, features, _ = plugin.find(STACK, detector, plane=(2,))
    assert labels.shape == (1, 90, 120)
    np.testing.assert_array_equal(labels[0], detector.detect(STACK[2]).labels)
    assert features["index"].tolist() == [1, 2, 3] and (features["axis_0"] == 2).all()


def test_nothing_found(detector):
    labels, features, _ = plugin.find(STACK[1], detector)
    assert not labels.any() and len(features) == 0 and {"index", "score"} <= set(features)


def test_what_is_no_picture(detector):
    with pytest.raises(UserError, match="complex64"):
        plugin.find(np.zeros((20, 20), np.complex64), detector)


class File:
    """Gives slices only."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.sizes = array, array.shape, array.dtype, []

    def __getitem__(self, window):
        part = self.array[window]
        self.sizes.append(part.size)
        return part


def test_large_planes_are_read_in_parts_and_small_ones_once(detector, monkeypatch):
    data = np.stack([picture([(30, 40), (350, x), (480, 600)], (500, 700)) for x in (30, 300)])
    small = File(data)
    expected, features, _ = plugin.find(small, detector)
    assert small.sizes == [500 * 700] * 2

    monkeypatch.setattr(plugin, "MOST_BYTES", 500 * 700 - 1)
    monkeypatch.setattr("mrcnn.inference.scale.WHOLE_PIXELS", 300 * 300)
    monkeypatch.setattr("mrcnn.inference.view.TILE", 256)
    monkeypatch.setattr("mrcnn.pixels.exposure.BAND_VALUES", 1)
    large, seen = File(data), []
    labels, measured, _ = plugin.find(large, detector, progress=lambda *at: seen.append(at))
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
    expected = plugin.find(STACK, detector)
    np.testing.assert_array_equal(plugin.find(stored, detector)[0], expected[0])
    dask = pytest.importorskip("dask.array")
    labels, features, _ = plugin.find(dask.from_array(STACK, chunks=50), detector)
    np.testing.assert_array_equal(labels, expected[0])
    assert features.equals(expected[1])


def test_the_last_detector_is_kept_until_its_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(mrcnn, "load", lambda weights: object())
    plugin._load.cache_clear()
    path = tmp_path / "a.h5"
    path.write_text("")
    first = plugin.load_detector(str(path))
    assert plugin.load_detector(str(path)) is first
    os.utime(path, (1, 1))
    assert plugin.load_detector(str(path)) is not first
    plugin._load.cache_clear()


@pytest.mark.skipif(not hasattr(os, "RTLD_DEEPBIND"), reason="not Linux")
def test_own_symbols_lasts_only_while_it_is_entered():
    before = sys.getdlopenflags()
    with pytest.raises(KeyError), plugin.own_symbols():
        assert sys.getdlopenflags() == before | os.RTLD_DEEPBIND
        raise KeyError
    assert sys.getdlopenflags() == before


def test_the_shipped_weights_find_the_sample_nuclei():
    [(image, keywords, kind)] = plugin.synthetic_nuclei(192)
    assert image.dtype == np.uint8 and kind == "image" and keywords["name"]
    np.testing.assert_array_equal(plugin.synthetic_nuclei(192)[0][0], image)
    assert not np.array_equal(plugin.synthetic_nuclei(192, seed=1)[0][0], image)
    spots, count = ndimage.label(ndimage.gaussian_filter(image, 1) > 45)
    labels, features, _ = plugin.find(image, plugin.load_detector("nucleus"))
    assert count > 8 and len(features) == count
    assert same_objects(labels[(labels > 0) & (spots > 0)], spots[(labels > 0) & (spots > 0)])
    assert (features["score"] > 0.9).all()


# ---- In napari ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def application():
    """Qt's, one for all tests."""
    pytest.importorskip("napari")
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    qtpy = pytest.importorskip("qtpy.QtWidgets")
    return qtpy.QApplication.instance() or qtpy.QApplication([])


@pytest.fixture
def viewer(application):
    """A viewer without a window, which needs OpenGL."""
    from napari.components import ViewerModel

    yield ViewerModel()
    application.processEvents()


@pytest.fixture
def panel(viewer, detector, monkeypatch):
    """The widget with one image layer, and a detector of spots."""
    monkeypatch.setattr(plugin, "load_detector", lambda weights: detector)
    viewer.add_image(STACK[0], name="cells")
    return plugin.Panel(viewer)


@pytest.fixture
def said():
    """What napari has notified of in this test."""
    pytest.importorskip("napari")
    from napari.utils.notifications import notification_manager

    notification_manager.records.clear()
    yield notification_manager.records
    notification_manager.records.clear()


def wait_until(condition, seconds=60):
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        QApplication.processEvents()
        time.sleep(0.005)


def delete(widget):
    """What becomes of the widgets of a window that is closed."""
    from qtpy.QtCore import QCoreApplication, QEvent

    widget.deleteLater()
    kind = QEvent.Type.DeferredDelete
    QCoreApplication.sendPostedEvents(widget, getattr(kind, "value", kind))


def find(panel):
    """Press the button and wait; returns the new layer, or None."""
    before = list(panel.viewer.layers)
    panel.find.native.click()
    assert panel.worker and not panel.find.enabled and panel.cancel.enabled
    wait_until(lambda: panel.worker is None)
    assert panel.find.enabled and not panel.cancel.enabled
    new = [layer for layer in panel.viewer.layers if layer not in before]
    return new[0] if new else None


def test_microns_are_read_from_the_scale(viewer):
    from napari.layers import Image

    def microns(scale, units=None):
        return plugin.microns_of(
            Image(STACK if len(scale) == 3 else STACK[0], scale=scale, units=units)
        )

    assert microns((0.5, 0.5), ("um", "um")) == 0.5
    assert microns((2, 0.5, 0.5), ("um", "micrometer", "micrometer")) == 0.5
    np.testing.assert_allclose(microns((250, 250), ("nm", "nm")), 0.25)
    assert microns((0.5, 0.6), ("um", "um")) is None
    assert microns((0.5, 0.5)) is None


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
@pytest.mark.parametrize("transform", ["none", "scale", "all"])
def test_a_plane_of_labels_lies_where_the_plane_of_the_image_does(viewer, rng, transform):
    keywords = {}
    if transform != "none":
        keywords = {"scale": (3, 0.5, 0.25), "translate": (7, -2, 5)}
    if transform == "all":
        affine = np.eye(4)
        affine[:3] += rng.normal(0, 0.3, (3, 4))
        keywords |= {"rotate": (10, 20, 30), "shear": (0.1, 0.2, 0.3), "affine": affine}
    image = viewer.add_image(STACK, **keywords)
    labels = viewer.add_labels(np.zeros((1, 90, 120), int), **plugin.placement(image, (2,)))
    whole = viewer.add_labels(np.zeros(STACK.shape, int), **plugin.placement(image))
    for y, x in [(0, 0), (10, 3), (80, 119)]:
        world = image.data_to_world((2, y, x))
        np.testing.assert_allclose(labels.data_to_world((0, y, x)), world, atol=1e-9)
        np.testing.assert_allclose(whole.data_to_world((2, y, x)), world, atol=1e-9)


def test_the_shown_plane_is_of_the_layer_not_of_the_slider(viewer):
    viewer.add_image(np.zeros((60, 90, 120)), name="longer, and finer")
    layer = viewer.add_image(STACK, scale=(5, 1, 1), translate=(10, 0, 0))
    flat = viewer.add_image(STACK[0])
    for point, expected in [(10, 0), (14, 1), (21, 2), (40, 3), (0, 0)]:
        viewer.dims.set_point(0, point)
        assert plugin.shown_plane(layer, viewer.dims.point) == (expected,)
        assert plugin.shown_plane(flat, viewer.dims.point) == ()


def test_find(panel, said):
    image = panel.viewer.layers[0]
    image.scale, image.translate = (0.5, 0.5), (3, 4)
    if hasattr(image, "units"):
        image.units = ("um", "um")
    layer = find(panel)
    assert layer.name == "cells labels" and shows(layer.data, STACK[0])
    assert tuple(layer.scale) == (0.5, 0.5) and tuple(layer.translate) == (3, 4)
    assert layer.features["index"].tolist() == [1, 2] and "score" in layer.features
    assert layer.metadata["inverted"] == [False]
    if hasattr(image, "units"):
        assert layer.units == image.units and layer.metadata["microns"] == 0.5
        assert layer.features["area_um2"].tolist() == [81 / 4, 81 / 4]
    assert panel.status.value == "2 found" and not said
    # What hovering over the second nucleus shows.
    y, x = layer.features.loc[1, ["centroid_y", "centroid_x"]]
    shown = layer.get_status(layer.data_to_world((y, x)), world=True)["coordinates"]
    assert "score: 0.8" in shown and "area: 81" in shown


def test_what_napari_docks(viewer, monkeypatch):
    monkeypatch.setattr("napari.current_viewer", lambda: viewer)
    [data] = plugin.synthetic_nuclei(64)
    viewer._add_layer_from_data(*data)
    box = plugin.find_nuclei_widget()
    box.reset_choices()
    assert [layer.name for layer in box[0].choices] == ["synthetic nuclei"]


def test_the_settings_of_the_widget(panel):
    panel.viewer.layers[0].data = 255 - STACK[0]
    panel.diameter.value, panel.inverted.value = 16, "yes"
    layer = find(panel)
    assert layer.metadata["scales"] == [2.0] and layer.metadata["inverted"] == [True]
    assert len(layer.features) == 2


def test_layers_come_and_go(panel):
    viewer = panel.viewer
    assert not panel.all_planes.enabled
    viewer.add_labels(np.zeros((90, 120), int))
    stack = viewer.add_image(STACK, name="stack")
    panel.box.reset_choices()  # napari calls it for docked widgets
    assert [layer.name for layer in panel.layer.choices] == ["cells", "stack"]
    panel.layer.value = stack
    assert panel.all_planes.enabled
    viewer.layers.remove(stack)
    panel.box.reset_choices()
    assert panel.layer.value.name == "cells" and not panel.all_planes.enabled


def test_a_stack(panel):
    viewer = panel.viewer
    viewer.layers.clear()
    viewer.add_image(STACK, name="stack", scale=(2, 1, 1))
    panel.box.reset_choices()
    viewer.dims.set_current_step(0, 2)
    shown = find(panel)
    assert shown.data.shape == (1, 90, 120) and tuple(shown.translate) == (4, 0, 0)
    assert shows(shown.data[0], STACK[2])
    panel.all_planes.value = True
    every = find(panel)
    assert every.data.shape == STACK.shape and len(every.features) == sum(COUNTS)
    assert tuple(every.translate) == (0, 0, 0) and tuple(every.scale) == (2, 1, 1)


def test_levels_and_colours(panel):
    dask = pytest.importorskip("dask.array")
    viewer = panel.viewer
    viewer.layers.clear()
    levels = [dask.from_array(STACK[0]), dask.from_array(STACK[0, ::2, ::2])]
    viewer.add_image(levels, multiscale=True, scale=(2, 2))
    panel.box.reset_choices()
    layer = find(panel)
    assert shows(layer.data, STACK[0]) and tuple(layer.scale) == (2, 2)
    colours = viewer.add_image(np.stack([STACK[0]] * 3, -1), rgb=True)
    panel.box.reset_choices()
    panel.layer.value = colours
    assert shows(find(panel).data, STACK[0])


def test_what_is_wrong_is_said_in_one_line(viewer, said, tmp_path):
    panel = plugin.Panel(viewer)
    panel.find.native.click()
    assert panel.worker is None
    viewer.add_image(STACK[0])
    panel.box.reset_choices()
    panel.weights.value = tmp_path / "absent.h5"
    assert find(panel) is None and panel.status.value == ""
    assert [str(one.severity) for one in said] == ["error", "error"]
    assert said[0].message == "There is no image layer: open an image first"
    assert re.fullmatch(r".*absent\.h5: no such weight file.*", said[1].message)


def test_cancel(panel, monkeypatch):
    model = Held()
    monkeypatch.setattr(plugin, "load_detector", lambda weights: segmenter(model))
    panel.find.native.click()
    wait_until(model.begun.is_set)
    panel.find.native.click()  # has no effect
    panel.cancel.native.click()
    assert panel.status.value == "Stopping ..." and not panel.cancel.enabled
    model.go.set()
    wait_until(lambda: panel.worker is None)
    assert len(panel.viewer.layers) == 1 and panel.status.value == "Cancelled"
    assert find(panel) is not None  # and all over again


def test_a_search_goes_on_without_its_widget(panel, monkeypatch):
    model, raised = Held(), []
    monkeypatch.setattr(plugin, "load_detector", lambda weights: segmenter(model))
    monkeypatch.setattr(sys, "excepthook", lambda *error: raised.append(error))
    panel.find.native.click()
    wait_until(model.begun.is_set)
    delete(panel.box.native)
    model.go.set()
    wait_until(lambda: panel.worker is None)
    assert [layer.name for layer in panel.viewer.layers] == ["cells", "cells labels"]
    assert not raised


def test_progress_is_shown(panel, monkeypatch):
    monkeypatch.setattr("mrcnn.inference.scale.WHOLE_PIXELS", 300 * 300)
    monkeypatch.setattr("mrcnn.inference.view.TILE", 256)
    panel.viewer.layers[0].data = picture([(30, 40), (350, 300), (480, 600)], (500, 700))
    seen = []
    panel.bar.changed.connect(lambda value: seen.append((value, panel.bar.max)))
    assert len(find(panel).features) == 3
    total = seen[-2][1]
    assert total > 9 and [(i + 1, total) for i in range(total)] == [
        at for at in seen if at[1] == total
    ]


def test_a_defect_is_shown_and_ends_the_search(panel, said, monkeypatch):
    def broken(weights):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(plugin, "load_detector", broken)
    from napari.utils.notifications import notification_manager

    monkeypatch.setattr(sys, "excepthook", notification_manager.receive_error)  # as napari does
    assert find(panel) is None
    assert any("a defect" in one.message for one in said)


# ---- Corrections that teach --------------------------------------------------------------------


def training_set(panel):
    """{name: (image, labels)} of the panel's training set."""
    import tifffile

    folder = Path(panel.folder.value)
    return {
        path.stem: (tifffile.imread(path), tifffile.imread(folder / "labels" / path.name))
        for path in (folder / "images").glob("*.tif")
    }


def test_corrected_labels_are_added_with_their_image(panel, said, tmp_path):
    panel.folder.value = tmp_path / "set"
    other = panel.viewer.add_image(STACK[3], name="other")
    panel.box.reset_choices()
    panel.layer.value = panel.viewer.layers["cells"]
    found = find(panel)
    assert panel.labels.value is found  # what was found last is what is corrected next
    panel.layer.value = other  # the labels are those of the image they were found in all the same
    found.data[60:70, 10:20] = 3
    panel.add.native.click()
    assert panel.status.value == "cells: added, with 3 objects. Images in the training set: 1"
    found.data[60:70, 10:20] = 0
    panel.add.native.click()
    assert panel.status.value == "cells_2: added, with 2 objects. Images in the training set: 2"
    kept = training_set(panel)
    assert kept.keys() == {"cells", "cells_2"} and kept["cells"][1][65, 15] == 3
    np.testing.assert_array_equal(kept["cells"][0], STACK[0])
    np.testing.assert_array_equal(kept["cells_2"][1], found.data)
    found.data[60:70, 10:20] = 1  # a number that another nucleus has
    panel.add.native.click()
    assert "separate pieces that have the same number" in panel.status.value and not said


def test_of_a_stack_the_shown_plane_is_added(panel, tmp_path):
    viewer = panel.viewer
    viewer.layers.clear()
    viewer.add_image(STACK, name="stack", scale=(2, 1, 1))
    panel.box.reset_choices()
    panel.folder.value = tmp_path
    viewer.dims.set_current_step(0, 2)
    find(panel)  # one plane, which lies where the third of the image does
    viewer.dims.set_current_step(0, 0)
    panel.add.native.click()
    panel.all_planes.value = True
    find(panel)
    viewer.dims.set_current_step(0, 3)
    panel.add.native.click()
    kept = training_set(panel)
    assert kept.keys() == {"stack_002", "stack_003"}
    for plane, name in [(2, "stack_002"), (3, "stack_003")]:
        np.testing.assert_array_equal(kept[name][0], STACK[plane])
        assert shows(kept[name][1], STACK[plane])


def test_labels_and_colours_of_several_levels_are_added(viewer):
    image = np.stack([STACK[0]] * 3, -1)
    levels = viewer.add_image([image, image[::2, ::2]], multiscale=True, rgb=True, name="a")
    labels = viewer.add_labels(ndimage.label(STACK[0] > 100)[0])
    name, pixels, numbers = plugin.corrected(levels, labels, viewer.dims.point)
    assert name == "a"
    np.testing.assert_array_equal(pixels, image)
    assert shows(numbers, STACK[0])


def test_what_cannot_be_added_is_said(panel, said, tmp_path):
    panel.folder.value = tmp_path / "set"
    panel.add.native.click()
    panel.viewer.add_labels(np.zeros((9, 9), int))
    panel.box.reset_choices()
    panel.add.native.click()
    assert [one.message for one in said] == [
        "There is no label layer: find nuclei, or add labels, first",
        "labels of shape (9, 9) for an image of 90 x 120 pixels: they must have its height and "
        "width",
    ]
    panel.viewer.layers.remove("cells")
    panel.box.reset_choices()
    panel.add.native.click()
    assert said[-1].message == "There is no image layer: open the image of these labels"
    panel.tune.native.click()
    wait_until(lambda: panel.worker is None)
    assert said[-1].message.endswith("set: no training set yet: add corrected images first")
    assert not (tmp_path / "set").exists() and panel.tune.enabled


def test_fine_tuning_in_the_background(panel, said, tmp_path, monkeypatch):
    """Only the training is left out, which test_fine_tuning.py has."""
    asked, go = [], threading.Event()
    new = tmp_path / "nucleus20261129T1200" / "mask_rcnn_nucleus_0001.h5"

    def fine_tune(*arguments, progress, **options):
        asked.append((arguments, options))
        for done in range(5):
            progress(done, 4)
            assert done or go.wait(60)
        return new

    monkeypatch.setattr(plugin, "fine_tune", fine_tune)
    panel.folder.value, panel.minutes.value = tmp_path / "set", 2
    find(panel)
    panel.add.native.click()
    panel.tune.native.click()
    assert panel.status.value == "Fine-tuning ..." and panel.cancel.enabled
    assert not panel.find.enabled and not panel.tune.enabled
    panel.add.native.click()  # corrections go on meanwhile
    seen = []
    panel.bar.changed.connect(lambda value: seen.append((value, panel.bar.max)))
    go.set()
    wait_until(lambda: panel.worker is None)
    assert seen[-1] == (4, 4) and not said
    assert Path(panel.weights.value) == new and panel.find.enabled
    assert panel.status.value == "Fine-tuned: Find now uses nucleus20261129T1200"
    folder = tmp_path / "set"
    [(arguments, options)] = asked
    assert arguments == (folder / "images", folder / "labels", "nucleus")
    assert options == {"minutes": 2, "logs": folder / "runs"}
    # Cancelled, the weights stay.
    go.clear()
    panel.tune.native.click()
    wait_until(lambda: len(asked) == 2)
    panel.cancel.native.click()
    go.set()
    wait_until(lambda: panel.worker is None)
    assert panel.status.value == "Cancelled" and Path(panel.weights.value) == new


def test_the_shipped_weights_in_the_widget(viewer):
    [(image, keywords, _)] = plugin.synthetic_nuclei(192)
    viewer.add_image(image, **keywords)
    layer = find(plugin.Panel(viewer))
    np.testing.assert_array_equal(layer.data, plugin.load_detector("nucleus").detect(image).labels)
    assert len(layer.features) > 8
