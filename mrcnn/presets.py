"""The report's own settings, beside matterport's, which are the defaults of `Config`."""

from __future__ import annotations

import numpy as np

from mrcnn.config import Config


class PaperConfig(Config):
    """What the report says, section by section; where it is silent, `Config`'s value stays.

    Also where that is `Config`'s value, so that these can be laid over another configuration. Not
    here: the spatial transformer, which the report describes as an addition
    (ROI_SPATIAL_TRANSFORMER), alternating training, which is another way of calling `train`
    (mrcnn/training/alternating.py), and augmentation, which is an argument of `train`:
    the report's (section 3.8.1) is `augment.flip_left_right`.
    """

    # Section 4.2, figure 5: the fourth stage's features, the fifth stage in the heads.
    ARCHITECTURE = "c4"
    BACKBONE = "resnet50"

    # Sections 3.6.1, 3.7.3 and 3.8.4: one size of pictures.
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 512
    IMAGE_SCALE_JITTER = (1.0, 1.0)
    OBJECT_SIZE = None
    IMAGES_PER_GPU = 2

    # Section 3.9.
    RPN_CONV_CHANNELS = 512

    # Section 3.9.1: sides of the anchors. (Its "k = 64" anchors a place belong to no choice of
    # shapes that it names.)
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)

    # Section 3.9.4: N_cls = 256 anchors; lambda = 10; N_reg the places of anchors.
    RPN_TRAIN_ANCHORS_PER_IMAGE = 256
    RPN_BBOX_STD_DEV = np.ones(4)  # equation 17; only the second stage's targets are normalised
    BOX_LOSS_MEAN = "report"
    LOSS_WEIGHTS = {**Config.LOSS_WEIGHTS, "rpn_bbox_loss": 10.0}

    # Section 3.8.1: R = 128 regions of N = 2 images, a quarter of them positive, hard background.
    TRAIN_ROIS_PER_IMAGE = 64
    ROI_POSITIVE_RATIO = 0.25
    ROI_BACKGROUND_IOU = (0.1, 0.5)

    TRAIN_GT_AS_ROIS = False

    # Section 4.1.4: four samples a bin, of which the largest counts.
    ROI_SAMPLES = 4
    ROI_SAMPLES_JOIN = "max"

    # Section 3.8.5.
    PRE_NMS_LIMIT = 6000
    POST_NMS_ROIS_INFERENCE = 2000

    # Sections 3.8.3 and 3.9.5.
    GAUSSIAN_HEADS = True
    OPTIMIZER = "sgd"
    LEARNING_BIAS_FACTOR = 2.0
    LEARNING_RATE = 0.001
    LEARNING_MOMENTUM = 0.9

    # Section 3.3.1.
    WEIGHT_DECAY = 0.0001
    LEARNING_SCHEDULE = "plateau"
    LEARNING_WARMUP_STEPS = 0

    # What later work has added.
    GRADIENT_CLIP_NORM = None
    MASK_ROI_SCALE = 1.0
    WEIGHT_AVERAGING = None


PRESETS = {"paper": PaperConfig}
