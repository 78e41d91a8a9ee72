"""How a command takes SIGTERM: as Ctrl-C, within the time that those who send it allow.

`docker stop` and Kubernetes send SIGKILL after 10 and 30 seconds, SLURM after 30. For process 1 of
a container, SIGTERM does nothing at all unless it is handled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from mrcnn.errors import Terminated

EXIT_CODE = 128 + signal.SIGTERM  # what shells say of a program that SIGTERM has ended
PATIENCE = 9.0  # seconds


@contextlib.contextmanager
def terminable(say: Callable[[str], None]) -> Iterator[None]:
    """In the block SIGTERM raises `Terminated`, once. Where nothing has come of that after
    PATIENCE seconds, for instance because the main thread is deep inside of TensorFlow, the
    process ends with EXIT_CODE: what is on disk is whole, and the next run resumes it.

    say: prints why the process ends, in another thread.
    Without effect in other threads than the main one, which get no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler in Python runs when the main thread is back in Python; this pipe is written at once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = []

    def handle(number, frame):
        if not received:
            received.append(number)
            raise Terminated

    before = signal.signal(signal.SIGTERM, handle)
    pipe_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(reader, ended, say), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(pipe_before)
        signal.signal(signal.SIGTERM, before)
        os.close(writer)  # the thread then reads the end and closes the other


def _watch(reader: int, ended: threading.Event, say: Callable[[str], None]) -> None:
    """End the process PATIENCE seconds after SIGTERM, unless the block has ended by then."""
    try:
        while True:
            numbers = os.read(reader, 64)
            if not numbers:
                return
            if signal.SIGTERM in numbers:
                break
    finally:
        os.close(reader)
    began = time.monotonic()
    if not ended.wait(PATIENCE):
        with contextlib.suppress(OSError, ValueError):
            seconds = time.monotonic() - began
            say(
                f"stopped {seconds:.0f} s after SIGTERM, in the middle of a step: what is written "
                "is whole, and the same command resumes"
            )
        os._exit(EXIT_CODE)
