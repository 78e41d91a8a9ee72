"""What the campaigns share: flags, counting, child processes with limits, and what is right."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mrcnn.errors import UserError

# Of one message; a path and 80 characters of the user's text fit.
LONGEST_MESSAGE = 600
UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: control characters, line ends
TEMPORARY = (".tmp", ".partial")
# A child process imports and builds what it needs before its first case.
START_SECONDS = 120


# ---- Flags and counting ------------------------------------------------------------------------


def parse(
    name: str,
    summary: str,
    kinds: Sequence[str],
    count: int,
    arguments: list[str] | None = None,
    trains: bool = False,
    in_process: bool = False,
    images: int | None = None,
) -> argparse.Namespace:
    """The flags of a campaign.

    Args:
        kinds: that --only chooses from.
        count, images: by default.
        trains: whether --eager makes a difference.
        in_process: whether cases are judged by `isolated`, which has limits.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.campaigns.{name}", description=summary)
    add = parser.add_argument
    add("--count", type=int, default=count, help="cases of each kind (default: %(default)s)")
    add("--seed", type=int, default=1, help="(default: %(default)s)")
    add("--seconds", type=float, default=600, help="for all together (default: %(default)s)")
    add("--first", type=int, default=0, help="number of the first case, to repeat one")
    add("--only", metavar="KIND,...", default=",".join(kinds), help=f"of {', '.join(kinds)}")
    if in_process:
        add("--limit", type=float, default=20, help="seconds of one case (default: %(default)s)")
        add("--megabytes", type=int, default=1000, help="of one case (default: %(default)s)")
    if images:
        add("--images", type=int, default=images, help="for one detector (default: %(default)s)")
    if trains:
        text = "train operation by operation, which begins sooner"
        add("--eager", action="store_true", help=text)
    options = parser.parse_args(arguments)
    options.name, options.only = name, options.only.split(",")
    unknown = set(options.only) - set(kinds)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(kinds)}")
    return options


class Tally:
    """Counts cases and prints those that go wrong."""

    # Failures that are alike are printed so often, and counted at the end.
    SHOWN = 3

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.end = time.monotonic() + options.seconds
        self.tried = self.wrong = 0
        self._alike: Counter[tuple[str, str]] = Counter()
        self._tried_of: Counter[str] = Counter()

    @property
    def time_is_up(self) -> bool:
        return time.monotonic() > self.end

    def add(self, kind: str, number: int, case: str, *wrong: str | None) -> None:
        """Count a case. case: in words; wrong: all that is, the part up to the first `: ` naming
        how; None is nothing."""
        self.tried += 1
        self._tried_of[kind] += 1
        found = [" ".join(text.split()) for text in wrong if text is not None]
        self.wrong += bool(found)
        for text in found:
            how = text.split(": ")[0]
            self._alike[kind, how] += 1
            if self._alike[kind, how] <= self.SHOWN:
                print(f"WRONG {kind} {number} ({' '.join(case.split())}): {text[:600]}")
                print(f"      {self._again(kind, number)}", flush=True)

    def _again(self, kind: str, number: int) -> str:
        """The command that repeats a case."""
        options = self.options
        more = " --eager" if getattr(options, "eager", False) else ""
        if kind == "images":
            more += f" --images {options.images}"
        return (
            f"python -m tests.campaigns.{options.name} --seed {options.seed} --only {kind} "
            f"--first {number} --count 1{more}"
        )

    def finish(self) -> int:
        """Print what went wrong how often, and the last line. Returns the exit code."""
        for (kind, how), count in self._alike.most_common():
            print(f"  {kind}: {count} of {self._tried_of[kind]}: {how[:200]}")
        if self.time_is_up:
            print(f"  stopped after {self.options.seconds:g} seconds, before all were tried")
        right = self.tried - self.wrong
        print(f"tried {self.tried}, right {right}, wrong {self.wrong}", flush=True)
        return 1 if self.wrong else 0


# ---- What is right -----------------------------------------------------------------------------


def import_commands() -> None:
    """Import Keras and all commands, once for the children of a campaign."""
    import mrcnn.model  # noqa: F401
    from mrcnn.cli.main import SUMMARIES, command_of

    for name in SUMMARIES:
        command_of(name)


def verdict(action: Callable[[], None], *names: str) -> str | None:
    """What is wrong with how an action ends; None where it works, or refuses in one line that
    holds one of the names."""
    try:
        action()
    except UserError as error:
        return wrong_message(str(error), names)
    except MemoryError:
        return f"MemoryError in {_place()}"
    except Exception as error:
        return f"{type(error).__name__} in {_place()}: {str(error)[:200]}"
    return None


def wrong_message(message: str, names: Sequence[str]) -> str | None:
    """What is wrong with the text of a UserError."""
    if "more memory than there is" in message:
        return f"memory was asked for that is not there: {message}"
    if "\n" in message.strip():
        return f"a message of several lines: {message!r}"
    if any(unicodedata.category(character) in UNSEEN for character in message):
        return f"a message with control characters: {message!r}"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of many characters: {len(message)}: {message}"
    if names and not any(name in message for name in names):
        return f"a message that does not name the file: {message}"
    return None


