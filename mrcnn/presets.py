"""Whole configurations, other than matterport's, which are the defaults of `Config`.

`PaperConfig` has the paper's own values, `MicrographConfig` the recipe for cells and nuclei.
"""

from __future__ import annotations

import numpy as np

from mrcnn.config import Config


class PaperConfig(Config):
    """What the paper says, section by section; where it is silent, `Config`'s value stays.

    Values equal to `Config`'s are repeated, so that all can be laid over another configuration. Not
    here: the spatial transformer, which the paper describes as an addition
    (ROI_SPATIAL_TRANSFORMER), alternating training, which is another way of calling `train`
    (mrcnn/training/alternating.py), and augmentation, which is an argument of `train`:
    the paper's (section 3.8.1) is `augment.flip_left_right`.
    """

    # Section 4.2, figure 5: the fourth stage's features, the fifth stage in the heads.
    ARCHITECTURE = "c4"
    BACKBONE = "resnet50"

    # Sections 3.6.1, 3.7.3 and 3.8.4: one size of images.
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 512
    IMAGE_SCALE_JITTER = (1.0, 1.0)
    OBJECT_SIZE = None
    IMAGES_PER_GPU = 2

    # Section 3.9.
    RPN_CONV_CHANNELS = 512

    # Section 3.9.1: sides of the anchors. (Its "k = 64" anchors per position fit no choice of
    # shapes that it names.)
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)

    # Section 3.9.4: N_cls = 256 anchors; lambda = 10; N_reg the number of anchor positions.
    RPN_TRAIN_ANCHORS_PER_IMAGE = 256
    RPN_BBOX_STD_DEV = np.ones(4)  # equation 17; only the second stage's targets are normalised
    BOX_LOSS_MEAN = "paper"
    LOSS_WEIGHTS = {**Config.LOSS_WEIGHTS, "rpn_bbox_loss": 10.0}

    # Section 3.8.1: R = 128 regions of N = 2 images, a quarter of them positive, hard background.
    TRAIN_ROIS_PER_IMAGE = 64
    ROI_POSITIVE_RATIO = 0.25
    ROI_BACKGROUND_IOU = (0.1, 0.5)

    TRAIN_GT_AS_ROIS = False

    # Section 4.1.4: four samples per bin, of which the largest counts.
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

    # Additions of later work: off.
    GRADIENT_CLIP_NORM = None
    MASK_ROI_SCALE = 1.0
    WEIGHT_AVERAGING = None


