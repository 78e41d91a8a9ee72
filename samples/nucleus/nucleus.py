"""Mask R-CNN on the nuclei of the 2018 Data Science Bowl: the command line and its parts.

    python samples/nucleus/nucleus.py detect   --dataset DIR --subset stage1_test
    python samples/nucleus/nucleus.py train    --dataset DIR --subset train --weights imagenet
    python samples/nucleus/nucleus.py evaluate --dataset DIR --subset val --weights last
    python samples/nucleus/nucleus.py choose   --dataset DIR --subset tune --weights last
    python samples/nucleus/nucleus.py ceiling  --dataset DIR --subset val
    python samples/nucleus/nucleus.py synthesize --output DIR

As a module it has the names of matterport's sample: NucleusConfig, NucleusInferenceConfig,
NucleusDataset, VAL_IMAGE_IDS, train, detect, rle_encode, rle_decode, mask_to_rle.
The network (Keras) is imported only by the functions that need it.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT_DIR = str(Path(__file__).resolve().parents[2])
if ROOT_DIR not in sys.path:  # so that the sample runs from any directory
    sys.path.insert(0, ROOT_DIR)

from mrcnn.config import Config  # noqa: E402
from mrcnn.data.dataset import Dataset  # noqa: E402
from mrcnn.data.micrographs import MicrographAugmentation  # noqa: E402
from mrcnn.data.mixture import Mixture  # noqa: E402
from mrcnn.errors import UserError  # noqa: E402
from samples.nucleus.dsb2018 import VAL_IMAGE_IDS, NucleusDataset  # noqa: E402
from samples.nucleus.submission import mask_to_rle, rle_decode, rle_encode  # noqa: E402

__all__ = [
    "VAL_IMAGE_IDS",
    "NucleusConfig",
    "NucleusDataset",
    "NucleusInferenceConfig",
    "detect",
    "main",
    "mask_to_rle",
    "rle_decode",
    "rle_encode",
    "train",
]

DEFAULT_LOGS_DIR = os.path.join(ROOT_DIR, "logs")
RESULTS_DIR = os.path.join(ROOT_DIR, "results", "nucleus")
CLASSES = ("nucleus",)  # names of the class ids from 1
SHIPPED_WEIGHTS = os.path.join(ROOT_DIR, "weights", "mask_rcnn_nucleus.h5")


# Chosen by how well a network answers kinds of images that it was never shown (see generalise.py).
AUGMENTATION = MicrographAugmentation(
    stain=0.5,
    colourise=0.3,
    mix=0.3,
    objects=0.15,
    objects_lowest=0.4,
    shade=0.3,
    haze=0.3,
    defocus=0.2,
    noise=0.2,
)


class NucleusConfig(Config):
    """Training. What differs from matterport's sample is for speed on a CPU or for alignment."""

    NAME = "nucleus"
    NUM_CLASSES = 1 + 1  # background + nucleus

    # ResNet-50: half of ResNet-101's time, and nuclei need little context.
    BACKBONE = "resnet50"

    # Small crops, several a batch: more different pictures a second than one large crop.
    IMAGES_PER_GPU = 4
    IMAGE_RESIZE_MODE = "crop"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 256
    # The kinds of microscopy differ by a factor of ten in the size of nuclei. Brought to one size
    # there is less to learn, and enlarging small nuclei shrinks whatever is left of misalignment.
    OBJECT_SIZE = 32
    # The first look at a picture, from which its zoom follows: nuclei of 7 to 60 pixels are then
    # within the range that the jitter has shown.
    IMAGE_MIN_SCALE = 1.5
    IMAGE_SCALE_JITTER = (0.5, 2.0)

    # Faint and strong exposures, bright and dark nuclei: all become bright ones on black.
    INTENSITY_PERCENTILES = (1, 99.8)
    DARK_GROUND = True

    # Once through some 590 training and 24 validation images. The command line sets both itself.
    STEPS_PER_EPOCH = 591 // IMAGES_PER_GPU
    VALIDATION_STEPS = 24 // IMAGES_PER_GPU

    # Zoomed nuclei are some 32 pixels across: their anchors belong on a fine level. (The report's
    # sides are half of these, for pictures that are not zoomed by their nuclei.)
    RPN_ANCHOR_SCALES = (16, 32, 64, 128, 256)

    # The batch norms learn: the public ImageNet statistics are not those of microscopy, and layers
    # without pretrained kernels have no statistics at all.
    TRAIN_BN = None

    # Half a pixel of systematic offset costs more of the score than most tricks gain.
    PIXEL_CONVENTION = "exact"
    # Boxes are off by 7 % of their size; masks that end at them lose a tenth of the score.
    MASK_ROI_SCALE = 1.2

    # bfloat16 convolutions where the hardware has them: about twice as fast, as accurate.
    PRECISION = "auto"

    # Two classes and simple shapes: half of the usual width of pyramid and heads is enough.
    TOP_DOWN_PYRAMID_SIZE = 128
    RPN_CONV_CHANNELS = 256
    FPN_CLASSIF_FC_LAYERS_SIZE = 512
    MASK_CONV_CHANNELS = 128

    # A crop holds a few dozen nuclei at most.
    TRAIN_ROIS_PER_IMAGE = 64
    RPN_TRAIN_ANCHORS_PER_IMAGE = 256
    RPN_NMS_THRESHOLD = 0.7
    PRE_NMS_LIMIT = 2000
    POST_NMS_ROIS_TRAINING = 500
    POST_NMS_ROIS_INFERENCE = 1000

    # No image of the set has more than 375 nuclei: none is ever cut.
    MAX_GT_INSTANCES = 400
    DETECTION_MAX_INSTANCES = 512

    # Two classes: below .5 the background is the likelier one. `--min-confidence` may go lower.
    DETECTION_MIN_CONFIDENCE = 0.5
    DETECTION_NMS_THRESHOLD = 0.3

    # Mean of the training images (RGB), as in matterport's sample: most are nearly black.
    MEAN_PIXEL = np.array([43.53, 39.56, 48.22])

    # Crops are few and the heads start from nothing: true boxes as regions give them examples
    # from the first step on.
    TRAIN_GT_AS_ROIS = True

    # Adam gets further than SGD in the few thousand steps that a processor has time for. Full
    # steps from the start would spoil the pretrained weights.
    OPTIMIZER = "adam"
    LEARNING_RATE = 3e-4
    LEARNING_SCHEDULE = "cosine"
    LEARNING_WARMUP_STEPS = 50

    # Checkpoints of one run scatter; their average is better than most of them.
    WEIGHT_AVERAGING = 0.999


