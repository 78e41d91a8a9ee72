"""Zeiss CZI files: their directory by the package czifile, their blocks by imagecodecs.

A CZI file is a heap of blocks: rectangles of one channel, time, depth and scene, at full size or,
of a pyramid, reduced. Windows are put together from the blocks that they touch, no others are
decoded.

Coordinates are pixels at full size, whose zero may lie anywhere; an image begins where the first
block of its scene does.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mrcnn.errors import UserError, one_line
from mrcnn.files import open_regular, require_regular
from mrcnn.images.planes import (
    FileVersion,
    Level,
    PixelSize,
    Plane,
    file_version,
    microns,
    pixel_size,
    plane_suffix,
    refuse_claims,
    refuse_expansion,
)

MAGIC = b"ZISRAWFILE"
# Time, depth, rotation, illumination, phase, view, block: planes follow each other along these.
_PLACES = "TZRIHVB"
_BLOCK = b"ZISRAWSUBBLOCK"
# A level of a pyramid that has less than this share of the full size's pixels has gaps.
_WHOLE_LEVEL = 0.8
# Blocks that cover less than this share of the rectangle around them are at places that are wrong.
_LEAST_COVERED = 1e-3
# Bytes before the sizes of a block, from there to its directory entry, and the least that follow.
_SIZES_AT, _ENTRY_AT, _LEAST_ENTRY = 32, 48, 240
_RAW, _JPEG, _LZW, _JPEG_XR, _ZSTD, _ZSTD_WITH_HEADER = 0, 1, 2, 4, 5, 6
_DECODED_TO_RGB = (_JPEG, _JPEG_XR)  # the others have blue first


@dataclass(frozen=True)
class _Block:
    """A rectangle of pixels, and where in the file it is."""

    scene: int
    channel: int
    place: tuple[int, ...]  # along _PLACES
    order: int  # later ones lie on top
    top: int
    left: int
    height: int
    width: int
    stored: tuple[int, int, int]  # h, w, samples: smaller than height, width in a pyramid
    dtype: np.dtype
    compression: int
    position: int  # bytes
    entry_bytes: int

    @property
    def reduction(self) -> int:
        """How many pixels of the full size one of this block stands for, along each side."""
        return max(1, round(max(self.height / self.stored[0], self.width / self.stored[1])))


def is_picture(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a CZI."""
    return start.startswith(MAGIC)


def planes(path: Path) -> list[Plane]:
    """The planes of a file, scene by scene; only the directory and the metadata are read.

    Raises UserError (a reason without the file's name), and whatever czifile raises for broken
    files.
    """
    try:
        import czifile
        import imagecodecs  # noqa: F401  (reading needs it)
    except ImportError:
        raise UserError('is a Zeiss CZI: pip install "mrcnn-keras[formats]"') from None
    # A Path: of a str, czifile before 2026 looks for other parts of the file beside it.
    with czifile.CziFile(require_regular(path)) as czi:
        if not czi.header.directory_position:
            raise UserError("has no directory of its blocks: it was not closed when it was written")
        blocks = [_block(entry, number) for number, entry in enumerate(czi.subblock_directory)]
        about = _About.of(czi.metadata() or "")
    scenes: dict[int, list[_Block]] = defaultdict(list)
    for block in blocks:
        scenes[block.scene].append(block)
    # Reduced blocks may be of no scene: they show all of them.
    full = [number for number in sorted(scenes) if any(b.reduction == 1 for b in scenes[number])]
    if not full:
        raise UserError("has no image in it")
    found: list[Plane] = []
    left_out: list[str] = []
    for number in full:
        prefix = about.prefix(number, full)
        planes, absent = _planes_of_scene(_Scene(path, scenes[number]), prefix, about)
        found += planes
        if absent:
            left_out.append(
                f"{prefix} {absent} of {absent + len(planes)} planes are absent".strip()
            )
    return [replace(plane, left_out=tuple(left_out)) for plane in found]


