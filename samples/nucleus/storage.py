"""Where the image files are: a folder, or a zip file read without unpacking it.

Both have Kaggle's layout, one folder per image:

    <ImageId>/images/<ImageId>.png      the image
    <ImageId>/masks/<anything>.png      one image per nucleus, non-zero inside

`open_subset` returns a `FolderStore` or a `ZipStore`; they hold the same list of `Entry` and
the same `read(member) -> bytes`, which may be called from several threads at once, and
`fingerprint(member)`, which tells whether a file has changed without reading it.
"""

from __future__ import annotations

import os
import threading
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mrcnn.errors import MissingFileError, MRCNNWarning, UserError, quoted
from mrcnn.files import read_bytes, refuse_large, require_regular

MAX_ZIP_MEMBERS = 2_000_000
# Kaggle's own files are PNG; data sets that others make in its layout have more formats.
ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")


@dataclass
class Entry:
    """The files of one image. `masks` is None if there is no masks folder at all."""

    image_id: str
    image: str = ""
    masks: list[str] | None = field(default=None)


def is_image_file(name: str) -> bool:
    """True for names of image files (hidden files do not count)."""
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def is_other_file(name: str) -> bool:
    """True for names of files that are neither images nor hidden, nor what systems leave behind."""
    return not (name.startswith(".") or is_image_file(name) or name.lower() in SYSTEM_FILES)


@dataclass
class LeftOut:
    """What a store finds and does not use; its warnings name the first of each kind."""

    files: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def warn(self) -> None:
        """Warn of it, one line for each kind."""
        for names, what in (
            (self.files, "files that are not images of a kind that can be read, left out"),
            (self.masks, "folders of masks without an image, left out"),
            (self.images, "folders with several images, of which one is used"),
        ):
            if names:
                text = f"{len(names)} {what} (first: {quoted(names[0], 300)})"
                warnings.warn(text, MRCNNWarning, stacklevel=4)


def _names_in(folder: Path) -> list[str]:
    """Sorted. Raises UserError if the folder cannot be listed, MissingFileError without one."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{folder}: no such folder") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from None


def choose_image(image_id: str, names: list[str]) -> str:
    """The image among the files of an `images` folder: the one named like the image."""
    named = [n for n in names if PurePosixPath(n).stem == image_id]
    return min(named or names)


class FolderStore:
    """A folder that holds one folder per image."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries = []
        left_out = LeftOut()
        for name in _names_in(folder):
            if name.startswith(".") or not (folder / name).is_dir():
                continue
            images = self._images(folder / name / "images", left_out)
            masks = self._images(folder / name / "masks", left_out)
            if images:
                if len(images) > 1:
                    left_out.images.append(f"{folder / name}")
                self.entries.append(Entry(name, choose_image(name, images), masks))
            elif masks:
                left_out.masks.append(f"{folder / name}")
        left_out.warn()

    def _images(self, directory: Path, left_out: LeftOut) -> list[str] | None:
        """Sorted paths, relative to the store's folder; None if there is no such folder."""
        prefix = f"{directory.parent.name}/{directory.name}/"
        try:
            names = _names_in(directory)
        except MissingFileError:
            return None
        left_out.files += [f"{directory / name}" for name in names if is_other_file(name)]
        return [prefix + name for name in names if is_image_file(name)]

    def name(self, member: str) -> str:
        """A file's name for messages."""
        return str(self.folder / member)

    def fingerprint(self, member: str) -> str:
        """Changes when the file does: its size and time of change."""
        try:
            status = (self.folder / member).stat()
        except OSError as error:
            raise UserError(f"{self.name(member)}: cannot be read ({error.strerror})") from None
        return f"{status.st_size}-{status.st_mtime_ns}"

    def read(self, member: str) -> bytes:
        """The bytes of one file."""
        return read_bytes(self.folder / member)


