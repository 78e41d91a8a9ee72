"""Labels in the files that people have: label images, COCO's JSON, ImageJ's ROIs.

`LabelImage`, `CocoLabels` and `RoiLabels` hold the labels of one image; `Labels` says what they
have in common. Each nucleus that they hold is one instance, in whatever number of pieces.

Shapes: H, W pixels of the image, C channels, L label layers, N instances.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from mrcnn.errors import MRCNNWarning, UserError, quoted
from mrcnn.files import file_state, read_bytes, refuse_large
from mrcnn.images.declared_size import require_declared_size
from mrcnn.images.image_files import Picture, open_image, open_images
from mrcnn.pixels.polygons import (
    PIECE_OF,
    Cutout,
    Size,
    decode_run_lengths,
    fill,
    fill_runs,
    pack,
    union,
)

# Takes a topic, which is worth one warning, and the warning.
Warn = Callable[[str, str], None]
# Of the polygon that stands for an oval: its area is 1/10,000 too small.
OVAL_CORNERS = 256
# Class ids of what a file outlines: one nucleus, or a crowd of them (COCO's iscrowd). As in
# matterport's Mask R-CNN the number of a crowd is negative: training takes its pixels neither for
# objects nor for background.
NUCLEUS, CROWD = 1, -1
# More instances than these of fewer pixels each, in the mean, are not what a label image holds.
MANY, FEW_PIXELS = 200, 4
# Characters of a file_name in COCO.
LONGEST_PATH = 1000
# A ROI of more bytes than these would have a million corners.
MAX_ROI_BYTES = 8_000_000


class Labels(Protocol):
    """The labels of one image."""

    files: tuple[Path, ...]

    def size(self) -> Size | None:
        """(H, W) in pixels of the image that they belong to, where the files say it."""

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, np.ndarray]:
        """Label layers int32 [H, W, L], see mrcnn/pixels/masks.py, and class ids int32 [N], each
        NUCLEUS or CROWD. size: (H, W) of the image.

        Raises UserError for what cannot be labels of it.
        """

    def state(self) -> str:
        """A text that changes when the labels do."""


# ---- Label images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelImage:
    """An image in which every instance has a number, or a colour, of its own.

    Of a palette the numbers count. suffix: which of the images of the file, where it has several.
    """

    path: Path
    suffix: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def size(self) -> Size:
        return self._open().shape[:2]

    def of_stack(self, suffixes: Sequence[str]) -> list[LabelImage]:
        """The label images of a stack with these planes: those of the same names, or all in the
        same order. Raises UserError where the file has others."""
        own = [image.name for image in open_images(self.path)]
        if set(suffixes) <= set(own):
            own = list(suffixes)
        elif len(own) != len(suffixes):
            raise UserError(
                f"{self.path}: labels of {len(own)} planes for an image of {len(suffixes)}"
            )
        return [replace(self, suffix=suffix) for suffix in own]

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, np.ndarray]:
        if self.path.is_file():
            require_declared_size(read_bytes(self.path), str(self.path))
        labels, split_up = number_instances(self._open().read_labels(), str(self.path))
        count = int(labels.max(initial=0))
        if split_up:
            warn(
                "binary",
                f"{self.path}: holds one value beside 0 only, so that its connected "
                "pieces are taken as instances; the same goes for all label images like "
                "it. Nuclei that touch count as one then",
            )
        elif count > 1 and labels.min() > 0:
            warn(
                "background",
                f"{self.path}: no pixel is 0 (black), which stands for the "
                "background; is it a label image?",
            )
        return labels[..., np.newaxis], np.full(count, NUCLEUS, np.int32)

    def state(self) -> str:
        return self._open().state()

    def _open(self) -> Picture:
        return open_image(self.path, self.suffix)


def number_instances(array: np.ndarray, name: str) -> tuple[np.ndarray, bool]:
    """The instances of a label image, numbered from 1 to N in the order of its own numbers.

    array: numbers [H, W] or [H, W, 1], or colours [H, W, 3], black being the background.
    Returns int32 [H, W], and True where the image had but one value for several connected pieces,
    which then are the instances. Raises UserError for fractions and negative numbers.
    """
    from skimage.measure import label

    if array.dtype == bool:
        array = array.astype(np.uint8)
    if not array.size:
        raise UserError(f"{name}: holds no pixels")
    if array.dtype.kind not in "uif":
        raise UserError(
            f"{name}: holds values of type {array.dtype}, but a label image has numbers"
        )
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.rint(array))
        if not whole.all():
            raise UserError(
                f"{name}: holds {array[~whole][0]:g}, but a label image has whole "
                "numbers, 0 for the background and one for each nucleus"
            )
        array = array.astype(np.int64)
    if array.min(initial=0) < 0:
        raise UserError(
            f"{name}: holds {array.min()}, but a label image has 0 for the background "
            "and a positive number for each nucleus"
        )
    if array.ndim == 3:
        array = _one_number_a_colour(array) if array.shape[2] == 3 else array[..., 0]
    values, labels = np.unique(array, return_inverse=True)
    labels = labels.reshape(array.shape).astype(np.int32) + np.int32(values[0] != 0)
    count, pixels = int(labels.max()), np.count_nonzero(labels)
    if count > MANY and pixels < count * FEW_PIXELS:
        raise UserError(
            f"{name}: {count} values in {pixels} pixels are no instances: it is a photograph, not "
            "a label image, or its numbers have been smoothed or compressed with loss"
        )
    if labels.max() == 1:
        pieces, count = label(labels, return_num=True)
        if count > 1:
            return pieces.astype(np.int32), True
    return labels, False


def _one_number_a_colour(array: np.ndarray) -> np.ndarray:
    """[H, W, 3] of 8 or 16 bits to int64 [H, W], black to 0."""
    red, green, blue = np.moveaxis(array.astype(np.int64), -1, 0)
    return red << 32 | green << 16 | blue


# ---- COCO --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CocoLabels:
    """The annotations of one image in a COCO file. Instances may overlap.

    file_name: of the image, as the file has it.
    """

    path: Path
    file_name: str
    picture: Size | None
    annotations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def size(self) -> Size | None:
        return self.picture

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, np.ndarray]:
        outlines = ((self._patch(a, size), class_id_of(a)) for a in self.annotations)
        return _pack(outlines, size, f"{self.path}, {self.file_name}", warn)

    def state(self) -> str:
        text = json.dumps([self.picture, self.annotations], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _patch(self, annotation: dict[str, Any], size: Size) -> Cutout | None:
        shape = annotation.get("segmentation")
        try:
            if isinstance(shape, dict):
                if list(shape["size"]) != list(size):
                    raise ValueError(
                        f"its run lengths are for {shape['size']} pixels, its image "
                        f"has {list(size)}"
                    )
                counts = shape["counts"]
                return fill_runs(
                    decode_run_lengths(counts) if isinstance(counts, str) else counts, size
                )
            if not shape:
                raise ValueError(
                    "it has no outline (segmentation), and boxes do not say which pixels are nuclei"
                )
            return union(fill([ring], size) for ring in shape)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UserError(
                f"{self.path}: annotation {quoted(annotation.get('id'))} of "
                f"{quoted(self.file_name)} cannot be read: {_one_line(error)}"
            ) from None


def class_id_of(annotation: dict[str, Any]) -> int:
    """NUCLEUS, or CROWD where iscrowd is 1. Raises ValueError where it is neither 0 nor 1."""
    crowd = annotation.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {quoted(crowd)}: it must be 0 or 1")
    return CROWD if crowd else NUCLEUS


def read_coco(path: Path) -> list[CocoLabels]:
    """The images that a COCO file lists, each with its annotations; categories do not count.

    Where every annotation is a crowd, as in files of CVAT's brush, they are taken as nuclei.
    Warns of that, of crowds, of annotations that belong to no image, which are left out, and of
    several categories. Raises UserError where it is no COCO file.
    """
    content = parse_json(read_bytes(path), str(path))
    strays, categories = [], set()
    try:
        images = [
            (entry["id"], CocoLabels(path, _file_name(entry), _coco_size(entry)))
            for entry in content["images"]
        ]
        by_id = dict(images)
        annotations = _without_false_crowds(list(content["annotations"]), path)
        for annotation in annotations:
            if annotation["image_id"] in by_id:
                by_id[annotation["image_id"]].annotations.append(annotation)
                categories.add(annotation.get("category_id"))
            else:
                strays.append(annotation["image_id"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: not a COCO file: expected images with id and file_name, and "
            f"annotations with image_id and segmentation ({_reason(error)})"
        ) from None
    if len(by_id) < len(images):
        twice = Counter(number for number, _ in images).most_common(1)[0][0]
        raise UserError(f"{path}: several images have the id {quoted(twice)}; number them anew")
    if strays:
        _warn(
            f"{path}: {len(strays)} annotations belong to no image of the file and are left out "
            f"(first: of image {quoted(strays[0])})"
        )
    if len(categories) > 1:
        _warn(f"{path}: annotations of {len(categories)} categories, all taken as nuclei")
    return list(by_id.values())


def _without_false_crowds(annotations: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The annotations, none of them a crowd where all are; warns of crowds either way."""
    crowds = sum(class_id_of(annotation) == CROWD for annotation in annotations)
    if not crowds:
        return annotations
    if crowds == len(annotations):
        _warn(
            f"{path}: all {crowds} annotations are crowds (iscrowd 1), as some programs write "
            "every mask; each is taken as one nucleus. Remove those that are several"
        )
        return [{**annotation, "iscrowd": 0} for annotation in annotations]
    _warn(
        f"{path}: {crowds} annotations of {len(annotations)} are crowds (iscrowd 1): their pixels "
        "are neither nuclei nor background in training. Where each is one nucleus, as CVAT's brush "
        "writes it, set iscrowd to 0"
    )
    return annotations


