"""Zeiss CZI files: the package czifile reads their directory, `czi_blocks` their blocks.

A CZI file is a collection of blocks: rectangles of one channel, time, depth and scene, at full size
or, in a pyramid, reduced. Windows are assembled from the blocks that they touch; no others are
decoded.

Coordinates are pixels at full size, whose origin may lie anywhere; an image begins where the first
block of its scene does.
"""

from __future__ import annotations

import functools
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mrcnn.errors import UserError, one_line
from mrcnn.files import require_regular
from mrcnn.images.czi_blocks import PLACES, Block, block_of, decoded
from mrcnn.images.planes import (
    Level,
    PixelSize,
    Plane,
    file_version,
    microns,
    pixel_size,
    plane_suffix,
    refuse_claims,
)

MAGIC = b"ZISRAWFILE"
# A level of a pyramid that covers less than this share of the pixels at full size has gaps.
_WHOLE_LEVEL = 0.8
# Blocks that cover less than this share of the rectangle around them have wrong positions.
_LEAST_COVERED = 1e-3


def is_image(start: bytes) -> bool:
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
    # A Path: given a str, czifile before 2026 looks for other parts of the file next to it.
    with czifile.CziFile(require_regular(path)) as czi:
        if not czi.header.directory_position:
            raise UserError("has no block directory: the program that wrote it did not close it")
        blocks = [block_of(entry, number) for number, entry in enumerate(czi.subblock_directory)]
        about = _About.of(czi.metadata() or "")
    scenes: dict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        scenes[block.scene].append(block)
    # Reduced blocks may belong to no scene: they show all of them.
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
                f"{prefix} {absent} of {absent + len(planes)} planes are missing".strip()
            )
    return [replace(plane, left_out=tuple(left_out)) for plane in found]


# --- planes -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Scene:
    """The blocks of a scene, in order. Raises UserError where they do not fit together."""

    path: Path
    blocks: Sequence[Block]

    @functools.cached_property
    def full(self) -> list[Block]:
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
        """Dtype and number of samples of all pixels."""
        forms = {(block.dtype, block.stored[2]) for block in self.full}
        if len(forms) > 1:
            raise UserError("has channels of different types; save them as separate files")
        dtype, samples = forms.pop()
        if len(self.channels) > 1 and samples > 1:
            raise UserError(f"has {len(self.channels)} channels of {samples} samples each")
        return dtype, samples

    @functools.cached_property
    def along(self) -> list[dict[int, int]]:
        """For each of PLACES, the numbers that occur, mapped to 1, 2, ..."""
        return [
            {number: count for count, number in enumerate(sorted(set(values)), 1)}
            for values in zip(*self.places, strict=True)
        ]

    def suffix(self, place: tuple[int, ...]) -> str:
        """What distinguishes a plane from the others of its scene."""
        return "_".join(
            plane_suffix(axis, counted[number], len(counted))
            for axis, counted, number in zip(PLACES, self.along, place, strict=True)
            if len(counted) > 1
        )

    def reader(self, groups: Mapping, place: tuple[int, ...], reduction: int) -> _PlaneReader:
        parts = [groups[place, channel] for channel in self.channels]
        return _PlaneReader(str(self.path), parts, self.origin, reduction)


def _planes_of_scene(scene: _Scene, prefix: str, about: _About) -> tuple[list[Plane], int]:
    """The planes of a scene, and how many are missing."""
    dtype, samples = scene.form
    shape = (*scene.size, len(scene.channels) * samples)
    refuse_claims(len(scene.places), math.prod(shape) * dtype.itemsize, os.path.getsize(scene.path))
    groups, levels = _grouped(scene.full), _levels(scene)
    if max(map(_area, groups.values())) < _LEAST_COVERED * math.prod(scene.size):
        raise UserError(f"claims {scene.size} pixels, almost none of which are there")
    has_gaps = any(_area(blocks) < math.prod(scene.size) for blocks in groups.values())
    shown_as = "white" if _ground(dtype, samples) else "0"
    gaps = f"areas that were not scanned are filled with {shown_as}" if has_gaps else ""
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
        raise UserError(f"lacks channels in all {len(scene.places)} planes")
    return found, len(scene.places) - len(found)


def _grouped(blocks: Iterable[Block]) -> dict[tuple, list[Block]]:
    """The blocks of each (place, channel), the bottom-most first."""
    groups: dict[tuple, list[Block]] = defaultdict(list)
    for block in sorted(blocks, key=lambda block: block.order):
        groups[block.place, block.channel].append(block)
    return dict(groups)


def _levels(scene: _Scene) -> list[tuple[tuple[int, int], dict, int]]:
    """Shape (H, W), blocks by plane, and reduction of the smaller levels that have no gaps."""
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


def _area(blocks: Iterable[Block]) -> int:
    return sum(block.height * block.width for block in blocks)


@dataclass(frozen=True, eq=False)
class _PlaneReader:
    """Windows of a plane, read from the blocks of each of its channels."""

    path: str
    blocks: list[list[Block]]
    origin: tuple[int, int]  # top, left
    reduction: int

    @functools.cached_property
    def boxes(self) -> list[np.ndarray]:
        """For each channel int64 [blocks, 4]: top, left, bottom, right in pixels of the level."""
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
            pixels = decoded(version, blocks[index])
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
    """The value of what was not scanned: white for 8-bit colours, which are of slides, else 0."""
    return 255 if samples >= 3 and dtype == np.uint8 else 0


# --- metadata -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _About:
    """What the metadata say: names by number, and the pixel size."""

    scenes: dict[int, str]
    names: dict[int, str]
    size: PixelSize

    @classmethod
    def of(cls, text: str | bytes) -> _About:
        """From XML; what is missing or broken counts as unknown."""
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
        """What distinguishes the planes of a scene from those of others: s1_left."""
        if len(scenes) == 1:
            return ""
        name = one_line(self.scenes.get(scene, ""), 60)
        return "_".join(
            filter(None, (plane_suffix("S", scenes.index(scene) + 1, len(scenes)), name))
        )