def _block(entry: Any, number: int) -> _Block:
    """From an entry of czifile, whose classes differ before 2026 (the last for Python 3.11)."""
    if hasattr(entry, "dimension_entries"):
        sides = {d.dimension: (d.start, d.size, d.stored_size) for d in entry.dimension_entries}
        entry_bytes = 32 + 20 * len(entry.dimension_entries)
    else:
        sizes = zip(entry.start, entry.shape, entry.stored_shape, strict=True)
        sides = dict(zip(entry.dims[:-1], sizes, strict=False))
        sides |= {"S": (max(0, entry.scene_index), 1, 1), "M": (entry.mosaic_index, 1, 1)}
        entry_bytes = entry.storage_size
    (top, height, rows), (left, width, columns) = sides["Y"], sides["X"]

    def start(axis: str) -> int:
        return int(sides.get(axis, (0, 1, 1))[0])

    if any(sides.get(axis, (0, 1, 1))[1] > 1 for axis in f"C{_PLACES}"):
        raise UserError("has blocks of several planes, which is not supported: save it as OME-TIFF")
    stored = (int(rows) or int(height), int(columns) or int(width), int(entry.shape[-1]))
    if min(height, width, *stored) <= 0:
        raise UserError("has blocks without pixels: its directory is damaged")
    return _Block(
        start("S"),
        start("C"),
        tuple(map(start, _PLACES)),
        start("M") * 2**32 + number,
        int(top),
        int(left),
        int(height),
        int(width),
        stored,
        np.dtype(entry.dtype).base,
        int(entry.compression),
        int(entry.file_position),
        int(entry_bytes),
    )


# --- planes -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Scene:
    """The blocks of a scene, in order. Raises UserError where they do not fit together."""

    path: Path
    blocks: Sequence[_Block]

    @functools.cached_property
    def full(self) -> list[_Block]:
        """The blocks at full size."""
        return [block for block in self.blocks if block.reduction == 1]

    @functools.cached_property
    def origin(self) -> tuple[int, int]:
        """Top, left."""
        return min(block.top for block in self.full), min(block.left for block in self.full)

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """H, W."""
        top, left = self.origin
        return (
            max(block.top + block.height for block in self.full) - top,
            max(block.left + block.width for block in self.full) - left,
        )

    @functools.cached_property
    def channels(self) -> list[int]:
        return sorted({block.channel for block in self.full})

    @functools.cached_property
    def places(self) -> list[tuple[int, ...]]:
        return sorted({block.place for block in self.full})

    @functools.cached_property
    def form(self) -> tuple[np.dtype, int]:
        """Type and samples of all pixels."""
        forms = {(block.dtype, block.stored[2]) for block in self.full}
        if len(forms) > 1:
            raise UserError("has channels of unlike types; save them as files of their own")
        dtype, samples = forms.pop()
        if len(self.channels) > 1 and samples > 1:
            raise UserError(f"has {len(self.channels)} channels of {samples} samples each")
        return dtype, samples

    @functools.cached_property
    def along(self) -> list[dict[int, int]]:
        """For each of _PLACES its numbers, counted from 1."""
        return [
            {number: count for count, number in enumerate(sorted(set(values)), 1)}
            for values in zip(*self.places, strict=True)
        ]

    def suffix(self, place: tuple[int, ...]) -> str:
        """What tells a plane from the others of its scene."""
        return "_".join(
            plane_suffix(axis, counted[number], len(counted))
            for axis, counted, number in zip(_PLACES, self.along, place, strict=True)
            if len(counted) > 1
        )

    def reader(self, groups: Mapping, place: tuple[int, ...], reduction: int) -> _PlaneReader:
        parts = [groups[place, channel] for channel in self.channels]
        return _PlaneReader(str(self.path), parts, self.origin, reduction)


def _planes_of_scene(scene: _Scene, prefix: str, about: _About) -> tuple[list[Plane], int]:
    """The planes of a scene, and how many are absent."""
    dtype, samples = scene.form
    shape = (*scene.size, len(scene.channels) * samples)
    refuse_claims(len(scene.places), math.prod(shape) * dtype.itemsize, os.path.getsize(scene.path))
    groups, levels = _grouped(scene.full), _levels(scene)
    if max(map(_area, groups.values())) < _LEAST_COVERED * math.prod(scene.size):
        raise UserError(f"claims {scene.size} pixels, of which next to none are there")
    has_gaps = any(_area(blocks) < math.prod(scene.size) for blocks in groups.values())
    shown_as = "white" if _ground(dtype, samples) else "0"
    gaps = f"places that were not scanned are taken as {shown_as}" if has_gaps else ""
    notes = tuple(filter(None, (about.size.note, gaps)))
    found = [
        Plane(
            shape,
            dtype.newbyteorder("="),
            scene.reader(groups, place, 1),
            channels=about.channels(scene.channels) if samples == 1 else (),
            is_rgb=samples >= 3,
            has_alpha=samples == 4,
            mpp=about.size.mpp,
            mpp_from=about.size.source,
            suffix="_".join(filter(None, (prefix, scene.suffix(place)))),
            levels=tuple(
                Level(size, scene.reader(smaller, place, reduction))
                for size, smaller, reduction in levels
            ),
            notes=notes,
        )
        for place in scene.places
        if all((place, channel) in groups for channel in scene.channels)
    ]
    if not found:
        raise UserError(f"lacks channels of all {len(scene.places)} planes")
    return found, len(scene.places) - len(found)


