"""The process that this package runs in: the backend that Keras is to use, and forks."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrcnn.errors import UserError, one_line

BACKENDS = ("tensorflow", "jax", "torch")  # those of Keras that this package runs on
# The values that Keras accepts for its settings; for anything else it ends with a traceback.
CHOICES = {
    "floatx": ("float32", "float16", "float64"),
    "image_data_format": ("channels_last", "channels_first"),
}

_process: int | None = None  # where the first network was made


# What TensorFlow's libraries write to standard error while they are loaded, whatever
# TF_CPP_MIN_LOG_LEVEL says: notes and warnings (I0000, W0000), and that two of its own parts
# register one plugin twice. Errors pass.
NOTES = (
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|[IW]\d{4} [\d:.]+ +\d+ \S+\]"
    rb"|E\d{4} [\d:.]+ +\d+ \S+\] Unable to register cu\w+ factory"
)
# A separate process passes on at once what is not a note: also what is written last, where a
# library ends this process.
_FILTER = """
import re, sys
for line in sys.stdin.buffer:
    if not re.match(%r, line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


@contextlib.contextmanager
def without_start_up_notes() -> Iterator[None]:
    """In the block, NOTES do not reach standard error (file descriptor 2); everything else does.

    Has no effect where TF_CPP_MIN_LOG_LEVEL asks for notes.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3") in ("0", "1") or sys.stderr is None:
        yield
        return
    sys.stderr.flush()
    program = [sys.executable, "-S", "-E", "-c", _FILTER % NOTES]
    # Ctrl-C is for this process alone: the other one ends with its input.
    filtering = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    before = os.dup(2)
    os.dup2(filtering.stdin.fileno(), 2)
    filtering.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child of the block has it open
            filtering.wait(timeout=5)


def import_keras() -> None:
    """Import Keras for a command: without its backend's notes, and without matplotlib, which takes
    half a second and which only `keras.visualization` needs. Raises as `check_keras`."""
    if "keras" not in sys.modules:
        check_keras()
        with without_start_up_notes(), _absent("matplotlib"):
            importlib.import_module("keras")


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
    """In the block, an import of a module fails, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]


def check_keras() -> None:
    """Raise UserError where Keras could not be imported: its own errors name no remedy."""
    if "keras" not in sys.modules:
        backend()


def backend() -> str:
    """The backend that Keras runs on when it is imported.

    Raises UserError where it is not installed, and for settings that Keras does not accept.
    """
    path = _settings_path()
    settings = _read_settings(path)
    for key, choices in CHOICES.items():
        _check_choice(f"{key} in {path}", settings.get(key, choices[0]), choices)
    if not isinstance(settings.get("epsilon", 1e-7), float):
        raise UserError(f"epsilon in {path} is {one_line(settings['epsilon'])}: set it to 1e-07")
    if name := os.environ.get("KERAS_BACKEND"):
        source = "the environment variable KERAS_BACKEND"
    else:
        name, source = settings.get("backend", BACKENDS[0]), f"backend in {path}"
    _check_choice(source, name, BACKENDS)
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"Keras is to run on {name} ({source}), but {name} is not installed: pip install "
            f"{name}, or set KERAS_BACKEND to another of {', '.join(BACKENDS)}"
        )
    return name


def _check_choice(source: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{source} is {one_line(value)}: set it to one of {', '.join(choices)}")


def _settings_path() -> Path:
    """Where Keras looks for its settings."""
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"], "keras.json")
    home = os.path.expanduser("~")
    return Path(home if os.access(home, os.W_OK) else "/tmp", ".keras", "keras.json")


def _read_settings(path: Path) -> dict[str, Any]:
    """Keras's settings; nothing where there are none, or, as in Keras, none that can be parsed."""
    if not os.path.exists(path):
        return {}
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: Keras cannot read its settings: {error.strerror}") from error
    except (ValueError, RecursionError):
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no Keras settings: delete it")
    return settings


def check_process() -> None:
    """Raise UserError in a process that was forked from one with a network in it.

    Keras's backends have threads by then, which a fork does not copy: whatever waits for one of
    them waits forever, new networks too.
    """
    if _process not in (None, os.getpid()):
        raise UserError(
            "this process was forked after a network was made, so none can run here: use the start "
            'method "spawn" (multiprocessing.get_context("spawn")) and call mrcnn.load in the new '
            "process, or fork before the first network is made"
        )


def claim_process() -> None:
    """Remember that networks are made in this process. Raises as `check_process`."""
    global _process
    check_process()
    _process = os.getpid()
