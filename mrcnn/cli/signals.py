"""How a command handles Ctrl-C, and SIGTERM likewise, within the time that its senders allow.

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

from mrcnn.errors import Terminated, UserError

EXIT_CODE = 128 + signal.SIGTERM  # what shells report for a program that SIGTERM ended
PATIENCE = 9.0  # seconds


@contextlib.contextmanager
def terminable(say: Callable[[str], None]) -> Iterator[None]:
    """In the block SIGTERM raises `Terminated`, once. If the block has not ended PATIENCE seconds
    later, for instance because the main thread is deep inside TensorFlow, the process ends with
    EXIT_CODE: what is on disk is intact, and the next run resumes from it.

    Libraries turn what is raised inside them, Ctrl-C included, into errors of their own; TensorFlow
    does so while it builds a graph. What leaves the block is still what the signal raised.

    say: prints why the process ends, in another thread.
    Has no effect outside the main thread: other threads get no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler in Python runs only when the main thread is back in Python; this pipe is written at
    # once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received: list[type[BaseException]] = []

    def handle_sigterm(number, frame):
        if Terminated not in received:
            received.append(Terminated)
            raise Terminated

    def handle_ctrl_c(number, frame):
        received.append(KeyboardInterrupt)
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, handle_sigterm)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in the background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, handle_ctrl_c)
    pipe_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(reader, ended, say), daemon=True).start()
    try:
        yield
    except Exception as error:
        if received and not isinstance(error, UserError | OSError):
            raise received[-1] from error
        raise
    finally:
        ended.set()
        signal.set_wakeup_fd(pipe_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # the thread then reads end-of-file and closes the reader


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
                "is intact, and the same command resumes from it"
            )
        os._exit(EXIT_CODE)
