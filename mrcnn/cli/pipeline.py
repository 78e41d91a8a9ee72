"""Read, work, write: three stages over a list of items that run at the same time.

    reader threads      read(item)             a few items ahead
    calling thread      work(item, value)      one item after the other
    one writer thread   write(item, outcome)   in the order of the items, a few items behind

So a network that works in the calling thread waits neither for files to be decoded nor for
results to be drawn and written.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

from mrcnn.console import Progress
from mrcnn.errors import UserError

# Items that are read, or being read, before their turn; and items that wait to be written or are
# being written. Together with the one being worked on, they bound the memory.
AHEAD, BEHIND = 2, 2

# Errors of one item that do not affect the others.
ITEM_ERRORS = (UserError, MemoryError)


class Outcome(NamedTuple):
    """What has become of an item: the result of a stage, or the error that prevented it."""

    result: Any = None
    error: Exception | None = None


def run_overlapped(
    items: Iterable,
    read: Callable[[Any], Any],
    work: Callable[[Any, Any], Any],
    write: Callable[[Any, Outcome], Any],
    report: Callable[[Any, Outcome], None],
    ahead: int = AHEAD,
) -> None:
    """Take every item through the stages; `ahead` of them are read before their turn.

    `write` gets the Outcome of `read` and `work`; `report` gets the Outcome of `write` (the
    earlier error, where there was one), in the calling thread and in the order of the items.

    A `UserError` or `MemoryError` of `read` or `work`, and a `MemoryError` of `write`, concerns
    only its item: the run continues. Every other error ends the run and is raised here. This
    includes a `UserError` of `write`, since a full disk would affect all items to come; nothing is
    written after it. Ctrl-C ends the run once everything that `work` has done is written. No thread
    is left behind.
    """
    items = iter(items)
    reading: deque[tuple[Any, Future]] = deque()
    writing: deque[tuple[Any, Future]] = deque()
    broken = threading.Event()

    def read_next() -> None:
        reading.extend((item, readers.submit(read, item)) for item in islice(items, 1))

    def worked(item, future: Future) -> Outcome:
        try:
            return Outcome(work(item, future.result()))
        except ITEM_ERRORS as error:
            return Outcome(error=error)

    def written(item, outcome: Outcome) -> Outcome:
        if broken.is_set():
            raise CancelledError
        try:
            return Outcome(write(item, outcome), outcome.error)
        except MemoryError as error:
            return Outcome(error=error)
        except BaseException:
            broken.set()
            raise

    def report_written(waiting: int) -> None:
        """Report what is done; wait until at most `waiting` items are not."""
        while writing and (len(writing) > waiting or writing[0][1].done()):
            item, future = writing.popleft()
            report(item, future.result())

    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(AHEAD) as readers:
        try:
            for _ in range(ahead):
                read_next()
            while reading:
                item, future = reading.popleft()
                read_next()
                writing.append((item, writer.submit(written, item, worked(item, future))))
                del future  # and with it the image
                report_written(waiting=BEHIND)
            report_written(waiting=0)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


def each_image(
    names: Sequence[str],
    what: str,
    failed: dict[str, str],
    read: Callable[[int], Any],
    work: Callable[[int, Any, Progress], Any],
    write: Callable[[int, Outcome], str],
    ahead: int = AHEAD,
) -> None:
    """Take the images, by their numbers in `names`, through the stages of `run_overlapped`.

    `work` gets the progress, too; `write` returns a note for it. The names of images that fail are
    added to `failed`, with the reason.
    """
    with Progress(len(names), what) as progress:

        def report(number: int, outcome: Outcome) -> None:
            note = outcome.result
            if outcome.error is not None:
                name, note = names[number], "failed"
                failed[name] = str(outcome.error or "out of memory")
                print(f"{name}: skipped: {failed[name]}", file=sys.stderr)
            progress.step(note)

        run_overlapped(
            range(len(names)),
            read,
            lambda number, value: work(number, value, progress),
            write,
            report,
            ahead,
        )
