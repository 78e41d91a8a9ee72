"""The inference network in its fast form: what `MaskRCNN.detect` runs.

It computes what `network.inference_model` does, from the same functions, but
- with batch norms folded into the convolutions and kernels stored in the compute dtype (`folding`),
- with masks only for actual detections, not for all `DETECTION_MAX_INSTANCES` rows,
- with no new graph for a new image size, where the backend allows it (`compiled`).

Shape shorthand: B images, H W rows and columns of the molded image, A anchors, R proposals,
D detections at most, N actual ones, K classes, M length of the image meta data.
"""

import contextlib
import copy
import math
from functools import lru_cache, partial
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from mrcnn.errors import UserError
from mrcnn.inference.folding import FoldedBank, fold
from mrcnn.network.anchors import normalized_anchors
from mrcnn.network.architecture import architecture_of
from mrcnn.network.compiled import compiled, compiled_for_many
from mrcnn.network.layers import LayerBank
from mrcnn.network.models import (
    classify,
    compiles_whole_graphs,
    detect,
    feature_maps,
    inference_model,
    segment,
)
from mrcnn.weights.matching import shorten

MEGAPIXEL = 1024**2
FINDERS_KEPT = 8
ANCHOR_SETS_KEPT = 16  # one per image size, about 4 MB per megapixel


class Found(NamedTuple):
    """Raw output for a batch, NumPy arrays float32."""

    detections: np.ndarray  # [B, D, 6] normalised box, class id, score; zero rows are padding
    classes: np.ndarray  # [B, R, K]
    deltas: np.ndarray  # [B, R, K, 4]
    masks: np.ndarray  # [B, N or more, h, w, K] probabilities of the first detections, or N = 0
    rois: np.ndarray  # [B, R, 4]


def limit_factor(config, shape) -> int:
    """The factor by which LIMITS_PER_MEGAPIXEL raises the limits, for molded images (H, W, ...): a
    power of two, so that there are few graphs; 1 without it, and for images up to a megapixel."""
    if not config.LIMITS_PER_MEGAPIXEL:
        return 1
    return 2 ** math.ceil(math.log2(max(shape[0] * shape[1] / MEGAPIXEL, 1)))


def with_limits(config, factor: int):
    """A copy of a configuration with `factor` times as many candidates, proposals, detections."""
    config = copy.copy(config)
    for key in ("PRE_NMS_LIMIT", "POST_NMS_ROIS_INFERENCE", "DETECTION_MAX_INSTANCES"):
        setattr(config, key, getattr(config, key) * factor)
    return config


@contextlib.contextmanager
def memory_errors(shape):
    """Turn the error that a backend raises where images [B, H, W, C] do not fit into memory into
    UserError."""
    try:
        yield
    except Exception as error:
        # Every backend has its own name for it.
        if type(error).__name__ not in ("ResourceExhaustedError", "OutOfMemoryError"):
            raise
        raise UserError(
            f"{shape[0]} images of {shape[1]}x{shape[2]} pixels do not fit into memory: lower "
            "IMAGE_MIN_SCALE, SCALE_LIMITS, IMAGES_PER_GPU or POST_NMS_ROIS_INFERENCE"
        ) from error


