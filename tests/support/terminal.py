"""A real terminal for code under test, and what it shows in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from typing import NamedTuple

import pytest

ROWS = 300


class Shown(NamedTuple):
    """What is on the screen when all is written."""

    lines: list[str]  # without trailing spaces
    written: bytes  # all of it, with the control sequences
    code: int = 0  # of the program


class Terminal:
    """A terminal; `slave` is the file descriptor to write to. `shown` closes it."""

    def __init__(self, columns: int = 80):
        pyte = pytest.importorskip("pyte")
        self._screen = pyte.Screen(columns, ROWS)
        self._stream, self.written = pyte.ByteStream(self._screen), b""
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            self.written += data
            self._stream.feed(data)

    def shown(self, code: int = 0) -> Shown:
        os.close(self.slave)
        self._reader.join()
        os.close(self._master)
        text = "\n".join(line.rstrip() for line in self._screen.display).rstrip()
        return Shown(text.split("\n"), self.written, code)


def on_terminal(
    program: str, columns: int = 80, stop_at: bytes = b"", encoding: str = "utf-8"
) -> Shown:
    """Run a Python program on a terminal.

    stop_at: Ctrl-C is pressed when this has been written, and a bar could be drawn since then.
    encoding: of the terminal.
    """
    terminal = Terminal(columns)
    known = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal.slave),
        env={**known, "TERM": "xterm-256color", "PYTHONIOENCODING": encoding},
    )
    while stop_at and stop_at not in terminal.written and process.poll() is None:
        threading.Event().wait(0.05)
    if stop_at:
        threading.Event().wait(1)
        process.send_signal(signal.SIGINT)
    return terminal.shown(process.wait(timeout=60))
