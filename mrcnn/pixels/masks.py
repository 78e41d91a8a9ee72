"""Instance masks: resizing, mini-masks, and label layers.

A stack of masks is bool [H, W, N], one plane per instance; that is what matterport's functions
take. With hundreds of instances it is large and slow, so the data pipeline uses label layers:
int32 [H, W, L], where each layer is a label map with 0 for background and i + 1 for instance i.
An instance lives in one layer; instances that overlap live in different ones, so masks that do
not overlap need only L == 1.

Shapes: N instances, L layers, H W pixels, h w mini-mask cells. Boxes are (y1, x1, y2, x2) in
pixels with exclusive ends; see mrcnn/pixels/molding.py for the pixel convention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

from mrcnn.errors import UserError
from mrcnn.pixels.resampling import nearest_indices, resize_weights

# (y, x, array [h, w]): an array's place in the image, inside which it lies completely.
Patch = tuple[int, int, np.ndarray]

# Mini masks of many instances: the step of the window sizes, and the pixels resized at a time
# (half a megabyte of floats, which stays in the processor's cache).
WINDOW_STEP = 16
WINDOW_PIXELS = 1 << 17
# Of the label layers of an image together (1 GB). Only masks that overlap each other many times
# over need more: in an image of 1,000 x 1,000 pixels, more than 250 at one place.
MAX_LAYER_PIXELS = 250_000_000

# ---- matterport's functions on stacks of masks -------------------------------------------------


def resize_mask(
    mask: np.ndarray,
    scale: float,
    padding: Sequence[tuple[int, int]],
    crop: tuple[int, int, int, int] | None = None,
    *,
    exact: bool = False,
) -> np.ndarray:
    """Resize and pad (or crop) masks as ``resize_image`` did with their image.

    Args:
        mask: [H, W, N], any number type; nearest-neighbour sampling keeps its values.
        scale, padding, crop: as returned by ``resize_image``.
        exact: sample at half-pixel centres; otherwise the corner pixels' centres are aligned, as
            in ``scipy.ndimage.zoom``, which matterport's ``utils.resize_mask`` uses.
    """
    height, width = (max(1, round(size * scale)) for size in mask.shape[:2])
    pick = nearest_indices if exact else _corner_aligned_indices
    mask = mask[pick(mask.shape[0], height)][:, pick(mask.shape[1], width)]
    if crop is not None:
        y, x, height, width = crop
        return mask[y : y + height, x : x + width]
    return np.pad(mask, padding)


def minimize_mask(
    bbox: np.ndarray, mask: np.ndarray, mini_shape: Sequence[int], *, exact: bool = False
) -> np.ndarray:
    """Return each mask's box content as a small image (matterport: ``utils.minimize_mask``).

    Args:
        bbox: int [N, 4] pixels.
        mask: bool [H, W, N].
        mini_shape: (h, w).
        exact: continue the mask beyond its box; otherwise it fades to zero, as in matterport.

    Returns:
        bool [h, w, N].

    Raises:
        UserError: a box has no area.
    """
    mini = np.zeros((*mini_shape, mask.shape[-1]), bool)
    for i, (y1, x1, y2, x2) in enumerate(_integer_boxes(bbox, mask.shape[-1])):
        patch = mask[y1:y2, x1:x2, i]
        if patch.size == 0:
            raise UserError(f"box {i} = {[y1, x1, y2, x2]} has no area in its image: remove it")
        mini[:, :, i] = _resize_patch(patch.astype(bool), mini_shape, exact)
    return mini


def expand_mask(
    bbox: np.ndarray, mini_mask: np.ndarray, image_shape: Sequence[int], *, exact: bool = False
) -> np.ndarray:
    """Undo ``minimize_mask`` (matterport: ``utils.expand_mask``).

    Args:
        bbox: int [N, 4] pixels, inside the image; a box without area gives an empty mask.
        mini_mask: bool [h, w, N].
        image_shape: (H, W) or (H, W, C).
        exact: as for ``minimize_mask``.

    Returns:
        bool [H, W, N].
    """
    count = mini_mask.shape[-1]
    masks = np.zeros((*image_shape[:2], count), bool)
    for i, (y1, x1, y2, x2) in enumerate(_integer_boxes(bbox, count)):
        if y2 > y1 and x2 > x1:
            patch = _resize_patch(mini_mask[:, :, i].astype(bool), (y2 - y1, x2 - x1), exact)
            masks[y1:y2, x1:x2, i] = patch
    return masks


def mold_mask(mask: np.ndarray, config: object) -> None:
    """Do nothing, as in matterport, where it is a placeholder that old code may import."""


def _resize_patch(patch: np.ndarray, out_shape: Sequence[int], exact: bool) -> np.ndarray:
    """Resize bool [h, w] linearly; what comes out above one half is true."""
    rows = resize_weights(patch.shape[0], int(out_shape[0]), exact)
    columns = resize_weights(patch.shape[1], int(out_shape[1]), exact)
    return rows @ patch.astype(np.float32) @ columns.T > 0.5


def _corner_aligned_indices(in_size: int, out_size: int) -> np.ndarray:
    step = (in_size - 1) / (out_size - 1) if out_size > 1 else 0.0
    return np.floor(np.arange(out_size) * step + 0.5).astype(np.int64)


def _integer_boxes(boxes: np.ndarray, count: int) -> list[list[int]]:
    return np.asarray(boxes)[:count, :4].astype(np.int64).tolist() if count else []


# ---- Label layers ------------------------------------------------------------------------------


def masks_to_layers(masks: np.ndarray) -> np.ndarray:
    """Pack masks [H, W, N] into label layers int32 [H, W, L], as few as a greedy search finds.

    An instance without pixels keeps its number, which then occurs nowhere. N == 0 gives one layer
    of zeros.
    """
    planes = np.ascontiguousarray(np.moveaxis(np.asarray(masks), -1, 0))
    shape = planes.shape[1:]
    layers = [np.zeros(shape, np.int32)]
    for i, plane in enumerate(planes):
        pixels = np.flatnonzero(plane)
        layer = next((layer for layer in layers if not layer.flat[pixels].any()), None)
        if layer is None:
            layer = _new_layer(layers, shape)
        layer.flat[pixels] = i + 1
    return join_layers(layers)


def layers_to_masks(layers: np.ndarray, count: int) -> np.ndarray:
    """Unpack label layers [H, W, L] into masks bool [H, W, count].

    The result is a view of [count, H, W] memory, so each mask is contiguous.
    """
    masks = np.zeros((count, *layers.shape[:2]), bool)
    for layer, i, box in _labelled_regions(layers, count):
        masks[i][box] |= layer[box] == i + 1
    return np.moveaxis(masks, 0, -1)


def layer_boxes(layers: np.ndarray, count: int) -> np.ndarray:
    """Return int32 [count, 4] boxes in pixels; zeros for an instance that has no pixel."""
    boxes = np.zeros((count, 4), np.int32)
    for _, i, (rows, columns) in _labelled_regions(layers, count):
        boxes[i] = rows.start, columns.start, rows.stop, columns.stop
    return boxes


def layer_mini_masks(
    layers: np.ndarray, boxes: np.ndarray, mini_shape: Sequence[int], exact: bool
) -> np.ndarray:
    """Return bool [N, h, w]: each instance's box content as a small image.

    Args:
        layers: int32 [H, W, L].
        boxes: int [N, 4] pixels, as from ``layer_boxes``; one without area gives an empty image.
        mini_shape: (h, w).
        exact: as for ``minimize_mask``.
    """
    mini = np.zeros((len(boxes), *mini_shape), bool)
    boxes = np.asarray(boxes)[:, :4].astype(np.int64)
    sizes = boxes[:, 2:] - boxes[:, :2]
    # Instances of about the same size are resized together, in windows of that size; the weights
    # of what a window holds beyond the box are zero.
    windows = -(-sizes // WINDOW_STEP) * WINDOW_STEP
    windows[(sizes <= 0).any(axis=1)] = 0
    layers = np.pad(layers, [(0, WINDOW_STEP - 1)] * 2 + [(0, 0)])
    for shape in sorted(set(map(tuple, windows.tolist())) - {(0, 0)}):
        group = np.flatnonzero((windows == shape).all(axis=1))
        pixels = len(group) * max(math.prod(shape), math.prod(mini_shape))
        for part in np.array_split(group, min(len(group), -(-pixels // WINDOW_PIXELS))):
            patches = _windows(layers, boxes[part, :2], shape) == part[:, None, None, None] + 1
            rows, columns = (
                _window_weights(window, int(cells), exact)[window - size]
                for window, cells, size in zip(shape, mini_shape, sizes[part].T, strict=True)
            )
            patches = patches.any(axis=1).astype(np.float32)
            mini[part] = rows @ patches @ columns.transpose(0, 2, 1) > 0.5
    return mini


def _windows(layers: np.ndarray, corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Cut windows [n, L, *shape] out of layers [H, W, L]; corners [n, 2]: y, x."""
    views = np.lib.stride_tricks.sliding_window_view(layers, shape, axis=(0, 1))
    return views[corners[:, 0], corners[:, 1]]


