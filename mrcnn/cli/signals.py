"""How a command takes Ctrl-C, and SIGTERM: likewise, within the time that those who send it allow.

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

EXIT_CODE = 128 + signal.SIGTERM  # what shells say of a program that SIGTERM has ended
PATIENCE = 9.0  # seconds


@contextlib.contextmanager
def terminable(say: Callable[[str], None]) -> Iterator[None]:
    """In the block SIGTERM raises `Terminated`, once. Where nothing has come of that after
    PATIENCE seconds, for instance because the main thread is deep inside of TensorFlow, the
    process ends with EXIT_CODE: what is on disk is whole, and the next run resumes it.

    Libraries make errors of their own of what is raised inside of them, Ctrl-C included, TensorFlow
    for one where it makes a graph. What leaves the block is then what the signal has raised.

    say: prints why the process ends, in another thread.
    Without effect in other threads than the main one, which get no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler in Python runs when the main thread is back in Python; this pipe is written at once.
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
