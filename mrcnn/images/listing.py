"""From files, folders and patterns to image files, and names for the images."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrcnn.errors import MissingFileError, UserError
from mrcnn.files import open_regular
from mrcnn.images import zarr

# What folders are searched for; a file that is named explicitly may have any ending.
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
    ".scn",
    ".qptiff",
    ".czi",
    ".nd2",
    ".lif",
    ".zarr",
)
# Bytes of a name: file systems allow 255, and plane suffixes and endings are appended.
LONGEST_NAME = 150

# Records how far the run of a results folder has got; see `results.run_log`.
RUN_LOG = ".mrcnn-run.jsonl"
# What the files of a run's results hold near their start.
RESULT_MARKS = (
    (RUN_LOG, b'{"mrcnn results": '),
    ("index.html", b'id="failed-list"'),
    ("measurements.csv", b"image_id,label,score,"),
)
MARK_BYTES = 2**16

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows


# --- files --------------------------------------------------------------------------------------


def image_paths(
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike | None = None,
    left_out: list[tuple[Path, str]] | None = None,
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files, in natural order and each once; folders that cannot be read, with the reason.

    inputs: files; folders, from which everything below with one of ENDINGS is taken, linked folders
    included; patterns with `*`, `?`, `[...]` and `**`. A Zarr folder counts as a file. Hidden
    files, __MACOSX, the masks of Kaggle's layout (`masks` next to `images`) and folders of this
    program's results are left out unless they are named explicitly.
    output: folder that the results will be written to: nothing in it is an image.
    left_out: takes the folders of results that were found, with the reason.
    Raises UserError where an input does not exist, contains no images, or lies in the output
    folder.
    """
    found: dict[str, Path] = {}
    closed: list[tuple[Path, str]] = []
    search = _Search(closed, [] if left_out is None else left_out, output and file_key(output))
    for one in inputs:
        before = len(closed)
        paths = search.paths_of(os.path.expanduser(one))
        if not paths and len(closed) == before:
            beside = ", only results of this program" if search.left_out else ""
            raise UserError(f"{one}: no images there{beside} ({', '.join(ENDINGS)})")
        for path in paths:
            found.setdefault(file_key(path), path)
    return sorted(found.values(), key=natural_key), list(dict.fromkeys(closed))


@dataclass
class _Search:
    """A search for image files; what it finds on the way goes into two lists of (path, reason)."""

    closed: list[tuple[Path, str]]  # folders that cannot be read
    left_out: list[tuple[Path, str]]  # folders of results
    output: str | None  # key of the folder that results will be written to

    def paths_of(self, named: str) -> list[Path]:
        """The files of one input."""
        path = Path(named)
        if os.path.lexists(named):
            is_folder = os.path.isdir(path) and not zarr.is_image(path)
            self._refuse_output(path, path if is_folder else path.parent)
            return list(self._below(path)) if is_folder else [path]
        if not glob.has_magic(named):
            raise MissingFileError(f"{named}: no such file or folder")
        found: list[Path] = []
        for match in _matches(named):
            if self._is_skipped(match.parent) or _is_left_out(match):
                continue
            if os.path.isdir(match) and not zarr.is_image(match):
                found += [] if self._is_results(match) else self._below(match)
            elif _has_ending(match.name) or os.path.isdir(match):
                found.append(match)
        return found

    def _refuse_output(self, named: Path, folder: Path) -> None:
        if self.output and file_key(folder) == self.output:
            raise UserError(
                f"{named}: lies in the folder that the results are written to: choose another "
                "folder for --output"
            )

    def _is_skipped(self, folder: Path) -> bool:
        """Whether the files in a folder are not images of their own."""
        while True:
            if _is_left_out(folder) or zarr.is_image(folder) or self._is_results(folder):
                return True
            if folder.parent == folder:
                return False
            folder = folder.parent

    def _is_results(self, folder: Path) -> bool:
        """Whether a folder holds results; if so, that is noted."""
        if self.output and file_key(folder) == self.output:
            reason = "left out: the folder that the results are written to"
        elif has_results(folder):
            reason = "left out: results of this program"
        else:
            return False
        if (folder, reason) not in self.left_out:
            self.left_out.append((folder, reason))
        return True

    def _below(self, folder: Path) -> Iterator[Path]:
        """The files in a folder and below, those of linked folders last, so that a file that is
        there twice is named by its own folder."""
        seen: set[str] = set()
        waiting = deque([folder])
        while waiting:
            start = waiting.popleft()
            for parent, folders, files in os.walk(start, onerror=self._note):
                key = file_key(parent)
                inner = [Path(parent, name) for name in folders] if key not in seen else []
                folders.clear()
                if key in seen:
                    continue  # a loop, or a folder that is linked twice
                seen.add(key)
                for path in inner:
                    if path.name.startswith(".") or _is_left_out(path):
                        continue
                    if zarr.is_image(path):
                        yield path
                    elif not self._is_results(path):
                        if path.is_symlink():
                            waiting.append(path)
                        else:
                            folders.append(path.name)
                yield from (
                    Path(parent, name)
                    for name in files
                    if _has_ending(name) and not name.startswith(".")
                )

    def _note(self, error: OSError) -> None:
        path = Path(error.filename)
        self.closed.append((path, f"cannot be read ({error.strerror or error})"))


