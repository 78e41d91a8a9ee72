"""Downloads over HTTP: resumable, atomic, verified, one at a time for each file."""

import contextlib
import errno
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from mrcnn.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no lock; two downloads of one file at once may spoil each other's
    fcntl = None  # part, which the verification finds

CHUNK = 1 << 16  # bytes read at a time
LINE_INTERVAL = 10.0  # seconds between progress lines where there is no terminal

Check = Callable[[Path], None]


class _Interrupted(Exception):
    """The connection broke or went silent; what came so far is kept."""


def download(
    url: str,
    path: str | os.PathLike,
    *,
    md5: str | None = None,
    size: int | None = None,
    check: Check | None = None,
    timeout: float = 30.0,
    retries: int = 3,
    quiet: bool = False,
    stream: TextIO | None = None,
) -> Path:
    """Downloads a file, unless it is there already; either way the file is verified.

    What has come so far is kept in `<path>.part`; the next attempt, or the next call, asks for
    the rest only. The file appears under its name when it is whole and verified. A second process
    that wants the same file waits for the first.

    Args:
        md5: hexadecimal digest the file must have.
        size: bytes the file must have.
        check: called with the path of the finished file; raises UserError when it is not right.
        timeout: seconds without a byte after which the connection counts as broken.
        retries: attempts after the first, each going on where the last one stopped.
        quiet: no progress bar.
        stream: where the progress bar goes, standard error by default.

    Returns:
        The path.

    Raises:
        UserError: offline, refused, interrupted too often, or not the right file; one line that
            says where to put the file by hand.
    """
    path = Path(os.path.expanduser(path))
    part = path.with_name(path.name + ".part")
    bar = None if quiet else _ProgressBar(path.name, stream or sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if path.exists():
                if reason := _wrong(path, md5, size, check):
                    raise UserError(f"{path} is not the file of {url}: {reason}; delete it to "
                                    "download it again")
                return path
            resumed = part.exists() and part.stat().st_size > 0
            _fetch(url, part, size, timeout, retries, bar, path)
            reason = _wrong(part, md5, size, check)
            if reason and resumed:  # the part may have been of an older file: once more, afresh
                part.unlink()
                _fetch(url, part, size, timeout, retries, bar, path)
                reason = _wrong(part, md5, size, check)
            if reason:
                part.unlink()
                raise UserError(f"{url}: the download is not the right file and was removed: "
                                f"{reason}; {_by_hand(path)}")
            os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error
    return path


def _by_hand(path: Path) -> str:
    return f"try again, or get the file elsewhere and put it at {path}"


def _fetch(url, part, size, timeout, retries, bar, path) -> None:
    """Brings `part` to its full length, in several attempts if need be."""
    for attempt in range(retries + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            return _attempt(url, part, size, timeout, bar)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 or attempt == retries:
                raise UserError(
                    f"{url} answers {error.code} {error.reason}; {_by_hand(path)}"
                ) from error
        except urllib.error.URLError as error:
            if not isinstance(error.reason, TimeoutError):
                reason = getattr(error.reason, "strerror", None) or error.reason
                raise UserError(
                    f"cannot reach {url} ({reason}): connect to the network, or get the file "
                    f"elsewhere and put it at {path}"
                ) from error
            reason = f"no answer within {timeout:g} s"
        except _Interrupted as error:
            reason = str(error)
        now = part.stat().st_size if part.exists() else 0
        if attempt == retries:
            raise UserError(
                f"{url} broke off ({reason}) after {_megabytes(now)}; run again to go on from "
                f"there, or put the file at {path} by hand"
            )
        if now == before:
            time.sleep(min(2.0**attempt, timeout) / 2)  # nothing came: give the server a pause


def _attempt(url: str, part: Path, size: int | None, timeout: float, bar) -> None:
    """One request, for what `part` lacks. Raises _Interrupted when the connection ends early."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return
    if size is not None and have > size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "mrcnn-keras"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond what we have: the part is whole, or of another file.
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.unlink()
        return _attempt(url, part, size, timeout, bar)
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error
    with response:
        # A server without Range answers 200 and sends everything: start over.
        resumes = response.status == 206
        if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise _Interrupted("the server sent another range than it was asked for")
        have = have if resumes else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else size
        with open(part, "ab" if resumes else "wb") as file:
            for chunk in _chunks(response, timeout):
                file.write(chunk)
                have += len(chunk)
                if bar:
                    bar.update(have, total, len(chunk))
    if bar:
        bar.close()
    if total is not None and have < total:
        raise _Interrupted(f"{_megabytes(have)} of {_megabytes(total)} came")


def _chunks(response, timeout: float) -> Iterator[bytes]:
    while True:
        try:
            # read1 hands over what is there; read would wait for a whole chunk and lose it all
            # when the connection breaks in between.
            chunk = response.read1(CHUNK)
        except TimeoutError as error:
            raise _Interrupted(f"no data for {timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _wrong(path: Path, md5: str | None, size: int | None, check) -> str | None:
    """Why a file is not the right one; None when it is."""
    if size is not None and path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes, not {size}"
    if md5 is not None:
        with open(path, "rb") as file:
            # usedforsecurity: allowed for plain integrity checks on systems that ban MD5.
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if found.hexdigest() != md5:
            return f"its MD5 is {found.hexdigest()}, not {md5}"
    if check is not None:
        try:
            check(path)
        except UserError as error:
            return str(error)
    return None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one download of a path run at a time; the lock goes with the process that holds it."""
    if fcntl is None:
        yield
        return
    # The lock file stays: removing it would let a third process lock another file of that name.
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            # Network file systems without locks: as where there is no `fcntl`.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


class _ProgressBar:
    """`name  [#####.....]  51 %  12.3 of 24.6 MB  1.2 MB/s  ETA 0:10`, redrawn in place.

    Where the stream is no terminal a plain line is written now and then, without the bar.
    """

    def __init__(self, name: str, stream: TextIO):
        self.name, self.stream = name, stream
        self.terminal = stream.isatty()
        self.start = self.last = time.monotonic()
        self.received = 0  # in this run, which the speed is made of

    def update(self, have: int, total: int | None, received: int) -> None:
        """have, total, received: bytes on disk, of the whole file, and in the last chunk."""
        self.received += received
        now = time.monotonic()
        if now - self.last < (0.1 if self.terminal else LINE_INTERVAL) and have != total:
            return
        self.last = now
        speed = self.received / max(now - self.start, 1e-6)
        text = f"{self.name}  {_megabytes(have)}"
        if total:
            filled = 20 * have // total
            drawn = f"  [{'#' * filled}{'.' * (20 - filled)}]" if self.terminal else ""
            left = int((total - have) / max(speed, 1.0))
            text = (
                f"{self.name}{drawn}  {100 * have // total} %  {have / 1e6:.1f} of "
                f"{_megabytes(total)}  {_megabytes(speed)}/s  ETA {left // 60}:{left % 60:02d}"
            )
        self.stream.write(f"\r{text:<78}" if self.terminal else text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Ends the line."""
        if self.terminal:
            self.stream.write("\n")
            self.stream.flush()
