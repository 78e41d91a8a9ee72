"""The command line of the nucleus sample."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Collection

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS
from mrcnn.presets import PRESETS
from samples.nucleus import commands, nucleus
from samples.nucleus.commands import MAX_STEPS
from samples.nucleus.generalise import DEFAULT_FOLDS, NOTHING, STEPS
from samples.nucleus.kinds import LEFT_OUT
from samples.nucleus.results import DEFAULT_FORMATS, DEFAULT_FORMATS_OF_FILES, FORMATS
from samples.nucleus.synthesize import KINDS as SYNTHETIC

COMMANDS = (
    "train",
    "detect",
    "evaluate",
    "choose",
    "generalise",
    "compress",
    "export",
    "ceiling",
    "synthesize",
)
EXAMPLES = {
    "train": """\
  # ten epochs from ImageNet weights, on stage1_train without the 25 validation images
  nucleus.py train --dataset data --subset train --weights imagenet --epochs 10
  # train for an hour; the same with --weights last goes on after an interruption
  nucleus.py train --dataset data --subset train --weights imagenet --time-budget 60
  # go on where the newest run stopped
  nucleus.py train --dataset data --subset train --weights last --epochs 20
  # your own pictures and label images, COCO annotations or ImageJ ROIs
  nucleus.py train --images pictures --labels masks --weights nucleus --time-budget 30
  # another network: the report's, or single keys of mrcnn/config.py
  nucleus.py train --dataset data --subset train --weights imagenet --preset paper
  nucleus.py train --dataset data --subset train --weights imagenet --config ROI_POOLING=pool""",
    "detect": """\
  # a file for Kaggle and a picture per image
  nucleus.py detect --dataset data --subset stage1_test --weights last
  # your own pictures: files, folders, patterns
  nucleus.py detect pictures/ more/*.tif --output found
  # the second channel of stacks, pixels of .325 microns, outlines for QuPath and a table
  nucleus.py detect stacks/ --channel 2 --mpp .325 --format geojson,measurements""",
    "evaluate": """\
  # detect, then score against the masks
  nucleus.py evaluate --dataset data --subset val --weights last
  # your own pictures: those that training has left out
  nucleus.py evaluate --images pictures --labels masks --split logs/.../split.csv --weights last
  # score a file that exists already (no network is loaded)
  nucleus.py evaluate --dataset data --subset val --submission submit.csv""",
    "choose": """\
  # which post-processing suits a model best
  nucleus.py choose --dataset data --subset tune --weights last""",
    "generalise": """\
  # how the recipe answers kinds of images that it was never shown: 500 steps per kind left out
  nucleus.py generalise --dataset data --weights imagenet --output base
  nucleus.py generalise --dataset data --weights imagenet --output stain --augment stain=.5 \\
      --against base""",
    "compress": """\
  # the class and box head's fully connected layers at rank 64 (report section 3.8.6)
  nucleus.py compress --weights nucleus --rank 64 --output smaller.h5
  nucleus.py evaluate --dataset data --subset val --weights smaller.h5""",
    "export": """\
  # for onnxruntime, pictures of 512 x 512 pixels; for TensorFlow
  nucleus.py export --weights nucleus --format onnx --size 512 --output nucleus.onnx
  nucleus.py export --weights last --format saved_model --size 512 --output nucleus_tf""",
    "ceiling": """\
  # what a network without error would score; no weights are needed
  nucleus.py ceiling --dataset data --subset val
  nucleus.py ceiling --dataset data --subset val --zoom 2 --convention exact""",
    "synthesize": """\
  # 40 synthetic pictures in Kaggle's layout, to try the other commands on
  nucleus.py synthesize --output synthetic --count 40 --size 256 --seed 1
  nucleus.py train --dataset synthetic --subset stage1_train --weights imagenet --epochs 2""",
}
SUMMARIES = {
    "train": "train on a data set",
    "detect": "find nuclei in pictures; writes what --format names",
    "evaluate": "score detections against the true masks",
    "choose": "score a grid of post-processing settings; writes choose.csv",
    "generalise": "train without a kind of image and score on that kind",
    "compress": "make a weight file with thinner fully connected layers (truncated SVD)",
    "export": "write the network for other runtimes: ONNX, SavedModel",
    "ceiling": "score the truth itself after the whole path without a network",
    "synthesize": "make a data set of synthetic nuclei",
}


def positive(text: str) -> int:
    """argparse type: a whole number above zero."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def whole(text: str) -> int:
    """argparse type: a whole number from zero to 2**32 - 1 (what random generators take)."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def above_zero(text: str) -> float:
    """argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def default_workers() -> int:
    """Half the cores: the other half computes. More than a few threads wait for each other."""
    return min(8, max(1, (os.cpu_count() or 1) // 2))


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def zoom(text: str) -> float:
    """argparse type: a number from 1 to 16."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 16")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The parser. The flags of matterport's sample may also stand before the command."""
    parser = argparse.ArgumentParser(
        prog="nucleus.py",
        description="Mask R-CNN for nuclei in microscope pictures.",
        epilog="examples:\n" + "\n".join(EXAMPLES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data_flags(parser)
    _add_weight_flags(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for name in COMMANDS:
        made[name] = commands.add_parser(
            name,
            help=SUMMARIES[name],
            description=SUMMARIES[name].capitalize() + ".",
            epilog="examples:\n" + EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    for name in ("train", "detect", "evaluate", "choose", "generalise"):
        _add_data_flags(made[name])
        _add_weight_flags(made[name])
        _add_configuration_flags(made[name])
        made[name].add_argument(
            "--precision",
            choices=("auto", "float32", "bfloat16"),
            default=nucleus.NucleusConfig.PRECISION,
            help="of the convolutions; auto takes bfloat16 where the device has instructions for "
            "it (default: %(default)s)",
        )
    _add_own_data_flags(made["train"])
    _add_own_data_flags(made["evaluate"])
    _add_train_flags(made["train"])
    made["train"].add_argument(
        "--leave-out",
        choices=tuple(LEFT_OUT),
        help="do not show images of this kind (see generalise)",
    )
    made["train"].set_defaults(validate=True)
    _add_generalise_flags(made["generalise"])
    for name in ("detect", "evaluate", "choose"):
        _add_detect_flags(made[name], name)
    made["evaluate"].add_argument(
        "--submission", metavar="FILE.csv", help="score this file instead of detecting"
    )
    made["evaluate"].add_argument(
        "--figures",
        action="store_true",
        help="also draw the report's figures 7 and 8 of every image: "
        "boxes of truth and detections, and labelled detections",
    )
    _add_weight_flags(made["compress"])
    _add_configuration_flags(made["compress"])
    _add_compress_flags(made["compress"])
    _add_weight_flags(made["export"])
    _add_configuration_flags(made["export"])
    _add_export_flags(made["export"])
    _add_result_flags(made["detect"])
    _add_data_flags(made["ceiling"])
    _add_ceiling_flags(made["ceiling"])
    _add_synthesize_flags(made["synthesize"])
    return parser


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
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


def _add_own_data_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", metavar="DIR", help="your own pictures, in place of --dataset and --subset")
    add(
        "--labels",
        metavar="DIR",
        help="what belongs to --images: a folder of label images (every nucleus its own number) or "
        "of ImageJ ROIs, by the pictures' names, or a COCO file.json",
    )
    add(
        "--split",
        metavar="FILE.csv",
        help="which pictures are for training and which for validation, with the columns image and "
        "subset (train, val); train writes split.csv into its folder, evaluate scores val",
    )


def _add_weight_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--weights",
        metavar="W",
        default=argparse.SUPPRESS,
        help="path of a weight file, or 'last' (newest checkpoint in --logs), 'imagenet', 'coco' "
        "(both downloaded), 'nucleus' (comes with the project; the default of detect, "
        "evaluate and choose)",
    )
    add(
        "--logs",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="folder of logs and checkpoints (default: logs/ of the project)",
    )


def _add_configuration_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    remembered = "a run's checkpoints remember theirs"
    add(
        "--preset",
        choices=tuple(PRESETS),
        help=f"another configuration; paper: the report's own ({remembered})",
    )
    add(
        "--config",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a key of mrcnn/config.py, may be repeated: --config ROI_POOLING=pool --config "
        f"'RPN_ANCHOR_RATIOS=[1]' ({remembered})",
    )


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    _add_augmentation_flags(parser)
    parser.add_argument(
        "--val-share",
        type=share,
        default=0.2,
        metavar="S",
        help="share of --images for validation, without --split (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="epochs in all, finished ones included (default: "
        f"{nucleus.DEFAULT_EPOCHS}, or no limit with --time-budget)",
    )
    parser.add_argument(
        "--time-budget",
        type=above_zero,
        metavar="MINUTES",
        help="minutes of training in all, those of finished epochs included; the "
        "learning rate's schedule ends with them (default: no limit)",
    )
    parser.add_argument(
        "--schedule",
        choices=nucleus.SCHEDULES,
        help="heads first, then all layers; all at once; or proposal network and "
        "detector by turns (default: that of the run that is gone on with, "
        f"otherwise {nucleus.SCHEDULES[0]})",
    )
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="batches an epoch, after which a checkpoint is written (default: "
        f"once through the images, {MAX_STEPS} at most)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help=f"crops a batch (default: {nucleus.NucleusConfig.IMAGES_PER_GPU})",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=default_workers(),
        metavar="N",
        help="threads that prepare batches (default: %(default)s, by the number "
        "of processor cores)",
    )
    parser.add_argument(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="of weights, order and augmentation (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder to keep decoded images in, which later runs start from (default: none)",
    )


def data_share(text: str) -> tuple[str, float]:
    """argparse type: a folder and a share, DIR=0.2."""
    folder, equals, number = text.rpartition("=")
    if not equals or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not DIR=SHARE, such as synthetic=0.2")
    value = share(number)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{number!r} is not a share between 0 and 1")
    return folder, value


def _add_augmentation_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--also",
        type=data_share,
        metavar="DIR=SHARE",
        action="append",
        default=[],
        help="other labelled images that have this share of training, may be "
        "repeated: a folder with images/ and labels/ (label images, ROIs), or "
        "one in Kaggle's layout: --also synthetic/stage1_train=.2",
    )
    parser.add_argument(
        "--augment",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of mrcnn/data/augment.py's RandomAugmentation, may be "
        "repeated: --augment hue=.5 (a run's checkpoints remember theirs)",
    )


def _add_generalise_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_augmentation_flags(parser)
    add(
        "--leave-out",
        choices=(*LEFT_OUT, NOTHING),
        action="append",
        help="a kind, may be repeated; nothing: train on all, score on tune (default: "
        f"{' and '.join(DEFAULT_FOLDS)})",
    )
    add(
        "--steps",
        type=positive,
        default=STEPS,
        metavar="N",
        help="of training per kind (default: %(default)s)",
    )
    add(
        "--workers",
        type=positive,
        default=default_workers(),
        metavar="N",
        help="threads that prepare batches (default: %(default)s)",
    )
    add("--seed", type=whole, default=0, metavar="N", help="(default: %(default)s)")
    add(
        "--output",
        metavar="DIR",
        help="for checkpoints and scores; a run that was interrupted resumes there",
    )
    add("--against", metavar="DIR", help="output folder of other settings to compare with")


def _add_detect_flags(parser: argparse.ArgumentParser, name: str) -> None:
    add = parser.add_argument
    add("--output", metavar="DIR", help=f"where to write (default: results/nucleus/{name}_<time>)")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add(
        "--tta",
        nargs="?",
        choices=tuple(tta.SETS),
        const="turns",
        help="test-time augmentation: also detect on changed copies of each image and merge; "
        + ", ".join(f"{name}: {len(made)} times" for name, made in tta.SETS.items())
        + " the work (turns when no name is given)",
    )
    add(
        "--plain",
        action="store_true",
        help="no post-processing" + (": start from it" if name == "choose" else ""),
    )
    add(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of the post-processing, may be repeated; 'off' switches a step off "
        f"(defaults: {DEFAULTS})",
    )
    if name == "choose":
        return
    add("--no-pictures", action="store_true", help="write no pictures")
    add(
        "--min-confidence",
        type=share,
        metavar="P",
        help=f"drop detections below this probability (default: {DEFAULTS.min_score})",
    )


def names_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """argparse type: names out of `known` with commas between them."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        unknown = [name for name in found if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return found

    return names


def _add_result_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        help="files, folders (with all below them) or patterns such as 'plate/*.tif', in place of "
        "--dataset and --subset: PNG, JPEG, BMP, TIFF, OME-TIFF, Zarr, OME-Zarr; stacks plane "
        "by plane",
    )
    add(
        "--format",
        type=names_of(FORMATS),
        metavar="NAME,...",
        help=f"what to write, of {', '.join(FORMATS)} (default: "
        f"{','.join(DEFAULT_FORMATS_OF_FILES)}; for a data set {','.join(DEFAULT_FORMATS)})",
    )
    add("--channel", metavar="C", help="the channel to look at, by its number from 1 or its name")
    add(
        "--invert",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether nuclei are dark on a light ground (default: each picture's median tells)",
    )
    add(
        "--diameter",
        type=above_zero,
        metavar="PIXELS",
        help="of a typical nucleus; sets the zoom (default: a first look finds it)",
    )
    add(
        "--mpp",
        type=above_zero,
        metavar="MICRONS",
        help="side of a pixel in microns (default: what the file says): measurements come in "
        "microns too, and the zoom is sought where nuclei of 4 to 24 microns have their size",
    )
    add(
        "--tile",
        type=positive,
        metavar="PIXELS",
        help="cut every picture into tiles of this side, in pixels of the zoomed picture (default: "
        "only large ones, into tiles of 768)",
    )


def _add_compress_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--rank", type=positive, metavar="N", help="of both layers")
    size.add_argument(
        "--energy",
        type=share,
        metavar="E",
        help="share of the sum of squares of each kernel's singular values to keep",
    )
    add("--output", metavar="FILE.h5", required=True, help="weight file to write")


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", choices=("onnx", "saved_model"), default="onnx", help="(default: %(default)s)")
    add(
        "--size",
        type=positive,
        default=512,
        metavar="PIXELS",
        help="side of the pictures that it will take, a multiple of 64 (default: %(default)s)",
    )
    add(
        "--max-instances",
        type=positive,
        metavar="N",
        help="rows of the output; fewer are faster (default: "
        f"{nucleus.NucleusConfig.DETECTION_MAX_INSTANCES})",
    )
    add("--output", metavar="PATH", required=True, help="file.onnx, or a folder, to write")


def _add_ceiling_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--zoom",
        type=zoom,
        metavar="Z",
        help="enlarge all images by this factor (default: by the size of their nuclei as "
        "configured, 2, and random factors from 1 to 4)",
    )
    add("--convention", choices=("exact", "matterport"), help="PIXEL_CONVENTION (default: both)")
    add(
        "--mask-roi-scale",
        type=zoom,
        default=nucleus.NucleusConfig.MASK_ROI_SCALE,
        metavar="S",
        help="MASK_ROI_SCALE, by which masks see more than their boxes (default: %(default)s)",
    )
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="of crops, zooms and moved boxes (default: %(default)s)",
    )


def _add_synthesize_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", metavar="DIR", required=True, help="data set folder to write into")
    add(
        "--subset",
        metavar="NAME",
        default="stage1_train",
        help="folder inside it (default: %(default)s)",
    )
    add("--count", type=positive, default=40, metavar="N", help="pictures (default: %(default)s)")
    add(
        "--kinds",
        type=names_of(SYNTHETIC),
        metavar="NAME,...",
        help=f"of {', '.join(SYNTHETIC)}, taken in turn; one that is named twice comes twice as "
        "often (default: the first four)",
    )
    add(
        "--size",
        type=positive,
        default=256,
        metavar="N",
        help="pixels a side (default: %(default)s)",
    )
    add("--seed", type=whole, default=0, metavar="N", help="(default: %(default)s)")
    add(
        "--crowd",
        metavar="DIR/SUBSET",
        help="in place of drawn nuclei: real images of this data set, with copies of their nuclei "
        "pasted in beside each other, cut to --size",
    )
    add("--leave-out", choices=tuple(LEFT_OUT), help="with --crowd: no images of this kind")


def run(arguments: list[str] | None = None) -> int:
    """Parse and run; returns the exit code. Wrong flags exit with 2 from argparse."""
    options = build_parser().parse_args(arguments)
    options.logs = getattr(options, "logs", nucleus.DEFAULT_LOGS_DIR)
    if options.command in ("detect", "evaluate", "choose", "compress", "export"):
        options.weights = getattr(options, "weights", "nucleus")
    command = getattr(commands, options.command)
    with warnings.catch_warnings():
        warnings.simplefilter("always", MRCNNWarning)
        warnings.showwarning = lambda message, *_, **__: print(
            f"Warning: {message}", file=sys.stderr
        )
        try:
            return command(options)
        except (UserError, OSError) as error:  # OSError: no permission, disk full
            print(f"nucleus.py: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("nucleus.py: interrupted", file=sys.stderr)
            return 130
