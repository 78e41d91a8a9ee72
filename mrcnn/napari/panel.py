"""The widget that finds nuclei in image layers, and learns from corrected labels.

napari and what comes with it are imported where they are used: the module imports without them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.napari.jobs import find, load_detector
from mrcnn.napari.layers import corrected, microns_of, placement, shown_plane
from mrcnn.napari.teaching import teach
from mrcnn.presets import FINE_TUNE_MINUTES
from mrcnn.training.corrections import IMAGES, add_to_training_set

if TYPE_CHECKING:
    import napari
    from magicgui.widgets import Container

INVERTED = {"automatic": None, "yes": True, "no": False}
TRAINING_SET = Path.home() / "mrcnn_corrections"  # where corrections go by default


class Cancelled(Exception):
    """Ends the work in its thread."""


class Panel:
    """The widget; `box` is what napari docks. One job runs at a time, in a thread: a search, or
    fine-tuning.

    Attributes:
        worker: the thread's, while there is one.
        sources: the image layer of each label layer that a search has made.
    """

    def __init__(self, viewer: napari.Viewer):
        from superqt.utils import ensure_main_thread

        self.viewer, self.worker = viewer, None
        self.sources: WeakKeyDictionary = WeakKeyDictionary()
        self._make_fields()
        self._make_fields_of_teaching()
        self._lay_out()
        # Functions, not methods, of which only weak references would be kept: so this object lives
        # as long as its buttons.
        self.layer.changed.connect(lambda: self._layer_changed())
        self.find.changed.connect(lambda: self.start())
        self.add.changed.connect(lambda: self.keep_corrections())
        self.tune.changed.connect(lambda: self.start_fine_tuning())
        self.cancel.changed.connect(lambda: self.stop())
        self._advance = ensure_main_thread(self._advance_bar)
        self._layer_changed()

    def _make_fields(self) -> None:
        """The fields for what to find, where and how."""
        from magicgui import widgets
        from napari.layers import Image

        self.layer = widgets.ComboBox(label="image", choices=lambda _: self._layers(Image))
        self.diameter = widgets.FloatSpinBox(
            label="diameter (pixels)",
            max=10_000,
            step=1,
            tooltip="of a typical nucleus; 0: found automatically",
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
            tooltip="each on its own; otherwise only the plane that is shown",
        )
        self.find = widgets.PushButton(text="Find")

    def _make_fields_of_teaching(self) -> None:
        """The fields for what to learn, and for how long."""
        from magicgui import widgets
        from napari.layers import Labels

        self.labels = widgets.ComboBox(
            label="corrected labels",
            choices=lambda _: self._layers(Labels),
            tooltip="of the image; for a stack, only the plane that is shown is added",
        )
        self.folder = widgets.FileEdit(
            label="training set",
            mode="d",
            value=TRAINING_SET,
            tooltip="the folder where corrected images are kept; mrcnn train accepts it, too",
        )
        self.minutes = widgets.FloatSpinBox(
            label="minutes",
            min=0.1,
            max=600,
            step=1,
            value=FINE_TUNE_MINUTES,
            tooltip="of training, at most: it ends earlier if it has seen enough; getting ready "
            "takes extra time",
        )
        self.add = widgets.PushButton(text="Add to training set")
        self.tune = widgets.PushButton(
            text="Fine-tune", tooltip="train the weights above on the training set; saves new ones"
        )

    def _lay_out(self) -> None:
        """The fields and buttons, and below them the progress."""
        from magicgui import widgets

        self.cancel = widgets.PushButton(text="Cancel", enabled=False)
        self.bar = widgets.ProgressBar(visible=False)
        self.status = widgets.Label()
        self.status.native.setWordWrap(True)
        finding = [self.layer, self.diameter, self.inverted, self.weights, self.all_planes]
        teaching = [self.labels, self.folder, self.add, self.minutes, self.tune]
        self.box = widgets.Container(
            widgets=[*finding, self.find, *teaching, self.cancel, self.bar, self.status]
        )

    def _layers(self, kind: type) -> list:
        return [layer for layer in self.viewer.layers if isinstance(layer, kind)]

    def _layer_changed(self) -> None:
        self.all_planes.enabled = self.layer.value is not None and self.layer.value.ndim > 2

    # ---- Finding

    def start(self) -> None:
        """Find with the settings of the widget; does nothing where a job runs."""
        layer = self.layer.value
        if layer is None:
            self._complain("There is no image layer: open an image first")
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
        weights = str(self.weights.value)

        def work(progress: Callable[[int, int], None]) -> tuple:
            labels, features, about = find(
                data, load_detector(weights), progress=progress, **options
            )
            return labels, features, about | {"weights": weights}

        self._run(work, lambda found: self._show(found, keywords, layer), f"Searching {layer.name}")

    def _show(self, found: tuple, keywords: dict[str, Any], source: napari.layers.Image) -> str:
        labels, features, metadata = found
        layer = self.viewer.add_labels(labels, features=features, metadata=metadata, **keywords)
        self.sources[layer] = source
        if self._is_there():
            self.box.reset_choices()
            self.labels.value = layer
        return f"{len(features)} found"

    # ---- Teaching

    def keep_corrections(self) -> None:
        """Add the chosen labels and their image to the training set."""
        labels = self.labels.value
        if labels is None:
            self._complain("There is no label layer: find nuclei, or add labels, first")
            return
        source = self.sources.get(labels)
        image = source if source in self.viewer.layers else self.layer.value
        if image is None:
            self._complain("There is no image layer: open the image of these labels")
            return
        folder = Path(self.folder.value)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MRCNNWarning)
            try:
                pair = corrected(image, labels, self.viewer.dims.point)
                added = add_to_training_set(folder, *pair)
            except UserError as error:
                self._complain(str(error))
                return
        said = [str(one.message) for one in caught if issubclass(one.category, MRCNNWarning)]
        count = len(list((folder / IMAGES).glob("*.tif")))
        added_now = f"{added.name}: added, with {added.objects} objects"
        said.insert(0, f"{added_now}. Images in the training set: {count}")
        self.status.value = "\n".join(said)

    def start_fine_tuning(self) -> None:
        """Train the weights of the widget further; does nothing where a job runs."""
        folder, weights = Path(self.folder.value), str(self.weights.value)
        minutes = self.minutes.value

        def work(progress: Callable[[int, int], None]) -> Path:
            return teach(folder, weights, minutes, progress)

        doing = f"Fine-tuning: getting ready, then at most {minutes:g} minutes of training"
        self._run(work, self._take_weights, doing)

    def _take_weights(self, path: Path) -> str:
        if self._is_there():
            self.weights.value = path
        return f"Fine-tuned: Find now uses {path.parent.name}"

    # ---- The job

    def _run(self, work: Callable, show: Callable[[Any], str], doing: str) -> None:
        """Start a job, unless there is one.

        work: takes a function for its progress, and runs in a thread; show: takes what that
        returns, and returns the text for the status line; doing: the text shown meanwhile.
        """
        from napari.qt.threading import create_worker

        if self.worker:
            return

        def progress(done: int, total: int) -> None:
            if self.worker.abort_requested:
                raise Cancelled
            self._advance(done, total)

        def job() -> tuple[Any, str]:
            """The result, and what is wrong with the input."""
            try:
                return work(progress), ""
            except UserError as error:
                return None, str(error)
            except Cancelled:  # nothing uses what is returned then
                return None, ""

        self.worker = create_worker(job)
        self.worker.returned.connect(lambda found: self._end(*found, show))
        # napari shows what is raised; here it replaces "Searching ...".
        self.worker.errored.connect(lambda error: self._say(f"{type(error).__name__}: {error}"))
        self.worker.finished.connect(lambda: self._finished())
        self._set_enabled(False)
        self.bar.max, self.bar.visible = 0, True  # busy, until there is something to count
        self.status.value = f"{doing} ..."
        self.worker.start()

    def stop(self) -> None:
        """Cancel the job: it ends after the current tile or the current step of training."""
        if self.worker:
            self.worker.quit()
            self.cancel.enabled = False
            self.status.value = "Stopping ..."

    def _set_enabled(self, free: bool) -> None:
        self.find.enabled = self.tune.enabled = free
        self.cancel.enabled = not free

    def _complain(self, text: str) -> None:
        """Show what is wrong: napari's note vanishes after seconds, the line in the panel stays."""
        from napari.utils.notifications import show_error

        show_error(text)
        self._say(text)

    def _say(self, text: str) -> None:
        if self._is_there():
            self.status.value = text

    def _is_there(self) -> bool:
        """False after the widget has been closed, when its parts must no longer be touched."""
        from qtpy.compat import isalive

        return isalive(self.box.native)

    def _advance_bar(self, done: int, total: int) -> None:
        if self._is_there():
            # Busy until the first is done: loading and compiling before it take a while.
            self.bar.max, self.bar.value = (total, done) if done else (0, 0)

    def _end(self, result: Any, wrong: str, show: Callable[[Any], str]) -> None:
        if wrong:
            self._complain(wrong)
        else:
            self._say(show(result))

    def _finished(self) -> None:
        cancelled, self.worker = self.worker.abort_requested, None
        if self._is_there():
            self._set_enabled(True)
            self.bar.visible = False
            if cancelled:
                self.status.value = "Cancelled"


def find_nuclei_widget() -> Container:
    """The widget "Mask R-CNN: find nuclei" for the viewer that is open."""
    import napari

    return Panel(napari.current_viewer()).box
