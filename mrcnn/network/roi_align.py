"""RoIAlign over the pyramid: fixed-size features of every region of interest.

Source: paper sections 4.1.4 and 3.6.2 (bilinear sampling); matterport `PyramidROIAlign`.
Shape shorthand: B images, R regions, P pooled rows and columns, C channels, L levels.
"""

from functools import reduce

import numpy as np
from keras import layers, ops

from mrcnn.network.boxes import constant
from mrcnn.pixels.image_meta import parse_image_meta_graph

# A region of 224 x 224 pixels is pooled from P4 (Lin et al., equation 1), others by their size.
CANONICAL_SIDE = 224.0
CANONICAL_LEVEL = 4
FIRST_LEVEL = 2


def roi_levels(boxes, image_area, level_count: int):
    """Index (from 0) of the pyramid level that every region is pooled from.

    Args:
        boxes: [B, R, 4] normalised.
        image_area: [B, 1] height * width in pixels.
        level_count: L.

    Returns:
        int32 [B, R].
    """
    height = ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    width = ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    side = ops.sqrt(height * width * image_area)
    octave = ops.log(ops.maximum(side, 1e-6) / CANONICAL_SIDE) / np.log(2.0).astype("float32")
    level = CANONICAL_LEVEL + ops.cast(ops.round(octave), "int32")
    return ops.clip(level - FIRST_LEVEL, 0, level_count - 1)


def sample_positions(start, end, count: int, size, exact: bool):
    """Where `count` samples of the interval [start, end] lie on a grid of `size` cells.

    Args:
        start, end: [...] normalised.
        size: cells, broadcasting with `start`.
        exact: samples on the centres of `count` equal bins, cell i having its centre at i + 0.5
            and the grid being continued by its edge; otherwise matterport's corner-aligned
            samples, the first on `start` and the last on `end`, cell 0 at 0 and the last at 1.

    Returns:
        positions [..., count] in units of cells, 0 being the centre of the first, and
        inside [..., count], False where the sample lies outside the grid and reads as zero.
    """
    start, end, size = start[..., None], end[..., None], ops.cast(size, "float32")[..., None]
    if exact:
        steps = constant((np.arange(count) + 0.5) / count)
        position = (start + (end - start) * steps) * size - 0.5
        inside = (position >= -0.5) & (position <= size - 0.5)
        return ops.clip(position, 0.0, size - 1.0), inside
    # A single sample is taken in the middle, as tf.image.crop_and_resize does.
    steps = constant(np.linspace(0.0, 1.0, count) if count > 1 else [0.5])
    position = (start + (end - start) * steps) * (size - 1.0)
    inside = (position >= 0.0) & (position <= size - 1.0)
    return ops.clip(position, 0.0, size - 1.0), inside


def _corners(position, size):
    """Indices of the two neighbours of a position and the weight of the second."""
    low = ops.floor(position)
    weight = position - low
    low = ops.cast(low, "int32")
    return low, ops.minimum(low + 1, size[..., None] - 1), weight


def bilinear_grid(table, offset, height, width, y, x, inside, dtype=None):
    """Bilinear samples on a grid of rows y and columns x, from images laid out in one table.

    Args:
        table: [T, C], the images' cells row by row.
        offset, height, width: int32 [...], where an image starts in the table and its size.
        y, x: [..., P], [..., Q] positions in cells.
        inside: [..., P, Q] False where the result is zero.
        dtype: of the arithmetic and the result; None takes the table's.

    Returns:
        [..., P, Q, C].
    """
    dtype = dtype or table.dtype
    top, bottom, wy = _corners(y, height)
    left, right, wx = _corners(x, width)
    width, offset = width[..., None], offset[..., None]
    wy, wx = wy[..., :, None], wx[..., None, :]
    inside = ops.cast(inside, "float32")

    def corner(row, column, weight):
        index = (offset + row * width)[..., :, None] + column[..., None, :]
        cells = ops.cast(ops.take(table, index, axis=0), dtype)
        # One weight per sample: few passes over the cells, which are many times as large.
        return cells * ops.cast(weight * inside, dtype)[..., None]

    return (
        corner(top, left, (1 - wy) * (1 - wx))
        + corner(top, right, (1 - wy) * wx)
        + corner(bottom, left, wy * (1 - wx))
        + corner(bottom, right, wy * wx)
    )


def _integers(values):
    """Numbers or scalar tensors as one int32 tensor [L]."""
    return ops.stack([ops.cast(value, "int32") for value in values])


