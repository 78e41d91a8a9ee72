"""Flags of the commands, in groups that applications combine."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from mrcnn.cli.flag_values import above_zero, default_workers, names_of, positive, share, whole
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS
from mrcnn.presets import FINE_TUNE_MINUTES, FINE_TUNE_STEPS, PRESETS, MicrographConfig
from mrcnn.results.writers import DEFAULT_FORMATS, FORMATS
from mrcnn.training.stages import DEFAULT_EPOCHS, SCHEDULES

MAX_STEPS = 300  # per epoch by default: a few minutes on a CPU


def add_channel_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--channel", metavar="C", help="the channel to use, by its number from 1 or its name"
    )


def add_label_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--images",
        metavar="DIR",
        help="folder of your own images: PNG, JPEG, BMP, TIFF, OME-TIFF, Zarr, OME-Zarr; stacks "
        "plane by plane",
    )
    add_channel_flag(parser)
    add(
        "--labels",
        metavar="DIR",
        help="labels of --images: a folder of label images (one number per object) or ImageJ ROIs, "
        "named like the images, or a COCO file.json",
    )
    add(
        "--split",
        metavar="FILE.csv",
        help="table of which images are for training and which for validation, with the columns "
        "image and subset (train, val); train writes split.csv to its folder, evaluate scores val",
    )


def add_weight_flags(parser: argparse.ArgumentParser, logs: str = "logs/") -> None:
    # SUPPRESS: a flag given before the command must not be reset by the command's default.
    add = parser.add_argument
    add(
        "--weights",
        metavar="W",
        default=argparse.SUPPRESS,
        help="path of a weight file, or 'last' (newest checkpoint in --logs), 'imagenet', 'coco' "
        "(both downloaded), 'nucleus' (comes with the package; the default except for training)",
    )
    add(
        "--logs",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=f"folder of logs and checkpoints (default: {logs})",
    )


def add_configuration_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    remembered = "stored with a run's checkpoints"
    add(
        "--preset",
        choices=tuple(PRESETS),
        help=f"another configuration; paper: the paper's own ({remembered})",
    )
    add(
        "--config",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a key of mrcnn/config.py, may be repeated: --config ROI_POOLING=pool --config "
        f"'RPN_ANCHOR_RATIOS=[1]' ({remembered})",
    )


def add_precision_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default=MicrographConfig.PRECISION,
        help="of the convolutions; auto uses bfloat16 where the device has instructions for it "
        "(default: %(default)s)",
    )


def add_augmentation_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--augment",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of MicrographAugmentation in mrcnn/data/micrographs.py, may be repeated: "
        "--augment hue=.5 (stored with a run's checkpoints)",
    )


def add_schedule_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="epochs in total, including finished ones (default: "
        f"{DEFAULT_EPOCHS}, or no limit with --time-budget)",
    )
    parser.add_argument(
        "--time-budget",
        type=above_zero,
        metavar="MINUTES",
        help="minutes of training in total, including finished epochs; the "
        "learning rate's schedule ends with them (default: no limit)",
    )
    parser.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="heads first, then all layers; all at once; or proposal network and "
        "detector alternately (default: that of the resumed run, "
        f"otherwise {SCHEDULES[0]})",
    )
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="batches per epoch, after which a checkpoint is written (default: "
        f"one pass over the images, at most {MAX_STEPS})",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="crops per batch, over all devices (default: "
        f"{MicrographConfig.IMAGES_PER_GPU} per device)",
    )
    parser.add_argument(
        "--devices",
        type=positive,
        default=1,
        metavar="N",
        help="number of GPUs, over all processes, to divide every batch among (default: "
        "%(default)s); TensorFlow and JAX; for several machines see docs/training-devices.md",
    )


def add_fine_tune_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fine-tune",
        action="store_true",
        help="a few minutes on a few images, without forgetting: all layers train at a rate of "
        "5e-4, batch-norm statistics frozen, a third of the crops rehearsal, weights half way "
        f"between old and new; for {FINE_TUNE_STEPS} steps or {FINE_TUNE_MINUTES:g} minutes, "
        "unless --steps or --time-budget say otherwise; learns from all of --images",
    )
    parser.add_argument(
        "--rehearse",
        metavar="DIR",
        help="with --fine-tune: folder of unlabelled images that the network is already good at "
        "and should stay good at (default: synthetic nuclei)",
    )


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    add_augmentation_flags(parser)
    add_schedule_flags(parser)
    add_fine_tune_flags(parser)
    parser.set_defaults(validate=True)
    parser.add_argument(
        "--val-share",
        type=share,
        default=0.2,
        metavar="S",
        help="share of --images for validation, without --split (default: %(default)s)",
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
        help="random seed for weights, order and augmentation (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder in which decoded images are kept for later runs (default: none)",
    )


def add_detect_flags(parser: argparse.ArgumentParser, name: str, results: str = "results") -> None:
    add = parser.add_argument
    add("--output", metavar="DIR", help=f"where to write (default: {results}/{name}_<time>)")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add(
        "--tta",
        nargs="?",
        choices=tuple(tta.SETS),
        const="turns",
        help="test-time augmentation: also detect in transformed copies of each image and merge; "
        + ", ".join(f"{name}: {len(made)} times" for name, made in tta.SETS.items())
        + " the work (turns if no name is given)",
    )
    add(
        "--plain",
        action="store_true",
        help="no post-processing",
    )
    add(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of the post-processing, may be repeated; 'off' switches a step off "
        f"(defaults: {DEFAULTS})",
    )


def add_figure_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--figures",
        action="store_true",
        help="also draw the paper's figures 7 and 8 for every image: true and detected boxes, and "
        "labelled detections",
    )


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--no-pictures", action="store_true", help="write no pictures")
    add(
        "--min-confidence",
        type=share,
        metavar="P",
        help=f"drop detections below this probability (default: {DEFAULTS.min_score})",
    )


def add_result_flags(
    parser: argparse.ArgumentParser,
    formats: Collection[str] = FORMATS,
    defaults: str = ",".join(DEFAULT_FORMATS),
    instead: str = "",
) -> None:
    """formats: the allowed ones; defaults: the default ones, in words; instead: text about what
    else can stand for IMAGE."""
    add = parser.add_argument
    add(
        "inputs",
        nargs="*",
        metavar="IMAGE",
        help=f"files, folders (with all below them) or patterns such as 'plate/*.tif'{instead}: "
        "PNG, JPEG, BMP, TIFF, OME-TIFF, Zarr, OME-Zarr, slides, CZI, ND2, LIF; stacks plane by "
        "plane",
    )
    add(
        "--list",
        action="store_true",
        help="only list what is in the files: scenes, planes, channels, sizes, pixel sizes, "
        "pyramid levels",
    )
    add(
        "--format",
        type=names_of(formats),
        metavar="NAME,...",
        help=f"what to write, of {', '.join(formats)} (default: {defaults})",
    )
    add_channel_flag(parser)
    add(
        "--invert",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether objects are dark on a light background (default: by each image's median)",
    )
    add(
        "--diameter",
        type=above_zero,
        metavar="PIXELS",
        help="diameter of a typical object; sets the scale (default: from a first forward pass)",
    )
    add(
        "--mpp",
        type=above_zero,
        metavar="MICRONS",
        help="pixel size in microns (default: what the file says): measurements are given in "
        "microns too, and the scale is limited to those that suit nuclei of 4 to 24 microns",
    )
    add(
        "--tile",
        type=positive,
        metavar="PIXELS",
        help="cut every image into tiles of this side, in pixels of the scaled image (default: "
        "only large ones, into tiles of 768)",
    )
    add_rerun_flags(parser)
    add_cluster_flags(parser)


def add_rerun_flags(parser: argparse.ArgumentParser) -> None:
    add_overwrite_flag(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="require that this run was begun in --output, and do only what is missing (default: "
        "resume if it was begun there, else start)",
    )


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="detect in N processes, which share the processor's cores (Dask; default: in this "
        "one)",
    )
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="detect on the workers of a running Dask cluster: tcp://host:8786",
    )


def add_overwrite_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the results of another run in --output (default: such a folder is refused; "
        "a run that the same command began there is resumed)",
    )


def add_compress_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--rank", type=positive, metavar="N", help="rank of both layers")
    size.add_argument(
        "--energy",
        type=share,
        metavar="E",
        help="share of the sum of squares of each kernel's singular values to keep",
    )
    add("--output", metavar="FILE.h5", required=True, help="weight file to write")


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", choices=("onnx", "saved_model"), default="onnx", help="(default: %(default)s)")
    add(
        "--size",
        type=positive,
        default=512,
        metavar="PIXELS",
        help="side of the input images, a multiple of 64 (default: %(default)s)",
    )
    add(
        "--max-instances",
        type=positive,
        default=512,
        metavar="N",
        help="rows of the output; fewer are faster (default: %(default)s)",
    )
    add("--output", metavar="PATH", required=True, help="file.onnx, or a folder, to write")