@lru_cache(maxsize=16)
def _window_weights(window: int, out_size: int, exact: bool) -> np.ndarray:
    """Float32 [WINDOW_STEP, out_size, window]: element k resizes the first window - k pixels."""
    weights = np.zeros((WINDOW_STEP, out_size, window), np.float32)
    for k in range(min(WINDOW_STEP, window)):
        weights[k, :, : window - k] = resize_weights(window - k, out_size, exact)
    return weights


def resize_layers(layers: np.ndarray, out_shape: Sequence[int]) -> np.ndarray:
    """Resize label layers [H, W, L] to (height, width): nearest neighbour, half-pixel centres."""
    rows = nearest_indices(layers.shape[0], int(out_shape[0]))
    columns = nearest_indices(layers.shape[1], int(out_shape[1]))
    return layers[rows[:, None], columns]


def _labelled_regions(layers: np.ndarray, count: int):
    """Yield (layer [H, W], instance index, (row slice, column slice)) for all that have pixels."""
    if count == 0:  # find_objects reads max_label=0 as "no limit"
        return
    for number in range(layers.shape[-1]):
        layer = np.ascontiguousarray(layers[:, :, number])
        for i, box in enumerate(ndimage.find_objects(layer, max_label=count)):
            if box is not None:
                yield layer, i, box


