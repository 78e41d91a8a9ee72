"""Everything that ``from mrcnn import utils`` provided in matterport's Mask R-CNN 2.1.

The names live in other modules. Those that need Keras or a download are imported on first use, so
that this module stays cheap to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mrcnn.data.dataset import Dataset
from mrcnn.pixels.boxes import (
    apply_box_deltas,
    box_refinement,
    compute_iou,
    compute_overlaps,
    denorm_boxes,
    extract_bboxes,
    non_max_suppression,
    norm_boxes,
)
from mrcnn.pixels.masks import expand_mask, minimize_mask, mold_mask, resize_mask
from mrcnn.pixels.molding import resize, resize_image
from mrcnn.pixels.unmolding import unmold_mask

# Name -> module that defines it.
_LAZY = {
    "generate_anchors": "mrcnn.network.anchors",
    "generate_pyramid_anchors": "mrcnn.network.anchors",
    "box_refinement_graph": "mrcnn.network.boxes",
    "batch_slice": "mrcnn.matterport.compat",
    "trim_zeros": "mrcnn.evaluation.metrics",
    "compute_overlaps_masks": "mrcnn.evaluation.metrics",
    "compute_matches": "mrcnn.evaluation.metrics",
    "compute_ap": "mrcnn.evaluation.metrics",
    "compute_ap_range": "mrcnn.evaluation.metrics",
    "compute_recall": "mrcnn.evaluation.metrics",
    "COCO_MODEL_URL": "mrcnn.weights.download",
    "download_trained_weights": "mrcnn.weights.download",
}

__all__ = [
    "Dataset",
    "apply_box_deltas",
    "box_refinement",
    "compute_iou",
    "compute_overlaps",
    "denorm_boxes",
    "expand_mask",
    "extract_bboxes",
    "minimize_mask",
    "mold_mask",
    "non_max_suppression",
    "norm_boxes",
    "resize",
    "resize_image",
    "resize_mask",
    "unmold_mask",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
