"""From pictures to detections: mold, run the network, unmold.

A result is a dictionary with rois int32 [N, 4] in pixels, class_ids int32 [N], scores float32 [N]
and patches, N tuples (y, x, bool [h, w]): the patch lies at rows y.. and columns x.. of the
picture. Hundreds of objects on a large picture take gigabytes as full-size masks, and nearly
nothing so.
"""

import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from . import molding, unmolding
from .detection import count_detections
from .errors import MRCNNWarning, UserError
from .fast_network import FastNetwork, Found


def detect_patches(network: FastNetwork, images: Sequence[np.ndarray], config) -> list[dict]:
    """Detect the objects in any number of pictures of any sizes.

    Args:
        network: with the weights to use.
        images: [H, W, C] arrays with values 0 to 255.
        config: BATCH_SIZE pictures of one molded shape run at once.

    Returns:
        A result for every picture, in order.
    """
    molded = [molding.mold_inputs([image], config)[:2] for image in images]
    by_shape = defaultdict(list)
    for position, (array, _) in enumerate(molded):
        by_shape[array.shape].append(position)
    results: list = [None] * len(images)
    for positions in by_shape.values():
        for first in range(0, len(positions), config.BATCH_SIZE):
            chunk = positions[first : first + config.BATCH_SIZE]
            arrays = np.concatenate([molded[p][0] for p in chunk])
            metas = np.concatenate([molded[p][1] for p in chunk])
            check_sides(arrays.shape[1:])
            found = network(arrays, metas)
            for row, position in enumerate(chunk):
                results[position] = _result(
                    found, row, images[position].shape, arrays.shape[1:], metas[row], config
                )
    return results


def detect_molded(network: FastNetwork, images, metas, config) -> list[dict]:
    """As `detect_patches`, for molded images [B, H, W, C] of one shape and meta data [B, M].

    Results are in pixels of the molded images.
    """
    images, metas = np.asarray(images), np.array(metas)
    shape = images.shape[1:]
    check_sides(shape)
    found = network(images, metas)
    metas[:, 7:11] = (0, 0, *shape[:2])  # the window: all of the image
    return [_result(found, row, shape, shape, meta, config) for row, meta in enumerate(metas)]


def with_masks(result: dict, image_shape: Sequence[int]) -> dict:
    """matterport's form of a result: masks bool [H, W, N] in place of patches."""
    others = {key: value for key, value in result.items() if key != "patches"}
    return {**others, "masks": unmolding.patches_to_masks(result["patches"], image_shape)}


def check_sides(shape: Sequence[int]) -> None:
    """Raise UserError where a molded image [H, W, C] has sides that the pyramid cannot halve."""
    if shape[0] % 64 or shape[1] % 64:
        raise UserError(
            f"images of {shape[0]}x{shape[1]} pixels do not fit the network: both sides must be "
            "multiples of 64; set IMAGE_MIN_DIM and IMAGE_MAX_DIM so, or "
            'IMAGE_RESIZE_MODE = "pad64"'
        )


def _result(found: Found, row: int, original_shape, molded_shape, meta, config) -> dict:
    """The result of one picture of a batch."""
    _warn_if_cut(found, row, meta, config)
    window = molding.parse_image_meta(meta[None])["window"][0]
    boxes, class_ids, scores, patches = unmolding.unmold_patches(
        found.detections[row], found.masks[row], original_shape, molded_shape, window, config
    )
    return {"rois": boxes, "class_ids": class_ids, "scores": scores, "patches": patches}


def _warn_if_cut(found: Found, row: int, meta, config) -> None:
    """Say so where `DETECTION_MAX_INSTANCES` has cut off detections."""
    limit = config.DETECTION_MAX_INSTANCES
    if found.detections[row, -1, 4] == 0:  # not every row is taken
        return
    total = count_detections(found.rois[row], found.classes[row], found.deltas[row], meta, config)
    if total > limit:
        warnings.warn(
            f"{total} detections, only the best {limit} are kept: raise DETECTION_MAX_INSTANCES",
            MRCNNWarning,
            stacklevel=2,
        )
