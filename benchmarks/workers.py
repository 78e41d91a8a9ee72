"""Worker processes that answer requests: lines of JSON over standard input and output.

One process per contestant, so that their runs can take turns while everything stays loaded. A
request is {"do": NAME, ...arguments}, an answer is the handler's dictionary or {"error": LINE}.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

ROOT_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class WorkerError(Exception):
    """One line that says what a worker could not do."""


def default_threads() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Worker:
    """A running worker process: `ask` it, and `close` it (or use it in a `with`).

    name: for messages. command: without the interpreter's usual paths. threads: for TensorFlow's
    and OpenMP's pools; everything else stays at the libraries' defaults.
    """

    def __init__(self, name: str, command: Sequence[str], threads: int | None = None):
        threads = threads or default_threads()
        environment = {
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": ROOT_DIR,
        }
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            list(command), env=environment, cwd=ROOT_DIR, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def ask(self, do: str, **arguments) -> dict:
        """Send a request and wait for its answer. Raises WorkerError."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.name}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "was killed (out of memory?)"
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["no message"]
        return f"ended with code {code}: {lines[-1]}"

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def serve(contestant: object) -> None:
    """Answer requests until standard input ends: "do" names a public method of `contestant`.

    Every answer also has "idle_cpu": the processor time in seconds that this process has used so
    far while it had nothing to do (threads that wait by spinning).
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not end up between the answers
    idle, rest = 0.0, time.process_time()
    for line in sys.stdin:
        idle += time.process_time() - rest
        request = json.loads(line)
        try:
            answer = {**getattr(contestant, request.pop("do"))(**request), "idle_cpu": idle}
        except ImportError as error:
            answer = {"error": f"{error} (python: {sys.executable})"}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        rest = time.process_time()


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def timed(work: Callable, *arguments) -> tuple[float, object]:
    """(seconds, result) of a call."""
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result
