"""How many pixels every pair of instances of two sets shares, and their IoU.

Shapes: G true instances, D detected ones, H, W pixels, N masks, L label layers.
"""

from __future__ import annotations

import numpy as np


def _as_layers(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Instances in any of the three forms -> (label layers [L, H * W], index_of, areas [N]).

    index_of[label] is 0 for background and i + 1 for the i-th instance. Label maps and layers:
    one instance per value that occurs, ascending. Mask stacks: one per mask, empty or not.
    """
    instances = np.asarray(instances)
    if instances.ndim == 3 and instances.dtype == bool:
        layers, areas = _stack_layers(instances)
        return layers, np.arange(len(areas) + 1), areas
    if instances.ndim == 2:
        instances = instances[..., np.newaxis]
    if instances.ndim != 3 or not np.issubdtype(instances.dtype, np.integer):
        raise ValueError(
            "instances: a label map [H, W], label layers [H, W, L] of integers or a "
            f"bool stack [H, W, N], not {instances.dtype} {instances.shape}"
        )
    layers = np.moveaxis(instances, -1, 0).reshape(instances.shape[-1], -1)
    areas = np.bincount(layers[layers != 0], minlength=1)
    present = areas > 0
    return layers, np.cumsum(present) * present, areas[present]


def _stack_layers(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A bool stack [H, W, N] -> label layers: the k-th mask over a pixel goes to layer k.

    A mask may be spread over layers; the pixel counts below are the same, and disjoint masks
    (the usual case) need one layer only.
    """
    count = masks.shape[-1]
    pixels, instances = np.nonzero(masks.reshape(masks.shape[0] * masks.shape[1], count))
    # Rank of each entry among those of its pixel; np.nonzero sorts by pixel.
    depth = np.arange(len(pixels)) - np.searchsorted(pixels, pixels)
    layers = np.zeros((depth.max(initial=0) + 1, masks.shape[0] * masks.shape[1]), np.int64)
    layers[depth, pixels] = instances + 1
    return layers, np.bincount(instances, minlength=count)


def intersections(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, ...]:
    """Pixels shared by every pair of instances.

    Returns (shared int64 [G, D], truth areas [G], prediction areas [D]). One pass over the
    pixels builds the contingency table, whatever the number of instances.
    """
    truth_layers, truth_index, truth_areas = _as_layers(truth)
    layers, index, areas = _as_layers(prediction)
    if truth_layers.shape[1] != layers.shape[1]:
        raise ValueError(
            f"truth {np.shape(truth)} and prediction {np.shape(prediction)} differ in size"
        )
    rows, columns = len(truth_areas) + 1, len(areas) + 1
    table = np.zeros(rows * columns, np.int64)
    for truth_layer in truth_layers:
        for layer in layers:
            both = (truth_layer != 0) & (layer != 0)  # most pixels are background
            pairs = truth_index[truth_layer[both]] * columns + index[layer[both]]
            table += np.bincount(pairs, minlength=rows * columns)
    return table.reshape(rows, columns)[1:, 1:], truth_areas, areas


def iou_matrix(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Intersection over union of every true with every detected instance, float64 [G, D]."""
    return iou_of_counts(*intersections(truth, prediction))


def iou_of_counts(shared: np.ndarray, truth_areas: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """`iou_matrix` from what `intersections` returns."""
    return shared / np.maximum(unions(shared, truth_areas, areas), 1)


def unions(shared: np.ndarray, truth_areas: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Pixels in either instance of every pair, int64 [G, D]."""
    return truth_areas[:, np.newaxis] + areas[np.newaxis, :] - shared
