"""What the readers of image files have in common: planes, their channels, the size of a pixel.

Shapes: H, W pixels of a plane, C its channels; h, w, c of a part of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrcnn.errors import UserError

# Rows, columns and channels, all with start and stop, to pixels [h, w, c].
PartReader = Callable[[slice, slice, slice], np.ndarray]

LONGEST_SIDE = 2**31 - 1
# Without --channel, images of as many channels that are not colours are still taken whole.
MOST_CHANNELS = 3
RGB = ("red", "green", "blue")

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
class Plane:
    """An image [H, W, C] in a file, as the file has it."""

    shape: tuple[int, int, int]
    dtype: np.dtype  # in the machine's byte order
    read: PartReader
    channels: tuple[str, ...] = ()  # names, where they are known
    is_rgb: bool = False  # the first three channels are colours
    has_alpha: bool = False  # the last channel says how opaque a pixel is
    mpp: float | None = None  # microns per pixel
    suffix: str = ""  # tells it from the other planes of its file: t0003_z002
    files: tuple[Path, ...] = ()  # that hold its pixels, where they are not its own file alone
    # The numbers [h, w, 1] that a palette gives colours to: what counts in a label image.
    indices: PartReader | None = None

    def __post_init__(self) -> None:
        """Raises UserError (a reason without the file's name) for what cannot be an image."""
        height, width, channels = self.shape
        if not height or not width or not channels:
            raise UserError(f"has no pixels ({height} x {width}, {channels} channels)")
        if max(height, width) > LONGEST_SIDE:
            raise UserError(f"is too large ({height} x {width} pixels)")
        if self.dtype.kind not in "biuf":
            raise UserError(f"has values of type {self.dtype}; whole or real numbers are needed")


def choose_channels(plane: Plane, wanted: int | str | None) -> tuple[slice, tuple[str, ...]]:
    """The channels of a plane to look at, and their names as far as they are known.

    wanted: a number from 1, a name in any case, or None: grey, RGB, or all of MOST_CHANNELS.
    Alpha is never among them. Raises UserError (a reason without the file's name) where the
    channel is not there or one has to be chosen.
    """
    count = plane.shape[2] - plane.has_alpha
    names = plane.channels or (RGB if plane.is_rgb else ())
    names = names if len(names) == count and any(names) else ()
    if wanted is not None:
        index = _channel_index(wanted, names, count)
        if index is None:
            raise UserError(f"has no channel {wanted}, only {_listed(names, count)}")
        return slice(index, index + 1), names[index : index + 1]
    if count == 1 or count == MOST_CHANNELS:
        return slice(0, count), names
    raise UserError(f"has {count} channels ({_listed(names, count)}): choose one with --channel")


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
    """A length in microns; None where it is no positive number or the unit is unknown."""
    factor = MICRONS.get((unit or "").replace("\\u00B5", "µ").strip().casefold())
    try:
        value = float(length) * factor  # type: ignore[arg-type, operator]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def square_pixel(width: float | None, height: float | None) -> float | None:
    """The side of a pixel of this width and height: their mean, None if they differ by over 1 %."""
    if width is None or height is None or abs(width - height) > 0.01 * max(width, height):
        return None
    return (width + height) / 2


def plane_suffix(axis: str, number: int, count: int) -> str:
    """What names a plane along an axis: z002 for number 2, from 1, of at most 999 along Z.

    Axes without a meaning of their own are those of pages.
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
        """The block of this key. One thread decodes at a time, so that one block is in memory."""
        with self._lock:
            if self._key != key:
                self._key, self._block = None, np.empty(0)  # free it before the next one comes
                self._block, self._key = decode(), key
            return self._block


def file_state(path: str | Path) -> tuple[str, int, int]:
    """A key that changes with the file."""
    status = Path(path).stat()
    return str(path), status.st_size, status.st_mtime_ns