def has_results(folder: Path) -> bool:
    """Whether a folder holds the report or the table of an earlier run of this program."""
    return any(
        _starts_with(folder / f"{name}{ending}", mark)
        for name, mark in RESULT_MARKS
        for ending in ("", ".partial")
    )


def _starts_with(path: Path, mark: bytes) -> bool:
    try:
        if not os.path.isfile(path):
            return False
        with open_regular(path) as file:
            return mark in file.read(MARK_BYTES)
    except (OSError, UserError):
        return False


def _matches(pattern: str) -> Iterator[Path]:
    """What matches a pattern; `**` stands for any folders, and loops of links are walked once."""
    before, stars, after = pattern.partition("**")
    if not stars or (before and not before.endswith(("/", os.sep))):
        yield from map(Path, glob.iglob(pattern, recursive=True))
        return
    after = after.lstrip("/" + os.sep) or "*"
    seen: set[str] = set()
    for top in glob.iglob(before) if before else ["."]:
        for parent, folders, _ in os.walk(top, followlinks=True):
            if file_key(parent) in seen:
                folders.clear()
                continue
            seen.add(file_key(parent))
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _matches(os.path.join(glob.escape(parent), after))


def _is_left_out(path: Path) -> bool:
    return path.name == "__MACOSX" or (
        path.name == "masks" and os.path.isdir(path.parent / "images")
    )


def _has_ending(name: str) -> bool:
    return name.casefold().endswith(ENDINGS)


def file_key(path: str | os.PathLike) -> str:
    """A key that is the same for all ways to name a file."""
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


def image_names(images: Sequence[tuple[Path, str]]) -> list[str]:
    """A name for every (file, suffix of the plane): safe as a file name and unique.

    It is the path from the folder that all files are in, without the file's ending and joined
    by _: well3_a, stack_z002. Names that would be equal, ignoring case, get their file's ending
    too, or else a number.
    """
    common = _common_folder([_shortened(path).parent for path, _ in images])
    names = [_name(path, suffix, common) for path, suffix in images]
    counts = Counter(map(_folded, names))
    alike = {
        path for (path, _), name in zip(images, names, strict=True) if counts[_folded(name)] > 1
    }
    taken: set[str] = set()
    for index, (path, suffix) in enumerate(images):
        if path in alike:
            names[index] = _name(path, suffix, common, ending=True)
        name, number = names[index], 1
        while _folded(names[index]) in taken:
            number += 1
            names[index] = f"{name}_{number}"
        taken.add(_folded(names[index]))
    return names


def _shortened(path: Path) -> Path:
    """The absolute path, without what Kaggle's layout repeats: <id>/images/<id>.png."""
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


def _safe(text: str, otherwise: str = "image") -> str:
    """A file name that is valid on all systems; of long ones only the end is kept."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(
        "_" if character in '<>:"/\\|?*' or unicodedata.category(character)[0] == "C" else character
        for character in text
    )
    text = text.encode()[-LONGEST_NAME:].decode(errors="ignore").strip(" .") or otherwise
    return f"{text}_" if _RESERVED.fullmatch(text) else text
