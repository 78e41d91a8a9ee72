"""From files, folders and patterns to the files of images, and names for the images."""

from __future__ import annotations

import functools
import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mrcnn.errors import MissingFileError, UserError
from mrcnn.images import zarr

# What is looked for in folders; a file that is named itself may have any ending.
ENDINGS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tif",
    ".tiff",
    ".btf",
    ".tf2",
    ".tf8",
    ".lsm",
    ".svs",
    ".ndpi",
    ".zarr",
)
# Bytes of a name: file systems allow 255, and planes and endings are appended.
LONGEST_NAME = 150

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows


# --- files --------------------------------------------------------------------------------------


def picture_paths(
    inputs: Sequence[str | os.PathLike],
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files, in natural order and each once; folders that cannot be read, with the reason.

    inputs: files; folders, of which everything below with one of ENDINGS is taken; patterns with
    `*`, `?`, `[...]` and `**`. A Zarr folder counts as a file. Hidden files, __MACOSX and the masks
    of Kaggle's layout (`masks` beside `images`) are left out unless they are named themselves.
    Raises UserError where an input is not there or has no images in it.
    """
    found: dict[str, Path] = {}
    closed: list[tuple[Path, str]] = []
    for one in inputs:
        before = len(closed)
        paths = _paths_of(os.path.expanduser(one), closed)
        if not paths and len(closed) == before:
            raise UserError(f"{one}: no images there ({', '.join(ENDINGS)})")
        for path in paths:
            found.setdefault(file_key(path), path)
    return sorted(found.values(), key=natural_key), list(dict.fromkeys(closed))


def _paths_of(named: str, closed: list[tuple[Path, str]]) -> list[Path]:
    path = Path(named)
    if os.path.lexists(named):
        is_folder = os.path.isdir(path) and not zarr.is_picture(path)
        return list(_below(path, closed)) if is_folder else [path]
    if not glob.has_magic(named):
        raise MissingFileError(f"{named}: no such file or folder")

    @functools.cache
    def is_skipped(folder: Path) -> bool:
        """Whether the files in a folder are no images of their own."""
        return (
            _is_left_out(folder)
            or zarr.is_picture(folder)
            or (folder.parent != folder and is_skipped(folder.parent))
        )

    found: list[Path] = []
    for match in map(Path, glob.iglob(named, recursive=True)):
        if is_skipped(match.parent) or _is_left_out(match):
            continue
        if os.path.isdir(match) and not zarr.is_picture(match):
            found += _below(match, closed)
        elif _has_ending(match.name) or os.path.isdir(match):
            found.append(match)
    return found


def _below(folder: Path, closed: list[tuple[Path, str]]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        path = Path(error.filename or folder)
        closed.append((path, f"cannot be read ({error.strerror or error})"))

    for parent, folders, files in os.walk(folder, onerror=note, followlinks=False):
        inner = [Path(parent, name) for name in folders]
        inner = [path for path in inner if not path.name.startswith(".") and not _is_left_out(path)]
        pictures = [path for path in inner if zarr.is_picture(path)]
        folders[:] = [path.name for path in inner if path not in pictures]
        yield from pictures
        for name in files:
            if _has_ending(name) and not name.startswith("."):
                yield Path(parent, name)


def _is_left_out(path: Path) -> bool:
    return path.name == "__MACOSX" or (
        path.name == "masks" and os.path.isdir(path.parent / "images")
    )


def _has_ending(name: str) -> bool:
    return name.casefold().endswith(ENDINGS)


def file_key(path: str | os.PathLike) -> str:
    """The same for all ways to name a file."""
    return os.path.normcase(os.path.realpath(path))


def natural_key(path: Path) -> tuple:
    """Sorts well2 before well10, and folder by folder."""
    parts = [
        tuple(
            (0, int(piece), "") if piece.isdecimal() else (1, 0, piece)
            for piece in re.split(r"(\d+)", part.casefold())
            if piece
        )
        for part in Path(os.path.abspath(path)).parts
    ]
    return tuple(parts), str(path)


# --- names --------------------------------------------------------------------------------------


def picture_names(pictures: Sequence[tuple[Path, str]]) -> list[str]:
    """A name for every (file, suffix of the plane): safe as a file name and unlike all others.

    It is the path from the folder that all files are in, without the file's ending, and with _
    between: well3_a, stack_z002. Names that would be alike, in whatever case, get their file's
    ending too, or else a number.
    """
    common = _common_folder([_shortened(path).parent for path, _ in pictures])
    names = [_name(path, suffix, common) for path, suffix in pictures]
    counts = Counter(map(_folded, names))
    alike = {
        path for (path, _), name in zip(pictures, names, strict=True) if counts[_folded(name)] > 1
    }
    taken: set[str] = set()
    for index, (path, suffix) in enumerate(pictures):
        if path in alike:
            names[index] = _name(path, suffix, common, ending=True)
        name, number = names[index], 1
        while _folded(names[index]) in taken:
            number += 1
            names[index] = f"{name}_{number}"
        taken.add(_folded(names[index]))
    return names


def _shortened(path: Path) -> Path:
    """The absolute path; without what Kaggle's layout says twice: <id>/images/<id>.png."""
    path = Path(os.path.abspath(path))
    folder = path.parent
    if folder.name != "images":
        return path
    if _stem(path) == folder.parent.name:
        return folder.parent.parent / path.name
    return folder.parent / path.name if os.path.isdir(folder.parent / "masks") else path


def _common_folder(folders: Sequence[Path]) -> Path | None:
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:  # none at all, or on several drives
        return None


def _name(path: Path, suffix: str, common: Path | None, ending: bool = False) -> str:
    path = _shortened(path)
    folders = path.parent.relative_to(common).parts if common else ()
    stem = _stem(path)
    last = [stem, path.name[len(stem) :].strip(".").replace(".", "_")] if ending else [stem]
    return "_".join(filter(None, (_safe("_".join([*folders, *last])), _safe(suffix, ""))))


def _stem(path: Path) -> str:
    """The name without endings: those of images, and .ome before them."""
    name = path.name
    for endings in (ENDINGS, (".ome",)):
        lower = name.lower()
        ending = max((e for e in endings if lower.endswith(e)), key=len, default="")
        name = name[: len(name) - len(ending)] or name
    return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _safe(text: str, otherwise: str = "picture") -> str:
    """A file name that all systems take; of long ones the end."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(
        "_" if character in '<>:"/\\|?*' or unicodedata.category(character)[0] == "C" else character
        for character in text
    )
    text = text.encode()[-LONGEST_NAME:].decode(errors="ignore").strip(" .") or otherwise
    return f"{text}_" if _RESERVED.fullmatch(text) else text
