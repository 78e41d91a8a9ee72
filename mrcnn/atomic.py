"""Files that are either written whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from mrcnn.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without error.

    Readers see the old file or the new one, never half of one; an error in the block, Ctrl-C
    included, leaves the old file as it was and no temporary file behind. The temporary name
    starts with a dot, so that patterns like `mask_rcnn_*` do not match it.

    Raises:
        UserError: the file system refuses (disk full, no permission, not a folder).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _flush_to_disk(path: Path) -> None:
    # Without this, a power cut after the rename may leave an empty file under the final name.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
