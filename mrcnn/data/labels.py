"""What the labels of one image have in common, whatever file they come from.

The files that people have: label images (`label_images`), COCO's JSON (`coco`), ImageJ's ROIs
(`rois`). Each nucleus that they hold is one instance, however many pieces it is in.

Shapes: H, W pixels of the image, L label layers, N instances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from mrcnn.pixels.polygons import (
    Cutout,
    Size,
    pack,
)

# Takes a topic, which is warned about once, and the warning.
Warn = Callable[[str, str], None]
# Class ids of what a file outlines: one nucleus, or a crowd of them (COCO's iscrowd). As in
# matterport's Mask R-CNN the number of a crowd is negative: training treats its pixels neither as
# objects nor as background.
NUCLEUS, CROWD = 1, -1


class Labels(Protocol):
    """The labels of one image."""

    files: tuple[Path, ...]

    def size(self) -> Size | None:
        """(H, W) in pixels of the image that they belong to, where the files state it."""

    def layers(self, size: Size, warn: Warn) -> tuple[np.ndarray, np.ndarray]:
        """Label layers int32 [H, W, L], see mrcnn/pixels/masks.py, and class ids int32 [N], each
        NUCLEUS or CROWD. size: (H, W) of the image.

        Raises UserError for what cannot be labels of it.
        """

    def state(self) -> str:
        """A string that changes when the labels do."""


def pack_outlines(
    outlines: Iterable[tuple[Cutout | None, int]],
    size: Size,
    name: str,
    warn: Warn,
) -> tuple[np.ndarray, np.ndarray]:
    """Label layers and class ids from pairs (pixels, class id); warns of those without a pixel."""
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