class NucleusInferenceConfig(NucleusConfig):
    """Detection: whole images, one at a time, enlarged and padded to multiples of 64."""

    GPU_COUNT = 1
    IMAGES_PER_GPU = 1
    IMAGE_RESIZE_MODE = "pad64"


class Stage(NamedTuple):
    """A part of training."""

    layers: str
    end: float  # share of all epochs, or of the time budget, by which the stage ends
    factor: float = 1.0  # of LEARNING_RATE
    freeze_bn: bool = False  # whether the statistics of the batch norms stay as they are


# The heads start from random numbers: they learn alone first, so that their large gradients spare
# the backbone.
STAGES = (Stage("heads", 0.05), Stage("all", 1.0))
# "alternating", the four steps of mrcnn/training/alternating.py, is no list of such stages.
SCHEDULES = ("stagewise", "joint", "alternating")
DEFAULT_EPOCHS = 20
VALIDATION = {"fit": "tune"}
MAX_EPOCHS = 9999  # names of checkpoints have four digits


def train(
    model,
    dataset_dir: str,
    subset: str,
    epochs: int | None = None,
    time_budget: float | None = None,
    schedule: str = "stagewise",
    augmentation=None,
    kinds: Collection[str] | None = None,
    also: Sequence[tuple[Dataset, float]] = (),
) -> None:
    """Train a `MaskRCNN` in "training" mode on a subset of a data set.

    Validates on the subset "val" ("tune" where "fit" is trained on) if the data set has it.
    kinds: only images of these, see `NucleusDataset.load_nucleus`. also: other prepared data sets
    and the shares of training that their images have. The other arguments are those of `train_on`.
    """
    dataset_train = load_dataset(dataset_dir, subset, True, kinds)
    if also:
        dataset_train = Mixture(dataset_train, also)
    try:
        dataset_val = load_dataset(dataset_dir, VALIDATION.get(subset, "val"), True, kinds)
    except UserError as error:
        print(f"No validation: {error}", file=sys.stderr)
        dataset_val = None
    train_on(model, dataset_train, dataset_val, epochs, time_budget, schedule, augmentation)


