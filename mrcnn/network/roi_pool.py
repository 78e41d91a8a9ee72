"""RoIPool: the maximum over every bin of a region, in whole cells of the feature map.

The ends of the region are rounded to the edges of cells, and the bins to whole cells, so features
are up to half a cell away from where they belong, which RoIAlign fixes. Kept for comparison.

A bin may have any number of cells, and shapes here are static. So the maxima over all windows of
1, 2, 4, ... cells per side are computed once for the map (each from the next smaller ones), and the
maximum over a bin is the maximum of four such windows, one in each of its corners.

Source: paper sections 3.7.1, 3.8.2 and 4.1.3; Girshick, "Fast R-CNN".
Shape shorthand: B images, R regions, P pooled rows and columns, C channels, L levels, K window
sizes.
"""

import numpy as np
from keras import layers, ops

from mrcnn.network.boxes import constant
from mrcnn.network.roi_align import level_table, regions_on_levels

# Windows of 1, 2, ... 16 cells: 25 copies of the features, which take much memory for large images.
# A bin of up to twice the largest is covered completely: with 7 bins
# a region of 224 cells. The middle of longer bins is not seen.
WINDOW_SIZES = (1, 2, 4, 8, 16)


def window_maxima(features):
    """Maxima over windows of all `WINDOW_SIZES`, heights and widths independently.

    Args:
        features: [B, H, W, C].

    Returns:
        [B, K, K, H, W, C]: at [b, i, j, y, x] the maximum over the WINDOW_SIZES[i] rows from y on
        and the WINDOW_SIZES[j] columns from x on, the last row and column being repeated.
    """

    def doubled(maxima, step, axis):
        """Windows twice as long along an axis, from two windows `step` cells apart."""
        rest = [slice(None)] * axis
        ahead = maxima[(*rest, slice(step, None))]
        repeated = maxima[(*rest, slice(-step, None))]  # stands in for what is beyond the edge
        return ops.maximum(maxima, ops.concatenate([ahead, repeated], axis=axis))

    def all_sizes(maxima, axis):
        found = [maxima]
        for step in WINDOW_SIZES[:-1]:
            found.append(doubled(found[-1], step, axis))
        return found

    rows = [ops.stack(all_sizes(tall, 2), axis=1) for tall in all_sizes(features, 1)]
    return ops.stack(rows, axis=1)


def bin_cells(start, end, count: int, size):
    """The cells of every bin of a region along one axis.

    Args:
        start, end: [...] float, in cells; cell i reaches from i to i + 1.
        count: P.
        size: int32 [...], cells of the map.

    Returns:
        first, stop: int32 [..., P], the bin's cells are first, ..., stop - 1; none where stop is
        not above first. A region has at least one cell; neighbouring bins may share cells.
    """
    first = ops.floor(start + 0.5)
    stop = ops.maximum(ops.floor(end + 0.5), first + 1.0)
    steps = constant(np.arange(count + 1) / count)
    edges = first[..., None] + (stop - first)[..., None] * steps
    # Sums of float32 fractions: an edge that is a whole number may come out slightly off it.
    nearest = ops.round(edges)
    edges = ops.where(ops.abs(edges - nearest) < 1e-3, nearest, edges)
    limit = ops.cast(size, "float32")[..., None]
    low = ops.clip(ops.floor(edges[..., :-1]), 0.0, limit)
    high = ops.clip(ops.ceil(edges[..., 1:]), 0.0, limit)
    return ops.cast(low, "int32"), ops.cast(high, "int32")


def _two_windows(first, stop, size):
    """Windows that cover the cells first .. stop - 1: index of their size, starts of the two.

    Bins without cells, which may lie beyond the last of `size` cells, get any windows.
    """
    first = ops.minimum(first, size[..., None] - 1)
    length = ops.maximum(stop - first, 1)
    index = sum(ops.cast(length >= size, "int32") for size in WINDOW_SIZES[1:])
    window = ops.take(ops.convert_to_tensor(np.array(WINDOW_SIZES, "int32")), index, axis=0)
    return index, first, ops.maximum(stop - window, first)


class PyramidROIPool(layers.Layer):
    """Pools regions by maxima, from the level that fits their size.

    Inputs and output as `PyramidROIAlign`; bins without cells are zero. The gradient of an output
    goes to the cell that holds the maximum (paper equation 14). Where several hold it, some
    backends divide the gradient among them.
    """

    def __init__(self, pool_shape, exact=False, **kwargs):
        super().__init__(**kwargs)
        self.pool_shape = tuple(pool_shape)
        self.exact = exact
        # Boxes must not be rounded to the compute dtype; features arrive in it already.
        self.autocast = False

    def call(self, inputs, training=None):
        boxes, shape, level, feature_maps = regions_on_levels(inputs)
        # Gradients of many regions add up in the table: accumulate in float32, bfloat16 would
        # lose small gradients.
        if training:
            feature_maps = [ops.cast(f, "float32") for f in feature_maps]
        kinds, channels = len(WINDOW_SIZES), feature_maps[0].shape[-1]
        sizes = [ops.shape(f)[1:3] for f in feature_maps]
        maxima = [
            ops.reshape(window_maxima(f), (-1, h * w * kinds**2, channels))
            for f, (h, w) in zip(feature_maps, sizes, strict=True)
        ]
        table, height, width, offset = level_table(maxima, sizes, level, kinds**2)

        y1, y2 = self._cells(boxes[..., 0], boxes[..., 2], height, shape[:, :1], self.pool_shape[0])
        x1, x2 = self._cells(boxes[..., 1], boxes[..., 3], width, shape[:, 1:2], self.pool_shape[1])
        row_kind, *rows = _two_windows(y1, y2, height)
        column_kind, *columns = _two_windows(x1, x2, width)
        plane = row_kind[..., :, None] * kinds + column_kind[..., None, :]
        area, offset, width = (
            (height * width)[..., None, None],
            offset[..., None, None],
            width[..., None, None],
        )
        corners = [
            ops.take(
                table,
                offset + plane * area + row[..., :, None] * width + column[..., None, :],
                axis=0,
            )
            for row in rows
            for column in columns
        ]
        pooled = ops.maximum(ops.maximum(*corners[:2]), ops.maximum(*corners[2:]))
        filled = (y2 > y1)[..., :, None] & (x2 > x1)[..., None, :]
        pooled = ops.where(filled[..., None], pooled, ops.zeros_like(pooled))
        return ops.cast(pooled, inputs[2].dtype)

    def _cells(self, start, end, size, pixels, count):
        """`bin_cells` of normalised ends; the maps have `size` cells for `pixels` [B, 1]."""
        if not self.exact:  # matterport: pixel ends 0 and 1 below, see boxes.norm_boxes_graph
            start, end = start * (pixels - 1.0) / pixels, (end * (pixels - 1.0) + 1.0) / pixels
        cells = ops.cast(size, "float32")
        return bin_cells(start * cells, end * cells, count, size)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:2], *self.pool_shape, input_shape[2][-1])
