"""The whole network as Keras functional models, one for training and one for inference.

    image -> backbone -> features -> region proposals -> heads -> losses, or detections and masks

The features are a pyramid of maps or, with ARCHITECTURE = "c4", a single one.

Both come from one `LayerBank`, so graphs for several image shapes share their weights.

Source: paper section 4.2; matterport `MaskRCNN.build`.
Shape shorthand: B images, H W C rows, columns and channels of the molded image, G ground-truth
instances, M length of the image metadata.
"""

from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from mrcnn.config_rules import LOSS_NAMES
from mrcnn.errors import UserError
from mrcnn.network.anchors import image_anchors, normalized_anchors
from mrcnn.network.architecture import architecture_of
from mrcnn.network.boxes import norm_boxes_graph, scale_boxes_graph
from mrcnn.network.detection import DetectionLayer
from mrcnn.network.fpn import feature_pyramid
from mrcnn.network.heads import (
    build_fpn_mask_graph,
    c4_classifier_graph,
    c4_mask_graph,
    fpn_classifier_graph,
)
from mrcnn.network.layers import LayerBank
from mrcnn.network.losses import (
    mrcnn_bbox_loss_graph,
    mrcnn_class_loss_graph,
    mrcnn_mask_loss_graph,
    rpn_anchor_box_loss,
    rpn_class_loss_graph,
)
from mrcnn.network.resnet import resnet_graph
from mrcnn.network.roi_features import pooling_of
from mrcnn.network.rpn import ProposalLayer, SampledRpn, build_rpn_model
from mrcnn.network.targets import RoiTargetLayer, RpnTargetLayer
from mrcnn.pixels.image_meta import parse_image_meta_graph

WHOLE_MODELS = (
    "Keras cannot save or copy this network as a whole: write its weights with "
    'MaskRCNN.save_weights("....h5"), which every model of the same Config loads, or all of it for '
    "other runtimes with `mrcnn export`"
)


def compiles_whole_graphs() -> bool:
    """Whether models are compiled by XLA: on JAX only.

    On TensorFlow its graph executor is faster on processors, and XLA has no kernel for its NMS.
    """
    return keras.backend.backend() == "jax"


class WeightsOnly(keras.Model):
    """A model of which Keras writes the weights, but not the whole: its layers are made from a
    `Config`, perhaps with functions, for which Keras's files have no place."""

    def save(self, *_: Any, **__: Any) -> None:
        """Raises UserError before a file is begun."""
        raise UserError(WHOLE_MODELS)

    def get_config(self) -> dict[str, Any]:
        """Raises UserError: this is what all of Keras's ways to write or copy a model ask for."""
        raise UserError(WHOLE_MODELS)


