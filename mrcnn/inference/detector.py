"""From images to detections: mold, run the network, unmold.

A result is a dictionary with rois int32 [N, 4] in pixels, class_ids int32 [N], scores float32 [N]
and patches, N tuples (y, x, bool [h, w]): the patch lies at rows y.. and columns x.. of the
image. Hundreds of objects on a large image would take gigabytes as full-size masks; as patches
they take almost nothing.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.inference.fast_network import FastNetwork, Found
from mrcnn.network.detection import count_detections
from mrcnn.pixels import molding, unmolding
from mrcnn.pixels.image_meta import PARTS, parse_image_meta
from mrcnn.pixels.object_size import object_scale

# The search for the scale of an image: the factors to try until objects are found, and how many
# more forward passes follow while those objects ask for less than this fraction of the scale.
FIRST_FACTORS = (1.0, 1 / 3, 2.0)
MORE_PASSES = 2
MUCH_SMALLER = 0.7
# An image that would have more than COARSE_PIXELS is first tried at COARSE times the scale. That
# takes a quarter of the time, and is enough where it asks for at most COARSE_ENOUGH times as much.
COARSE, COARSE_PIXELS, COARSE_ENOUGH = 0.5, 384**2, 1.5
# The scale of a forward pass is kept where the objects found ask for one within this factor of it:
# networks recognise objects of half to twice OBJECT_SIZE. The detection then reuses the output of
# that forward pass.
NEAR = 1.25
# No scale makes an image larger than this many pixels, which take some 5 GB of memory.
MOST_PIXELS = 16e6


def detect_patches(
    network: FastNetwork,
    images: Sequence[np.ndarray],
    config,
    probabilities: bool = False,
    scales: Sequence[float | None] | None = None,
) -> list[dict]:
    """Detect the objects in any number of images of any sizes.

    Args:
        network: with the weights to use.
        images: [H, W, C] arrays with values 0 to 255.
        config: BATCH_SIZE images of one molded shape run at once.
        probabilities: patches are float32 [h, w] instead of bool: the values that MASK_THRESHOLD
            would be applied to. They end at the detection's box, enlarged by MASK_ROI_SCALE.
        scales: factor of enlargement of each image; by default those of `find_scales`.

    Returns:
        One result per image, in order.
    """
    if scales is None:
        scales = find_scales(network, images, config)
    results: list = [None] * len(images)
    for position, row, found, shape, meta in _run(network, images, scales, config):
        original_shape = images[position].shape
        results[position] = _result(found, row, original_shape, shape, meta, config, probabilities)
    return results


def find_scales(
    network: FastNetwork, images: Sequence[np.ndarray], config, first: float | None = None
) -> list[float | None]:
    """The scale at which each image's objects, as the network finds them, have size OBJECT_SIZE.

    Args:
        network, images, config: as for `detect_patches`.
        first: scale of the first forward pass; by default what IMAGE_MIN_SCALE asks for. (With
            OBJECT_SIZE, IMAGE_MIN_DIM is the side of the training crops: it would enlarge strips
            and small images without limit.)

    Returns:
        Factors of enlargement, in steps; that of the first forward pass where no object was found.
        None for every image without OBJECT_SIZE or with a mode other than "pad64".
    """
    if not config.OBJECT_SIZE or config.IMAGE_RESIZE_MODE != "pad64":
        return [None] * len(images)
    return [_find_scale(network, image, config, first) for image in images]


def _find_scale(network: FastNetwork, image: np.ndarray, config, first: float | None) -> float:
    most = math.sqrt(MOST_PIXELS / max(1, math.prod(image.shape[:2])))

    def asked_at(scale: float) -> float | None:
        """The scale that the objects found at this one ask for; None where there are none."""
        [(_, row, found, shape, _)] = _run(network, [image], [scale], config, masks=False)
        boxes = found.detections[row, :, :4] * np.tile(shape[:2], 2) / scale
        wanted = object_scale(boxes, config)
        return None if wanted is None else min(_rounded(wanted), most)

    given = first is not None
    first = first or molding.scale_factor(image.shape, None, None, config.IMAGE_MIN_SCALE, "pad64")
    if not given and first**2 * math.prod(image.shape[:2]) > COARSE_PIXELS:
        at = min(COARSE * first, most)
        wanted = asked_at(at)
        if wanted is not None and wanted <= COARSE_ENOUGH * at:
            return _settled(asked_at, at, wanted)
    for factor in FIRST_FACTORS:
        at = min(first * factor, most)
        wanted = asked_at(at)
        if wanted is not None:
            return _settled(asked_at, at, wanted)
    return min(first, most)


def _settled(asked_at: Callable[[float], float | None], at: float, wanted: float) -> float:
    """The scale to detect at, where a forward pass at `at` asks for the scale `wanted`."""
    # The network finds only parts of objects that are far too large for the scale.
    for _ in range(MORE_PASSES):
        if wanted >= MUCH_SMALLER * at:
            break
        closer = asked_at(wanted)
        if closer is None:
            return at  # the last scale at which something was found
        at, wanted = wanted, closer
    return at if 1 / NEAR <= wanted / at <= NEAR else wanted


def _rounded(scale: float) -> float:
    """Round to a quarter of an octave: fewer image sizes, for backends that compile for each."""
    return 2 ** (round(4 * math.log2(scale)) / 4)


def _run(network: FastNetwork, images, scales, config, masks: bool = True) -> Iterator[tuple]:
    """Mold the images and run the network; images of the same molded shape are batched.

    Yields:
        (position, row of the batch, Found, molded shape, meta data [M]) for every image.
    """
    molded = [
        molding.mold_inputs([image], config, [scale])[:2]
        for image, scale in zip(images, scales, strict=True)
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
    """Like `detect_patches`, for molded images [B, H, W, C] of one shape and meta data [B, M].

    Results are in pixels of the molded images.
    """
    images, metas = np.asarray(images), np.array(metas)
    shape = images.shape[1:]
    check_sides(shape)
    found = network(images, metas)
    metas[:, PARTS["window"]] = (0, 0, *shape[:2])  # the window is the whole image
    return [_result(found, row, shape, shape, meta, config) for row, meta in enumerate(metas)]


def with_masks(result: dict, image_shape: Sequence[int]) -> dict:
    """matterport's form of a result: masks bool [H, W, N] instead of patches."""
    others = {key: value for key, value in result.items() if key != "patches"}
    return {**others, "masks": unmolding.patches_to_masks(result["patches"], image_shape)}


