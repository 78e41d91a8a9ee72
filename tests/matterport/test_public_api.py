"""Every public name of matterport's Mask_RCNN 2.1 resolves, with its parameters in its order."""

import importlib
import inspect

import pytest

NAMES = {
    "mrcnn.config": ["Config"],
    "mrcnn.parallel_model": ["ParallelModel"],
    "mrcnn.model": [
        "log", "BatchNorm", "compute_backbone_shapes", "identity_block", "conv_block",
        "resnet_graph", "apply_box_deltas_graph", "clip_boxes_graph", "ProposalLayer",
        "log2_graph", "PyramidROIAlign", "overlaps_graph", "detection_targets_graph",
        "DetectionTargetLayer", "refine_detections_graph", "DetectionLayer", "rpn_graph",
        "build_rpn_model", "fpn_classifier_graph", "build_fpn_mask_graph", "smooth_l1_loss",
        "rpn_class_loss_graph", "rpn_bbox_loss_graph", "mrcnn_class_loss_graph",
        "mrcnn_bbox_loss_graph", "mrcnn_mask_loss_graph", "load_image_gt",
        "build_detection_targets", "build_rpn_targets", "generate_random_rois", "data_generator",
        "MaskRCNN", "compose_image_meta", "parse_image_meta", "parse_image_meta_graph",
        "mold_image", "unmold_image", "trim_zeros_graph", "batch_pack_graph", "norm_boxes_graph",
        "denorm_boxes_graph",
    ],
    "mrcnn.utils": [
        "COCO_MODEL_URL", "extract_bboxes", "compute_iou", "compute_overlaps",
        "compute_overlaps_masks", "non_max_suppression", "apply_box_deltas",
        "box_refinement_graph", "box_refinement", "Dataset", "resize_image", "resize_mask",
        "minimize_mask", "expand_mask", "mold_mask", "unmold_mask", "generate_anchors",
        "generate_pyramid_anchors", "trim_zeros", "compute_matches", "compute_ap",
        "compute_ap_range", "compute_recall", "batch_slice", "download_trained_weights",
        "norm_boxes", "denorm_boxes", "resize",
    ],
    "mrcnn.visualize": [
        "display_images", "random_colors", "apply_mask", "display_instances",
        "display_differences", "draw_rois", "draw_box", "display_top_masks",
        "plot_precision_recall", "plot_overlaps", "draw_boxes", "display_table",
        "display_weight_stats",
    ],
}  # fmt: skip

MODEL_METHODS = [
    "build", "find_last", "load_weights", "get_imagenet_weights", "compile", "set_trainable",
    "set_log_dir", "train", "mold_inputs", "unmold_detections", "detect", "detect_molded",
    "get_anchors", "ancestor", "find_trainable_layer", "get_trainable_layers", "run_graph",
]  # fmt: skip

# How matterport's users call these, positionally.
PARAMETERS = {
    "mrcnn.model.MaskRCNN": "mode config model_dir",
    "mrcnn.model.MaskRCNN.train": "self train_dataset val_dataset learning_rate epochs layers "
    "augmentation custom_callbacks no_augmentation_sources",
    "mrcnn.model.MaskRCNN.load_weights": "self filepath by_name exclude",
    "mrcnn.model.MaskRCNN.detect": "self images verbose",
    "mrcnn.model.MaskRCNN.detect_molded": "self molded_images image_metas verbose",
    "mrcnn.model.MaskRCNN.unmold_detections": "self detections mrcnn_mask original_image_shape "
    "image_shape window",
    "mrcnn.model.MaskRCNN.run_graph": "self images outputs image_metas",
    "mrcnn.model.MaskRCNN.set_trainable": "self layer_regex keras_model indent verbose",
    "mrcnn.model.load_image_gt": "dataset config image_id augment augmentation use_mini_mask",
    "mrcnn.model.data_generator": "dataset config shuffle augment augmentation random_rois "
    "batch_size detection_targets no_augmentation_sources",
    "mrcnn.model.build_rpn_targets": "image_shape anchors gt_class_ids gt_boxes config",
    "mrcnn.model.generate_random_rois": "image_shape count gt_class_ids gt_boxes",
    "mrcnn.model.compose_image_meta": "image_id original_image_shape image_shape window scale "
    "active_class_ids",
    "mrcnn.model.resnet_graph": "input_image architecture stage5 train_bn",
    "mrcnn.utils.resize_image": "image min_dim max_dim min_scale mode",
    "mrcnn.utils.resize_mask": "mask scale padding crop",
    "mrcnn.utils.generate_anchors": "scales ratios shape feature_stride anchor_stride",
    "mrcnn.utils.compute_ap": "gt_boxes gt_class_ids gt_masks pred_boxes pred_class_ids "
    "pred_scores pred_masks iou_threshold",
    "mrcnn.visualize.display_instances": "image boxes masks class_ids class_names scores title "
    "figsize ax show_mask show_bbox colors captions",
}


@pytest.mark.parametrize(
    "module, name", [(module, name) for module, names in NAMES.items() for name in names]
)
def test_name_resolves(module, name):
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("method", MODEL_METHODS)
def test_method_exists(method):
    from mrcnn.model import MaskRCNN

    assert callable(getattr(MaskRCNN, method))


@pytest.mark.parametrize("path", PARAMETERS)
def test_parameters(path):
    parts = path.split(".")
    found = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:]:
        found = getattr(found, part)
    names = list(inspect.signature(found).parameters)
    wanted = PARAMETERS[path].split()
    assert names[: len(wanted)] == wanted
