"""A detector of spots, and what napari and its widget are tested with."""

import os

import pytest

from mrcnn.napari import panel as widget
from tests.support.nucleus_models import segmenter
from tests.support.spots import STACK, Spots


@pytest.fixture
def detector():
    return segmenter(Spots())


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
    monkeypatch.setattr(widget, "load_detector", lambda weights: detector)
    viewer.add_image(STACK[0], name="cells")
    return widget.Panel(viewer)


@pytest.fixture
def said():
    """What napari has notified of in this test."""
    pytest.importorskip("napari")
    from napari.utils.notifications import notification_manager

    notification_manager.records.clear()
    yield notification_manager.records
    notification_manager.records.clear()
