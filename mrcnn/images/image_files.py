"""Images in all kinds of files, read whole or window by window.

    PNG, JPEG, BMP   8 and 16 bits, grey, RGB, palettes
    TIFF             OME-TIFF, ImageJ's hyperstacks, BigTIFF, pyramids of slides
    Zarr, OME-Zarr   with the package zarr
    CZI, ND2, LIF    of Zeiss, Nikon and Leica, with the packages czifile, nd2 and liffile

A file may hold many images: every time, depth or other place along an axis that is neither Y, X
nor channels is an image of its own.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.files import file_state, open_regular
from mrcnn.images import pillow, zarr
from mrcnn.images.listing import file_key, image_names, image_paths
from mrcnn.images.planes import Plane, choose_channels

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Unreadable:
    """A file or folder that yields no image, and why not, in words that follow its name."""

    path: Path
    reason: str


class About(NamedTuple):
    """Which part of a file an image is, in words, and what was guessed or changed."""

    channels: str  # such as "RGB" or "channel 2 of 3 (DAPI)"
    plane: str = ""  # such as "z002", where the file has several
    mpp_from: str = ""  # where the pixel size is from
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LazyImage:
    """An image in a file; nothing of it is in memory and no file is open.

    It may be read by several threads at once. `image[rows, columns]` calls `read`.
    """

    name: str  # unique in its run, and safe as a file name
    path: Path
    channels: tuple[str, ...]  # names, () where they are not known
    plane: Plane = field(repr=False)
    part: slice = field(repr=False)  # of the plane's channels
    scale: float | None = field(default=None, repr=False)  # of a level: what `reduced` was given

    def __reduce__(self) -> tuple:
        """For pickle: a short description from which another process reopens the file."""
        absolute = os.path.abspath(self.path)
        place = self.plane.suffix, self.part.start, self.part.stop, self.scale
        return _reopened, (self.name, self.path, absolute, self.channels, place, self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, C."""
        return (*self.plane.shape[:2], self.part.stop - self.part.start)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the file's own values."""
        return self.plane.dtype

    @property
    def mpp(self) -> float | None:
        """Microns per pixel, where the file states it."""
        return self.plane.mpp

    @property
    def about(self) -> About:
        """Which part of its file it is."""
        plane, taken = self.plane, self.shape[2]
        count = plane.shape[2] - plane.has_alpha
        if count == 1:
            channels = "grey"
        elif taken == 1:
            name = f" ({self.channels[0]})" if any(self.channels) else ""
            channels = f"channel {self.part.start + 1} of {count}{name}"
        else:
            channels = "RGB" if plane.is_rgb else "colours"
        alpha = ("alpha left out",) if plane.has_alpha else ()
        return About(channels, plane.suffix, plane.mpp_from, (*plane.notes, *alpha))

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """H, W of the pyramid's levels, from the image itself down; just the image without one."""
        return (self.shape[:2], *(level.shape for level in self.plane.levels))

    def reduced(self, scale: float) -> LazyImage:
        """The smallest level of a pyramid that is as large as the image scaled by this factor.

        The image itself where no smaller level is; a level is an image without levels of its own,
        whose pixels are correspondingly larger.
        """
        height, width = self.shape[:2]
        for level in reversed(self.plane.levels):
            if level.shape[0] >= scale * height and level.shape[1] >= scale * width:
                factor = math.sqrt(height * width / math.prod(level.shape))
                plane = replace(
                    self.plane,
                    shape=(*level.shape, self.plane.shape[2]),
                    read=level.read,
                    mpp=self.mpp and self.mpp * factor,
                    indices=None,
                    levels=(),
                )
                return replace(self, plane=plane, scale=scale)
        return self

    def read(self, window: Window | None = None) -> np.ndarray:
        """The file's own values [h, w, C], of all pixels or of a window (rows, columns).

        Slices are cut off at the edges as NumPy's are; they have no step. Memory is used for the
        window and the file's tiles or strips; PNG, JPEG and BMP files are decoded whole.
        Raises UserError naming the file where it is broken or gone.
        """
        rows, columns = (
            _cut_off(one, size)
            for one, size in zip(window or (slice(None), slice(None)), self.shape, strict=False)
        )
        try:
            pixels = self.plane.read(rows, columns, self.part)
        except Exception as error:  # the decoders raise a dozen types for broken files
            raise UserError(f"{self.path}: {reason_of(error, self.path)}") from error
        if pixels.shape != (rows.stop - rows.start, columns.stop - columns.start, self.shape[2]):
            raise UserError(f"{self.path}: has changed since its header was read")
        return pixels

    def __getitem__(self, window: slice | Window) -> np.ndarray:
        return self.read(window if isinstance(window, tuple) else (window, slice(None)))

    def read_labels(self) -> np.ndarray:
        """The numbers [H, W, C] of a label image: if it has a palette, the indices rather than
        the colours. Raises what `read` raises."""
        if self.plane.indices is None:
            return self.read()
        shape, read = (*self.shape[:2], 1), self.plane.indices
        plane = replace(self.plane, shape=shape, read=read)
        return replace(self, plane=plane, part=slice(0, 1)).read()

    def state(self) -> str:
        """A string that changes when the files that hold its pixels do. Raises UserError where
        they are gone."""
        files = self.plane.files or (self.path,)
        return "\n".join([self.plane.suffix, str(self.part), *map(file_state, files)])


