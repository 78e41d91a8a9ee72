"""A network and a backbone that compile in seconds."""

import numpy as np

from mrcnn.config import Config


class TinyConfig(Config):
    """The whole network, small enough to compile in seconds."""

    NAME = "tiny"
    BACKBONE = "resnet50"
    NUM_CLASSES = 3
    IMAGES_PER_GPU = 2
    IMAGE_MIN_DIM = 64
    IMAGE_MAX_DIM = 64
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    TOP_DOWN_PYRAMID_SIZE = 16
    FPN_CLASSIF_FC_LAYERS_SIZE = 32
    RPN_CONV_CHANNELS = 16
    MASK_CONV_CHANNELS = 16
    PRE_NMS_LIMIT = 200
    POST_NMS_ROIS_TRAINING = 50
    POST_NMS_ROIS_INFERENCE = 40
    TRAIN_ROIS_PER_IMAGE = 16
    RPN_TRAIN_ANCHORS_PER_IMAGE = 32
    MAX_GT_INSTANCES = 6
    MINI_MASK_SHAPE = (28, 28)
    DETECTION_MAX_INSTANCES = 10
    DETECTION_MIN_CONFIDENCE = 0
    STEPS_PER_EPOCH = 2
    VALIDATION_STEPS = 1


def small_backbone(image, stage5=True, train_bn=None):
    """Five convolutions in place of ResNet's stages; names as users of BACKBONE choose them."""
    from keras import layers

    stages, x = [], image
    for stage in range(1, 6):
        x = layers.Conv2D(
            8, 3, strides=2, padding="same", activation="relu", name=f"small_{stage}"
        )(x)
        stages.append(x)
    return stages


class SmallConfig(TinyConfig):
    """`TinyConfig` on `small_backbone`: half the time where the backbone does not matter."""

    BACKBONE = staticmethod(small_backbone)
    COMPUTE_BACKBONE_SHAPE = staticmethod(
        lambda shape: np.array([[-(-shape[0] // s), -(-shape[1] // s)] for s in (4, 8, 16, 32, 64)])
    )
