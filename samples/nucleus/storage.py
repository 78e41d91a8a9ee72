"""Where the image files lie: a folder, or a zip file read without unpacking it.

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
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mrcnn.errors import UserError
from mrcnn.files import refuse_large

MAX_ZIP_MEMBERS = 2_000_000
# Kaggle's own files are PNG; data sets that people make in its layout have others.
ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")


@dataclass
class Entry:
    """The files of one image. `masks` is None where there is no masks folder at all."""

    image_id: str
    image: str = ""
    masks: list[str] | None = field(default=None)


def is_image_file(name: str) -> bool:
    """True for the file names that hold images (hidden files do not)."""
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def choose_image(image_id: str, names: list[str]) -> str:
    """The image among the files of an `images` folder: the one named like the image."""
    named = [n for n in names if PurePosixPath(n).stem == image_id]
    return min(named or names)


class FolderStore:
    """A folder that holds one folder per image."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries = []
        for directory in sorted(p for p in folder.iterdir() if p.is_dir()):
            images = self._pictures(directory / "images")
            if images:
                entry = Entry(directory.name, choose_image(directory.name, images))
                if (directory / "masks").is_dir():
                    entry.masks = self._pictures(directory / "masks")
                self.entries.append(entry)

    def _pictures(self, directory: Path) -> list[str]:
        """Sorted paths, relative to the store's folder."""
        if not directory.is_dir():
            return []
        prefix = f"{directory.parent.name}/{directory.name}/"
        return sorted(prefix + name for name in os.listdir(directory) if is_image_file(name))

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
        path = self.folder / member
        try:
            refuse_large(path.stat().st_size, str(path))
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


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
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a readable zip file ({error})") from None
        names = self._zip.namelist()
        if len(names) > MAX_ZIP_MEMBERS:
            raise UserError(f"{path}: {len(names)} members, more than any data set of this kind")
        self.entries = self._find_entries(names)

    def _find_entries(self, names: list[str]) -> list[Entry]:
        """Group the members by image."""
        images: dict[str, list[str]] = {}
        masks: dict[str, list[str]] = {}
        for name in names:
            parts = name.split("/")
            if len(parts) < 3 or "__MACOSX" in parts:
                continue
            image_id, kind, file = parts[-3:]
            if kind == "masks":  # a bare folder member "<id>/masks/" counts: a labelled image
                masks.setdefault(image_id, []).extend([name] if is_image_file(file) else [])
            elif kind == "images" and is_image_file(file):
                images.setdefault(image_id, []).append(name)
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
            raise UserError(f"{self.name(member)}: cannot be read ({error})") from None


def open_subset(dataset_dir: str | os.PathLike, subset: str) -> FolderStore | ZipStore:
    """Open `dataset_dir`/`subset`, or `dataset_dir`/`subset`.zip where there is no such folder.

    `dataset_dir` may also be the zip file itself. Raises UserError where neither exists or
    where no image lies inside.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise UserError(f"--dataset {root}: no such folder")
    folder, archive = root / subset, root / f"{subset}.zip"
    if root.is_file():
        store: FolderStore | ZipStore = ZipStore(root)
    elif folder.is_dir():
        store = FolderStore(folder)
    elif archive.is_file():
        store = ZipStore(archive)
    else:
        there = sorted(p.name for p in root.iterdir() if p.is_dir() or p.suffix == ".zip")
        listing = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
        raise UserError(
            f"{root} holds neither a folder {subset} nor {subset}.zip "
            f"(it holds: {listing or 'nothing'})"
        )
    if not store.entries:
        raise UserError(f"{root}: no images in {subset}, expected <ImageId>/images/<ImageId>.png")
    return store