def _reopened(
    name: str,
    path: Path,
    absolute: str,
    channels: tuple[str, ...],
    place: tuple[str, int, int, float | None],
    shape: tuple[int, int, int],
) -> LazyImage:
    """An image as `LazyImage.__reduce__` describes it. Raises UserError where it is gone."""
    # Messages name a file as the other process did, where that is the same file here.
    path = path if os.path.abspath(path) == absolute else Path(absolute)
    suffix, start, stop, scale = place
    try:
        plane = _planes_of(path, _changed(path)).get(suffix)
    except Exception as error:
        raise UserError(f"{path}: {reason_of(error, path)}") from error
    image = plane and LazyImage(name, path, channels, plane, slice(start, stop))
    if image and scale is not None:
        image = image.reduced(scale)
    if image is None or image.shape != shape:
        raise UserError(f"{path}: has changed since its header was read")
    return image


@functools.lru_cache(maxsize=8)
def _planes_of(path: Path, changed: int) -> dict[str, Plane]:
    """The planes of a file by suffix; changed: for the cache, when the file was changed."""
    return {plane.suffix: plane for plane in planes_in(path)}


def _changed(path: Path) -> int:
    return os.stat(path).st_mtime_ns


def _cut_off(one: slice, size: int) -> slice:
    start, stop, step = one.indices(size)
    if step != 1:
        raise ValueError(f"windows must not have a step, but this one is {one}")
    return slice(start, max(start, stop))


def find_images(
    inputs: Sequence[str | os.PathLike],
    channel: int | str | None = None,
    output: str | os.PathLike | None = None,
    left_out: list[Unreadable] | None = None,
) -> tuple[list[LazyImage], list[Unreadable]]:
    """The images in files, folders (and all below) and patterns such as `plate/**/*.tif`.

    Only headers are read. Images come in natural order, each once.

    Args:
        inputs: see `images.listing.image_paths`.
        channel: the one to use, by its number from 1 (as Fiji counts) or its name in any case.
            None takes grey and RGB without alpha; of other channels one has to be chosen.
        output: folder that the results will be written to, which is not searched.
        left_out: takes the folders that are left out on purpose; without it, each is warned of.
    Returns:
        The images, and what cannot be read.
    Raises:
        UserError: an input does not exist or contains no images.
    """
    skipped: list[tuple[Path, str]] = []
    paths, closed = image_paths(inputs, output, skipped)
    unreadable = [Unreadable(*one) for one in closed]
    for path, reason in skipped:
        if left_out is None:
            warnings.warn(f"{path}: {reason}", MRCNNWarning, stacklevel=2)
        else:
            left_out.append(Unreadable(path, reason))
    found: list[tuple[Path, Plane, slice, tuple[str, ...]]] = []
    choose = functools.partial(_with_channels, channel=channel)
    for path, planes, (chosen, refused) in each_file(paths, unreadable, choose):
        found += [(path, *one) for one in chosen]
        left_out_there = [*(planes[0].left_out if planes else ()), *refused]
        if left_out_there:
            unreadable.append(Unreadable(path, "; ".join(left_out_there)))
    names = image_names([(path, plane.suffix) for path, plane, _, _ in found])
    return [
        LazyImage(name, path, channels, plane, part)
        for name, (path, plane, part, channels) in zip(names, found, strict=True)
    ], unreadable


def each_file(
    paths: Iterable[Path], unreadable: list[Unreadable], take: Callable[[list[Plane]], Any]
) -> Iterator[tuple[Path, list[Plane], Any]]:
    """Each file with its planes and what `take` makes of them; of a set of files that belong
    together only the first. unreadable: takes those that cannot be read or that `take` refuses."""
    seen: set[str] = set()
    for path in paths:
        if file_key(path) in seen:
            continue
        try:
            planes = planes_in(path)
            taken = take(planes)
        except Exception as error:
            unreadable.append(Unreadable(path, reason_of(error, path)))
            continue
        seen.update(file_key(file) for plane in planes for file in plane.files)
        yield path, planes, taken


