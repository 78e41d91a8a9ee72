"""A progress line with the time left, for loops over images."""

from __future__ import annotations

import sys
import time
from typing import TextIO


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
