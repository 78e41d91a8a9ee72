"""Detection from externally supplied proposals, on an image or on an image pyramid.

    proposals -> the scale of the image at which each is nearest to 224 x 224 -> class, box and mask

Source: paper section 3.8.5; Girshick, "Fast R-CNN", sections 2.2 and 3.
Shape shorthand: R regions, K classes, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from keras import ops

from mrcnn.errors import UserError
from mrcnn.inference.fast_network import FastNetwork, memory_errors
from mrcnn.network.detection import DetectionLayer
from mrcnn.pixels import molding, unmolding
from mrcnn.pixels.boxes import denorm_boxes, norm_boxes
from mrcnn.pixels.image_meta import compose_image_meta

CANONICAL_SIDE = 224.0  # pixels


def nearest_scale(boxes: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """Index of the scale at which each box's area is nearest to 224 x 224 pixels, int [R].

    boxes: [R, 4] in pixels of the image (y1, x1, y2, x2). Nearest by ratio, not by difference.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sides = np.sqrt(np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6), axis=1))
    factors = np.log(sides[:, None] * np.asarray(scales, np.float64) / CANONICAL_SIDE)
    return np.argmin(np.abs(factors), axis=1)


def detect_proposals(
    network: FastNetwork,
    image: np.ndarray,
    proposals: np.ndarray,
    scales: Sequence[float | None],
    config,
) -> dict:
    """Classify, refine and segment given regions of one image.

    Args:
        network: with the weights to use.
        image: [H, W, C], values 0 to 255.
        proposals: [R, 4] in pixels of the image (y1, x1, y2, x2), R may be 0.
        scales: factors of enlargement; more than one makes an image pyramid. None stands for what
            IMAGE_MIN_DIM and IMAGE_MIN_SCALE ask for.

    Returns:
        A result with patches, see `detector`.

    Raises:
        UserError: proposals or scales that cannot be used.
    """
    proposals = np.asarray(proposals, np.float32)
    if proposals.size == 0:
        proposals = proposals.reshape(0, 4)
    if proposals.ndim != 2 or proposals.shape[1] != 4 or not np.isfinite(proposals).all():
        raise UserError(
            f"proposals of shape {proposals.shape} are not allowed: they must be [R, 4] finite "
            "numbers, y1, x1, y2, x2 in pixels of the image"
        )
    scales = list(scales)
    if not scales or not all(scale is None or 0 < scale < np.inf for scale in scales):
        raise UserError(f"scales = {scales} is not allowed: give one or more numbers above 0")
    if config.IMAGE_RESIZE_MODE != "pad64" and scales != [None]:
        raise UserError('scales need IMAGE_RESIZE_MODE = "pad64"')
    with memory_errors((1, *image.shape)):
        return _detect(network, image, proposals, scales, config)


def _detect(network, image, proposals, scales, config) -> dict:
    passes = [_ForwardPass(network, image, scale, config) for scale in scales]
    factors = [one.scale for one in passes]
    shape, exact = image.shape, config.exact_pixels
    nearest = nearest_scale(proposals, factors)
    rois = norm_boxes(proposals, shape, exact=exact)  # one frame for all scales: the image's
    parts = [one.classify(rois[nearest == i]) for i, one in enumerate(passes)]
    detections = _refine(*(np.concatenate(a) for a in zip(*parts, strict=True)), shape, config)

    nearest = nearest_scale(denorm_boxes(detections[:, :4], shape, exact=exact), factors)
    masks = np.zeros((len(detections), *config.MASK_SHAPE, config.NUM_CLASSES), np.float32)
    for i, one in enumerate(passes):
        if (nearest == i).any():
            masks[nearest == i] = one.segment(detections[nearest == i, :4])
    boxes, class_ids, scores, patches = unmolding.unmold_patches(
        detections, masks, shape, shape, (0, 0, *shape[:2]), config
    )
    return {"rois": boxes, "class_ids": class_ids, "scores": scores, "patches": patches}


def _refine(rois, classes, deltas, shape, config) -> np.ndarray:
    """`DetectionLayer` on regions [R, 4] of an image: its rows without padding, [D, 6]."""
    if not len(rois):
        return np.zeros((0, 6), np.float32)
    every_class = np.ones(config.NUM_CLASSES, np.int32)
    meta = compose_image_meta(0, shape, shape, (0, 0, *shape[:2]), 1.0, every_class)
    inputs = [np.asarray(a, np.float32)[None] for a in (rois, classes, deltas, meta)]
    detections = ops.convert_to_numpy(DetectionLayer(config)(inputs))[0]
    return detections[detections[:, 4] > 0]


class _ForwardPass:
    """An image at one scale, and the network's outputs for regions of it."""

    def __init__(self, network: FastNetwork, image, scale: float | None, config):
        self.network, self.config = network, config
        molded, self.metas, [window] = molding.mold_inputs([image], config, [scale])
        shape = molded.shape[1:3]
        self.window = norm_boxes(window, shape, exact=config.exact_pixels)
        self.scale = float(np.sqrt(np.prod((window[2:] - window[:2]) / image.shape[:2])))
        self.features = network.features(molded)

    def _in_molded(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [R, 4] normalised to the image -> normalised to the molded image."""
        origin, size = np.tile(self.window[:2], 2), np.tile(self.window[2:] - self.window[:2], 2)
        return (origin + boxes * size).astype(np.float32)

    def classify(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same boxes [R, 4] normalised to the image, probabilities [R, K], deltas [R, K, 4]."""
        kinds, size = self.config.NUM_CLASSES, self.config.POST_NMS_ROIS_INFERENCE
        found = [(np.zeros((0, kinds), np.float32), np.zeros((0, kinds, 4), np.float32))]
        rois = self._in_molded(boxes)
        for start in range(0, len(rois), size):  # the network takes this many at a time
            part = rois[start : start + size]
            padded = np.pad(part, [(0, size - len(part)), (0, 0)])
            found.append(
                [
                    a[0, : len(part)]
                    for a in self.network.classify(self.features, self.metas, padded[None])
                ]
            )
        classes, deltas = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return boxes, classes, deltas

    def segment(self, boxes: np.ndarray) -> np.ndarray:
        """Masks [R, h, w, K] of boxes [R, 4] normalised to the image."""
        return self.network.segment(self.features, self.metas, self._in_molded(boxes)[None])[0]
