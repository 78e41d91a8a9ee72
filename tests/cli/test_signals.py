"""SIGTERM, closed pipes and narrow encodings, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mrcnn.cli import signals

PROGRAM = """
import sys, time
from mrcnn.cli import main, signals, summary
signals.PATIENCE = 0.5
def work():
    print("there", flush=True)
    {work}
    return summary.Summary("done", {{}}, failed={{"a.png": "is not an image"}})
sys.exit(main.run(work, "mrcnn"))
"""


def started(work, **how):
    """A process that runs a command, once it is at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )
    assert process.stdout.readline() == "there\n"
    return process


@pytest.mark.parametrize(
    "work, said",
    [
        ("time.sleep(60)", "mrcnn: stopped by SIGTERM\n"),
        # As TensorFlow in the middle of a step: back in Python, if ever, much later.
        ("import hashlib; hashlib.pbkdf2_hmac('md5', b'', b'', 99_999_999)", "after SIGTERM, in"),
    ],
)
def test_sigterm_ends_a_command_soon(work, said):
    process = started(work)
    time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == signals.EXIT_CODE == 143
    assert said in errors and "Traceback" not in errors
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_error_that_a_library_makes_of_a_signal_is_the_signal(number, code):
    work = """try:
        time.sleep(60)
    except BaseException:
        raise ValueError("in a graph")"""
    process = started(work)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.startswith("mrcnn: ") and errors.count("\n") == 1


def test_nobody_listens_any_more():
    process = started("time.sleep(.5); print('a' * 100_000); print('b', flush=True)")
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 2 and errors == "1 image failed:\n  a.png: is not an image\n"
    process.stderr.close()


def test_a_name_that_the_terminal_cannot_show():
    process = started("print('größe \\udc80')", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    # Not `communicate`, which loses what was read ahead with the first line.
    output = process.stdout.read()
    process.stderr.close()
    assert process.wait() == 2 and output == "gr\\xf6\\xdfe \\udc80\ndone\n"


def test_handlers_are_as_before():
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    with signals.terminable(print):
        assert all(signal.getsignal(n) is not b for n, b in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before
