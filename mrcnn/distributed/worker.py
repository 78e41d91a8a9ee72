"""What runs on a worker: one detector per process, made once, for everything sent to it.

`Detecting` tells every worker, also those that start later, how to make the detector; tasks only
name it. At most MOST_DETECTORS stay in memory: a client that was killed leaves its own behind.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distributed import WorkerPlugin

from mrcnn.distributed.far_result import FarResult, PackedLabels, Wanted
from mrcnn.errors import UserError, with_warnings

MOST_DETECTORS = 2
# Images of more tiles go to the whole cluster, others to one worker.
SPREAD_ABOVE = 64

_described: dict[str, bytes] = {}
_detectors: dict[str, Any] = {}
_lock = threading.Lock()


class WorkerError(OSError):
    """A worker that cannot detect, or a cluster that is gone: no image is to blame."""


class Detecting(WorkerPlugin):
    """Tells workers how to make a detector."""

    def __init__(self, key: str, description: bytes, own: bool):
        """
        Args:
            key: a unique one.
            description: a pickled `Segmenter`, or an object with a method `make` that returns one.
            own: whether the workers are this program's own, which Ctrl-C reaches too: they ignore
                it, and the program ends them.
        """
        self.name, self.key, self.description, self.own = f"mrcnn-{key}", key, description, own

    def setup(self, worker: Any) -> None:
        _described[self.key] = self.description
        if self.own and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def teardown(self, worker: Any) -> None:
        _described.pop(self.key, None)
        _detectors.pop(self.key, None)


def detector_of(key: str, description: bytes | None = None) -> Any:
    """The detector of this process. description: needed where `Detecting` has not supplied it.

    Raises WorkerError where it cannot be made.
    """
    with _lock:
        if key not in _detectors:
            try:
                made = pickle.loads(description or _described[key])
                made = made.make() if hasattr(made, "make") else made
            except (UserError, ImportError, KeyError) as error:
                raise WorkerError(f"{here()}: cannot detect: {error}") from None
            while len(_detectors) >= MOST_DETECTORS:
                del _detectors[next(iter(_detectors))]
            _detectors[key] = made
        return _detectors[key]


class Shipped:
    """A detector as part of a Dask graph: in another process it is made when it is needed."""

    def __init__(self, detector: Any = None, key: str = "", description: bytes | None = None):
        self.detector, self.key = detector, key or uuid.uuid4().hex
        self.description = description

    def __reduce__(self) -> tuple:
        import cloudpickle

        self.description = self.description or cloudpickle.dumps(self.detector)
        return Shipped, (None, self.key, self.description)

    def get(self) -> Any:
        """The detector."""
        return self.detector or detector_of(self.key, self.description)


def here() -> str:
    """Text that identifies this worker."""
    from distributed import get_worker

    try:
        return f"worker {get_worker().address} on {socket.gethostname()}"
    except ValueError:  # under another of Dask's schedulers
        return f"process {os.getpid()} on {socket.gethostname()}"


def ready(key: str) -> str:
    """Make the detector; returns the text that identifies this worker."""
    detector_of(key)
    return here()


def detect(
    key: str, load: Callable[[], Any], how: Mapping[str, Any], wanted: Wanted, may_spread: bool
) -> tuple[Any, list[str]]:
    """Detect in one image.

    Args:
        key: of the detector.
        load: returns the image.
        how: fields of `ViewOptions`.
        may_spread: whether only the view is chosen for an image of many tiles.

    Returns:
        A `FarResult`, or a `View` and the shape of its level for images of more than SPREAD_ABOVE
        tiles; and the warnings.
    """
    detector = detector_of(key)

    def work() -> Any:
        level, view = detector.choose_view(load(), **how)
        if may_spread and view.tile and len(view.tiles(level.shape)) > SPREAD_ABOVE:
            return view, tuple(level.shape)
        return FarResult.of(detector.find(level, view), wanted)

    return with_warnings(work)


def find_tiles(key: str, image: Any, view: Any, tiles: Sequence[Any]) -> list[tuple]:
    """Detect in some tiles of an image: packed labels, scores and classes of each."""
    found = detector_of(key).find_tiles(view.level(image), view, tiles)
    return [(PackedLabels.of(labels), *others) for labels, *others in found]