def add_to_layers(
    layers: list[np.ndarray],
    size: tuple[int, int],
    window: tuple[slice, slice],
    patch: np.ndarray,
    label: int,
) -> None:
    """Write a label into the first layer where the patch's pixels are free; if there is none, a
    new layer is appended. Raises UserError for more than MAX_LAYER_PIXELS.

    layers: int32 [H, W] each; size: (H, W); window: where the patch lies; patch: bool [h, w].
    """
    for layer in layers:
        if not layer[window][patch].any():
            layer[window][patch] = label
            return
    _new_layer(layers, size)[window][patch] = label


def _new_layer(layers: list[np.ndarray], size: Sequence[int]) -> np.ndarray:
    """Append zeros int32 [H, W]. Raises UserError where the layers would fill the memory."""
    if layers and (len(layers) + 1) * size[0] * size[1] > MAX_LAYER_PIXELS:
        raise UserError(
            f"its masks overlap each other more than {len(layers)} times over in an image of "
            f"{size[0]} x {size[1]} pixels, which would need too much memory; remove duplicate "
            "masks"
        )
    layers.append(np.zeros(size, np.int32))
    return layers[-1]


def join_layers(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Layers [H, W] each -> [H, W, L], without a copy if there is only one."""
    return layers[0][..., np.newaxis] if len(layers) == 1 else np.stack(layers, axis=-1)


def label_map(patches: Sequence[Patch], scores: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Patches of masks -> label map int32 [H, W] without overlaps.

    patches: (y, x, bool [h, w]) of each instance, inside the image; scores [N]; shape: (H, W) or
    longer. A pixel claimed several times goes to the instance of the highest score (of two equal
    scores, the first). Label k is the instance of rank k: 1 for the highest score. Instances
    that keep no pixel do not occur.
    """
    labels = np.zeros((int(shape[0]), int(shape[1])), np.int32)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist()
    for rank in range(len(order), 0, -1):  # the best is painted last, over all others
        y, x, patch = patches[order[rank - 1]]
        np.putmask(labels[y : y + patch.shape[0], x : x + patch.shape[1]], patch, rank)
    return labels
