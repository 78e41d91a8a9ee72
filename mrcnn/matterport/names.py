"""matterport's public names of `mrcnn.model`, and new ones, imported from where they live."""

from mrcnn.data.batches import BatchLoader
from mrcnn.matterport.compat import (
    DetectionTargetLayer,
    batch_pack_graph,
    detection_targets_graph,
    log,
    log2_graph,
    refine_detections_graph,
    trim_zeros_graph,
)
from mrcnn.matterport.generator import data_generator, load_image_gt
from mrcnn.matterport.numpy_targets import (
    build_detection_targets,
    build_rpn_targets,
    generate_random_rois,
)
from mrcnn.network.anchors import compute_backbone_shapes
from mrcnn.network.boxes import (
    apply_box_deltas_graph,
    clip_boxes_graph,
    denorm_boxes_graph,
    norm_boxes_graph,
    overlaps_graph,
)
from mrcnn.network.detection import DetectionLayer
from mrcnn.network.heads import build_fpn_mask_graph, fpn_classifier_graph
from mrcnn.network.layers import BatchNorm
from mrcnn.network.losses import (
    mrcnn_bbox_loss_graph,
    mrcnn_class_loss_graph,
    mrcnn_mask_loss_graph,
    rpn_bbox_loss_graph,
    rpn_class_loss_graph,
    smooth_l1_loss,
)
from mrcnn.network.resnet import conv_block, identity_block, resnet_graph
from mrcnn.network.roi_align import PyramidROIAlign
from mrcnn.network.rpn import ProposalLayer, build_rpn_model, rpn_graph
from mrcnn.pixels.image_meta import compose_image_meta, parse_image_meta, parse_image_meta_graph
from mrcnn.pixels.molding import mold_image, unmold_image

__all__ = [
    "BatchLoader", "BatchNorm", "DetectionLayer", "DetectionTargetLayer",
    "ProposalLayer", "PyramidROIAlign", "apply_box_deltas_graph", "batch_pack_graph",
    "build_detection_targets", "build_fpn_mask_graph", "build_rpn_model", "build_rpn_targets",
    "clip_boxes_graph", "compose_image_meta", "compute_backbone_shapes", "conv_block",
    "data_generator", "denorm_boxes_graph", "detection_targets_graph", "fpn_classifier_graph",
    "generate_random_rois", "identity_block", "load_image_gt", "log", "log2_graph", "mold_image",
    "mrcnn_bbox_loss_graph", "mrcnn_class_loss_graph", "mrcnn_mask_loss_graph",
    "norm_boxes_graph", "overlaps_graph", "parse_image_meta", "parse_image_meta_graph",
    "refine_detections_graph", "resnet_graph", "rpn_bbox_loss_graph", "rpn_class_loss_graph",
    "rpn_graph", "smooth_l1_loss", "trim_zeros_graph", "unmold_image",
]  # fmt: skip
