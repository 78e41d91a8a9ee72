"""Annotations in COCO's JSON: outlines and run lengths, each one instance or a crowd."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.data.labels import CROWD, NUCLEUS, Warn, pack_outlines
from mrcnn.errors import MRCNNWarning, UserError, quoted, reason_of
from mrcnn.files import read_bytes
from mrcnn.pixels.polygons import (
    Cutout,
    Size,
    decode_run_lengths,
    fill,
    fill_runs,
    union,
)

# Characters of a file_name in COCO.
LONGEST_PATH = 1000


@dataclass(frozen=True)
class CocoLabels:
    """The annotations of one image in a COCO file. Instances may overlap.

    file_name: of the image, as the file states it.
    """

    path: Path
    file_name: str
    image: Size | None
    annotations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def size(self) -> Size | None:
        return self.image

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, np.ndarray]:
        outlines = ((self._patch(a, size), class_id_of(a)) for a in self.annotations)
        return pack_outlines(outlines, size, f"{self.path}, {self.file_name}", warn)

    def state(self) -> str:
        text = json.dumps([self.image, self.annotations], sort_keys=True)
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
                f"{quoted(self.file_name)} cannot be read: {reason_of(error)}"
            ) from None


def class_id_of(annotation: dict[str, Any]) -> int:
    """NUCLEUS, or CROWD where iscrowd is 1. Raises ValueError where it is neither 0 nor 1."""
    crowd = annotation.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {quoted(crowd)}: it must be 0 or 1")
    return CROWD if crowd else NUCLEUS


def read_coco(path: Path) -> list[CocoLabels]:
    """The images that a COCO file lists, each with its annotations, whatever their categories.

    Where every annotation is a crowd, as in files of CVAT's brush, they are taken as nuclei.
    Warns of that, of crowds, of annotations that belong to no image, which are left out, and of
    several categories. Raises UserError where it is not a COCO file.
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
        raise UserError(f"{path}: several images have the id {quoted(twice)}; renumber them")
    if strays:
        _warn(
            f"{path}: {len(strays)} annotations belong to no image of the file and are left out "
            f"(first: of image {quoted(strays[0])})"
        )
    if len(categories) > 1:
        _warn(f"{path}: annotations of {len(categories)} categories, all taken as nuclei")
    return list(by_id.values())


def _without_false_crowds(annotations: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The annotations, as instances where all of them are crowds; warns of crowds either way."""
    crowds = sum(class_id_of(annotation) == CROWD for annotation in annotations)
    if not crowds:
        return annotations
    if crowds == len(annotations):
        _warn(
            f"{path}: all {crowds} annotations are crowds (iscrowd 1), as some programs write "
            "every mask; each is taken as one nucleus. Remove those that cover several nuclei"
        )
        return [{**annotation, "iscrowd": 0} for annotation in annotations]
    _warn(
        f"{path}: {crowds} of {len(annotations)} annotations are crowds (iscrowd 1): their pixels "
        "are neither nuclei nor background in training. If each is one nucleus, as CVAT's brush "
        "writes it, set iscrowd to 0"
    )
    return annotations


def _warn(text: str) -> None:
    warnings.warn(text, MRCNNWarning, stacklevel=4)


def _reason(error: Exception) -> str:
    """What an error says, in one line of bounded length."""
    return quoted(f"{type(error).__name__}: {error}")


def parse_json(data: bytes, name: str) -> Any:
    """The content of a JSON file. Raises UserError that names it where it is not one."""
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
