"""The workers of a cluster in place of a detector: images are handed out, results come back.

One image is one task; Dask repeats the tasks of a worker that dies. For an image of many tiles one
worker chooses the view, then it is cut up: its tiles go to all workers, group by group, and are put
together here in order, as in `Segmenter.find`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

from mrcnn.distributed import worker
from mrcnn.distributed.cluster import detecting
from mrcnn.distributed.far_result import FarResult, Wanted
from mrcnn.distributed.worker import WorkerError
from mrcnn.errors import MRCNNWarning, UserError, reason_of
from mrcnn.results.result import Result

# Unfinished images handed out per thread of the workers: while one is being processed, the next
# one is already there.
AHEAD = 3
# How often an image is handed out again that Dask has given up, after four of its workers died:
# the image may be innocent, where workers are killed one after another.
AGAIN = 2
# Tiles per task, and such tasks handed out per thread.
GROUP, GROUPS_AHEAD = 8, 2


class Given:
    """A task that has been handed out."""

    def __init__(self, task: Callable[[], Any], priority: int, future: Any):
        self.task, self.priority, self.future = task, priority, future
        self.deaths = 0  # of workers, after which it was handed out again


class Team:
    """The workers of a client."""

    def __init__(self, client: Any, key: str, settings: Any, classes: Sequence[str]):
        """key: of `cluster.detecting`; settings, classes: of the detector."""
        self.client, self.key = client, key
        self.settings, self.classes = settings, tuple(classes)

    @property
    def threads(self) -> int:
        """The number of tasks that the workers run at the same time, at least 1."""
        with self._lost():
            return max(1, sum(self.client.nthreads().values()))

    @property
    def ahead(self) -> int:
        """The number of images to hand out before the first result is requested."""
        return AHEAD * self.threads

    def wait_until_ready(self, say: Callable[[str], None]) -> None:
        """Wait for the first worker that has made its detector.

        say: takes a line of text on the progress. Raises UserError where a worker cannot make it.
        """
        with self._lost():
            if not self.client.nthreads():
                say("no workers yet: waiting for the first one")
                self.client.wait_for_workers(1)
        made = self._give_out(partial(worker.ready, self.key))
        try:
            say(f"ready: {self._of(made)}")
        except WorkerError as error:
            raise UserError(str(error)) from None

    def submit(
        self, load: Callable[[], Any], how: Mapping[str, Any], wanted: Wanted, spread: bool
    ) -> Given:
        """Hand out an image. Arguments as for `worker.detect`; returns what `result` takes."""
        return self._give_out(partial(worker.detect, self.key, load, dict(how), wanted, spread))

    def result(
        self, given: Given, image: Any, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Result, list[str]]:
        """The result of an image, and the warnings.

        given: from `submit`; image: read in parts, where its tiles may go to several workers.
        Raises UserError and MemoryError as `Segmenter.detect`, and WorkerError where no image is
        to blame.
        """
        found, warned = self._of(given)
        if isinstance(found, Result):
            return found, warned
        view, shape = found
        parts = self._tiles(image, view, shape)
        instances = view.joined(shape, parts, self.settings, progress)
        return view.result(view.level(image), instances, self.classes), warned

    def _tiles(self, image: Any, view: Any, shape: Sequence[int]) -> Iterator[tuple]:
        """The instances in all tiles of an image, in order; only a few tiles are in memory."""
        tiles = view.tiles(shape)
        groups = (tiles[start : start + GROUP] for start in range(0, len(tiles), GROUP))

        def give_out(tiles: Sequence[Any]) -> Given:
            # Ahead of the images that are waiting: this one comes first.
            return self._give_out(partial(worker.find_tiles, self.key, image, view, tiles), 10)

        for group in in_order(groups, give_out, self._of, GROUPS_AHEAD * self.threads):
            for labels, *others in group:
                yield labels.unpacked(), *others

    def _give_out(self, task: Callable[[], Any], priority: int = 0) -> Given:
        """Hand out a task in one piece: Dask would search arguments for its own objects."""
        with self._lost():
            future = self.client.submit(task, pure=False, priority=priority)
        return Given(task, priority, future)

    def _of(self, given: Given) -> Any:
        """The result of a task. Raises as `result`."""
        from distributed import KilledWorker
        from distributed.comm import CommClosedError

        for attempt in range(AGAIN + 1):
            try:
                return given.future.result()
            except KilledWorker as error:
                given.deaths += error.allowed_failures + 1
            except (CancelledError, CommClosedError, TimeoutError) as error:
                raise self._gone(error) from None
            if attempt < AGAIN:
                given.future = self._give_out(given.task, given.priority).future
        raise UserError(f"{given.deaths} workers died while processing it (out of memory?)")

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        """Turn Dask's errors about a scheduler that has gone into a WorkerError."""
        try:
            yield
        except WorkerError:
            raise
        except (OSError, RuntimeError) as error:
            raise self._gone(error) from None

    def _gone(self, error: BaseException) -> WorkerError:
        address = getattr(self.client.scheduler, "address", "?")
        return WorkerError(
            f"the scheduler at {address} is gone ({reason_of(error, 60)}): results so far are kept"
        )


def in_order(
    items: Iterable[Any], give_out: Callable[[Any], Any], result: Callable[[Any], Any], ahead: int
) -> Iterator[Any]:
    """The results of all items, in order; `ahead` items are handed out at a time."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(give_out(item))
        if len(waiting) >= ahead:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


@contextlib.contextmanager
def team_of(
    client: Any, detector: Any, settings: Any, classes: Sequence[str], own: bool = False
) -> Iterator[Team]:
    """The workers of a client as a team, for the block; arguments as for `cluster.detecting`."""
    with detecting(client, detector, own) as key:
        yield Team(client, key, settings, classes)


def results(
    detector: Any, images: Iterable[Any], client: Any, how: Mapping[str, Any]
) -> Iterator[Result | Exception]:
    """Detect in images, in order, on the workers of a client.

    Args:
        detector: a `Segmenter`.
        images: arrays, or `LazyImage`s, which the workers read themselves.
        how: fields of `ViewOptions`.

    Yields a `Result`, or the UserError or MemoryError of an image.
    """
    from mrcnn.images.image_files import LazyImage

    with team_of(client, detector, detector.settings, detector.classes) as team:

        def give_out(image: Any) -> tuple[Any, Any]:
            if isinstance(image, Exception):
                return image, None
            is_file = isinstance(image, LazyImage)
            return image, team.submit(partial(_itself, image), how, Wanted(), is_file)

        def result(given: tuple[Any, Any]) -> Result | Exception:
            image, future = given
            if future is None:
                return image
            try:
                found, warned = team.result(future, image)
            except (UserError, MemoryError) as error:
                return error
            for text in warned:
                warnings.warn(text, MRCNNWarning, stacklevel=3)
            return found.beside(image) if isinstance(found, FarResult) else found

        yield from in_order(images, give_out, result, team.ahead)


def _itself(image: Any) -> Any:
    return image
