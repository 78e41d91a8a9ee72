"""What the readers of image files have in common: planes, their channels, the pixel size.

Shapes: H, W pixels of a plane, C its channels; h, w, c of a part of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrcnn.errors import UserError
from mrcnn.files import require_regular

# Rows, columns and channels, all with start and stop, to pixels [h, w, c].
PartReader = Callable[[slice, slice, slice], np.ndarray]

LONGEST_SIDE = 2**31 - 1
RGB = ("red", "green", "blue")

# Microns. Pixels of other sizes are not a microscope's: one of 10 microns is larger than a cell.
PLAUSIBLE = (0.001, 10)

# What a small file may claim to hold: a plane per byte, and pixels of at most this many times its
# bytes (sparse files of slides leave out tiles), or of this many bytes in any case.
MOST_EXPANSION, ALWAYS_ALLOWED = 1_000_000, 2**26
# Bytes of pixels in a tile, strip or block per byte of it in the file (zstd reaches 32,000).
MOST_OF_A_BLOCK = 50_000
# Where the order of the axes is guessed: that many planes of that few columns are refused.
MOST_GUESSED, FEWEST_COLUMNS = 16, 8

MICRONS = {
    "μm": 1,
    "um": 1,
    "micron": 1,
    "microns": 1,
    "micrometer": 1,
    "micrometers": 1,
    "micrometre": 1,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "å": 1e-4,
    "angstrom": 1e-4,
    "pm": 1e-6,
    "picometer": 1e-6,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
    "inch": 25400,
    "in": 25400,
}


@dataclass(frozen=True, eq=False)
class Level:
    """A smaller copy of a plane, from the pyramid in its file."""

    shape: tuple[int, int]  # H, W
    read: PartReader


@dataclass(frozen=True, eq=False)
class Plane:
    """An image [H, W, C] in a file, as the file stores it."""

    shape: tuple[int, int, int]
    dtype: np.dtype  # in the machine's byte order
    read: PartReader
    channels: tuple[str, ...] = ()  # names, where they are known
    is_rgb: bool = False  # the first three channels are colours
    has_alpha: bool = False  # the last channel says how opaque a pixel is
    mpp: float | None = None  # microns per pixel
    mpp_from: str = ""  # where it is from, such as "OME"
    suffix: str = ""  # distinguishes it from the other planes of its file: t0003_z002
    files: tuple[Path, ...] = ()  # that hold its pixels, where they are not its own file alone
    # The palette indices [h, w, 1], which are what counts in a label image.
    indices: PartReader | None = None
    levels: tuple[Level, ...] = ()  # of a pyramid, from the largest, without the plane itself
    notes: tuple[str, ...] = ()  # what was guessed or changed; other viewers may show it otherwise
    left_out: tuple[
        str, ...
    ] = ()  # parts of the file, with the reasons; the same for all its planes

    def __post_init__(self) -> None:
        """Raises UserError (a reason without the file's name) for what cannot be an image."""
        height, width, channels = self.shape
        if not height or not width or not channels:
            raise UserError(f"has no pixels ({height} x {width}, {channels} channels)")
        if max(height, width) > LONGEST_SIDE:
            raise UserError(f"is too large ({height} x {width} pixels)")
        if self.dtype.kind not in "biuf":
            raise UserError(f"has values of type {self.dtype}; integers or floats are needed")


def choose_channels(plane: Plane, wanted: int | str | None) -> tuple[slice, tuple[str, ...]]:
    """The channels of a plane to use, and their names where they are known.

    wanted: a number from 1, a name in any case, or None: grey, or colours. Alpha is never among
    them. Raises UserError (a reason without the file's name) where the channel does not exist or
    one has to be chosen.
    """
    count = plane.shape[2] - plane.has_alpha
    names = plane.channels or (RGB if plane.is_rgb else ())
    names = names if len(names) == count and any(names) else ()
    if wanted is not None:
        index = _channel_index(wanted, names, count)
        if index is None:
            raise UserError(f"has no channel {wanted}, only {_listed(names, count)}")
        return slice(index, index + 1), names[index : index + 1]
    if count == 1 or (count == 3 and (plane.is_rgb or _are_colours(names))):
        return slice(0, count), names
    raise UserError(f"has {count} channels ({_listed(names, count)}): choose one with --channel")


def _are_colours(names: Sequence[str]) -> bool:
    folded = tuple(name.strip().casefold() for name in names)
    return folded in (RGB, ("r", "g", "b"))


def _channel_index(wanted: int | str, names: Sequence[str], count: int) -> int | None:
    """By name first: a channel may be called 488."""
    text = str(wanted).strip()
    folded = [name.strip().casefold() for name in names]
    if text.casefold() in folded:
        return folded.index(text.casefold())
    number = int(text) if text.isdecimal() else 0
    return number - 1 if 1 <= number <= count else None


def _listed(names: Sequence[str], count: int) -> str:
    if names:
        return ", ".join(f"{number} {name}".strip() for number, name in enumerate(names, 1))
    return "1" if count == 1 else f"1 to {count}"


def microns(length: float | str | None, unit: str | None) -> float | None:
    """A length in microns; None where it is not a positive number or the unit is unknown."""
    factor = MICRONS.get((unit or "").replace("\\u00B5", "µ").strip().casefold())
    try:
        value = float(length) * factor  # type: ignore[arg-type, operator]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


class PixelSize(NamedTuple):
    """What a file says about its pixel size."""

    mpp: float | None = None  # microns per pixel
    source: str = ""  # of mpp
    note: str = ""  # why what the file says is not used


def pixel_size(width: float | None, height: float | None, source: str) -> PixelSize:
    """From the sides of a pixel in microns: their mean, where they differ by at most 1 % and
    are PLAUSIBLE."""
    if width is None or height is None:
        return PixelSize()
    if abs(width - height) > 0.01 * max(width, height):
        return PixelSize(
            note=f"pixels of {width:.4g} x {height:.4g} microns ({source}) are not square: "
            "their size is not used"
        )
    side = (width + height) / 2
    if not PLAUSIBLE[0] <= side <= PLAUSIBLE[1]:
        return PixelSize(note=f"{side:.4g} microns per pixel ({source}) is implausible: not used")
    return PixelSize(side, source)


def refuse_claims(planes: int, plane_bytes: int, stored: int) -> None:
    """Raise UserError (a reason without the file's name) where a file of `stored` bytes cannot hold
    what its headers claim."""
    if planes > max(1, stored):
        raise UserError(f"claims {planes} planes in {stored} bytes: its description is wrong")
    if planes * plane_bytes > max(ALWAYS_ALLOWED, MOST_EXPANSION * stored):
        raise UserError(f"claims {planes * plane_bytes} bytes of pixels in {stored} bytes")


def refuse_expansion(claimed: int, count: int) -> None:
    """Raise UserError (a reason without the file's name) where `count` bytes of a tile, strip or
    block cannot hold the bytes of pixels that it claims."""
    if claimed > max(ALWAYS_ALLOWED, MOST_OF_A_BLOCK * count):
        raise UserError(f"claims {claimed} bytes of pixels in {count} bytes of the file")


def refuse_odd_order(count: int, height: int, width: int) -> None:
    """Raise UserError where planes whose axes are guessed look like rows, columns and channels."""
    if count >= MOST_GUESSED and width <= FEWEST_COLUMNS and width < height:
        raise UserError(
            f"has {count} planes of {height} x {width} pixels, which look like {count} x {height} "
            f"pixels of {width} channels: save it with the channels first, or name its axes"
        )


def oriented(plane: Plane, orientation: Any) -> Plane:
    """The plane turned as its orientation tag (EXIF's and TIFF's, 1 to 8) says."""
    if orientation not in range(2, 9):
        return plane
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)

    def swapped(height: int, width: int) -> tuple[int, int]:
        return (width, height) if orientation >= 5 else (height, width)

    def turned(read_part: PartReader, height: int, width: int) -> PartReader:
        """height, width: after turning."""

        def read(rows: slice, columns: slice, part: slice) -> np.ndarray:
            if upside_down:
                rows = slice(height - rows.stop, height - rows.start)
            if mirrored:
                columns = slice(width - columns.stop, width - columns.start)
            if orientation >= 5:
                pixels = read_part(columns, rows, part).swapaxes(0, 1)
            else:
                pixels = read_part(rows, columns, part)
            pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
            return np.ascontiguousarray(pixels)

        return read

    note = f"turned as its orientation tag ({orientation}) says"
    shape = swapped(*plane.shape[:2])
    levels = [Level(swapped(*one.shape), one.read) for one in plane.levels]
    return replace(
        plane,
        shape=(*shape, plane.shape[2]),
        read=turned(plane.read, *shape),
        indices=plane.indices and turned(plane.indices, *shape),
        levels=tuple(Level(one.shape, turned(one.read, *one.shape)) for one in levels),
        notes=(*plane.notes, note),
    )


def plane_suffix(axis: str, number: int, count: int) -> str:
    """The suffix of a plane along an axis: z002 for number 2, from 1, of at most 999 along Z.

    Axes without a meaning of their own count as pages.
    """
    letter = "p" if axis in "IQ" else axis.lower()
    digits = max({"T": 4, "S": 1}.get(axis, 3), len(str(count)))
    return f"{letter}{number:0{digits}d}"


class LastDecoded:
    """The block that was decoded last, for files that can only be decoded as a whole.

    Without it, every window of such a file would decode all of it again.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._block = np.empty(0)
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The block of this key. Threads decode in turn, so that only one block is in memory."""
        with self._lock:
            if self._key != key:
                self._key, self._block = None, np.empty(0)  # free it before the next one comes
                self._block, self._key = decode(), key
            return self._block


class FileVersion(NamedTuple):
    """Equal as long as a file is unchanged: a key for what is kept of it in memory."""

    path: str
    size: int  # bytes
    changed: int  # nanoseconds


def file_version(path: str | Path) -> FileVersion:
    """Raises UserError where it is not a regular file."""
    status = require_regular(path).stat()
    return FileVersion(str(path), status.st_size, status.st_mtime_ns)
