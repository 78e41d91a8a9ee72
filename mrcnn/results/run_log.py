"""What a detection run has finished, so that the same command can resume it.

RUN_LOG in the folder of results has a line about the run (settings, weights, images), then one for
each image, in the order of the run, and finally {"complete": true}. An image's line is added
once all its results are written: its own files, and its part of the files of the whole run, which
grow as `<name>.partial` and are cut to the length that the last line gives. So a run that was
killed at any moment resumes as if nothing had happened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrcnn.atomic import atomic_path, file_system_errors
from mrcnn.errors import UserError, one_line, quoted
from mrcnn.files import read_bytes
from mrcnn.images.listing import RUN_LOG, has_results

MARK = "mrcnn results"
PARTIAL = ".partial"  # suffix of the files that are not complete
MOST_DIFFERENCES = 3


class RunLog:
    """The log of the run whose results a folder holds.

    Attributes:
        done: the lines of the images that are finished.
        complete: whether all are, and nothing is left to do.
        files: if so, the names of the files of the whole run.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], overwrite: bool = False):
        """Start a run, or resume it.

        about: what the results depend on: "settings" {name: value}, "weights" (a digest) and
        "images" {name: state}. overwrite: start again, whatever is there.

        Raises UserError, without changing anything, if the folder has results of another run.
        """
        self.folder, self.path = Path(folder), Path(folder) / RUN_LOG
        about = json.loads(json.dumps(about))
        before, lines = _read(self.path, overwrite)
        if not overwrite:
            self._refuse_others(before, about)
        lines = lines if before == about and not overwrite else []
        self.complete = bool(lines) and "complete" in lines[-1] and all(map(self._has_files, lines))
        self.files: list[str] = lines[-1]["files"] if self.complete else []
        lines = [line for line in lines if "complete" not in line]
        self.done = lines if self.complete else self._begun(lines)
        if not self.complete:
            head = json.dumps({MARK: 1, **about})
            with atomic_path(self.path) as temporary:
                text = "".join(f"{line}\n" for line in [head, *map(json.dumps, self.done)])
                temporary.write_text(text, encoding="utf-8")

    @property
    def failed(self) -> dict[str, str]:
        """The names of the images that failed, with the reasons."""
        return {line["name"]: line["failed"] for line in self.done if line["failed"] is not None}

    @property
    def objects(self) -> int:
        """The number of objects in the images that are finished."""
        try:
            return sum(line["memory"]["objects"] for line in self.done if line["failed"] is None)
        except (KeyError, TypeError):
            raise damaged(self.path) from None

    @property
    def lengths(self) -> dict[str, int]:
        """The valid bytes of each file that grows, by its name."""
        return self.done[-1]["lengths"] if self.done else {}

    def add(
        self,
        name: str,
        lengths: Mapping[str, int],
        files: Sequence[str] = (),
        memory: Any = None,
        failed: str | None = None,
    ) -> None:
        """Note that an image is finished.

        lengths: of the files of the whole run, by name; files: of its own, relative to the folder;
        memory: what the writers keep of it until the end; failed: why it has no results.
        Raises UserError if the file system refuses.
        """
        self._append(
            {"name": name, "failed": failed, "lengths": lengths, "files": files, "memory": memory}
        )

    def finish(self, files: Sequence[str]) -> None:
        """Note that the run is complete. files: of the whole run."""
        self._append({"complete": True, "files": files})

    def _append(self, line: Mapping[str, Any]) -> None:
        with file_system_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _refuse_others(self, before: dict | None, about: dict) -> None:
        if before is None:
            said = ["which one is not recorded"] if has_results(self.folder) else []
        else:
            said = differences(before, about)
        if said:
            raise UserError(
                f"{self.folder} has results of another run ({'; '.join(said)}): choose another "
                "folder for --output, or replace them with --overwrite"
            )

    def _begun(self, lines: list[dict]) -> list[dict]:
        """The lines up to the first image whose results are gone."""
        for number, line in enumerate(lines):
            lengths = line["lengths"].items()
            if not self._has_files(line) or any(self._size(name) < n for name, n in lengths):
                return lines[:number]
        return lines

    def _has_files(self, line: Mapping[str, Any]) -> bool:
        return all((self.folder / name).exists() for name in line["files"])

    def _size(self, name: str) -> int:
        try:
            return os.path.getsize(self.folder / name)
        except OSError:
            return -1


def forget(folder: Path) -> None:
    """Remove the log of a folder, whose results another kind of run is about to replace."""
    with file_system_errors(folder):
        (Path(folder) / RUN_LOG).unlink(missing_ok=True)


def _read(path: Path, overwrite: bool) -> tuple[dict | None, list[dict]]:
    """What a log says about its run, None if there is no log, and its complete lines."""
    if overwrite or not path.exists():
        return None, []
    try:
        # A killed run may have left half a line at the end.
        head, *lines = map(json.loads, read_bytes(path).split(b"\n")[:-1])
        if head.pop(MARK) != 1 or not all(map(_is_whole, lines)) or not _is_about(head):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(path) from None
    return head, lines


def damaged(path: Path) -> UserError:
    """The error for a log that cannot be used."""
    return UserError(
        f"{path}: is damaged, so the run cannot be resumed: start again with --overwrite, or "
        "choose another folder for --output"
    )


def _is_about(head: dict) -> bool:
    return isinstance(head["settings"], dict) and isinstance(head["images"], dict)


def _is_whole(line: dict) -> bool:
    if not all(isinstance(name, str) for name in line["files"]):
        return False
    if "complete" in line:
        return True
    failed, lengths = line["failed"], line["lengths"]
    return (
        isinstance(line["name"], str)
        and (failed is None or isinstance(failed, str))
        and all(isinstance(n, int) and n >= 0 for n in lengths.values())
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs, in words, at most MOST_DIFFERENCES."""
    old, new = before["settings"], now["settings"]
    said = [
        f"{name} was {one_line(old.get(name), 30)}, is {one_line(new.get(name), 30)}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    if before.get("weights") != now["weights"]:
        said.insert(0, "different weights")
    old, new = before["images"], now["images"]
    for what, names in (
        ("gone", [name for name in old if name not in new]),
        ("new", [name for name in new if name not in old]),
        ("changed", [name for name in new if name in old and old[name] != new[name]]),
    ):
        if names:
            said.append(f"{len(names)} images {what}, first: {quoted(names[0])}")
    if not said and list(old) != list(new):
        said.append("the images are in another order")
    return said[:MOST_DIFFERENCES]
