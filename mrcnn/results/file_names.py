"""Names of the files that belong to an image."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

from mrcnn.errors import MRCNNWarning, quoted

# Bytes: file systems take 255, and endings, kinds and what a temporary file is called are added.
LONGEST = 200


def file_name(name: str) -> str:
    """An image's name as the start of a file's name; of a long one the start and a digest."""
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= LONGEST:
        return name
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[: LONGEST - 13].decode(errors='ignore')}-{digest}"


def warn_of_long(names: Sequence[str]) -> None:
    """Warn once where files of images cannot have the images' whole names."""
    long = [name for name in names if file_name(name) != name]
    if long:
        warnings.warn(
            f"{len(long)} images have names of more than {LONGEST} bytes, which are cut in the "
            f"names of their files, with a digest at the end; first: {quoted(long[0], 40)}, whose "
            f"files are called ...{file_name(long[0])[-30:]}",
            MRCNNWarning,
            stacklevel=2,
        )
