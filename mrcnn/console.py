"""What a terminal shows during work and at its end; streams whose failure does not end a run.

On a terminal a bar, drawn by rich, stays at the foot, and whatever is printed goes above it.
Elsewhere (files, Docker, SLURM) plain lines come now and then. rich is imported when needed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

_quiet = False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """In the block only warnings and errors are shown: no progress, nothing on standard output."""
    global _quiet
    before, stdout = _quiet, sys.stdout
    try:
        with open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere:
            _quiet, sys.stdout = True, nowhere
            yield
    finally:
        _quiet, sys.stdout = before, stdout


def on_terminal(stream: TextIO | None) -> bool:
    """Whether what is written to a stream can be overwritten."""
    return bool(stream) and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


class Bar:
    """`detect ━━━━━━━━━━ 3/6  ETA 00:01:40  12 nuclei` at the foot of a terminal.

    It is drawn four times per second, in a thread: the clock keeps running during a long step.
    What is printed meanwhile, also by other code, appears above it, as long as it goes through
    sys.stdout and sys.stderr.
    """

    def __init__(self, stream: TextIO, keep: bool = True):
        """stream: a terminal. keep: whether the bar stays when it is closed."""
        from rich.console import Console
        from rich.live import Live

        # The cursor is not hidden: it would stay so where the process is killed.
        class Terminal(Console):
            def show_cursor(self, show: bool = True) -> bool:
                return False

        self._what, self._clock, self._note, self._below = "", str, "", ""
        self._done, self._total = 0.0, 0
        self._console = Terminal(
            file=stream,
            soft_wrap=True,  # the terminal wraps: a path can be copied whole
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            transient=not keep,
            # What goes elsewhere, into a file or a pipe, must not end up on the terminal.
            redirect_stdout=on_terminal(sys.stdout),
            redirect_stderr=on_terminal(sys.stderr),
        )
        self._live.start()

    def show(
        self,
        what: str,
        done: float,
        total: int,
        clock: Callable[[], str],
        note: str = "",
        below: str = "",
    ) -> None:
        """done: parts of a step included. clock: returns the text for the time, at every drawing.
        note: at the end of the line; below: on a line of its own, cut where it is too long."""
        self._what, self._done, self._total = what, done, total
        self._clock, self._note, self._below = clock, note, below

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text)

    def _render(self) -> Any:
        from rich.console import Group
        from rich.constrain import Constrain
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table
        from rich.text import Text

        row = Table.grid(
            Column(no_wrap=True),
            Column(ratio=1, min_width=6),
            *(Column(no_wrap=True) for _ in range(3)),
            padding=(0, 1),
            expand=True,
        )
        row.add_row(
            self._what,
            ProgressBar(total=max(self._total, 1), completed=self._done),
            f"{int(self._done)}/{self._total}",
            self._clock(),
            Text(self._note),
        )
        below = [Text(self._below, no_wrap=True, overflow="ellipsis")] if self._below else []
        # Room for the ^C that a terminal shows: it must not start another line.
        return Constrain(Group(row, *below), self._console.width - 3)

    def close(self) -> None:
        self._live.stop()


class Progress:
    """The steps of a loop, with the time left; in a `with` block where it may end early.

    A `Bar` on a terminal, otherwise `detect 12/50 ETA 00:01:40 <note>`: a plain line at the first
    step, every `interval` seconds and at the end. Writes to stderr.
    """

    def __init__(self, total: int, what: str, stream: TextIO | None = None, interval: float = 20):
        self.total, self.what, self.interval = total, what, interval
        self.stream = stream or sys.stderr
        self.started = self.shown = time.monotonic()
        self.done = 0
        self._part = 0.0  # of the current step
        self._bar = None
        if total and on_terminal(self.stream) and not _quiet:
            self._bar = Bar(self.stream)
            self._bar.show(what, 0, total, self._elapsed)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar:
            self._bar.close()
            self._bar = None

    def step(self, note: str = "") -> None:
        """Count one more; `note` is shown at the end of the line."""
        self.done += 1
        self._part = 0.0
        self._show(note)

    def within(self, done: int, total: int) -> None:
        """Show how many of the parts of the current step are done."""
        self._part = done / total
        self._show(f"tile {done}/{total}" if total > 1 else "")

    def finish(self) -> None:
        """End the line where fewer steps than announced were needed."""
        if self.done < self.total:
            self.total = self.done
            self._show()

    def message(self, text: str) -> None:
        """Print a line about a step that is not a warning."""
        if self._bar:
            self._bar.print(text)
        elif not _quiet:
            print(text, file=self.stream, flush=True)

    def _elapsed(self) -> str:
        return duration_text(time.monotonic() - self.started)

    def _show(self, note: str = "") -> None:
        now = time.monotonic()
        finished = self.done >= self.total
        first = self.done == 1 and not self._part
        if _quiet or not (self._bar or finished or first or now - self.shown > self.interval):
            return
        self.shown = now
        done = self.done + self._part
        left = (now - self.started) / max(done, 1e-9) * (self.total - done)
        took = f"took {duration_text(now - self.started)}"
        clock = (lambda: took) if finished else countdown(left)
        if self._bar:
            self._bar.show(self.what, done, self.total, clock, note)
            if finished:
                self.close()
            return
        line = f"{self.what} {self.done}/{self.total} {clock()} {note}"
        print(line.rstrip(), file=self.stream, flush=True)


def countdown(seconds: float) -> Callable[[], str]:
    """A function that returns the time left, as text."""
    end = time.monotonic() + seconds
    return lambda: f"ETA {duration_text(max(0.0, end - time.monotonic()))}"


def duration_text(seconds: float) -> str:
    """Seconds as HH:MM:SS, hours unbounded."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}"


def print_table(rows: Mapping[str, str]) -> None:
    """Names and values on standard output; in a frame where that is a terminal."""
    if on_terminal(sys.stdout):
        from rich.box import ROUNDED
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        values = Column(overflow="fold")
        table = Table(Column(style="bold", no_wrap=True), values, box=ROUNDED, show_header=False)
        for name, value in rows.items():
            table.add_row(Text(name), Text(value))
        Console(file=sys.stdout).print(table)
        return
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """In the block, standard output and error take any text, and do not fail when nobody reads.

    Characters that the terminal's encoding lacks are escaped. Where the reader of a pipe has gone
    (`mrcnn train ... | head`), or the terminal was closed, the rest is dropped: hours of work must
    not be lost over that.
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
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: of a terminal that was closed
                raise
            # Whatever is buffered is still written when Python ends: to nowhere, from now on.
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