def _warn(text: str) -> None:
    warnings.warn(text, MRCNNWarning, stacklevel=4)


def _reason(error: Exception) -> str:
    """What an error says, in one line of bounded length."""
    return quoted(f"{type(error).__name__}: {error}")


def parse_json(data: bytes, name: str) -> Any:
    """The content of a JSON file. Raises UserError that names it where it is none."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise UserError(f"{name}: not a JSON file of labels: too deeply nested") from None
    except ValueError as error:  # of JSON or of its encoding
        raise UserError(f"{name}: not a JSON file ({error})") from None


def _file_name(entry: dict[str, Any]) -> str:
    name = entry["file_name"]
    if not isinstance(name, str) or len(name) > LONGEST_PATH or not name.isprintable():
        raise ValueError(f"file_name is {quoted(name)}")
    return name


def _coco_size(entry: dict[str, Any]) -> Size | None:
    if entry.get("height") and entry.get("width"):
        return int(entry["height"]), int(entry["width"])
    return None


# ---- ImageJ ROIs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoiLabels:
    """ROIs of ImageJ: a zip file of the ROI Manager, or .roi files. They may overlap.

    Each is one instance, but those that this project has written as pieces of one (PIECE_OF).
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
            except Exception as error:  # roifile raises whatever a broken file brings about
                raise UserError(
                    f"{file}: ROI {quoted(name)} cannot be used: {_one_line(error)}"
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
                f"{self.files[0]}: ROIs of several planes of a stack; save those of "
                "each plane for an image of its own"
            )
        outlines = ((union(pieces), NUCLEUS) for pieces in instances)
        return _pack(outlines, size, str(self.files[0]), warn)

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
    """The name of the ROI that this one is a further piece of, where this project wrote it so."""
    found = re.search(rf"^{PIECE_OF}: (\S+)$", str(roi.props or ""), re.MULTILINE)
    return found[1] if found else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


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
        raise UserError(f"{path}: not a readable zip file ({_one_line(error)})") from None
    if members and not found:
        raise UserError(f"{path}: holds no .roi files, as those of ImageJ's ROI Manager do")
    return found


def _roifile() -> Any:
    try:
        import roifile
    except ImportError:
        raise UserError("ImageJ ROIs need the package roifile: pip install roifile") from None
    return roifile


def roi_rings(roi: Any) -> list[np.ndarray]:
    """The outline of a roifile.ImagejRoi: one ring [V, 2], or several where it is composite.

    Raises ValueError for what has no area or is no outline.
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


# ---- All outlines ------------------------------------------------------------------------------


def _pack(
    outlines: Iterable[tuple[Cutout | None, int]],
    size: Size,
    name: str,
    warn: Warn,
) -> tuple[np.ndarray, np.ndarray]:
    """Label layers and class ids of (pixels, class id) each; warns of those without a pixel."""
    class_ids: list[int] = []

    def patches() -> Iterator[Cutout | None]:
        for patch, class_id in outlines:
            if patch is not None:
                class_ids.append(class_id)
            yield patch

    layers, count, empty = pack(patches(), size)
    if empty:
        warn(
            f"empty {name}",
            f"{name}: {empty} of {count + empty} outlines hold no pixel of the "
            "image and are left out",
        )
    return layers, np.array(class_ids, np.int32)
