"""Mask R-CNN on the nuclei of the 2018 Data Science Bowl.

    python samples/nucleus/nucleus.py detect   --dataset DIR --subset stage1_test
    python samples/nucleus/nucleus.py train    --dataset DIR --subset train --weights imagenet
    python samples/nucleus/nucleus.py evaluate --dataset DIR --subset val --weights last
    python samples/nucleus/nucleus.py choose   --dataset DIR --subset tune --weights last
    python samples/nucleus/nucleus.py synthesize --output DIR

The command line is that of the package (`mrcnn`), with the competition's data and its
submission file. As a module it has the names of matterport's sample: NucleusConfig,
NucleusInferenceConfig, NucleusDataset, VAL_IMAGE_IDS, train, detect, rle_encode, rle_decode,
mask_to_rle. The network (Keras) is imported only by the functions that need it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT_DIR = str(Path(__file__).resolve().parents[2])
if ROOT_DIR not in sys.path:  # so that the sample runs from any directory
    sys.path.insert(0, ROOT_DIR)

from mrcnn.atomic import locked  # noqa: E402
from mrcnn.cli import application, flags  # noqa: E402
from mrcnn.cli.application import Application, Found, TrainingData, need  # noqa: E402
from mrcnn.cli.inputs import of_dataset  # noqa: E402
from mrcnn.cli.main import add_commands, command_of, complete, new_parser, parse, run  # noqa: E402
from mrcnn.cli.summary import Summary  # noqa: E402
from mrcnn.data.dataset import Dataset  # noqa: E402
from mrcnn.data.micrographs import MICROGRAPHS  # noqa: E402
from mrcnn.data.mixture import Mixture  # noqa: E402
from mrcnn.data.pairs import find_pairs  # noqa: E402
from mrcnn.errors import UserError  # noqa: E402
from mrcnn.inference.postprocess import DEFAULTS  # noqa: E402
from mrcnn.presets import MicrographConfig  # noqa: E402
from mrcnn.results.writers import DEFAULT_FORMATS, FORMATS  # noqa: E402
from mrcnn.training.stages import STAGES, train_in_stages  # noqa: E402
from mrcnn.weights.description import Description  # noqa: E402
from samples.nucleus import choose, generalise, synthesize  # noqa: E402
from samples.nucleus.dsb2018 import VAL_IMAGE_IDS, NucleusDataset, load_dataset  # noqa: E402
from samples.nucleus.kinds import KINDS_OF_IMAGES, kept_kinds  # noqa: E402
from samples.nucleus.submission import (  # noqa: E402
    Submission,
    SubmissionWriter,
    absent_images,
    mask_to_rle,
    rle_decode,
    rle_encode,
    unknown_images,
)

__all__ = [
    "VAL_IMAGE_IDS",
    "NucleusConfig",
    "NucleusDataset",
    "NucleusInferenceConfig",
    "detect",
    "load_dataset",
    "main",
    "mask_to_rle",
    "rle_decode",
    "rle_encode",
    "train",
]

DEFAULT_LOGS_DIR = os.path.join(ROOT_DIR, "logs")
RESULTS_DIR = os.path.join(ROOT_DIR, "results", "nucleus")
SHIPPED_WEIGHTS = os.path.join(ROOT_DIR, "weights", "mask_rcnn_nucleus.h5")
CLASSES = ("nucleus",)  # names of the class ids from 1
PLURAL = "nuclei"
VALIDATION = {"fit": "tune"}  # where it is not "val"
DEFAULT_COMPETITION_FORMATS = ("report", "submission", "pictures")


# ---- Configuration -----------------------------------------------------------------------------


class NucleusConfig(MicrographConfig):
    """Training. The recipe is that for micrographs; only what depends on the data set is here."""

    NAME = "nucleus"
    NUM_CLASSES = 1 + 1  # background + nucleus

    # One pass over some 590 training and 24 validation images. The command line sets both itself.
    STEPS_PER_EPOCH = 591 // MicrographConfig.IMAGES_PER_GPU
    VALIDATION_STEPS = 24 // MicrographConfig.IMAGES_PER_GPU


class NucleusInferenceConfig(NucleusConfig):
    """Detection: whole images, one at a time, enlarged and padded to multiples of 64."""

    GPU_COUNT = 1
    IMAGES_PER_GPU = 1
    IMAGE_RESIZE_MODE = "pad64"


# ---- Training and detection from Python --------------------------------------------------------


def train(
    model: Any,
    dataset_dir: str,
    subset: str,
    epochs: int | None = None,
    time_budget: float | None = None,
    schedule: str = "stagewise",
    augmentation: Any = None,
    kinds: Collection[str] | None = None,
    also: Sequence[tuple[Dataset, float]] = (),
) -> None:
    """Train a `MaskRCNN` in "training" mode on a subset of a data set.

    Validates on the subset "val" ("tune" if "fit" is trained on) if the data set has it.

    Args:
        model: the `MaskRCNN`.
        dataset_dir: folder of the data set; subset: see `NucleusDataset.load_nucleus`.
        epochs, time_budget, schedule: see `training.stages.train_in_stages`.
        augmentation: by default `data.micrographs.MICROGRAPHS`.
        kinds: only images of these, see `NucleusDataset.load_nucleus`.
        also: other prepared data sets and the shares of training that their images have.
    """
    train_set, val_set = training_sets(dataset_dir, subset, kinds, also)
    train_in_stages(
        model,
        train_set,
        val_set,
        epochs,
        time_budget,
        schedule,
        augmentation or MICROGRAPHS,
        STAGES,
    )


def training_sets(
    dataset_dir: str,
    subset: str,
    kinds: Collection[str] | None = None,
    also: Sequence[tuple[Dataset, float]] = (),
) -> tuple[Dataset, Dataset | None]:
    """The data sets that `train` learns from and validates on."""
    train_set: Dataset = load_dataset(dataset_dir, subset, True, kinds)
    if also:
        train_set = Mixture(train_set, also)
    try:
        return train_set, load_dataset(dataset_dir, VALIDATION.get(subset, "val"), True, kinds)
    except UserError as error:
        print(f"No validation: {error}", file=sys.stderr)
        return train_set, None


def detect(
    model: Any,
    dataset_dir: str,
    subset: str,
    output: str | os.PathLike | None = None,
    limit: int | None = None,
    pictures: bool = True,
) -> list[str]:
    """Detect with a `MaskRCNN` in "inference" mode; writes submit.csv, pictures and a report.

    Args:
        model: the `MaskRCNN`.
        dataset_dir: folder of the data set; subset: see `NucleusDataset.load_nucleus`.
        output: folder, by default results/nucleus/detect_<time>.
        limit: only the first images.
        pictures: whether to write pictures and the report.

    Returns:
        The ids of images that could not be read (empty rows stand for them in the file).
    """
    from mrcnn.cli.detect_images import run_detect
    from mrcnn.results.run_log import forget
    from mrcnn.segmenter import Segmenter

    app = NucleusApplication()
    inputs = of_dataset(load_dataset(dataset_dir, subset))[:limit]
    formats = DEFAULT_COMPETITION_FORMATS if pictures else ("submission",)
    folder = Path(output or app.results_folder("detect"))
    segmenter = Segmenter(model, CLASSES, plural=PLURAL)
    with locked(folder):
        forget(folder)
        extra = app.writers(folder, formats)
        done = run_detect(segmenter, inputs, folder, formats, extra=extra)
    print(done.result)
    return list(done.failed)


# ---- The command line --------------------------------------------------------------------------


class NucleusApplication(Application):
    """`mrcnn` with the competition's data: --dataset and --subset, and submissions."""

    results = RESULTS_DIR
    recipe = NucleusConfig
    run_name = NucleusConfig.NAME
    kinds = KINDS_OF_IMAGES

    def description(self, path: str | None) -> Description:
        found = super().description(path)
        # Files of earlier versions lack the plural.
        return replace(found, plural=PLURAL) if found.classes == CLASSES else found

    def new_description(self) -> Description:
        return Description(CLASSES, {}, DEFAULTS.to_dict(), PLURAL)

    def check_data_flags(self, options: argparse.Namespace) -> None:
        own = options.images or options.labels
        if own and competition(options):
            raise UserError(
                f"{options.command} takes --images and --labels, or --dataset and --subset, not "
                "both"
            )
        need(options, *(("images", "labels") if own else ("dataset", "subset")))
        if getattr(options, "channel", None) and not own:
            raise UserError("--channel is for --images, not for --dataset")
        if own and getattr(options, "also", None) or own and getattr(options, "leave_out", None):
            raise UserError("--also and --leave-out need --dataset and --subset")
        if options.command == "evaluate" and options.submission:
            chosen = options.min_confidence is not None
            if chosen or options.set or options.plain or options.tta:
                raise UserError(
                    "--min-confidence, --set, --plain and --tta are for detecting: they have no "
                    "effect with --submission"
                )

    def find_inputs(self, options: argparse.Namespace) -> Found:
        if not competition(options):
            if not options.inputs:
                raise UserError("detect needs images, or --dataset and --subset; see detect --help")
            return super().find_inputs(options)
        if options.inputs:
            raise UserError("detect takes images, or --dataset and --subset, not both")
        need(options, "dataset", "subset")
        if options.channel:
            raise UserError("--channel is for images named as files, not for --dataset")
        inputs = of_dataset(load_dataset(options.dataset, options.subset))
        return Found(inputs, {}, DEFAULT_COMPETITION_FORMATS)

    def training_data(self, options: argparse.Namespace, noun: str) -> TrainingData:
        if options.images:
            return super().training_data(options, noun)
        return CompetitionData(options)

    def scored_data(self, options: argparse.Namespace, noun: str) -> Dataset:
        if options.images:
            return super().scored_data(options, noun)
        return load_dataset(options.dataset, options.subset, labelled=True)

    def writers(
        self, output: Path, formats: Sequence[str], lengths: Mapping[str, int] | None = None
    ) -> list:
        path = output / "submit.csv"
        return [SubmissionWriter(path, lengths)] if "submission" in formats else []

    def detects(self, options: argparse.Namespace) -> bool:
        return not options.submission

    def given_predictions(self, options: argparse.Namespace, dataset: Dataset):
        if not options.submission:
            return None
        submission = Submission(options.submission)
        absent = absent_images(submission, dataset, options.limit)
        for line in (absent, unknown_images(submission, dataset)):
            if line:
                print(line, file=sys.stderr)

        def predict(name, image):
            return submission.labels(name, image.shape[:2]), submission.scores(name), None

        return predict, {"detections": options.submission}


