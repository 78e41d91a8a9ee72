"""Files that are written whole or not at all, and folders that one run at a time writes into.

What a run has not finished is called `.mrcnn-<host>-<process>-<birth>-<random>.tmp`: a later run
can tell from that name whether the writer is still running, and removes what a killed one has left.
"""

import contextlib
import os
import shutil
import socket
import threading
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from mrcnn.errors import MRCNNWarning, UserError

TEMPORARY = ".mrcnn-*.tmp"
LOCK = ".mrcnn-lock"
OWN = ".mrcnn-"  # how the names of these files begin, and of those that a run keeps for itself


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path next to `path` that takes its place when the block ends without error.

    Readers see the old file or the new one, never half of one; an error in the block, Ctrl-C
    included, leaves the old file as it was and no temporary file behind. The temporary name
    starts with a dot, so that patterns like `mask_rcnn_*` do not match it.

    Raises:
        UserError: the file system refuses (disk full, no permission, not a folder).
    """
    path = Path(path)
    temporary = temporary_path(path.parent)
    try:
        with file_system_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A new, empty folder that becomes `path`, replacing any that is there, when the block ends
    without error; otherwise nothing is changed. Raises UserError as `atomic_path`."""
    path = Path(path)
    temporary, old = temporary_path(path.parent), temporary_path(path.parent)
    try:
        with file_system_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():  # a folder that is not empty cannot be replaced in one step
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                if old.exists():
                    os.replace(old, path)
                raise
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def file_system_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn errors of the file system in the block into a UserError that names `path`.

    On a full disk, libraries raise errors of their own that only follow from the OSError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = _os_error(error)
        if refusal is None:
            raise
        reason = refusal.strerror or refusal
        raise UserError(f"{path}: could not be written: {reason}") from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError that an error is or follows from."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _flush_to_disk(path: Path) -> None:
    # Without this, a power cut after the rename may leave an empty file under the final name.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


# ---- What killed runs leave ----------------------------------------------------------------


def temporary_path(folder: str | os.PathLike) -> Path:
    """A new name in a folder, for a file that this process has not finished. It is short, whatever
    the final name: names have 255 bytes at most."""
    pid = os.getpid()
    unique = uuid.uuid4().hex[:8]
    return Path(folder) / f".mrcnn-{_host()}-{pid}-{_birth(pid)}-{unique}.tmp"


def remove_leftovers(folder: str | os.PathLike, everything: bool = False) -> None:
    """Remove temporary files and folders of killed runs from a folder.

    Those of running processes and of other machines, which cannot be checked from here, stay,
    unless `everything` is to go, for the folder of a run that is locked (`locked`).
    """
    for path in Path(folder).glob(TEMPORARY):
        if everything or _is_of_a_dead_process(path.name):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_of_a_dead_process(name: str) -> bool:
    host, pid, birth = name.removeprefix(".mrcnn-").split("-")[:3]
    return host == _host() and pid.isdecimal() and _birth(int(pid)) != birth


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode(errors='replace')):08x}"


def _birth(pid: int) -> str:
    """When a process began, so that a reused process number is not mistaken for it: in a container
    every run is process 1. "0" where the system does not tell, "gone" where there is no process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return "gone"
    try:
        os.kill(pid, 0) if os.name == "posix" else None
    except ProcessLookupError:
        return "gone"
    except OSError:  # another user's
        pass
    return "0"


# ---- One run, one folder -------------------------------------------------------------------

_held: dict[Path, tuple[BinaryIO | None, int]] = {}  # file, and how many blocks hold it
_holding = threading.Lock()


@contextlib.contextmanager
def locked(folder: str | os.PathLike, again: bool = False) -> Iterator[None]:
    """Keep other runs out of a folder, which is created if needed, for the length of the block.

    The operating system holds the lock and releases it when the process ends, for whatever reason;
    only the empty file LOCK stays. A new folder in which the block has written nothing is removed.
    What killed runs have left in the folder and in those directly below is removed, too.

    again: whether this process may hold the folder already (stages of one training).

    Raises:
        UserError: another run holds the folder, or it cannot be written to.
    """
    with file_system_errors(folder):
        path = Path(folder).absolute()
        new = [one for one in (path, *path.parents) if not one.exists()]
        path.mkdir(parents=True, exist_ok=True)
        path = path.resolve()
    with _holding:
        file, count = _held.get(path, (None, 0))
        if count and not again:
            raise _in_use(folder)
        _held[path] = (file if count else _lock_file(path / LOCK, folder), count + 1)
    if not count:
        remove_leftovers(path, everything=True)
        for below in path.iterdir():  # other runs may be at work in some of these
            if below.is_dir() and not below.is_symlink():
                remove_leftovers(below)
    try:
        yield
    finally:
        with _holding:
            file, count = _held.pop(path)
            if count > 1:
                _held[path] = (file, count - 1)
            elif file is not None:
                file.close()
        if count == 1 and new:
            _remove_unused(new)


def _remove_unused(folders: Sequence[Path]) -> None:
    """Remove folders that a block has made, the inner ones first, where it has written nothing."""
    with contextlib.suppress(OSError):
        names = {one.name for one in folders[0].iterdir()}
        if all(name.startswith(OWN) for name in names):
            for name in names:
                (folders[0] / name).unlink()
            for folder in folders:
                folder.rmdir()


def _in_use(folder: str | os.PathLike) -> UserError:
    return UserError(
        f"{folder} is in use by another run: wait until that has ended, or choose another folder"
    )


def _lock_file(path: Path, folder: str | os.PathLike) -> BinaryIO | None:
    """An open file with a lock on it; None where the file system has no locks."""
    with file_system_errors(folder):
        file = open(path, "ab")  # noqa: SIM115  (open as long as the lock is held)
    try:
        _lock(file)
    except BlockingIOError:
        file.close()
        raise _in_use(folder) from None
    except OSError as error:
        import warnings

        file.close()
        warnings.warn(
            f"{folder}: the file system does not support locks ({error.strerror}): let no other "
            "run write into this folder",
            MRCNNWarning,
            stacklevel=2,
        )
        return None
    return file


def _lock(file: BinaryIO) -> None:
    """Raises BlockingIOError where another process has the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError from None
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
