"""Names of the result files of an image."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

from mrcnn.errors import MRCNNWarning, quoted

# Bytes: file systems allow 255, and suffixes, kinds and the names of temporary files are added.
LONGEST = 200


def file_name(name: str) -> str:
    """An image's name as the start of a file name; a long one is cut and gets a digest."""
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= LONGEST:
        return name
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[: LONGEST - 13].decode(errors='ignore')}-{digest}"


def warn_of_long(names: Sequence[str]) -> None:
    """Warn once if files cannot have the whole names of their images."""
    long = [name for name in names if file_name(name) != name]
    if long:
        warnings.warn(
            f"{len(long)} images have names of more than {LONGEST} bytes; the names of their files "
            f"are cut and end in a digest; first: {quoted(long[0], 40)}, whose "
            f"files are called ...{file_name(long[0])[-30:]}",
            MRCNNWarning,
            stacklevel=2,
        )
