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

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.files import file_state, read_bytes, refuse_large
from mrcnn.images.image_files import Picture, open_image, open_images
from mrcnn.pixels.polygons import Cutout, Size, decode_run_lengths, fill, fill_runs, pack, union

# Takes a topic, which is worth one warning, and the warning.
Warn = Callable[[str, str], None]
# Of the polygon that stands for an oval: its area is 1/10,000 too small.
OVAL_CORNERS = 256


class Labels(Protocol):
    """The labels of one image."""

    files: tuple[Path, ...]

    def size(self) -> Size | None:
        """(H, W) in pixels of the image that they belong to, where the files say it."""

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, int]:
        """Label layers int32 [H, W, L], see mrcnn/pixels/masks.py, and N. size: (H, W) of the
        picture.

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

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, int]:
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
        return labels[..., np.newaxis], count

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

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, int]:
        patches = (self._patch(annotation, size) for annotation in self.annotations)
        return _pack(patches, size, f"{self.path}, {self.file_name}", warn)

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
                f"{self.path}: annotation {annotation.get('id')} of {self.file_name} "
                f"cannot be read: {error}"
            ) from None


def read_coco(path: Path) -> list[CocoLabels]:
    """The images that a COCO file lists, each with its annotations; categories do not count.

    Warns of annotations that are left out: crowds, and those that belong to no image.
    Raises UserError where it is no COCO file.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
        pictures = {
            entry["id"]: CocoLabels(path, str(entry["file_name"]), _coco_size(entry))
            for entry in content["images"]
        }
        crowds = strays = 0
        categories: Counter[Any] = Counter()
        for annotation in content["annotations"]:
            if annotation.get("iscrowd"):
                crowds += 1
            elif annotation["image_id"] not in pictures:
                strays += 1
            else:
                pictures[annotation["image_id"]].annotations.append(annotation)
                categories[annotation.get("category_id")] += 1
    except ValueError as error:  # of JSON or of its encoding
        raise UserError(f"{path}: not a JSON file ({error})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a COCO file: expected images with id and file_name, and "
            f"annotations with image_id and segmentation ({error!r})"
        ) from None
    for count, what in ((crowds, "are crowds"), (strays, "belong to no image of the file")):
        if count:
            warnings.warn(
                f"{path}: {count} annotations {what} and are left out", MRCNNWarning, stacklevel=2
            )
    if len(categories) > 1:
        warnings.warn(
            f"{path}: annotations of {len(categories)} categories, all taken as nuclei",
            MRCNNWarning,
            stacklevel=2,
        )
    return list(pictures.values())


def _coco_size(entry: dict[str, Any]) -> Size | None:
    if entry.get("height") and entry.get("width"):
        return int(entry["height"]), int(entry["width"])
    return None


# ---- ImageJ ROIs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoiLabels:
    """ROIs of ImageJ: a zip file of the ROI Manager, or .roi files. They may overlap.

    ROIs 0007, 0007-2 and 0007-3 are pieces of one instance, as this project writes them.
    Raises UserError where the package roifile is not installed.
    """

    files: tuple[Path, ...]

    def __post_init__(self) -> None:
        _roifile()

    def size(self) -> None:
        return None

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, int]:
        instances: list[list[Cutout | None]] = []
        by_name: dict[str | None, list[Cutout | None]] = {}
        planes = set()
        for file, name, data in self._read():
            try:
                roi = _roifile().ImagejRoi.frombytes(data)
                patch = fill(roi_rings(roi), size)
            except Exception as error:  # roifile raises whatever a broken file brings about
                raise UserError(f"{file}: ROI {name} cannot be used: {error}") from None
            piece = re.fullmatch(r"(\d+)-[1-9]\d*", name)
            pieces = by_name.get(piece and piece[1])
            if pieces is None:
                pieces = by_name[name] = []
                instances.append(pieces)
            pieces.append(patch)
            planes.add((roi.position, roi.z_position, roi.t_position))
        if len(planes - {(0, 0, 0)}) > 1:
            raise UserError(
                f"{self.files[0]}: ROIs of several planes of a stack; save those of "
                "each plane for an image of its own"
            )
        return _pack(map(union, instances), size, str(self.files[0]), warn)

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


def _unzip(data: bytes, path: Path) -> list[tuple[str, bytes]]:
    """(name, content) of the ROIs of a zip file, which may have no members at all."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info, PurePosixPath(info.filename)) for info in archive.infolist()]
            found = []
            for info, member in members:
                if member.suffix.lower() == ".roi" and not member.name.startswith("."):
                    refuse_large(info.file_size, f"{path}/{member}")
                    found.append((member.stem, archive.read(info)))
    except UserError:
        raise
    except Exception as error:  # zlib.error, BadZipFile, RuntimeError (password)
        raise UserError(f"{path}: not a readable zip file ({error})") from None
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
    patches: Iterable[Cutout | None],
    size: Size,
    name: str,
    warn: Warn,
) -> tuple[np.ndarray, int]:
    layers, count, empty = pack(patches, size)
    if empty:
        warn(
            f"empty {name}",
            f"{name}: {empty} of {count + empty} outlines hold no pixel of the "
            "picture and are left out",
        )
    return layers, count
