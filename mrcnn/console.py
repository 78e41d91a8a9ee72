"""A progress line with the time left, for loops over images; streams that do not end a run."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO


class Progress:
    """`12/50 [=====>        ] ETA 0:01:40 <note>`: redrawn in place on a terminal, otherwise a
    plain line at the first step, every 20 seconds and at the end. Writes to stderr."""

    WIDTH = 24

    def __init__(self, total: int, what: str, stream: TextIO | None = None, interval: float = 20):
        self.total, self.what, self.interval = total, what, interval
        self.stream = stream or sys.stderr
        self.in_place = self.stream.isatty()
        self.started = self.shown = time.monotonic()
        self.done = 0
        self._part = 0.0  # of the step that is under way

    def step(self, note: str = "") -> None:
        """Count one more; `note` is shown at the end of the line."""
        self.done += 1
        self._part = 0.0
        self._show(note)

    def within(self, done: int, total: int) -> None:
        """So many of the parts of the step that is under way are done."""
        self._part = done / total
        self._show(f"tile {done}/{total}" if total > 1 else "")

    def finish(self) -> None:
        """End the line where fewer steps than announced were needed."""
        if self.done < self.total:
            self.total = self.done
            self._show()

    def _show(self, note: str = "") -> None:
        now = time.monotonic()
        finished = self.done >= self.total
        first = self.done == 1 and not self._part
        if not (self.in_place or finished or first or now - self.shown > self.interval):
            return
        self.shown = now
        done = self.done + self._part
        left = (now - self.started) / max(done, 1e-9) * (self.total - done)
        filled = self.WIDTH * self.done // max(self.total, 1)
        bar = "=" * filled + " " * (self.WIDTH - filled)
        word, seconds = ("took", now - self.started) if finished else ("ETA", left)
        clock = f"{word} {duration_text(seconds)}"
        line = f"{self.what} {self.done}/{self.total} [{bar}] {clock} {note}".rstrip()
        if self.in_place:
            self.stream.write(f"\r{line[:110]:<110}" + ("\n" if finished else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def message(self, text: str) -> None:
        """A line of its own that the progress line does not overwrite."""
        if self.in_place:
            self.stream.write(f"\r{'':<110}\r")
        self.stream.write(text + "\n")
        self.stream.flush()


def duration_text(seconds: float) -> str:
    """Seconds as HH:MM:SS, hours unbounded."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}"


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """In the block, standard output and error take every text, and go on when nobody reads them.

    Names that the terminal's encoding lacks are escaped. Where the reader of a pipe has gone
    (`mrcnn train ... | head`), the rest is dropped: hours of work do not end for that.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and LastingStream(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        sys.stdout, sys.stderr = before


class LastingStream:
    """A text stream whose `write` and `flush` raise nothing when its reader has gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._reader_may_have_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._reader_may_have_gone():
            self._stream.flush()

    @contextlib.contextmanager
    def _reader_may_have_gone(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # Whatever is buffered is written when Python ends, too: into nothing, from now on.
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
