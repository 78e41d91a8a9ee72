"""From pictures to detections: mold, run the network, unmold.

A result is a dictionary with rois int32 [N, 4] in pixels, class_ids int32 [N], scores float32 [N]
and patches, N tuples (y, x, bool [h, w]): the patch lies at rows y.. and columns x.. of the
picture. Hundreds of objects on a large picture take gigabytes as full-size masks, and nearly
nothing so.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from . import molding, unmolding
from .detection import count_detections
from .errors import MRCNNWarning, UserError
from .fast_network import FastNetwork, Found
from .object_size import object_zoom

# Looks at a picture for its zoom, at most, and what calls for another one.
MOST_LOOKS = 3
MUCH_SMALLER = 0.7


def detect_patches(
    network: FastNetwork,
    images: Sequence[np.ndarray],
    config,
    probabilities: bool = False,
    zooms: Sequence[float | None] | None = None,
) -> list[dict]:
    """Detect the objects in any number of pictures of any sizes.

    Args:
        network: with the weights to use.
        images: [H, W, C] arrays with values 0 to 255.
        config: BATCH_SIZE pictures of one molded shape run at once.
        probabilities: patches are float32 [h, w] in place of bool, what MASK_THRESHOLD would be
            applied to. They end at the detection's box, enlarged by MASK_ROI_SCALE.
        zooms: factor of enlargement of each picture; by default what `find_zooms` finds.

    Returns:
        A result for every picture, in order.
    """
    if zooms is None:
        zooms = find_zooms(network, images, config)
    results: list = [None] * len(images)
    for position, row, found, shape, meta in _run(network, images, zooms, config):
        original_shape = images[position].shape
        results[position] = _result(
            found, row, original_shape, shape, meta, config, probabilities
        )
    return results


def find_zooms(network: FastNetwork, images: Sequence[np.ndarray], config) -> list[float | None]:
    """The zoom at which each picture's objects have the size OBJECT_SIZE, from a first look.

    A look at objects that are far too large for it finds their parts. So where it asks for a much
    smaller zoom, another look is taken at that zoom.

    Args:
        network, images, config: as for `detect_patches`.

    Returns:
        Factors of enlargement; None (as IMAGE_MIN_DIM and IMAGE_MIN_SCALE ask for) where no object
        was found, and for all pictures without OBJECT_SIZE or with another mode than "pad64".
    """
    zooms: list[float | None] = [None] * len(images)
    if not config.OBJECT_SIZE or config.IMAGE_RESIZE_MODE != "pad64":
        return zooms
    looking = list(range(len(images)))
    for _ in range(MOST_LOOKS):
        pictures, at = [images[i] for i in looking], [zooms[i] for i in looking]
        again = []
        for place, row, found, shape, meta in _run(network, pictures, at, config, masks=False):
            scale = molding.parse_image_meta(meta)["scale"]
            boxes = found.detections[row, :, :4] * np.tile(shape[:2], 2) / scale
            zoom = object_zoom(boxes, config)
            if zoom is not None:
                zooms[looking[place]] = zoom
                if zoom < MUCH_SMALLER * scale:
                    again.append(looking[place])
        looking = again
    return zooms


def _run(network: FastNetwork, images, zooms, config, masks: bool = True) -> Iterator[tuple]:
    """Mold the pictures and run the network; those of one molded shape go in batches.

    Yields:
        For every picture (position, row of the batch, Found, molded shape, meta data [M]).
    """
    molded = [
        molding.mold_inputs([image], config, [zoom])[:2]
        for image, zoom in zip(images, zooms, strict=True)
    ]
    by_shape = defaultdict(list)
    for position, (array, _) in enumerate(molded):
        by_shape[array.shape].append(position)
    for positions in by_shape.values():
        for first in range(0, len(positions), config.BATCH_SIZE):
            chunk = positions[first : first + config.BATCH_SIZE]
            arrays = np.concatenate([molded[p][0] for p in chunk])
            metas = np.concatenate([molded[p][1] for p in chunk])
            shape = arrays.shape[1:]
            check_sides(shape)
            found = network(arrays, metas, masks)
            for row, position in enumerate(chunk):
                yield position, row, found, shape, metas[row]


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


def _result(
    found: Found, row: int, original_shape, molded_shape, meta, config, probabilities=False
) -> dict:
    """The result of one picture of a batch."""
    _warn_if_cut(found, row, meta, config)
    window = molding.parse_image_meta(meta[None])["window"][0]
    boxes, class_ids, scores, patches = unmolding.unmold_patches(
        found.detections[row], found.masks[row], original_shape, molded_shape, window, config,
        probabilities,
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
