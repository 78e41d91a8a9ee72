"""What was found in one image: `Result`, and its conversions (table, GeoJSON, plot)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from mrcnn.pixels.exposure import Exposure, subsample
from mrcnn.results import result_files

if TYPE_CHECKING:
    import pandas as pd

# `plot` and `preview` show images of at most this many pixels per side.
PREVIEW_SIDE = 2048


@dataclass(frozen=True)
class Result:
    """The instances of one image, by descending score. N of them, H, W pixels.

    Attributes:
        labels: int32 [H, W], 0 background, instance i has the value i + 1. For very large images, a
            memory map of a temporary file.
        scores: float64 [N].
        class_ids: int32 [N], from 1.
        classes: names of the class ids 1, 2, ...
        image: the image as it was given.
        exposure: how its values were read.
        microns: pixel size in microns, None if it is not known.
        scale: factor by which the image was enlarged for the network.
        reduction: factor by which the image's pixels are larger than those of the file, if a
            smaller level of a pyramid was read: `image` is that level.
    """

    labels: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    classes: tuple[str, ...]
    image: Any
    exposure: Exposure
    microns: float | None = None
    scale: float | None = None
    reduction: float = 1.0

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"<Result: {len(self)} instances in {height} x {width} pixels>"

    @cached_property
    def boxes(self) -> np.ndarray:
        """int32 [N, 4] pixels, y1, x1, y2, x2, ends exclusive: the boxes around the labels."""
        boxes = np.array(
            [
                (rows.start, columns.start, rows.stop, columns.stop)
                for rows, columns in ndimage.find_objects(self.labels)
            ],
            np.int32,
        )
        return boxes.reshape(-1, 4)

    @property
    def masks(self) -> np.ndarray:
        """bool [H, W, N]: one mask per instance, as in matterport. That takes N times the memory of
        an image: for many instances in a large one, use `labels` instead."""
        masks = np.zeros((len(self), *self.labels.shape), bool)
        for number, (mask, (y1, x1, y2, x2)) in enumerate(zip(masks, self.boxes, strict=True), 1):
            mask[y1:y2, x1:x2] = self.labels[y1:y2, x1:x2] == number
        return np.moveaxis(masks, 0, -1)

    @property
    def class_names(self) -> list[str]:
        """The name of every instance's class, [N]."""
        return [self.classes[i - 1] for i in self.class_ids.tolist()]

    def to_dataframe(self) -> pd.DataFrame:
        """A table with a row per instance: see `result_files.measurements`; with a column
        class_name if there are several classes. Intensities are the image's own values."""
        table = result_files.measurements(self.labels, self.scores, self.image, self.microns)
        if len(self.classes) > 1:
            table.insert(1, "class_name", self.class_names)
        return table

    def to_geojson(self, path: str | os.PathLike | None = None) -> dict[str, Any]:
        """A FeatureCollection that QuPath imports, in pixels of the file at full size; also written
        to `path`, if given."""
        found = self.labels, self.scores, self.class_names, self.reduction
        if path is not None:
            result_files.write_geojson(path, *found)
        return result_files.geojson(*found)

    def preview(self) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [h, w, 3], stretched but never inverted, and its labels [h, w].

        If they are larger than PREVIEW_SIDE, only every second, third, ... row and column is kept.
        """
        step = max(1, -(-max(self.labels.shape) // PREVIEW_SIDE))
        pixels = subsample(self.image, step)
        pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        shown = Exposure(self.exposure.low, self.exposure.high).apply(pixels)
        shown = np.broadcast_to(shown, (*shown.shape[:2], 3))
        return np.ascontiguousarray(shown), np.asarray(self.labels[::step, ::step])

    def plot(self, axes: Any = None) -> Any:
        """Draw the image with the outlines of what was found; returns matplotlib's axes."""
        import matplotlib.pyplot as plt

        from mrcnn.results.drawing import overlay_instances

        image, labels = self.preview()
        if axes is None:
            _, axes = plt.subplots(figsize=(8, 8 * image.shape[0] / image.shape[1]))
        axes.imshow(overlay_instances(image, labels))
        axes.set_title(f"{len(self)} found")
        axes.set_axis_off()
        return axes