class ZipStore:
    """A zip file with the same layout, at its top or below one or more folders.

    Members are read into memory and never written to disk, so names such as `../x` can do no
    harm. `zipfile` does not promise that one open file may be read by several threads, hence
    the lock.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(require_regular(path))
        except UserError:
            raise
        except Exception as error:  # BadZipFile, OSError, and what broken directories cause
            raise UserError(f"{path}: not a readable zip file ({quoted(error)})") from None
        names = self._zip.namelist()
        if len(names) > MAX_ZIP_MEMBERS:
            raise UserError(f"{path}: {len(names)} members, more than any data set of this kind")
        self.entries = self._find_entries(names)

    def _find_entries(self, names: list[str]) -> list[Entry]:
        """Group the members by image."""
        images: dict[str, list[str]] = {}
        masks: dict[str, list[str]] = {}
        places: dict[str, str] = {}
        left_out = LeftOut()
        for name, times in Counter(names).items():
            parts = name.split("/")
            if len(parts) < 3 or "__MACOSX" in parts or parts[-2] not in ("images", "masks"):
                continue
            image_id, kind, file = parts[-3:]
            place = name.removesuffix(f"/{kind}/{file}")
            if times > 1 or places.setdefault(image_id, place) != place:
                other = name if times > 1 else places[image_id]
                raise UserError(
                    f"{self.path}: holds {quoted(image_id)} twice, in {quoted(other)} and in "
                    f"{quoted(place)}; keep one of them"
                )
            if file and is_other_file(file):
                left_out.files.append(self.name(name))
            if kind == "masks":  # a bare folder member "<id>/masks/" counts: a labelled image
                masks.setdefault(image_id, []).extend([name] if is_image_file(file) else [])
            elif kind == "images" and is_image_file(file):
                images.setdefault(image_id, []).append(name)
        left_out.masks = [self.name(places[i]) for i in masks if i not in images and masks[i]]
        left_out.images = [self.name(places[i]) for i in images if len(images[i]) > 1]
        left_out.warn()
        entries = []
        for image_id in sorted(images):
            found = masks.get(image_id)
            entries.append(
                Entry(
                    image_id,
                    choose_image(image_id, images[image_id]),
                    None if found is None else sorted(found),
                )
            )
        return entries

    def name(self, member: str) -> str:
        """A member's name for messages."""
        return f"{self.path}/{member}"

    def fingerprint(self, member: str) -> str:
        """Changes when the member does: its size and checksum."""
        info = self._zip.getinfo(member)
        return f"{info.file_size}-{info.CRC}"

    def read(self, member: str) -> bytes:
        """The bytes of one member, checked against its checksum."""
        try:
            info = self._zip.getinfo(member)
            refuse_large(info.file_size, self.name(member))
            with self._lock:
                return self._zip.read(info)
        except UserError:
            raise
        except Exception as error:  # zlib.error, BadZipFile, RuntimeError (password), OSError
            raise UserError(f"{self.name(member)}: cannot be read ({quoted(error)})") from None


def open_subset(dataset_dir: str | os.PathLike, subset: str) -> FolderStore | ZipStore:
    """Open `dataset_dir`/`subset`, or `dataset_dir`/`subset`.zip if there is no such folder.

    `dataset_dir` may also be the zip file itself. Raises UserError if neither exists or if
    there is no image inside.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise UserError(f"--dataset {root}: no such folder")
    folder, archive = root / subset, root / f"{subset}.zip"
    if not root.is_dir():
        store: FolderStore | ZipStore = ZipStore(root)
    elif folder.is_dir():
        store = FolderStore(folder)
    elif archive.is_file():
        store = ZipStore(archive)
    else:
        there = [n for n in _names_in(root) if n.endswith(".zip") or (root / n).is_dir()]
        listing = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
        raise UserError(
            f"{root} holds neither a folder {subset} nor {subset}.zip "
            f"(it holds: {listing or 'nothing'})"
        )
    if not store.entries:
        raise UserError(f"{root}: no images in {subset}, expected <ImageId>/images/<ImageId>.png")
    return store
