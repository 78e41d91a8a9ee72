"""Names of the files that belong to an image."""

from __future__ import annotations

import hashlib

# Bytes: file systems take 255, and endings, kinds and what a temporary file is called are added.
LONGEST = 200


def file_name(name: str) -> str:
    """An image's name as the start of a file's name; of a long one the start and a digest."""
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= LONGEST:
        return name
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[: LONGEST - 13].decode(errors='ignore')}-{digest}"