class MicrographConfig(Config):
    """Training on micrographs: small round objects of one class, on processors and GPUs.

    `inference_config` turns it into the configuration of detection.
    """

    NAME = "micrographs"
    NUM_CLASSES = 1 + 1  # background + one class

    # ResNet-50: half of ResNet-101's time, and cells need little context.
    BACKBONE = "resnet50"

    # Small crops, several per batch: more different images per second than one large crop.
    IMAGES_PER_GPU = 4
    IMAGE_RESIZE_MODE = "crop"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 192
    # The kinds of microscopy differ by a factor of ten in the size of objects. At one common size
    # there is less to learn, and enlarging small ones shrinks whatever is left of misalignment.
    # At 32 pixels results are no better, from nearly twice as many pixels.
    OBJECT_SIZE = 24
    # The first forward pass of an image, from which its scale follows: typical objects of 11 to 43
    # pixels are then within the range that the jitter covers.
    IMAGE_MIN_SCALE = 1.125
    IMAGE_SCALE_JITTER = (0.5, 2.0)

    # Faint and strong exposures, bright and dark objects: all become bright ones on black.
    INTENSITY_PERCENTILES = (1, 99.8)
    DARK_GROUND = True

    # Scaled objects are some 24 pixels across: their anchors belong on a fine level. (The paper's
    # sides are two thirds of these, for images that are not scaled by their objects.)
    RPN_ANCHOR_SCALES = (12, 24, 48, 96, 192)

    # The batch norms learn: the public ImageNet statistics are not those of microscopy, and layers
    # without pretrained kernels have no statistics at all.
    TRAIN_BN = None

    # Half a pixel of systematic offset costs more of the score than most tricks gain.
    PIXEL_CONVENTION = "exact"
    # Boxes are off by 7 % of their size; masks that end at them lose a tenth of the score.
    MASK_ROI_SCALE = 1.2

    # bfloat16 convolutions where the hardware has them: about twice as fast, and as accurate.
    PRECISION = "auto"

    # Two classes and simple shapes: half of the usual width of pyramid and heads is enough.
    TOP_DOWN_PYRAMID_SIZE = 128
    RPN_CONV_CHANNELS = 256
    FPN_CLASSIF_FC_LAYERS_SIZE = 512
    MASK_CONV_CHANNELS = 128

    # A crop holds a few dozen objects at most.
    TRAIN_ROIS_PER_IMAGE = 64
    RPN_TRAIN_ANCHORS_PER_IMAGE = 256
    RPN_NMS_THRESHOLD = 0.7
    PRE_NMS_LIMIT = 2000
    POST_NMS_ROIS_TRAINING = 500
    POST_NMS_ROIS_INFERENCE = 1000

    # An image of the Data Science Bowl has at most 375 nuclei: none is ever left out. Tiles of a
    # dense slide have 800 and more, and larger images in one forward pass have proportionally more.
    MAX_GT_INSTANCES = 400
    DETECTION_MAX_INSTANCES = 1000
    LIMITS_PER_MEGAPIXEL = True

    # Two classes: below .5 the background is the likelier one. `--min-confidence` may go lower.
    DETECTION_MIN_CONFIDENCE = 0.5
    DETECTION_NMS_THRESHOLD = 0.3

    # Mean of the Data Science Bowl's training images (RGB), as in matterport's sample.
    MEAN_PIXEL = np.array([43.53, 39.56, 48.22])

    # Crops are few and the heads start from scratch: true boxes as regions give them examples
    # from the first step on.
    TRAIN_GT_AS_ROIS = True

    # Adam gets further than SGD in the few thousand steps that a processor has time for. Full
    # steps from the start would spoil the pretrained weights.
    OPTIMIZER = "adam"
    LEARNING_RATE = 3e-4
    LEARNING_SCHEDULE = "cosine"
    LEARNING_WARMUP_STEPS = 50

    # Checkpoints of one run differ in quality; their average is better than most of them.
    WEIGHT_AVERAGING = 0.999


# Fine-tuning ends with whichever is over first: on a laptop's two cores they take about as long.
FINE_TUNE_STEPS, FINE_TUNE_MINUTES = 150, 5.0


class FineTuneConfig(MicrographConfig):
    """A few minutes of further training on a few images, from weights that are already good.

    See `mrcnn.fine_tuning`, which also says what stays as it is.
    """

    STEPS_PER_EPOCH = FINE_TUNE_STEPS

    # In so few steps a lower rate teaches next to nothing (docs/corrections.md).
    LEARNING_RATE = 5e-4
    LEARNING_WARMUP_STEPS = 10
    WEIGHT_AVERAGING = 0.98


def inference_config(training: type[Config]) -> type[Config]:
    """The configuration of detection: whole images, one at a time, in multiples of 64 pixels.

    Images have the scale that they have in training. Where training crops and OBJECT_SIZE decides
    on the scale, IMAGE_MIN_DIM is only the side of the crops.
    """
    values = {"GPU_COUNT": 1, "IMAGES_PER_GPU": 1, "IMAGE_RESIZE_MODE": "pad64"}
    if training.IMAGE_RESIZE_MODE == "crop" and training.OBJECT_SIZE:
        values["IMAGE_MIN_DIM"] = 0
    return type(training.__name__.replace("Config", "InferenceConfig"), (training,), values)


PRESETS = {"paper": PaperConfig}
