"""Reading files from untrusted sources.

Only regular files are opened: a named pipe or a device would block, or never end.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from mrcnn.errors import MissingFileError, UserError, one_line

# One file of labels or of a data set is at most a few megabytes; one that claims more is a broken
# or hostile file and would fill the memory.
MAX_FILE_BYTES = 512 * 1024 * 1024

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def other_kind(path: str | os.PathLike) -> str | None:
    """What is at a path, links followed, in words such as "a named pipe"; None for a regular file.

    Raises OSError where nothing is there, or access is not allowed.
    """
    mode = os.stat(path).st_mode
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


def require_regular(path: str | os.PathLike) -> Path:
    """The path, if a regular file (or a link to one) is there; nothing is opened.

    Raises UserError naming the path: nothing is there (MissingFileError), or something else.
    """
    try:
        kind = other_kind(path)
    except FileNotFoundError:
        raise MissingFileError(f"{one_line(path, 300)}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{one_line(path, 300)}: cannot be read ({reason})") from None
    if kind is not None:
        raise UserError(f"{one_line(path, 300)}: not a regular file, but {kind}")
    return Path(path)


class BoundedReader(io.BufferedReader):
    """An open file from which no more is requested than there is: Python allocates memory for what
    is requested, and libraries request what headers claim."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file, open for reading in binary; see `BoundedReader`.

    Raises UserError as `require_regular` does, and where the file cannot be opened.
    """
    path = require_regular(path)
    try:
        # Non-blocking, in case a pipe has taken the file's place since the check.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        return BoundedReader(io.FileIO(os.open(path, flags)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def refuse_large(size: int, name: str) -> None:
    """Raise UserError for a file that is far larger than any label file should be."""
    if size > MAX_FILE_BYTES:
        raise UserError(f"{name}: {size} bytes, more than the {MAX_FILE_BYTES} allowed per file")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises UserError where it cannot be read or is absurdly large."""
    with open_regular(path) as file:
        refuse_large(os.fstat(file.fileno()).st_size, str(path))
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def file_state(path: Path) -> str:
    """Text that changes when a file does: its name, size and time of change; for a folder (Zarr),
    those of all files in it. Raises UserError where it is gone."""
    try:
        if path.is_dir():
            inner = (Path(root, name) for root, _, names in os.walk(path) for name in names)
            return "\n".join([path.name, *sorted(map(file_state, inner))])
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return f"{path.name} {status.st_size}-{status.st_mtime_ns}"
