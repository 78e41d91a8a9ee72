"""A plugin of napari that finds nuclei in the image layers of the viewer; napari.yaml declares it.

`find` does the work, on arrays and without napari. `microns_of`, `shown_plane` and `placement`
translate between layers and arrays. `Panel` is the widget around all that.

napari and what comes with it are imported where they are used: the module imports without them.

Shapes: H, W pixels of a plane; "..." the axes before them that make a stack of planes, often none.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

import mrcnn
from mrcnn.errors import UserError
from mrcnn.segmenter import Segmenter
from mrcnn.weights.download import resolve_weights

if TYPE_CHECKING:
    import napari
    import pandas as pd
    from magicgui.widgets import Container

# Planes of more bytes are not read whole but tile by tile.
MOST_BYTES = 2**28
INVERTED = {"automatic": None, "yes": True, "no": False}
# How a layer lies in the world, apart from its translation; older versions of napari lack some.
PLACEMENT = ("scale", "rotate", "shear", "affine", "units", "axis_labels")


# ---- The work ----------------------------------------------------------------------------------


def find(
    data: Any,
    detector: Segmenter,
    *,
    rgb: bool = False,
    plane: Sequence[int] | None = None,
    diameter: float | None = None,
    microns: float | None = None,
    inverted: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, pd.DataFrame, dict[str, Any]]:
    """Find the instances in one plane of a layer, or in all of its planes, each by itself.

    Args:
        data: of an image layer, [..., H, W], or [..., H, W, 3 or 4] if `rgb`: an array, or what
            gives one when it is sliced, such as a Zarr or dask array.
        detector: what `mrcnn.load` gives.
        plane: the plane's place on the axes "..."; None for all planes.
        diameter, microns, inverted: see `Segmenter.detect`.
        progress: called with the tiles done and their number, or planes where these are not cut.

    Returns:
        labels int32 [..., H, W], "..." being 1, ..., 1 for one plane. Every instance of the stack
        has its own number; 0 is background.
        The features of a label layer, a row per instance: `index`, its number; `axis_0`, ..., the
        place of its plane in a stack; then the columns of `Result.to_dataframe`.
        The layer's metadata: microns, and for every plane its scale and whether it was inverted.

    Raises:
        UserError: the values are no picture's.
    """
    import pandas as pd

    stack = tuple(data.shape[: -3 if rgb else -2])
    planes = list(np.ndindex(*stack)) if plane is None else [tuple(plane)]
    labels = np.zeros((len(planes), *data.shape[len(stack) : len(stack) + 2]), np.int32)
    tables, scales, were_inverted = [], [], []
    for number, index in enumerate(planes):

        def advance(done: int, total: int, number: int = number) -> None:
            if progress:
                progress(number * total + done, len(planes) * total)

        result = detector.detect(
            _picture(data, index),
            diameter=diameter,
            microns=microns,
            inverted=inverted,
            progress=advance,
        )
        advance(1, 1)
        first = sum(map(len, tables))
        if len(planes) == 1:
            labels = result.labels[np.newaxis]  # without a copy: it may be a large file
        else:
            labels[number] = np.where(result.labels > 0, result.labels + first, 0)
        table = result.to_dataframe().rename(columns={"label": "index"})
        table["index"] += first
        for axis, place in enumerate(index):
            table.insert(1 + axis, f"axis_{axis}", place)
        tables.append(table)
        scales.append(result.scale)
        were_inverted.append(result.exposure.inverted)
    shape = stack if plane is None else (1,) * len(stack)
    return (
        labels.reshape(*shape, *labels.shape[1:]),
        pd.concat(tables, ignore_index=True),
        {"microns": microns, "scales": scales, "inverted": were_inverted},
    )


class _Plane:
    """A plane of a stack, read in the parts that are asked for."""

    def __init__(self, data: Any, index: tuple[int, ...]):
        self.data, self.index = data, index
        self.shape, self.dtype = tuple(data.shape[len(index) :]), np.dtype(data.dtype)

    def __getitem__(self, window: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self.data[(*self.index, *window)])


def _picture(data: Any, index: tuple[int, ...]) -> np.ndarray | _Plane:
    """A plane as `Segmenter.detect` takes it. One that fits into memory is read once: the chunks
    of lazy arrays may be large, and measuring reads around every instance."""
    plane = _Plane(data, index)
    size = int(np.prod(plane.shape, dtype=np.int64)) * plane.dtype.itemsize
    return plane[:, :] if size <= MOST_BYTES else plane


def load_detector(weights: str) -> Segmenter:
    """`mrcnn.load`, which takes seconds; the last one is kept until its file changes."""
    return _load(weights, Path(resolve_weights(weights)).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load(weights: str, changed: int) -> Segmenter:
    with own_symbols():
        import keras  # noqa: F401 (and with it TensorFlow)
    return mrcnn.load(weights)


@contextlib.contextmanager
def own_symbols() -> Iterator[None]:
    """Libraries that are loaded meanwhile call their own functions, not those of the same name that
    are there already.

    TensorFlow and Mesa, which draws napari's canvas on much of Linux, both contain LLVM, each its
    version. Without this Python crashes where TensorFlow is imported after Mesa was.
    """
    flags = sys.getdlopenflags() if hasattr(os, "RTLD_DEEPBIND") else None
    if flags is not None:
        sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        yield
    finally:
        if flags is not None:
            sys.setdlopenflags(flags)


def synthetic_nuclei(side: int = 512, seed: int = 0) -> list[tuple[np.ndarray, dict, str]]:
    """Sample data: a fluorescence image uint8 [side, side] of bright blurred ellipses."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:side, :side]
    image, step = np.zeros((side, side)), 48
    for y, x in np.argwhere(rng.random((side // step, side // step)) < 0.8) * step + step / 2:
        y, x = y + rng.uniform(-8, 8), x + rng.uniform(-8, 8)
        angle, long, ratio = rng.uniform(0, np.pi), rng.uniform(11, 17), rng.uniform(0.7, 1)
        along = (xs - x) * np.cos(angle) + (ys - y) * np.sin(angle)
        across = (ys - y) * np.cos(angle) - (xs - x) * np.sin(angle)
        inside = along**2 + (across / ratio) ** 2 < long**2
        image[inside] = np.maximum(image[inside], rng.uniform(70, 170))
    image *= 1 + 0.6 * ndimage.gaussian_filter(rng.standard_normal(image.shape), 2)  # texture
    image = 18 + ndimage.gaussian_filter(image, 1.2) + rng.normal(0, 4, image.shape)
    return [(np.clip(image, 0, 255).astype(np.uint8), {"name": "synthetic nuclei"}, "image")]


# ---- Layers ------------------------------------------------------------------------------------


def microns_of(layer: napari.layers.Image) -> float | None:
    """The side of a pixel by a layer's scale, where this is in a unit of length; None without
    one, and for pixels that are no squares."""
    units = getattr(layer, "units", ())[-2:]
    if not units or not all(unit.is_compatible_with("micrometer") for unit in units):
        return None
    height, width = (
        abs(float(scale)) * float((1 * unit).to("micrometer").magnitude)
        for scale, unit in zip(layer.scale[-2:], units, strict=True)
    )
    return height if np.isclose(height, width, rtol=0.01) else None


def shown_plane(layer: napari.layers.Image, point: Sequence[float]) -> tuple[int, ...]:
    """The place of the plane that the viewer shows on the axes of a layer's stack.

    point: `viewer.dims.point`, where the sliders are in the world.
    """
    last = np.array(layer.data.shape if not layer.multiscale else layer.data[0].shape)
    place = np.round(layer.world_to_data(point)).astype(int)[: layer.ndim - 2]
    return tuple(int(i) for i in np.clip(place, 0, last[: layer.ndim - 2] - 1))


def placement(layer: napari.layers.Image, plane: Sequence[int] = ()) -> dict[str, Any]:
    """Keywords of a label layer that is to lie where an image layer does, or a plane of it."""
    found = {name: getattr(layer, name) for name in PLACEMENT if hasattr(layer, name)}
    corner = np.zeros(layer.ndim)
    corner[: len(plane)] = plane
    moved = np.subtract(layer.data_to_world(corner), layer.data_to_world(np.zeros(layer.ndim)))
    # In the world the affine transform comes after the translation.
    found["translate"] = layer.translate + np.linalg.solve(layer.affine.linear_matrix, moved)
    return found


# ---- The widget --------------------------------------------------------------------------------


class Cancelled(Exception):
    """Ends the work in its thread."""


class Panel:
    """The widget; `box` is what napari docks. One search runs at a time, in a thread."""

    def __init__(self, viewer: napari.Viewer):
        from superqt.utils import ensure_main_thread

        self.viewer, self.worker = viewer, None
        self._make_fields()
        self._lay_out()
        # Functions, not methods, of which only weak references would be kept: so this object lives
        # as long as its buttons.
        self.layer.changed.connect(lambda: self._layer_changed())
        self.find.changed.connect(lambda: self.start())
        self.cancel.changed.connect(lambda: self.stop())
        self._advance = ensure_main_thread(self._advance_bar)
        self._layer_changed()

    def _make_fields(self) -> None:
        """What is to be found, where and how."""
        from magicgui import widgets
        from napari.layers import Image

        def images(_: Any) -> list[Image]:
            return [layer for layer in self.viewer.layers if isinstance(layer, Image)]

        self.layer = widgets.ComboBox(label="image", choices=images)
        self.diameter = widgets.FloatSpinBox(
            label="diameter (pixels)",
            max=10_000,
            step=1,
            tooltip="of a typical nucleus; 0: found out",
        )
        self.inverted = widgets.ComboBox(
            label="dark nuclei",
            choices=list(INVERTED),
            tooltip="whether nuclei are darker than the background",
        )
        self.weights = widgets.FileEdit(
            label="weights",
            filter="*.h5",
            value="nucleus",
            tooltip='"nucleus", which comes with the package, or a weight file',
        )
        self.all_planes = widgets.CheckBox(
            text="all planes of a stack",
            enabled=False,
            tooltip="each by itself; otherwise the plane that is shown",
        )

    def _lay_out(self) -> None:
        """The fields, and below them the buttons and what goes on."""
        from magicgui import widgets

        self.find = widgets.PushButton(text="Find")
        self.cancel = widgets.PushButton(text="Cancel", enabled=False)
        self.bar = widgets.ProgressBar(visible=False)
        self.status = widgets.Label()
        buttons = widgets.Container(
            widgets=[self.find, self.cancel], layout="horizontal", labels=False
        )
        fields = [self.layer, self.diameter, self.inverted, self.weights, self.all_planes]
        self.box = widgets.Container(widgets=[*fields, buttons, self.bar, self.status])

    def _layer_changed(self) -> None:
        self.all_planes.enabled = self.layer.value is not None and self.layer.value.ndim > 2

    def start(self) -> None:
        """Find with the settings of the widget; does nothing where a search runs."""
        from napari.qt.threading import create_worker
        from napari.utils.notifications import show_error

        layer = self.layer.value
        if self.worker:
            return
        if layer is None:
            show_error("There is no image layer: open an image first")
            return
        whole = self.all_planes.value and layer.ndim > 2
        plane = None if whole else shown_plane(layer, self.viewer.dims.point)
        options = dict(
            rgb=layer.rgb,
            plane=plane,
            diameter=self.diameter.value or None,
            microns=microns_of(layer),
            inverted=INVERTED[self.inverted.value],
        )
        keywords = placement(layer, plane or ()) | {"name": f"{layer.name} labels"}
        data = layer.data[0] if layer.multiscale else layer.data
        self.worker = create_worker(self._work, data, str(self.weights.value), options)
        self.worker.returned.connect(lambda found: self._show(found, keywords))
        self.worker.finished.connect(lambda: self._finished())
        self.find.enabled, self.cancel.enabled = False, True
        self.bar.max, self.bar.visible = 0, True  # busy, until there is something to count
        self.status.value = f"Searching {layer.name} ..."
        self.worker.start()

    def stop(self) -> None:
        """Cancel the search: it ends with the tile that is being looked at."""
        if self.worker:
            self.worker.quit()
            self.cancel.enabled = False
            self.status.value = "Stopping ..."

    def _work(self, data: Any, weights: str, options: dict[str, Any]) -> tuple | str | None:
        """What is found, or what is wrong with the input; in the worker's thread."""

        def progress(done: int, total: int) -> None:
            if self.worker.abort_requested:
                raise Cancelled
            self._advance(done, total)

        try:
            return find(data, load_detector(weights), progress=progress, **options)
        except UserError as error:
            return str(error)
        except Cancelled:
            return None

    def _is_there(self) -> bool:
        """False after the widget was closed, when its parts must not be touched any more."""
        from qtpy.compat import isalive

        return isalive(self.box.native)

    def _advance_bar(self, done: int, total: int) -> None:
        if self._is_there():
            self.bar.max, self.bar.value = total, done

    def _show(self, found: tuple | str, keywords: dict[str, Any]) -> None:
        from napari.utils.notifications import show_error

        if isinstance(found, str):
            show_error(found)
            said = ""
        else:
            labels, features, metadata = found
            self.viewer.add_labels(labels, features=features, metadata=metadata, **keywords)
            said = f"{len(features)} found"
        if self._is_there():
            self.status.value = said

    def _finished(self) -> None:
        cancelled, self.worker = self.worker.abort_requested, None
        if self._is_there():
            self.find.enabled, self.cancel.enabled, self.bar.visible = True, False, False
            if cancelled:
                self.status.value = "Cancelled"


def find_nuclei_widget() -> Container:
    """The widget "Mask R-CNN: find nuclei" for the viewer that is open."""
    import napari

    return Panel(napari.current_viewer()).box