class AnchorsLayer(layers.Layer):
    """The anchors of an image shape as a constant [1, A, 4], normalised."""

    def __init__(self, anchors, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever the convolutions use
        self.anchors = np.asarray(anchors, "float32")[None]

    def call(self, image):
        return ops.convert_to_tensor(self.anchors)

    def compute_output_shape(self, input_shape):
        return self.anchors.shape


class LossLayer(layers.Layer):
    """A loss function of `losses` as a named layer with a scalar output."""

    def __init__(self, function, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # whatever the convolutions use
        self.autocast = False
        self.function = function

    def call(self, inputs):
        return self.function(*inputs)

    def compute_output_shape(self, input_shape):
        return ()

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((), "float32")


def backbone_stages(image, config, bank):
    """[C2, C3, C4, C5] of the configured backbone; C5 is None where it is the heads' trunk."""
    if not callable(config.BACKBONE):
        stage5 = config.ARCHITECTURE == "fpn"
        return resnet_graph(image, config.BACKBONE, stage5, config.TRAIN_BN, bank)[1:]

    def as_model(name, dtype):
        # A user's backbone makes new layers at every call: called once, it can be shared.
        inner = keras.Input((None, None, config.IMAGE_CHANNEL_COUNT))
        stages = config.BACKBONE(inner, stage5=True, train_bn=config.TRAIN_BN)
        return keras.Model(inner, list(stages[1:]), name=name)

    return bank(as_model, name="backbone")(image)


def feature_maps(image, config, bank):
    """The maps that proposals are searched on, finest map first: [P2, ... P6], or [C4]."""
    stages = backbone_stages(image, config, bank)
    if config.ARCHITECTURE == "c4":
        return [stages[2]]
    return feature_pyramid(stages, config.TOP_DOWN_PYRAMID_SIZE, bank)


def rpn_of(config, bank):
    """The region proposal network, a model that all levels share."""
    architecture = architecture_of(config)

    def rpn_model(name, dtype):
        return build_rpn_model(
            config.RPN_ANCHOR_STRIDE,
            architecture.anchors_per_cell,
            architecture.channels,
            config.RPN_CONV_CHANNELS,
            dtype,
            config.GAUSSIAN_HEADS,
        )

    return bank(rpn_model, name="rpn_model")


def proposals_of(features, anchors, count, config, bank):
    """Run the region proposal network over the feature maps.

    Args:
        features: as `feature_maps` returns them.
        anchors: [1, A, 4] normalised, level by level.
        count: proposals wanted.

    Returns:
        logits [B, A, 2], probabilities [B, A, 2], deltas [B, A, 4], proposals [B, count, 4].
    """
    rpn = rpn_of(config, bank)
    per_level = [rpn(level) for level in features]
    names = ("rpn_class_logits", "rpn_class", "rpn_bbox")
    logits, probabilities, deltas = (
        bank(layers.Concatenate, axis=1, name=name, dtype="float32")(list(parts))
        for name, parts in zip(names, zip(*per_level, strict=True), strict=True)
    )
    # Not from the bank: it has no weights, and its limits may change from graph to graph.
    propose = ProposalLayer(count, config.RPN_NMS_THRESHOLD, config, name="ROI")
    return logits, probabilities, deltas, propose([probabilities, deltas, anchors])


def classify(rois, features, image_meta, config, bank):
    """Class and box of regions, as the configuration says: see `fpn_classifier_graph`."""
    pooling = pooling_of(config)
    options = {"transformer": config.ROI_SPATIAL_TRANSFORMER, "gaussian": config.GAUSSIAN_HEADS}
    if config.ARCHITECTURE == "c4":
        return c4_classifier_graph(
            rois,
            features[0],
            image_meta,
            config.POOL_SIZE,
            config.NUM_CLASSES,
            config.TRAIN_BN,
            pooling,
            bank,
            config.DILATED_STAGE5,
            **options,
        )
    return fpn_classifier_graph(
        rois,
        features[: architecture_of(config).pooled_maps],
        image_meta,
        config.POOL_SIZE,
        config.NUM_CLASSES,
        config.TRAIN_BN,
        config.FPN_CLASSIF_FC_LAYERS_SIZE,
        pooling,
        bank,
        ranks=config.FPN_CLASSIF_FC_RANKS,
        **options,
    )


def segment(rois, features, image_meta, config, bank, logits=False):
    """Masks of regions, as the configuration says: see `build_fpn_mask_graph`."""
    rois = scale_boxes_graph(rois, config.MASK_ROI_SCALE)
    pooling = pooling_of(config)
    if config.ARCHITECTURE == "c4":
        return c4_mask_graph(
            rois,
            features[0],
            image_meta,
            config.MASK_POOL_SIZE,
            config.NUM_CLASSES,
            config.TRAIN_BN,
            config.MASK_CONV_CHANNELS,
            pooling,
            bank,
            config.DILATED_STAGE5,
            logits,
        )
    return build_fpn_mask_graph(
        rois,
        features[: architecture_of(config).pooled_maps],
        image_meta,
        config.MASK_POOL_SIZE,
        config.NUM_CLASSES,
        config.TRAIN_BN,
        config.MASK_CONV_CHANNELS,
        pooling,
        bank,
        logits,
    )


class Detected(NamedTuple):
    """Detections, and what they were chosen from."""

    detections: (
        keras.KerasTensor
    )  # [B, D, 6] normalised box, class id, score; zero rows are padding
    classes: keras.KerasTensor  # [B, R, K] probabilities
    deltas: keras.KerasTensor  # [B, R, K, 4]
    rois: keras.KerasTensor  # [B, R, 4] normalised
    rpn_class: keras.KerasTensor  # [B, A, 2] probabilities
    rpn_bbox: keras.KerasTensor  # [B, A, 4]


def detect(features, anchors, image_meta, config, bank) -> Detected:
    """From feature maps to detections, all but their masks: proposals, RoIAlign, heads, choice.

    The one path of inference: of the Keras model, of the fast network and of what is exported.
    """
    _, rpn_class, rpn_bbox, rois = proposals_of(
        features, anchors, config.POST_NMS_ROIS_INFERENCE, config, bank
    )
    _, classes, deltas = classify(rois, features, image_meta, config, bank)
    # Not from the bank: it has no weights, and its limits may change from graph to graph.
    choose = DetectionLayer(config, name="mrcnn_detection")
    detections = choose([rois, classes, deltas, image_meta])
    return Detected(detections, classes, deltas, rois, rpn_class, rpn_bbox)


def inference_model(config, bank: LayerBank, image_shape) -> keras.Model:
    """The detector for molded images of one shape.

    Inputs: input_image [B, H, W, C] float32 and input_image_meta [B, M]. Outputs as matterport's:
    detections [B, D, 6], classes [B, R, K] and deltas [B, R, K, 4] of the proposals, masks
    [B, D, h, w, K] of the detections, proposals [B, R, 4], and the proposal network's
    probabilities [B, A, 2] and deltas [B, A, 4].
    """
    image = keras.Input(tuple(image_shape), name="input_image")
    image_meta = keras.Input((config.IMAGE_META_SIZE,), name="input_image_meta")
    features = feature_maps(image, config, bank)
    anchors = AnchorsLayer(normalized_anchors(config, image_shape), name="anchors")(image)
    found = detect(features, anchors, image_meta, config, bank)
    masks = segment(found.detections[..., :4], features, image_meta, config, bank)
    outputs = [found.detections, found.classes, found.deltas, masks]
    outputs += [found.rois, found.rpn_class, found.rpn_bbox]
    model = WeightsOnly([image, image_meta], outputs, name="mask_rcnn")
    model.jit_compile = compiles_whole_graphs()
    return model


def training_inputs(config, image_shape) -> dict:
    """The inputs of the training model by name, as `data.BatchLoader` yields them."""
    instances = config.MAX_GT_INSTANCES
    mask_shape = config.MINI_MASK_SHAPE if config.USE_MINI_MASK else image_shape[:2]
    inputs = {
        "input_image": keras.Input(tuple(image_shape), name="input_image"),
        "input_image_meta": keras.Input((config.IMAGE_META_SIZE,), name="input_image_meta"),
        "input_gt_class_ids": keras.Input((instances,), dtype="int32", name="input_gt_class_ids"),
        "input_gt_boxes": keras.Input((instances, 4), name="input_gt_boxes"),
        "input_gt_masks": keras.Input(
            (instances, *mask_shape), dtype="uint8", name="input_gt_masks"
        ),
    }
    if not config.USE_RPN_ROIS:
        inputs["input_rois"] = keras.Input((config.POST_NMS_ROIS_TRAINING, 4), name="input_rois")
    return inputs


def training_outputs(inputs, config, bank: LayerBank, image_shape) -> list:
    """The five losses of a batch as scalars, in the order of `LOSS_NAMES`."""
    image, image_meta = inputs["input_image"], inputs["input_image_meta"]
    gt_class_ids, gt_boxes = inputs["input_gt_class_ids"], inputs["input_gt_boxes"]
    features = feature_maps(image, config, bank)
    anchors = AnchorsLayer(normalized_anchors(config, image_shape), name="anchors")(image)
    logits, _, deltas, proposals = proposals_of(
        features, anchors, config.POST_NMS_ROIS_TRAINING, config, bank
    )
    rpn_index, rpn_match, rpn_targets = RpnTargetLayer(
        image_anchors(config, image_shape), config, name="rpn_targets"
    )([gt_class_ids, gt_boxes])
    if config.USE_RPN_ROIS:
        rpn_logits, rpn_deltas = bank(
            SampledRpn,
            rpn_of(config, bank),
            config.RPN_ANCHOR_STRIDE,
            architecture_of(config).anchors_per_cell,
            name="rpn_sampled",
        )([rpn_index, *features])
    else:
        # Without proposals, only its whole outputs make the RPN a part of the model.
        rpn_logits, rpn_deltas = (
            ops.take_along_axis(whole, rpn_index[..., None], axis=1) for whole in (logits, deltas)
        )

    def normalize(boxes):
        return norm_boxes_graph(boxes, image_shape[:2], exact=config.exact_pixels)

    if not config.USE_RPN_ROIS:
        given = inputs["input_rois"]
        real = ops.any(given != 0, axis=-1, keepdims=True)
        # matterport's coordinates would turn the zero rows into boxes with an area.
        proposals = ops.where(real, normalize(given), 0.0)
    rois, class_ids, target_deltas, target_masks = RoiTargetLayer(config, name="roi_targets")(
        [proposals, gt_class_ids, normalize(gt_boxes), inputs["input_gt_masks"]]
    )
    logits, _, deltas = classify(rois, features, image_meta, config, bank)
    # Only positive regions have a mask, and they come first.
    positives = target_masks.shape[1]
    masks = segment(rois[:, :positives], features, image_meta, config, bank, logits=True)
    active = parse_image_meta_graph(image_meta)["active_class_ids"]
    used = ops.any(rois != 0, axis=-1)
    rpn_box_loss, box_arguments = rpn_anchor_box_loss, [target_deltas, class_ids, deltas]
    if config.BOX_LOSS_MEAN == "paper":
        places = anchors.shape[1] // architecture_of(config).anchors_per_cell
        rpn_box_loss = partial(rpn_anchor_box_loss, places=places)
        box_arguments.append(used)
    arguments = {
        "rpn_class_loss": (rpn_class_loss_graph, [rpn_match, rpn_logits]),
        "rpn_bbox_loss": (rpn_box_loss, [rpn_targets, rpn_match, rpn_deltas]),
        "mrcnn_class_loss": (mrcnn_class_loss_graph, [class_ids, logits, active, used]),
        "mrcnn_bbox_loss": (mrcnn_bbox_loss_graph, box_arguments),
        "mrcnn_mask_loss": (_mask_loss, [target_masks, class_ids[:, :positives], masks]),
    }
    return [LossLayer(arguments[n][0], name=n)(arguments[n][1]) for n in LOSS_NAMES]


def _mask_loss(target_masks, class_ids, mask_logits):
    return mrcnn_mask_loss_graph(target_masks, class_ids, mask_logits, from_logits=True)