class CompetitionData:
    """A subset of the competition's images, and other data sets beside it."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.kinds = options, kept_kinds(options.leave_out)
        self.also = [(other_dataset(path), share) for path, share in options.also]
        self.images = len(load_dataset(options.dataset, options.subset, True, self.kinds).image_ids)

    def datasets(self, folder: Path) -> tuple[Dataset, Dataset | None]:
        return training_sets(self.options.dataset, self.options.subset, self.kinds, self.also)


def competition(options: argparse.Namespace) -> bool:
    """Whether --dataset or --subset was given."""
    return hasattr(options, "dataset") or hasattr(options, "subset")


def other_dataset(path: str) -> Dataset:
    """The data set in a folder: images/ and labels/, or a folder or zip file in Kaggle's layout."""
    folder = Path(path)
    if not folder.exists():
        raise UserError(f"--also {path}: no such folder")
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        pairs = find_pairs(folder / "images", folder / "labels")
        application.refuse_wrong_files(pairs)
        return application.dataset_of(pairs, CLASSES[0])
    if folder.is_file():
        return load_dataset(path, folder.stem, labelled=True)
    return load_dataset(str(folder.parent), folder.name, labelled=True)


SUMMARIES = {
    "train": "train on a data set",
    "detect": "find nuclei in images; writes what --format names",
    "evaluate": "score detections against the true masks",
    "choose": "score a grid of post-processing settings; writes choose.csv",
    "generalise": "train without a kind of image and score on that kind",
    "compress": "make a weight file with thinner fully connected layers (truncated SVD)",
    "export": "write the network for other runtimes: ONNX, SavedModel",
    "synthesize": "make a data set of synthetic nuclei",
}
EXAMPLES = {
    "train": """\
  # ten epochs from ImageNet weights, on stage1_train without the 25 validation images
  nucleus.py train --dataset data --subset train --weights imagenet --epochs 10
  # train for an hour; the same with --weights last resumes after an interruption
  nucleus.py train --dataset data --subset train --weights imagenet --time-budget 60
  # another network: the paper's, or single keys of mrcnn/config.py
  nucleus.py train --dataset data --subset train --weights imagenet --preset paper
  nucleus.py train --dataset data --subset train --weights imagenet --config ROI_POOLING=pool""",
    "detect": """\
  # a file for Kaggle and a picture of every image
  nucleus.py detect --dataset data --subset stage1_test --weights last""",
    "evaluate": """\
  # detect, then score against the masks
  nucleus.py evaluate --dataset data --subset val --weights last
  # score a file that exists already (no network is loaded)
  nucleus.py evaluate --dataset data --subset val --submission submit.csv""",
    "choose": """\
  # which post-processing suits a model best
  nucleus.py choose --dataset data --subset tune --weights last""",
    "generalise": """\
  # how well the recipe works on kinds of images that it was never shown: 500 steps for each
  nucleus.py generalise --dataset data --weights imagenet --output base
  nucleus.py generalise --dataset data --weights imagenet --output stain --augment stain=.5 \\
      --against base""",
    "compress": """\
  # the class and box head's fully connected layers at rank 64 (paper section 3.8.6)
  nucleus.py compress --weights nucleus --rank 64 --output smaller.h5
  nucleus.py evaluate --dataset data --subset val --weights smaller.h5""",
    "export": """\
  # for onnxruntime, images of 512 x 512 pixels; for TensorFlow
  nucleus.py export --weights nucleus --format onnx --size 512 --output nucleus.onnx
  nucleus.py export --weights last --format saved_model --size 512 --output nucleus_tf""",
    "synthesize": """\
  # 40 synthetic images in Kaggle's layout, to try the other commands on
  nucleus.py synthesize --output synthetic --count 40 --size 256 --seed 1
  nucleus.py train --dataset synthetic --subset stage1_train --weights imagenet --epochs 2""",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser. The flags of matterport's sample may also come before the command."""
    parser = new_parser("nucleus.py", "Mask R-CNN for nuclei in micrographs.", EXAMPLES)
    add_data_flags(parser)
    flags.add_weight_flags(parser, "logs/ of the project")
    made = add_commands(parser, SUMMARIES, EXAMPLES)
    for name in ("train", "detect", "evaluate", "choose", "generalise", "compress", "export"):
        flags.add_weight_flags(made[name], "logs/ of the project")
        flags.add_configuration_flags(made[name])
    for name in ("train", "detect", "evaluate", "choose", "generalise"):
        add_data_flags(made[name])
        flags.add_precision_flag(made[name])
    for name in ("detect", "evaluate", "choose"):
        flags.add_detect_flags(made[name], name, "results/nucleus")
    for name in ("detect", "evaluate"):
        flags.add_report_flags(made[name])
    for name in ("train", "evaluate"):
        flags.add_label_flags(made[name])
    flags.add_train_flags(made["train"])
    generalise.add_mixture_flags(made["train"])
    flags.add_result_flags(
        made["detect"],
        (*FORMATS, "submission"),
        f"{','.join(DEFAULT_FORMATS)}; for a data set {','.join(DEFAULT_COMPETITION_FORMATS)}",
        ", instead of --dataset and --subset",
    )
    flags.add_figure_flag(made["evaluate"])
    made["evaluate"].add_argument(
        "--submission", metavar="FILE.csv", help="score this file instead of detecting"
    )
    flags.add_compress_flags(made["compress"])
    flags.add_export_flags(made["export"])
    generalise.add_flags(made["generalise"])
    synthesize.add_flags(made["synthesize"])
    return parser


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a flag given before the command must not be reset by the command's default.
    add = parser.add_argument
    add(
        "--dataset",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="folder that holds stage1_train/ or stage1_train.zip, stage1_test/, ...",
    )
    add(
        "--subset",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="'train' (stage1_train without the validation images), 'val', 'fit' and 'tune' (two "
        "parts of train), or the name of a folder or zip file in DIR such as stage1_train",
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for errors, 130 after Ctrl-C."""
    complete(build_parser)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(build_parser(), arguments)
    options.logs = getattr(options, "logs", DEFAULT_LOGS_DIR)
    if options.command not in ("train", "generalise", "synthesize"):
        options.weights = getattr(options, "weights", "nucleus")
    own = {"choose": choose.run, "generalise": generalise.run, "synthesize": synthesize.run}

    def command() -> Summary:
        from mrcnn.cli.version import version

        if options.command is None:
            return version()
        chosen = own.get(options.command) or command_of(options.command)
        return chosen(options, NucleusApplication())

    return run(command, "nucleus.py", options)


if __name__ == "__main__":
    sys.exit(main())