def _grouped(blocks: Iterable[_Block]) -> dict[tuple, list[_Block]]:
    """The blocks of each (place, channel), the lowest first."""
    groups: dict[tuple, list[_Block]] = defaultdict(list)
    for block in sorted(blocks, key=lambda block: block.order):
        groups[block.place, block.channel].append(block)
    return dict(groups)


def _levels(scene: _Scene) -> list[tuple[tuple[int, int], dict, int]]:
    """Shape (H, W), blocks by plane, and reduction of the smaller levels that are without gaps."""
    wanted, pixels = _grouped(scene.full), math.prod(scene.size)
    found = []
    for reduction in sorted({block.reduction for block in scene.blocks} - {1}):
        level = [block for block in scene.blocks if block.reduction == reduction]
        groups = _grouped(level)
        if groups.keys() < wanted.keys() or {(b.dtype, b.stored[2]) for b in level} != {scene.form}:
            continue
        if all(
            _area(groups[key]) >= _WHOLE_LEVEL * min(_area(wanted[key]), pixels) for key in wanted
        ):
            height, width = (-(-side // reduction) for side in scene.size)
            found.append(((height, width), groups, reduction))
    return found


def _area(blocks: Iterable[_Block]) -> int:
    return sum(block.height * block.width for block in blocks)


@dataclass(frozen=True, eq=False)
class _PlaneReader:
    """Windows of a plane, of the blocks of each of its channels."""

    path: str
    blocks: list[list[_Block]]
    origin: tuple[int, int]  # top, left
    reduction: int

    @functools.cached_property
    def boxes(self) -> list[np.ndarray]:
        """Of each channel int64 [blocks, 4]: top, left, bottom, right in pixels of the level."""
        found = []
        for blocks in self.blocks:
            corners = np.array([(block.top, block.left) for block in blocks], np.int64)
            corners = np.rint((corners - self.origin) / self.reduction).astype(np.int64)
            sides = np.array([block.stored[:2] for block in blocks], np.int64)
            found.append(np.hstack([corners, corners + sides]))
        return found

    def __call__(self, rows: slice, columns: slice, channels: slice) -> np.ndarray:
        first = self.blocks[0][0]
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        samples = range(len(self.blocks)) if first.stored[2] == 1 else range(1)
        ground = _ground(first.dtype, first.stored[2])
        parts = [
            self._channel(number, rows, columns, shape, ground)
            for number in (samples[channels] if first.stored[2] == 1 else samples)
        ]
        pixels = np.concatenate(parts, axis=-1)
        return pixels if first.stored[2] == 1 else np.ascontiguousarray(pixels[..., channels])

    def _channel(
        self, number: int, rows: slice, columns: slice, shape: tuple[int, int], ground: int
    ) -> np.ndarray:
        """Pixels [h, w, samples] of one channel."""
        blocks, boxes = self.blocks[number], self.boxes[number]
        dtype = blocks[0].dtype.newbyteorder("=")
        out = np.full((*shape, blocks[0].stored[2]), ground, dtype)
        window = np.array([rows.stop, columns.stop, -rows.start, -columns.start])
        touched = np.all(boxes * [1, 1, -1, -1] < window, axis=1)
        version = file_version(self.path)
        for index in np.flatnonzero(touched).tolist():
            pixels = _decoded(version, blocks[index])
            top, left = boxes[index, :2].tolist()
            y1, x1 = max(rows.start, top), max(columns.start, left)
            y2 = min(rows.stop, top + pixels.shape[0])
            x2 = min(columns.stop, left + pixels.shape[1])
            if y1 < y2 and x1 < x2:
                out[y1 - rows.start : y2 - rows.start, x1 - columns.start : x2 - columns.start] = (
                    pixels[y1 - top : y2 - top, x1 - left : x2 - left]
                )
        return out


def _ground(dtype: np.dtype, samples: int) -> int:
    """The value of what was not scanned: of colours, which are of slides, that of light."""
    return 255 if samples >= 3 and dtype == np.uint8 else 0


# --- blocks -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _decoded(version: FileVersion, block: _Block) -> np.ndarray:
    """Pixels [h, w, samples] of a block; the last ones are kept, since windows overlap."""
    with open_regular(version.path) as file:
        file.seek(block.position)
        head = file.read(_ENTRY_AT)
        if len(head) < _ENTRY_AT or not head.startswith(_BLOCK):
            raise UserError("ends before its pixels do, or its directory is damaged")
        metadata, _, count = struct.unpack_from("<iiq", head, _SIZES_AT)
        start = _ENTRY_AT + max(_LEAST_ENTRY, block.entry_bytes) + max(0, metadata)
        file.seek(block.position + start)
        claimed = math.prod(block.stored) * block.dtype.itemsize
        refuse_expansion(claimed, count)
        data = file.read(max(0, min(count, version.size)))
    if len(data) < count:
        raise UserError("ends before its pixels do")
    # ZEN writes blocks as they are where compressing them would not pay.
    compression = _RAW if len(data) == claimed else block.compression
    pixels = _decompressed(data, compression, block, claimed)
    if block.stored[2] >= 3 and compression not in _DECODED_TO_RGB:
        pixels = pixels[..., [2, 1, 0, *range(3, block.stored[2])]]
    pixels.setflags(write=False)
    return pixels


def _decompressed(data: bytes, compression: int, block: _Block, claimed: int) -> np.ndarray:
    """Pixels [h, w, samples]; claimed: bytes that they should have."""
    import imagecodecs

    height, width, samples = block.stored
    if compression in _DECODED_TO_RGB:
        decode = imagecodecs.jpeg_decode if compression == _JPEG else imagecodecs.jpegxr_decode
        return decode(data).reshape(height, -1, samples).astype(block.dtype, copy=False)
    if compression == _LZW:
        data = imagecodecs.lzw_decode(data, out=claimed)
    elif compression == _ZSTD:
        data = imagecodecs.zstd_decode(data, out=claimed)
    elif compression == _ZSTD_WITH_HEADER:
        data = _zstd_with_header(data, block.dtype.itemsize, claimed)
    elif compression != _RAW:
        raise UserError(f"has blocks compressed by method {compression}, which is not supported")
    # Of reduced blocks at an edge, some writers say one row more than there is.
    values = np.frombuffer(data, block.dtype)
    return values[: values.size // (width * samples) * width * samples].reshape(-1, width, samples)


def _zstd_with_header(data: bytes, item: int, claimed: int) -> bytes:
    """What the method zstd1 has: a header of 1 byte, or of 3 of which the last one says whether all
    low bytes of 16-bit values come before all high ones."""
    import imagecodecs

    header = data[0]
    decoded = bytes(imagecodecs.zstd_decode(data[header:], out=claimed))
    if header == 3 and data[1] == 1 and data[2] & 1 and item == 2:
        halves = np.frombuffer(decoded, np.uint8).reshape(2, -1)
        return halves.T.tobytes()
    return decoded


# --- metadata -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _About:
    """What the metadata say: names by their numbers, and the size of pixels."""

    scenes: dict[int, str]
    names: dict[int, str]
    size: PixelSize

    @classmethod
    def of(cls, text: str | bytes) -> _About:
        """From XML; what is not there or is broken is not known."""
        try:
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError):
            return cls({}, {}, PixelSize())
        scenes = {
            int(scene.get("Index") or number): scene.get("Name") or ""
            for number, scene in enumerate(root.iterfind(".//Dimensions/S/Scenes/Scene"))
            if (scene.get("Index") or "0").isdecimal()
        }
        names = {
            number: channel.get("Name") or ""
            for number, channel in enumerate(
                root.iterfind(".//Information/Image/Dimensions/Channels/Channel")
            )
        }
        sides = [
            microns(root.findtext(f".//Scaling/Items/Distance[@Id='{axis}']/Value"), "m")
            for axis in "XY"
        ]
        return cls(scenes, names, pixel_size(*sides, "CZI"))

    def channels(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """Names of channels; () where none is known."""
        names = tuple(self.names.get(number, "") for number in numbers)
        return names if any(names) else ()

    def prefix(self, scene: int, scenes: Sequence[int]) -> str:
        """What tells the planes of a scene from those of others: s1_left."""
        if len(scenes) == 1:
            return ""
        name = one_line(self.scenes.get(scene, ""), 60)
        return "_".join(
            filter(None, (plane_suffix("S", scenes.index(scene) + 1, len(scenes)), name))
        )
