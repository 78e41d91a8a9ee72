"""Every knob of the model, its training and its data, with units and sources.

Make a sub-class, override what differs, and pass an instance to ``mrcnn.model.MaskRCNN``::

    class ShapesConfig(Config):
        NAME = "shapes"
        NUM_CLASSES = 1 + 3

Names, defaults and meanings are those of matterport's Mask R-CNN 2.1; keys that it does not have
are marked "(new)". "Paper" is the one that this package implements (docs/paper.md), "He et al." is
*Mask R-CNN* (2017), "FPN" is Lin et al., *Feature Pyramid Networks* (2017). Sequences may be lists,
tuples or NumPy arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mrcnn import config_rules
from mrcnn.config_rules import LOSS_NAMES


class Config:
    """Base configuration. Creating an instance validates all keys and computes the derived ones."""

    # ---- Run -----------------------------------------------------------------------------------
    # Short name of the experiment; log folders begin with it (lower-cased).
    NAME: str | None = None

    # Devices that share a batch, those of all processes together; see docs/training-devices.md.
    GPU_COUNT = 1

    # Images per device and step; BATCH_SIZE = IMAGES_PER_GPU * GPU_COUNT.
    IMAGES_PER_GPU = 2

    # (new) Seed of weights, data order, crops and augmentation.
    SEED = 0

    # ---- Input images --------------------------------------------------------------------------
    # How an image becomes network input:
    #   "none"    unchanged; both sides must already be multiples of 64.
    #   "square"  scaled (see below), then zero-padded to IMAGE_MAX_DIM x IMAGE_MAX_DIM.
    #   "pad64"   scaled, then zero-padded to the next multiples of 64; IMAGE_MAX_DIM is not used.
    #   "crop"    scaled, then a random IMAGE_MIN_DIM x IMAGE_MIN_DIM part; training only.
    IMAGE_RESIZE_MODE = "square"

    # Pixels. Images are enlarged (never shrunk) until the short side has this length.
    # 0 or None: no such enlargement.
    IMAGE_MIN_DIM: int | None = 800

    # Pixels. "square" only: the long side never exceeds this, whatever the other keys ask for.
    IMAGE_MAX_DIM = 1024

    # Factor. Images are enlarged by at least this much. 0 or None: no lower bound.
    IMAGE_MIN_SCALE: float | None = 0

    # (new) Pixels. Images are enlarged or shrunk until the median box of their objects has this
    # side, within the scales (smallest, largest) of SCALE_LIMITS. Training ("crop" only) uses the
    # true objects; detection ("pad64" only) finds them first at the scale that IMAGE_MIN_SCALE asks
    # for, then again. None: no such scale.
    OBJECT_SIZE: float | None = None
    SCALE_LIMITS = (0.25, 4.0)

    # (new) Factors (low, high). "crop" only: the enlargement is multiplied by a random number,
    # log-uniform between the two.
    IMAGE_SCALE_JITTER = (1.0, 1.0)

    # Channels of the input: 1 grey, 3 RGB, 4 or more for RGB plus something else.
    IMAGE_CHANNEL_COUNT = 3

    # Grey levels (0..255), one per channel or one for all; subtracted from every image.
    # The default is ImageNet's mean colour, as its pretrained weights expect. When
    # IMAGE_CHANNEL_COUNT is not 3 and this is left alone, it is adapted: its mean stands in for
    # every channel beyond RGB, or for all of them when there are fewer than three.
    MEAN_PIXEL = np.array([123.7, 116.8, 103.9])

    # (new) Percentiles (low, high) of an image's grey levels that become 0 and 255, all channels
    # together. None: grey levels stay as they are. See mrcnn/pixels/exposure.py.
    INTENSITY_PERCENTILES: tuple[float, float] | None = None

    # (new) Invert images whose background is light, so that objects are bright in all of them.
    DARK_GROUND = False

    # (new) Where samples lie; see mrcnn/pixels/molding.py.
    #   "matterport"  corner-aligned sampling, as files trained with matterport's code need it.
    #   "exact"       half-pixel centres and exclusive box ends everywhere: no systematic offset.
    PIXEL_CONVENTION = "matterport"

    # ---- Backbone and features -----------------------------------------------------------------
    # (new) Which features the network uses; see mrcnn/network/architecture.py.
    #   "fpn"  a pyramid over all stages of the backbone (FPN)
    #   "c4"   its fourth stage, the fifth being a part of the heads (paper section 4.2). The
    #          default 7 of POOL_SIZE then becomes 14, and that of MASK_SHAPE what follows.
    ARCHITECTURE = "fpn"

    # (new) "c4" only: the fifth stage keeps its resolution and looks at every other cell (paper
    # section 3.5.1). Four times the work; masks of 28 x 28 cells instead of 14 x 14.
    DILATED_STAGE5 = False

    # "resnet50", "resnet101", or a callable with the signature of mrcnn.model.resnet_graph.
    BACKBONE: str | Callable = "resnet101"

    # Callable(image_shape) -> [levels, (height, width)] in feature cells. Needed if and
    # only if BACKBONE is a callable.
    COMPUTE_BACKBONE_SHAPE: Callable | None = None

    # Pixels per feature cell on each pyramid level, P2 to P6.
    BACKBONE_STRIDES = [4, 8, 16, 32, 64]

    # Channels of every pyramid level (FPN section 3: 256).
    TOP_DOWN_PYRAMID_SIZE = 256

    # Whether batch normalisation learns: False freezes it (right for small batches), None trains
    # it, True uses batch statistics even in inference (not recommended).
    TRAIN_BN: bool | None = False

    # (new) Number type of the convolutions: "float32", "bfloat16", or "auto" (bfloat16 where the
    # hardware is fast at it). Boxes, suppression and losses stay in float32.
    PRECISION = "float32"

    # ---- Region proposals ----------------------------------------------------------------------
    # Pixels of the network input: side of the square anchor on each pyramid level.
    RPN_ANCHOR_SCALES = (32, 64, 128, 256, 512)

    # Anchor shapes, width / height. An anchor keeps the area scale**2 whatever its ratio.
    RPN_ANCHOR_RATIOS = [0.5, 1, 2]

    # Feature cells between neighbouring anchors; 1 puts anchors on every cell.
    RPN_ANCHOR_STRIDE = 1

    # (new) Channels of the convolution shared by the proposal network's two outputs.
    RPN_CONV_CHANNELS = 512

    # IoU above which the lower-scored of two proposals is dropped. Larger: more proposals.
    RPN_NMS_THRESHOLD = 0.7

    # Anchors per image that the proposal losses use, at most half of them positive.
    RPN_TRAIN_ANCHORS_PER_IMAGE = 256

    # Proposals per image, best scores first: before suppression, and after it.
    PRE_NMS_LIMIT = 6000
    POST_NMS_ROIS_TRAINING = 2000
    POST_NMS_ROIS_INFERENCE = 1000

    # (new) Detection: PRE_NMS_LIMIT, POST_NMS_ROIS_INFERENCE and DETECTION_MAX_INSTANCES are for
    # up to 1024 x 1024 pixels of network input, and grow with its area above that, in powers of
    # two. False: they are the same for images of all sizes.
    LIMITS_PER_MEGAPIXEL = False

    # Standard deviations of (dy, dx, log dh, log dw): box deltas are divided by them.
    RPN_BBOX_STD_DEV = np.array([0.1, 0.1, 0.2, 0.2])

    # ---- Heads ---------------------------------------------------------------------------------
    # Classes, background included.
    NUM_CLASSES = 1

    # Feature cells per side that ROIAlign samples for the class/box head and for the mask head.
    POOL_SIZE = 7
    MASK_POOL_SIZE = 14

    # Units of the class/box head's two hidden layers (FPN section 4.2: 1024).
    FPN_CLASSIF_FC_LAYERS_SIZE = 1024

    # (new) Channels of the mask head's convolutions (He et al., figure 4: 256).
    MASK_CONV_CHANNELS = 256

    # Cells (height, width) of a predicted mask. The head doubles its input, so this is twice
    # MASK_POOL_SIZE.
    MASK_SHAPE = [28, 28]

    # (new) Factor. The mask head looks at regions enlarged by this much, in training and detection
    # alike: a mask cannot reach beyond its region, and so a box that is a little too small would
    # cut off the object. 1 (as in He et al.): the box itself.
    MASK_ROI_SCALE = 1.0

    # (new) How the features of a region are pooled: "align" samples them where they are, "pool"
    # takes maxima over whole cells (paper sections 3.7.1 and 4.1.3).
    ROI_POOLING = "align"

    # (new) "align" only: samples in every bin, 1 or 4, and how 4 become one value: "average" or
    # "max" (paper section 4.1.4).
    ROI_SAMPLES = 1
    ROI_SAMPLES_JOIN = "average"

    # (new) Let the network learn to rotate, shift and scale the features of a region before they
    # are classified (paper section 3.6).
    ROI_SPATIAL_TRANSFORMER = False

    # (new) Ranks of the two fully connected layers, each as two thin ones (paper section 3.8.6);
    # 0 for a whole layer. See mrcnn/compression.py, which makes such a network from another.
    FPN_CLASSIF_FC_RANKS = (0, 0)

    # (new) Let the proposal network and the two output layers start from small Gaussian numbers
    # (paper sections 3.8.3 and 3.9.5) instead of Keras's default.
    GAUSSIAN_HEADS = False

    # As RPN_BBOX_STD_DEV, for the second refinement of the boxes.
    BBOX_STD_DEV = np.array([0.1, 0.1, 0.2, 0.2])

    # ---- Training data and targets -------------------------------------------------------------
    # Instances per image used for training. An image with more trains on a random subset, with
    # a warning.
    MAX_GT_INSTANCES = 100

    # Keep training masks as small images of their boxes, to save memory, and their size in
    # cells (height, width). False keeps whole masks, MAX_GT_INSTANCES x H x W per image: in the
    # exact PIXEL_CONVENTION they take much memory where images are large.
    USE_MINI_MASK = True
    MINI_MASK_SHAPE = (56, 56)

    # Regions per image that the heads train on, and the largest share of them that may be
    # positive (He et al. section 3.1: 1 positive to 3 negatives).
    TRAIN_ROIS_PER_IMAGE = 200
    ROI_POSITIVE_RATIO = 0.33

    # (new) Regions whose IoU with the nearest object is at least the first and below the second
    # are examples of background. The paper (section 3.8.1) asks for at least .1: hard examples.
    ROI_BACKGROUND_IOU = (0.0, 0.5)

    # (new) Let the true boxes be regions too, so that the heads learn before the proposals are
    # any good (as later detectors do; matterport does not).
    TRAIN_GT_AS_ROIS = False

    # True: the heads train on the proposals. False: on regions that the data pipeline generates.
    USE_RPN_ROIS = True

    # (new) Threads that prepare batches, and the megabytes of decoded images they may keep.
    DATA_WORKERS = 1
    CACHE_MB = 1024

    # (new) Folder that keeps decoded images and masks for later runs, which then start at full
    # speed. Changed files are noticed. Needs Dataset.fingerprint. None: nothing is kept.
    CACHE_DIR: str | os.PathLike | None = None

    # ---- Optimisation --------------------------------------------------------------------------
    # Batches per epoch, and validation batches at the end of each epoch (0: none).
    STEPS_PER_EPOCH = 1000
    VALIDATION_STEPS = 50

    # (new) "sgd" (with LEARNING_MOMENTUM) or "adam".
    OPTIMIZER = "sgd"

    # Step size. The .02 of He et al. is for batches of 16; it diverges with small ones.
    LEARNING_RATE = 0.001
    LEARNING_MOMENTUM = 0.9

    # (new) Over the epochs (or the time budget) of one train() call: "constant"; "cosine": falling
    # to zero; "step": divided by ten after each fraction in LEARNING_DROPS; "plateau": divided by
    # ten when the loss (of the validation images, where there are any) has not fallen for
    # LEARNING_PATIENCE epochs (paper section 3.3.1).
    LEARNING_SCHEDULE = "constant"
    LEARNING_DROPS = (2 / 3, 8 / 9)
    LEARNING_PATIENCE = 5

    # (new) Steps over which the learning rate rises from zero at the start.
    LEARNING_WARMUP_STEPS = 0

    # (new) Factor of the learning rate of biases (paper section 3.8.3: 2).
    LEARNING_BIAS_FACTOR = 1.0

    # Factor of the plain L2 penalty on kernels (He et al. section 3.1: .0001). matterport divides
    # each penalty by its tensor's size, which all but removes it.
    WEIGHT_DECAY = 0.0001

    # Largest L2 norm of each gradient tensor. None: no clipping.
    GRADIENT_CLIP_NORM: float | None = 5.0

    # (new) Decay per step of a moving average of all weights (.999 averages about the last 1000
    # steps; at the start of a stage, when there are fewer, it is lower). Validation and checkpoints
    # use the average. None: no average.
    WEIGHT_AVERAGING: float | None = None

    # Factors of the five losses in the total; a name left out counts 1. These are the lambdas of
    # the paper's equations 12 and 16.
    LOSS_WEIGHTS = dict.fromkeys(LOSS_NAMES, 1.0)

    # (new) What the two box losses are divided by. "positives": a mean over the positive anchors
    # or regions and over the four numbers of a box (matterport). "paper": sums over the four
    # numbers, divided by the number of anchor positions (N_reg of equation 16) and by all sampled
    # regions (equation 12).
    BOX_LOSS_MEAN = "positives"

    # (new) How many of the newest checkpoints to keep. None: all.
    CHECKPOINTS_TO_KEEP: int | None = None

    # ---- Detection -----------------------------------------------------------------------------
    # Most instances per image. An image where more were found gives a warning.
    DETECTION_MAX_INSTANCES = 100

    # Probability that a detection must reach. 0 or None: no lower bound. In matterport's pixel
    # convention it must also be larger than the background's.
    DETECTION_MIN_CONFIDENCE: float | None = 0.7

    # IoU above which the lower-scored of two detections of one class is dropped.
    DETECTION_NMS_THRESHOLD = 0.3

    # (new) Probability from which a pixel belongs to a mask (He et al. section 3.1: .5).
    MASK_THRESHOLD = 0.5

    def __init__(self) -> None:
        """Validate, then compute BATCH_SIZE, IMAGE_SHAPE and IMAGE_META_SIZE.

        Raises:
            UserError: a key has a value that is not allowed.
        """
        self._adapt_mean_pixel()
        self._adapt_to_architecture()
        self.validate()
        self.BATCH_SIZE = self.IMAGES_PER_GPU * self.GPU_COUNT
        side = self.IMAGE_MIN_DIM if self.IMAGE_RESIZE_MODE == "crop" else self.IMAGE_MAX_DIM
        self.IMAGE_SHAPE = np.array([side, side, self.IMAGE_CHANNEL_COUNT])
        # id, original shape, molded shape, window, scale, active classes: compose_image_meta().
        self.IMAGE_META_SIZE = 1 + 3 + 3 + 4 + 1 + self.NUM_CLASSES

    @property
    def exact_pixels(self) -> bool:
        """True when PIXEL_CONVENTION is "exact"."""
        return self.PIXEL_CONVENTION == "exact"

    def validate(self) -> None:
        """Check every key, and warn once about every upper-case name that is not a key.

        Raises:
            UserError: one line that names the key, its value and what is allowed.
        """
        config_rules.validate(self, self._keys())

    def display(self) -> None:
        """Print every key with its value."""
        print("\nConfigurations:")
        for key in self._keys():
            print(f"{key:30} {getattr(self, key)}")
        print("\n")

    def to_dict(self) -> dict[str, Any]:
        """Return every key with a value that ``json.dump`` takes (callables by their name)."""
        return {key: config_rules.plain(getattr(self, key)) for key in self._keys()}

    def _adapt_to_architecture(self) -> None:
        """Where they are left alone, POOL_SIZE and MASK_SHAPE follow ARCHITECTURE = "c4"."""
        if self.ARCHITECTURE != "c4" or not config_rules.is_integer(self.MASK_POOL_SIZE):
            return
        if self.POOL_SIZE == Config.POOL_SIZE:
            self.POOL_SIZE = 14
        if np.array_equal(self.MASK_SHAPE, Config.MASK_SHAPE):
            self.MASK_SHAPE = [config_rules.mask_side(self)] * 2

    def _keys(self) -> list[str]:
        return [name for name in dir(self) if name.isupper() and not name.startswith("_")]

    def _adapt_mean_pixel(self) -> None:
        count = self.IMAGE_CHANNEL_COUNT
        if (
            not config_rules.is_integer(count)
            or not 1 <= count <= config_rules.MOST_SIZE
            or count == 3
        ):
            return
        if np.array_equal(self.MEAN_PIXEL, Config.MEAN_PIXEL):
            mean = Config.MEAN_PIXEL.mean()
            kept = Config.MEAN_PIXEL if count > 3 else Config.MEAN_PIXEL[:0]
            self.MEAN_PIXEL = np.append(kept, np.full(count - len(kept), mean))