def _with_channels(
    planes: Sequence[Plane], channel: int | str | None
) -> tuple[list[tuple[Plane, slice, tuple[str, ...]]], list[str]]:
    """The planes with what `choose_channels` returns, and why others have no such channel: files
    of microscopes hold images of all kinds. Raises UserError where none has it."""
    chosen, refused = [], {}
    for plane in planes:
        try:
            chosen.append((plane, *choose_channels(plane, channel)))
        except UserError as error:
            refused.setdefault(str(error), []).append(plane.suffix)
    if refused and not chosen:
        raise UserError(next(iter(refused)))
    said = [
        f"{names[0]}{f' and {len(names) - 1} others' if len(names) > 1 else ''}: {error}"
        for error, names in refused.items()
    ]
    return chosen, said


def open_images(path: Path, channel: int | str | None = None) -> list[LazyImage]:
    """All images of one file, in its own order, named by what distinguishes them: "" where the
    file holds one, or else z001, z002, ...

    Of a set of files that belong together (OME-TIFF), those whose pixels are in this file.
    channel: see `find_images`. Raises UserError naming the file where it yields no image.
    """
    try:
        own = file_key(path)
        planes = [p for p in planes_in(path) if not p.files or file_key(p.files[0]) == own]
        found = [(plane, *choose_channels(plane, channel)) for plane in planes]
    except Exception as error:
        raise UserError(f"{path}: {reason_of(error, path)}") from None
    if not found:
        raise UserError(f"{path}: has no image in it")
    return [LazyImage(plane.suffix, path, names, plane, part) for plane, part, names in found]


def open_image(path: Path, suffix: str = "", channel: int | str | None = None) -> LazyImage:
    """The only image of a file or, where it holds several, the one with this suffix.

    Raises UserError naming the file, as `open_images` does.
    """
    found = open_images(path, channel)
    if not suffix and len(found) == 1:
        return found[0]
    for image in found:
        if image.name == suffix:
            return image
    if suffix:
        raise UserError(f"{path}: has no image {suffix}, but {len(found)} others")
    raise UserError(f"{path}: holds {len(found)} images ({found[0].name} and so on), not one")


def decode(data: bytes, name: str, labels: bool = False) -> np.ndarray:
    """The values [H, W, C], without alpha, of an image file in memory, such as a member of a zip.

    labels: of a palette the indices and not the colours, as `LazyImage.read_labels`.
    Raises UserError that begins with `name` where it is not an image, is broken or holds several.
    """
    path = Path(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if pillow.is_image(data[:16]):
                planes = [pillow.plane_of_bytes(data)]
            else:  # TIFF files are read in parts, at offsets in a file
                path = Path(folder, "image.tif")
                path.write_bytes(data)
                planes = planes_in(path)
            if len(planes) != 1:
                raise UserError(f"holds {len(planes)} images, not one")
            image = LazyImage(name, path, (), planes[0], choose_channels(planes[0], None)[0])
            return image.read_labels() if labels else image.read()
        except Exception as error:
            raise UserError(f"{name}: {reason_of(error, path)}") from None


def planes_in(path: Path) -> list[Plane]:
    """The planes of a file, by its content, whatever its name says; no pixels are read.

    Raises UserError (a reason without the file's name), and whatever the readers raise for broken
    files: see `reason_of`.
    """
    if os.path.isdir(path):
        return zarr.planes(path)
    with open_regular(path) as file:
        start = file.read(16)
    if not start:
        raise UserError("is empty")
    if pillow.is_image(start):
        return pillow.planes(path)
    from mrcnn.images import czi, lif, nd2, tiff

    for reader in (tiff, czi, nd2, lif):
        if reader.is_image(start):
            return reader.planes(path)
    raise UserError("is not an image (PNG, JPEG, BMP, TIFF, Zarr, CZI, ND2 or LIF)")


def reason_of(error: Exception, path: Path) -> str:
    """An error in one line to follow the path, which the texts of system errors repeat."""
    if isinstance(error, UserError):
        return str(error).removeprefix(f"{path}: ")
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    lines = str(error).strip().splitlines()
    said = f": {lines[0][:200]}" if lines else ""
    return f"is broken or in an unknown format ({type(error).__name__}{said})"
