"""The widget in napari, where that is installed."""

import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mrcnn.napari import jobs
from mrcnn.napari import panel as widget
from tests.support.nucleus_models import segmenter
from tests.support.spots import COUNTS, STACK, Held, make_image, shows


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


def test_find(panel, said):
    image = panel.viewer.layers[0]
    image.scale, image.translate = (0.5, 0.5), (3, 4)
    if hasattr(image, "units"):
        image.units = ("um", "um")
    layer = find(panel)
    assert layer.name == "cells labels" and shows(layer.data, STACK[0])
    assert tuple(layer.scale) == (0.5, 0.5) and tuple(layer.translate) == (3, 4)
    assert layer.features["index"].tolist() == [1, 2] and "score" in layer.features
    assert layer.metadata["inverted"] == [False] and layer.metadata["weights"] == "nucleus"
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
    [data] = jobs.synthetic_nuclei(64)
    viewer._add_layer_from_data(*data)
    box = widget.find_nuclei_widget()
    box.reset_choices()
    assert [layer.name for layer in box[0].choices] == ["synthetic nuclei"]


def test_the_settings_of_the_widget(panel):
    panel.viewer.layers[0].data = 255 - STACK[0]
    panel.diameter.value, panel.inverted.value = 12, "yes"
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
    panel = widget.Panel(viewer)
    panel.find.native.click()
    assert panel.worker is None
    assert panel.status.value == "There is no image layer: open an image first"
    viewer.add_image(STACK[0])
    panel.box.reset_choices()
    panel.weights.value = tmp_path / "absent.h5"
    assert find(panel) is None and panel.status.value == said[1].message  # it stays to be read
    assert [str(one.severity) for one in said] == ["error", "error"]
    assert said[0].message == "There is no image layer: open an image first"
    assert re.fullmatch(r".*absent\.h5: no such weight file.*", said[1].message)


def test_cancel(panel, monkeypatch):
    model = Held()
    monkeypatch.setattr(widget, "load_detector", lambda weights: segmenter(model))
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
    monkeypatch.setattr(widget, "load_detector", lambda weights: segmenter(model))
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
    panel.viewer.layers[0].data = make_image([(30, 40), (350, 300), (480, 600)], (500, 700))
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

    monkeypatch.setattr(widget, "load_detector", broken)
    from napari.utils.notifications import notification_manager

    monkeypatch.setattr(sys, "excepthook", notification_manager.receive_error)  # as napari does
    assert find(panel) is None
    assert any("a defect" in one.message for one in said)
    assert panel.status.value == "ZeroDivisionError: a defect"


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
    """Only the training is left out, which test_teaching.py has."""
    asked, go = [], threading.Event()
    new = tmp_path / "nucleus20261129T1200" / "mask_rcnn_nucleus_0001.h5"

    def teach(*arguments):
        *about, progress = arguments
        asked.append(about)
        progress(0, 0)
        for done in range(5):
            progress(done, 4)
            assert done or go.wait(60)
        return new

    monkeypatch.setattr(widget, "teach", teach)
    panel.folder.value, panel.minutes.value = tmp_path / "set", 2
    find(panel)
    panel.add.native.click()
    panel.tune.native.click()
    assert panel.status.value.startswith("Fine-tuning: getting ready, then at most 2 minutes")
    assert panel.bar.max == 0 and panel.cancel.enabled  # busy, not at nothing
    assert not panel.find.enabled and not panel.tune.enabled
    panel.add.native.click()  # corrections go on meanwhile
    seen = []
    panel.bar.changed.connect(lambda value: seen.append((value, panel.bar.max)))
    go.set()
    wait_until(lambda: panel.worker is None)
    assert seen[-1] == (4, 4) and not said
    assert Path(panel.weights.value) == new and panel.find.enabled
    assert panel.status.value == "Fine-tuned: Find now uses nucleus20261129T1200"
    assert asked == [[tmp_path / "set", "nucleus", 2]]
    # Cancelled, the weights stay.
    go.clear()
    panel.tune.native.click()
    wait_until(lambda: len(asked) == 2)
    panel.cancel.native.click()
    go.set()
    wait_until(lambda: panel.worker is None)
    assert panel.status.value == "Cancelled" and Path(panel.weights.value) == new


def test_the_shipped_weights_in_the_widget(viewer):
    [(image, keywords, _)] = jobs.synthetic_nuclei(192)
    viewer.add_image(image, **keywords)
    layer = find(widget.Panel(viewer))
    np.testing.assert_array_equal(layer.data, jobs.load_detector("nucleus").detect(image).labels)
    assert len(layer.features) > 8
