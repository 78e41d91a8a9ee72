"""ROIs of ImageJ: a zip file of the ROI Manager, or .roi files; each is one instance."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mrcnn.data.labels import NUCLEUS, Warn, pack_outlines
from mrcnn.errors import UserError, quoted, reason_of
from mrcnn.files import file_state, read_bytes, refuse_large
from mrcnn.pixels.polygons import (
    PIECE_OF,
    Cutout,
    Size,
    fill,
    union,
)

# Of the polygon that represents an oval: its area is 1/10,000 too small.
OVAL_CORNERS = 256
# A ROI of more bytes than this would have a million corners.
MAX_ROI_BYTES = 8_000_000


@dataclass(frozen=True)
class RoiLabels:
    """ROIs of ImageJ: a zip file of the ROI Manager, or .roi files. They may overlap.

    Each is one instance, except those that this project has written as pieces of one (PIECE_OF).
    Raises UserError where the package roifile is not installed.
    """

    files: tuple[Path, ...]

    def __post_init__(self) -> None:
        _roifile()

    def size(self) -> None:
        return None

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, np.ndarray]:
        instances: list[list[Cutout | None]] = []
        by_name: dict[str, list[Cutout | None]] = {}
        alike, planes = [], set()
        for file, name, data in self._read():
            try:
                roi = _roifile().ImagejRoi.frombytes(data)
                patch = fill(roi_rings(roi), size)
            except Exception as error:  # roifile raises whatever a broken file causes
                raise UserError(
                    f"{file}: ROI {quoted(name)} cannot be used: {reason_of(error)}"
                ) from None
            if re.fullmatch(r"\d+-[1-9]\d*", name) and _stem(name) in by_name:
                alike += [] if _piece_of(roi) else [name]
            pieces = by_name.get(_piece_of(roi))
            if pieces is None:
                pieces = by_name[name] = []
                instances.append(pieces)
            pieces.append(patch)
            planes.add((roi.position, roi.z_position, roi.t_position))
        if alike:
            warn(
                f"pieces {self.files[0]}",
                f"{self.files[0]}: ROIs {alike[0]} (of {len(alike)} like it) and {_stem(alike[0])} "
                "are taken as two nuclei. If they are pieces of one, combine them in ImageJ (OR)",
            )
        if len(planes - {(0, 0, 0)}) > 1:
            raise UserError(
                f"{self.files[0]}: ROIs of several planes of a stack; save the ROIs of "
                "each plane as labels of an image of its own"
            )
        outlines = ((union(pieces), NUCLEUS) for pieces in instances)
        return pack_outlines(outlines, size, str(self.files[0]), warn)

    def state(self) -> str:
        return "\n".join(map(file_state, self.files))

    def _read(self) -> Iterator[tuple[Path, str, bytes]]:
        """(file, name, content) of the ROIs."""
        for file in self.files:
            data = read_bytes(file)
            if file.suffix.lower() == ".zip":
                yield from ((file, name, content) for name, content in _unzip(data, file))
            else:
                yield file, file.stem, data


def _stem(name: str) -> str:
    """0007 of 0007-2."""
    return name.rpartition("-")[0]


def _piece_of(roi: Any) -> str:
    """The name of the ROI of which this one is a further piece, if this project wrote it so."""
    found = re.search(rf"^{PIECE_OF}: (\S+)$", str(roi.props or ""), re.MULTILINE)
    return found[1] if found else ""


def _unzip(data: bytes, path: Path) -> list[tuple[str, bytes]]:
    """(name, content) of the ROIs of a zip file, which may have no members at all."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info, PurePosixPath(info.filename)) for info in archive.infolist()]
            rois = [
                (info, member)
                for info, member in members
                if member.suffix.lower() == ".roi" and not member.name.startswith(".")
            ]
            # What the members claim to hold, before any is unpacked.
            refuse_large(sum(info.file_size for info, _ in rois), str(path))
            for info, member in rois:
                if info.file_size > MAX_ROI_BYTES:
                    raise UserError(
                        f"{path}: ROI {quoted(member.stem)} claims {info.file_size} bytes, more "
                        f"than the {MAX_ROI_BYTES} allowed"
                    )
            found = [(member.stem, archive.read(info)) for info, member in rois]
    except UserError:
        raise
    except Exception as error:  # zlib.error, BadZipFile, RuntimeError (password)
        raise UserError(f"{path}: not a readable zip file ({reason_of(error)})") from None
    if members and not found:
        raise UserError(f"{path}: holds no .roi files, unlike those of ImageJ's ROI Manager")
    return found


def _roifile() -> Any:
    try:
        import roifile
    except ImportError:
        raise UserError("ImageJ ROIs need the package roifile: pip install roifile") from None
    return roifile


def roi_rings(roi: Any) -> list[np.ndarray]:
    """The outline of a roifile.ImagejRoi: one ring [V, 2], or several where it is composite.

    Raises ValueError for what has no area or is not an outline.
    """
    from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE

    if roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.IMAGE):
        raise ValueError(
            f"it is a note of type {roi.subtype.name}; delete it and save the ROIs again"
        )
    if roi.roitype in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED):
        if roi.options & ROI_OPTIONS.SPLINE_FIT:
            raise ValueError(
                "it is a fitted spline; make it a polygon (in ImageJ: Edit > "
                "Selection > Interpolate) and save the ROIs again"
            )
        return [roi.coordinates()]
    if roi.roitype == ROI_TYPE.RECT and roi.composite:
        return roi.coordinates(multi=True)
    if roi.roitype not in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        raise ValueError(
            f"it is of type {roi.roitype.name}, which has no area; delete it and save "
            "the ROIs again"
        )
    if roi.subpixelrect:
        left, top, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
    else:
        left, top = roi.left, roi.top
        width, height = roi.right - left, roi.bottom - top
    if roi.roitype == ROI_TYPE.RECT:
        unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    else:
        angles = np.linspace(0, 2 * np.pi, OVAL_CORNERS, endpoint=False)
        unit = np.stack([1 + np.cos(angles), 1 + np.sin(angles)], axis=1) / 2
    return [[left, top] + unit * [width, height]]