def regions_on_levels(inputs):
    """What all pooling layers begin with.

    Args:
        inputs: as `PyramidROIAlign` takes them.

    Returns:
        boxes float32 [B, R, 4], shapes float32 [B, 3] of the molded images, level int32 [B, R] of
        every region, and the feature maps.
    """
    boxes, image_meta, *feature_maps = inputs
    boxes = ops.stop_gradient(ops.cast(boxes, "float32"))
    shape = ops.cast(parse_image_meta_graph(image_meta)["image_shape"], "float32")
    level = roi_levels(boxes, shape[:, :1] * shape[:, 1:2], len(feature_maps))
    return boxes, shape, level, feature_maps


def level_table(cells, sizes, level, planes: int = 1):
    """Feature maps in one table, so that a region is read the same way whatever its level.

    Args:
        cells: for every level [B, planes * H * W, C].
        sizes: (H, W) of every level: numbers, or tensors where they are known only when the graph
            runs.
        level: int32 [B, R], index of every region's level.
        planes: how many maps of H x W cells follow each other on every level.

    Returns:
        table [T, C], and for every region int32 [B, R] height and width of its level and where its
        image's first plane of that level starts in the table.
    """
    heights, widths = zip(*sizes, strict=True)
    areas = [h * w * planes for h, w in zip(heights, widths, strict=True)]
    starts = [sum(areas[:i]) for i in range(len(areas))]
    height = ops.take(_integers(heights), level, axis=0)
    width = ops.take(_integers(widths), level, axis=0)
    image = ops.arange(ops.shape(level)[0], dtype="int32")[:, None]
    offset = ops.take(_integers(starts), level, axis=0) + image * sum(areas)
    table = ops.concatenate(cells, axis=1)
    return ops.reshape(table, (-1, table.shape[-1])), height, width, offset


class PyramidROIAlign(layers.Layer):
    """Pools regions from the level that fits their size (matterport's layer).

    Inputs: boxes [B, R, 4] normalised, image_meta [B, M], and the levels P2, P3, ... each
    [B, H, W, C]. Output: [B, R, pool_height, pool_width, C].

    All levels lie in one table, so that every region is one gather whatever its level, and the
    regions keep their order.
    """

    def __init__(self, pool_shape, exact=False, samples=1, join="average", **kwargs):
        """
        Args:
            pool_shape: (height, width) of the output.
            exact: pixel convention, see `sample_positions`.
            samples: bilinear samples in every bin, 1 or 4 (paper section 4.1.4).
            join: how 4 samples become one value: "average" (He et al.) or "max" (the paper).
        """
        super().__init__(**kwargs)
        self.pool_shape = tuple(pool_shape)
        self.exact = exact
        self.samples_a_side = {1: 1, 4: 2}[samples]
        self.join = join
        # Boxes must not be rounded to the compute dtype; features arrive in it already.
        self.autocast = False

    def call(self, inputs, training=None):
        boxes, _, level, feature_maps = regions_on_levels(inputs)

        channels = feature_maps[0].shape[-1]
        sizes = [ops.shape(f)[1:3] for f in feature_maps]
        cells = [
            ops.reshape(f, (-1, h * w, channels))
            for f, (h, w) in zip(feature_maps, sizes, strict=True)
        ]
        table, height, width, offset = level_table(cells, sizes, level)
        # Gradients of many regions add up in the table: accumulate in float32, bfloat16 would
        # lose small gradients.
        if training:
            table = ops.cast(table, "float32")
        n = self.samples_a_side
        rows, columns = (n * size for size in self.pool_shape)
        y, y_in = sample_positions(boxes[..., 0], boxes[..., 2], rows, height, self.exact)
        x, x_in = sample_positions(boxes[..., 1], boxes[..., 3], columns, width, self.exact)
        samples = (  # one of every bin at a time: together they would take several times the memory
            bilinear_grid(
                table,
                offset,
                height,
                width,
                y[..., i::n],
                x[..., j::n],
                y_in[..., i::n, None] & x_in[..., None, j::n],
            )
            for i in range(n)
            for j in range(n)
        )
        pooled = reduce(ops.maximum if self.join == "max" else ops.add, samples)
        if self.join == "average" and n > 1:
            pooled = pooled / n**2
        return ops.cast(pooled, feature_maps[0].dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:2], *self.pool_shape, input_shape[2][-1])