def _place() -> str:
    """Module and line of this project where the error being handled came through last."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    own = [f for f in frames if "/mrcnn/" in f.filename or "/samples/" in f.filename] or frames
    parts = Path(own[-1].filename).parts
    return "/".join(parts[-2:]) + f":{own[-1].lineno}"


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def leftovers(folder: Path, endings: Sequence[str] = TEMPORARY) -> list[str]:
    """Names of temporary files and folders below a folder."""
    return [path.name for path in sorted(folder.rglob("*")) if path.name.endswith(tuple(endings))]


def torn_file(folder: Path) -> str | None:
    """The first file below a folder that is not whole, temporary ones aside."""
    for path in files_below(folder):
        if any(part.endswith(TEMPORARY) for part in path.relative_to(folder).parts):
            continue
        try:
            read_whole(path)
        except Exception as error:
            return f"torn file {path.suffix}: {path.name}: {type(error).__name__}: {error}"
    return None


def read_whole(path: Path) -> None:
    """Read a file of one of our own formats to its end; raises where it is not whole."""
    ending = path.suffix
    if ending == ".h5":
        from tests.support.weight_arrays import read_weights

        assert read_weights(path).layers, "no layers"
    elif ending in (".npz", ".zip"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, "a member is damaged"
    elif ending in (".png", ".tif"):
        from skimage.io import imread

        assert imread(path).size
    elif ending in (".json", ".geojson"):
        json.loads(path.read_text())
    elif ending == ".csv":
        lines = path.read_text().split("\n")
        assert lines[-1] == "", "the last row is cut"
        assert len({line.count(",") for line in lines[:-1]}) == 1, "rows of several lengths"
    elif ending == ".html":
        assert path.read_text().rstrip().endswith("</html>"), "the end is missing"
    elif ending == ".onnx":
        import onnx

        onnx.checker.check_model(onnx.load(path))


# ---- Many small cases in a child process -------------------------------------------------------


class Case(NamedTuple):
    text: str
    judge: Callable[[], str | None]  # what is wrong


def isolated(
    cases: Callable[[int], Iterable[Case]], first: int, limit: float, megabytes: int
) -> Iterator[tuple[int, str, str | None]]:
    """(number, text, what is wrong) of cases, judged in a child process one after the other.

    A child that hangs for `limit` seconds or dies costs the one case; another goes on after it.

    Args:
        cases: the cases from a number on.
        first: number of the first.
        megabytes: that a case may take.
    """
    context = multiprocessing.get_context("fork")
    number = first
    while True:
        receiver, sender = context.Pipe(duplex=False)
        scratch = tempfile.mkdtemp(prefix="campaign_")  # a child that is killed cannot clear up
        child = context.Process(target=_serve, args=(sender, cases, number, megabytes, scratch))
        child.start()
        sender.close()
        try:
            while True:
                text = _receive(receiver, START_SECONDS)
                if text is None:  # all are judged
                    return
                wrong = text if isinstance(text, Exception) else _receive(receiver, limit)
                gone = isinstance(wrong, Exception)
                yield number, str(text), str(wrong) if gone else wrong
                number += 1
                if gone:
                    break
        finally:
            child.kill()
            child.join()
            receiver.close()
            shutil.rmtree(scratch, ignore_errors=True)


def _receive(receiver, seconds: float) -> str | Exception | None:
    """What the child says, or why it says nothing."""
    if not receiver.poll(seconds):
        return TimeoutError(f"hangs for {seconds:g} seconds")
    try:
        return receiver.recv()
    except EOFError:
        return ChildProcessError("the process died")


def _serve(
    sender, cases: Callable[[int], Iterable[Case]], first: int, megabytes: int, scratch: str
) -> None:
    silence()
    tempfile.tempdir = scratch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases(first):
            sender.send(case.text)
            sender.send(_judged(case, megabytes))
    sender.send(None)


def _judged(case: Case, megabytes: int) -> str | None:
    before = _memory("VmRSS")
    # What asks for far more is refused by the system, before the machine suffers.
    with _address_space(_memory("VmSize") + 4 * megabytes):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        wrong = case.judge()
        taken = _memory("VmHWM") - before
    if wrong is None and taken > megabytes:
        return f"more than {megabytes} MB of memory: {taken:.0f} MB"
    return wrong


@contextlib.contextmanager
def _address_space(megabytes: float) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(megabytes * 2**20), old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def _memory(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most, VmSize of addresses."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def resident_megabytes() -> float:
    """Memory of this process."""
    return _memory("VmRSS")


def silence() -> None:
    """Send what this process prints nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def tally_of(options: argparse.Namespace, cases: Callable[..., Iterator]) -> int:
    """Try the cases of each kind in processes of their own; the exit code.

    cases: takes kind, seed, the first number and the one after the last.
    """
    tally = Tally(options)
    for kind in options.only:
        end = options.first + options.count
        tried = isolated(
            lambda first, kind=kind, end=end: cases(kind, options.seed, first, end),
            options.first,
            options.limit,
            options.megabytes,
        )
        for number, case, wrong in tried:
            tally.add(kind, number, case, wrong)
            if tally.time_is_up:
                break
    return tally.finish()