def train_on(
    model,
    dataset_train: Dataset,
    dataset_val: Dataset | None,
    epochs: int | None = None,
    time_budget: float | None = None,
    schedule: str = "stagewise",
    augmentation=None,
) -> None:
    """Train a `MaskRCNN` in "training" mode.

    dataset_train, dataset_val: prepared; nothing is chosen by validation.
    epochs: in all, finished ones included; by default DEFAULT_EPOCHS, or no limit under a budget.
    time_budget: minutes in all, those of the finished epochs included. The stages have their shares
        of it, and the learning rate's schedule ends with it.
    schedule: one of SCHEDULES: in STAGES; all layers at once; proposal network and detector by
        turns, for a quarter of the epochs or time each (see mrcnn/training/alternating.py).
    augmentation: see `mrcnn.data.augment`; by default AUGMENTATION.
    A model that has been loaded from a checkpoint goes on where that stopped.
    Raises UserError for data that cannot be trained on.
    """
    epochs = epochs or (DEFAULT_EPOCHS if time_budget is None else MAX_EPOCHS)
    augmentation = augmentation or AUGMENTATION
    if model.epoch >= epochs:
        print(f"Nothing to train: {model.epoch} epochs are done already, {epochs} were asked for")
    elif schedule == "alternating":
        _train_alternating(model, dataset_train, dataset_val, epochs, time_budget, augmentation)
        return
    stages = [Stage("all", 1.0)] if schedule == "joint" else [Stage(*values) for values in STAGES]
    layers, start = [stage.layers for stage in stages], 0
    # More epochs or time prolong the first stages too, but what has left them does not go back.
    reached = layers.index(model.resumed_layers) if model.resumed_layers in layers else 0
    for number, stage in enumerate(stages):
        end = epochs if stage.end == 1.0 else min(epochs, max(1, round(stage.end * epochs)))
        if number >= reached and end > start and model.epoch < end:
            seconds, until = None, f"epoch {end} of {epochs}"
            if time_budget is not None:
                seconds = 60 * stage.end * time_budget
                until = f"minute {seconds / 60:.1f} of {time_budget:g}"
            print(f"Training {stage.layers}: to {until}")
            model.train(
                dataset_train,
                dataset_val,
                layers=stage.layers,
                epochs=end,
                learning_rate=model.config.LEARNING_RATE * stage.factor,
                augmentation=augmentation,
                freeze_bn=stage.freeze_bn,
                time_budget=seconds,
            )
        start = end


def _train_alternating(
    model, dataset_train, dataset_val, epochs: int, time_budget: float | None, augmentation
) -> None:
    from mrcnn.training.alternating import four_steps, train_alternating

    steps = len(four_steps(model.config))
    if epochs < steps:
        raise UserError(f"alternating training has {steps} steps: {epochs} epochs are too few")
    ends = [round(epochs * (i + 1) / steps) for i in range(steps)]
    seconds = [None] * steps
    if time_budget is not None:
        seconds = [60 * time_budget * (i + 1) / steps for i in range(steps)]
    train_alternating(
        model, dataset_train, dataset_val, model.config.LEARNING_RATE, ends, augmentation, seconds
    )


def load_dataset(
    dataset_dir: str, subset: str, labelled: bool = False, kinds: Collection[str] | None = None
) -> NucleusDataset:
    """A prepared NucleusDataset; `labelled` demands a masks folder of every image.

    kinds: see `NucleusDataset.load_nucleus`.
    """
    dataset = NucleusDataset()
    dataset.load_nucleus(dataset_dir, subset, kinds)
    dataset.prepare()
    bare = [i for i in dataset.image_ids if labelled and not dataset.is_labelled(i)]
    if bare:
        raise UserError(
            f"{len(bare)} of {len(dataset.image_ids)} images in {subset} have no "
            f"masks folder (first: {dataset.image_reference(bare[0])}); such images "
            "work for detect only"
        )
    return dataset


def results_folder(name: str) -> Path:
    """results/nucleus/<name>_<time>, not made yet."""
    return Path(RESULTS_DIR) / f"{name}_{datetime.datetime.now():%Y%m%dT%H%M%S}"


def detect(
    model,
    dataset_dir: str,
    subset: str,
    output: str | os.PathLike | None = None,
    limit: int | None = None,
    pictures: bool = True,
) -> list[str]:
    """Detect with a `MaskRCNN` in "inference" mode; writes submit.csv, pictures and a report.

    output: folder, by default results/nucleus/detect_<time>. limit: only the first images.
    Returns the ids of images that could not be read (empty rows stand for them in the file).
    """
    from mrcnn.segmenter import Segmenter
    from samples.nucleus.inputs import of_dataset
    from samples.nucleus.results import DEFAULT_FORMATS
    from samples.nucleus.runs import run_detect

    inputs = of_dataset(load_dataset(dataset_dir, subset))[:limit]
    formats = DEFAULT_FORMATS if pictures else ("submission",)
    output = Path(output or results_folder("detect"))
    return list(run_detect(Segmenter(model, CLASSES), inputs, output, formats))


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for errors, 130 after Ctrl-C."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no start-up notes; errors are raised
    from samples.nucleus.cli import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