def check_sides(shape: Sequence[int]) -> None:
    """Raise UserError where a molded image [H, W, C] has sides that the pyramid cannot halve."""
    if shape[0] % 64 or shape[1] % 64:
        raise UserError(
            f"images of {shape[0]}x{shape[1]} pixels do not fit the network: both sides must be "
            "multiples of 64; set IMAGE_MIN_DIM and IMAGE_MAX_DIM accordingly, or "
            'IMAGE_RESIZE_MODE = "pad64"'
        )


def _result(
    found: Found, row: int, original_shape, molded_shape, meta, config, probabilities=False
) -> dict:
    """The result of one image of a batch."""
    _warn_if_cut(found, row, meta, config)
    window = parse_image_meta(meta[None])["window"][0]
    boxes, class_ids, scores, patches = unmolding.unmold_patches(
        found.detections[row],
        found.masks[row],
        original_shape,
        molded_shape,
        window,
        config,
        probabilities,
    )
    return {"rois": boxes, "class_ids": class_ids, "scores": scores, "patches": patches}


def _warn_if_cut(found: Found, row: int, meta, config) -> None:
    """Warn where `DETECTION_MAX_INSTANCES` has cut off detections."""
    limit = found.detections.shape[1]
    if found.detections[row, -1, 4] == 0:  # some rows are padding
        return
    total = count_detections(found.rois[row], found.classes[row], found.deltas[row], meta, config)
    if total > limit:
        warnings.warn(
            f"{total} detections, only the best {limit} are kept: raise DETECTION_MAX_INSTANCES",
            MRCNNWarning,
            stacklevel=2,
        )