class FastNetwork:
    """The inference network for molded images of any size, with the weights of a `LayerBank`."""

    def __init__(self, config, bank: LayerBank):
        """
        Args:
            config: the one that the network was built with.
            bank: the network's; its weights are watched, and folded again when they change.
        """
        self.config = config
        self.source = bank
        dtype = keras.dtype_policies.get(bank.dtype).compute_dtype
        self.bank = FoldedBank(dtype)
        # Makes the layers and their variables, for which the image size does not matter.
        inference_model(config, self.bank, (64, 64, config.IMAGE_CHANNEL_COUNT))
        self.anchors = lru_cache(ANCHOR_SETS_KEPT)(
            lambda height, width: normalized_anchors(config, (height, width))[None]
        )
        tensor, variables = keras.KerasTensor, _variables(self.bank)
        image = tensor((None, None, None, config.IMAGE_CHANNEL_COUNT))
        meta, anchors = tensor((None, config.IMAGE_META_SIZE)), tensor((1, None, 4))
        # One graph for each of the few sets of limits.
        self._finder = lru_cache(FINDERS_KEPT)(
            lambda factor: compiled(
                partial(self._find_graph, with_limits(config, factor)),
                variables,
                [image, meta, anchors],
            )
        )
        boxes = tensor((None, None, 4))
        architecture = architecture_of(config)
        self.pooled_maps = architecture.pooled_maps
        maps = [tensor((None, None, None, architecture.channels), dtype)] * self.pooled_maps
        self._mask = compiled(self._mask_graph, variables, [boxes, meta, *maps])
        rois = tensor((None, config.POST_NMS_ROIS_INFERENCE, 4))
        self._features = compiled(self._features_graph, variables, [image])
        self._classify = compiled(self._classify_graph, variables, [rois, meta, *maps])
        watched = _variables(bank)
        self._sums = compiled_for_many(
            lambda: [ops.stack([ops.sum(ops.cast(v, "float32")) for v in watched])], watched
        )
        self._folded: np.ndarray | None = None
        # Input and output of the last forward pass without masks: a detection may follow it.
        self._last: tuple[np.ndarray, np.ndarray, list] | None = None

    def __call__(self, images: np.ndarray, metas: np.ndarray, masks: bool = True) -> Found:
        """
        Args:
            images: [B, H, W, C] molded, H and W multiples of 64.
            metas: [B, M].
            masks: False leaves the masks out, which saves time.

        Raises:
            UserError: the images do not fit into memory; images, weights or outputs are not finite.
        """
        with memory_errors(images.shape):
            return self._run(_finite(images), np.asarray(metas, np.float32), masks)

    # The parts of the network, for regions that do not come from its own proposals.

    def features(self, images: np.ndarray) -> list:
        """The feature maps of molded images [B, H, W, C] from which regions are pooled.

        Raises UserError where images or weights are not finite.
        """
        self._fold_if_changed()
        return list(self._features(_finite(images)))

    def classify(self, features: list, metas, rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [B, R, K] and deltas [B, R, K, 4] of R = POST_NMS_ROIS_INFERENCE regions.

        rois: [B, R, 4] normalised.
        """
        classes, deltas = self._classify(rois, np.asarray(metas, np.float32), *features)
        return ops.convert_to_numpy(classes), ops.convert_to_numpy(deltas)

    def segment(self, features: list, metas, boxes: np.ndarray) -> np.ndarray:
        """Masks [B, N, h, w, K] of boxes [B, N, 4] normalised."""
        count = boxes.shape[1]
        padding = padded_count(count, 1 if compiles_whole_graphs() else 8) - count
        boxes = np.pad(boxes, [(0, 0), (0, padding), (0, 0)])
        [masks] = self._mask(boxes, np.asarray(metas, np.float32), *features)
        return ops.convert_to_numpy(masks)[:, :count]

    def _run(self, images, metas, with_masks) -> Found:
        self._fold_if_changed()
        found = self._find(images, metas)
        self._last = None if with_masks else (images, metas, found)
        detections, classes, deltas, rois = map(ops.convert_to_numpy, found[:4])
        if not np.isfinite(classes).all():
            raise UserError(
                "the network's outputs are not finite: its weights are damaged, or training has "
                "diverged; use another checkpoint"
            )
        count = int(np.count_nonzero(detections[..., 4], axis=1).max())
        # XLA takes seconds to compile for each number of regions; other backends handle many.
        boxes = detections[:, : padded_count(count, 1 if compiles_whole_graphs() else 8), :4]
        if count and with_masks:
            [masks] = self._mask(boxes, metas, *found[4:])
            masks = ops.convert_to_numpy(masks)
        else:
            shape = (len(images), 0, *self.config.MASK_SHAPE, classes.shape[-1])
            masks = np.zeros(shape, np.float32)
        return Found(detections, classes, deltas, masks, rois)

    def _find(self, images, metas) -> list:
        """The outputs of `_find_graph`, those of the last forward pass if it had the same input."""
        if self._last is not None and all(map(np.array_equal, self._last, (images, metas))):
            return self._last[2]
        find = self._finder(limit_factor(self.config, images.shape[1:3]))
        return find(images, metas, self.anchors(*images.shape[1:3]))

    def _find_graph(self, config, image, meta, anchors):
        """Without masks: [detections, classes, deltas, rois, and the maps to pool from]."""
        bank = self.bank
        features = feature_maps(image, config, bank)
        found = detect(features, anchors, meta, config, bank)
        wanted = [found.detections, found.classes, found.deltas, found.rois]
        return [*wanted, *features[: self.pooled_maps]]

    def _features_graph(self, image):
        return feature_maps(image, self.config, self.bank)[: self.pooled_maps]

    def _classify_graph(self, rois, meta, *features):
        _, classes, deltas = classify(rois, features, meta, self.config, self.bank)
        return [classes, deltas]

    def _mask_graph(self, boxes, meta, *features):
        return [segment(boxes, features, meta, self.config, self.bank)]

    def _fold_if_changed(self) -> None:
        """Fold the weights the first time, and again when others have been loaded or set.

        The sum of every tensor shows it, in a few milliseconds; folding takes a hundred.
        """
        sums = ops.convert_to_numpy(self._sums()[0])
        if not np.isfinite(sums).all():
            _refuse_not_finite(self.source)
        if self._folded is None or not np.array_equal(sums, self._folded):
            fold(self.source, self.bank)
            self._folded, self._last = sums, None


def padded_count(count: int, steps: int = 8) -> int:
    """`count`, rounded up so that there are only `steps` different numbers between n and 2 n.

    Backends have to prepare for each new number of regions that the mask head gets.
    """
    step = 1
    while count > 2 * steps * step:
        step *= 2
    return -(-count // step) * step


def _variables(bank: LayerBank) -> list:
    """All variables of a bank's layers, each once."""
    found = {id(v): v for layer in bank.layers.values() for v in layer.variables}
    return list(found.values())


def _finite(images: np.ndarray) -> np.ndarray:
    """Molded images as float32. Raises UserError where they have NaN or infinite values.

    The outputs do not show it: on some processors, fused convolution and ReLU turns NaN into 0.
    """
    images = np.asarray(images, np.float32)
    if not np.isfinite(images).all():
        raise UserError("the image has values that are not finite (NaN or infinite)")
    return images


def _refuse_not_finite(bank: LayerBank) -> None:
    """Raise a UserError naming the layers whose weights are not finite, if there are any."""
    names = [
        name
        for name, layer in bank.layers.items()
        if not all(np.isfinite(weights).all() for weights in layer.get_weights())
    ]
    if names:
        raise UserError(f"weights of {shorten(names)} are not finite: load another checkpoint")
