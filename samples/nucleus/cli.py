"""The command line of the nucleus sample."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from mrcnn.errors import MRCNNWarning, UserError
from samples.nucleus import nucleus
from samples.nucleus.progress import Progress

COMMANDS = ("train", "detect", "evaluate", "synthesize")
EXAMPLES = {
    "train": """\
  # ten epochs from ImageNet weights, on stage1_train without the 25 validation images
  nucleus.py train --dataset data --subset train --weights imagenet --epochs 10
  # go on where the newest run stopped
  nucleus.py train --dataset data --subset train --weights last --epochs 20""",
    "detect": """\
  # a file for Kaggle and a picture per image
  nucleus.py detect --dataset data --subset stage1_test --weights last
  # your own pictures, laid out as pictures/mine/<name>/images/<name>.png
  nucleus.py detect --dataset pictures --subset mine --weights last --output found""",
    "evaluate": """\
  # detect, then score against the masks
  nucleus.py evaluate --dataset data --subset val --weights last
  # score a file that exists already (no network is loaded)
  nucleus.py evaluate --dataset data --subset val --submission submit.csv""",
    "synthesize": """\
  # 40 synthetic pictures in Kaggle's layout, to try the other commands on
  nucleus.py synthesize --output synthetic --count 40 --size 256 --seed 1
  nucleus.py train --dataset synthetic --subset stage1_train --weights imagenet --epochs 2""",
}
SUMMARIES = {
    "train": "train on a data set",
    "detect": "find nuclei; writes submit.csv and pictures",
    "evaluate": "score detections against the true masks",
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


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The parser. The flags of matterport's sample may also stand before the command."""
    parser = argparse.ArgumentParser(
        prog="nucleus.py", description="Mask R-CNN for nuclei in microscope pictures.",
        epilog="examples:\n" + "\n".join(EXAMPLES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_data_flags(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for name in COMMANDS:
        made[name] = commands.add_parser(
            name, help=SUMMARIES[name], description=SUMMARIES[name].capitalize() + ".",
            epilog="examples:\n" + EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "detect", "evaluate"):
        _add_data_flags(made[name])
        made[name].add_argument(
            "--precision", choices=("auto", "float32", "bfloat16"),
            default=nucleus.NucleusConfig.PRECISION,
            help="of the convolutions; auto takes bfloat16 where the device has instructions for "
                 "it (default: %(default)s)")
    _add_train_flags(made["train"])
    for name in ("detect", "evaluate"):
        _add_detect_flags(made[name], name)
    made["evaluate"].add_argument("--submission", metavar="FILE.csv",
                                  help="score this file instead of detecting")
    _add_synthesize_flags(made["synthesize"])
    return parser


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a flag given before the command must not be reset by the command's default.
    add = parser.add_argument
    add("--dataset", metavar="DIR", default=argparse.SUPPRESS,
        help="folder that holds stage1_train/ or stage1_train.zip, stage1_test/, ...")
    add("--subset", metavar="NAME", default=argparse.SUPPRESS,
        help="'train' (stage1_train without the validation images), 'val', or the name of a "
             "folder or zip file in DIR such as stage1_train")
    add("--weights", metavar="W", default=argparse.SUPPRESS,
        help="path of a weight file, or 'last' (newest checkpoint in --logs), 'imagenet', 'coco' "
             "(both downloaded), 'nucleus' (comes with the project)")
    add("--logs", metavar="DIR", default=argparse.SUPPRESS,
        help="folder of logs and checkpoints (default: logs/ of the project)")


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=positive, default=nucleus.DEFAULT_EPOCHS, metavar="N",
                        help="epochs in all, finished ones included (default: %(default)s)")
    parser.add_argument("--steps", type=positive, metavar="N",
                        help="batches an epoch (default: once through the images)")
    parser.add_argument("--batch-size", type=positive, metavar="N",
                        help=f"crops a batch (default: {nucleus.NucleusConfig.IMAGES_PER_GPU})")
    parser.add_argument("--seed", type=whole, default=0, metavar="N",
                        help="of weights, order and augmentation (default: %(default)s)")
    parser.add_argument("--cache", metavar="DIR",
                        help="folder to keep decoded images in, which later runs start from "
                             "(default: none)")


def _add_detect_flags(parser: argparse.ArgumentParser, name: str) -> None:
    folder = "submit" if name == "detect" else "evaluate"
    parser.add_argument("--output", metavar="DIR",
                        help=f"where to write (default: results/nucleus/{folder}_<time>)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    parser.add_argument("--min-confidence", type=share, metavar="P",
                        help="drop detections below this probability (default: "
                             f"{nucleus.NucleusConfig.DETECTION_MIN_CONFIDENCE})")


def _add_synthesize_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", metavar="DIR", required=True, help="data set folder to write into")
    add("--subset", metavar="NAME", default="stage1_train",
        help="folder inside it (default: %(default)s)")
    add("--count", type=positive, default=40, metavar="N", help="pictures (default: %(default)s)")
    add("--size", type=positive, default=256, metavar="N",
        help="pixels a side (default: %(default)s)")
    add("--seed", type=whole, default=0, metavar="N", help="(default: %(default)s)")


# --- commands -----------------------------------------------------------------------------


def _need(options: argparse.Namespace, *flags: str) -> None:
    for flag in flags:
        if not getattr(options, flag, None):
            raise UserError(f"{options.command} needs --{flag}; see {options.command} --help")


def train_command(options: argparse.Namespace) -> int:
    """nucleus.py train"""
    from mrcnn.disk_cache import DiskCache
    from samples.nucleus.models import build_model

    _need(options, "dataset", "subset", "weights")
    if options.cache is not None:
        DiskCache(options.cache)  # a wrong folder is an error now, not after the model is built
    images = len(nucleus.load_dataset(options.dataset, options.subset, labelled=True).image_ids)

    class TrainConfig(nucleus.NucleusConfig):
        IMAGES_PER_GPU = options.batch_size or nucleus.NucleusConfig.IMAGES_PER_GPU
        STEPS_PER_EPOCH = options.steps or max(1, round(images / IMAGES_PER_GPU))
        VALIDATION_STEPS = max(1, round(24 / IMAGES_PER_GPU))
        SEED = options.seed
        PRECISION = options.precision
        CACHE_DIR = options.cache

    model = build_model("training", TrainConfig(), options.weights, options.logs)
    nucleus.train(model, options.dataset, options.subset, options.epochs)
    return 0


def _inference_model(options: argparse.Namespace):
    from samples.nucleus.models import build_model

    config = nucleus.NucleusInferenceConfig()
    config.PRECISION = options.precision
    if options.min_confidence is not None:
        config.DETECTION_MIN_CONFIDENCE = options.min_confidence
    return build_model("inference", config, options.weights, options.logs)


def detect_command(options: argparse.Namespace) -> int:
    """nucleus.py detect"""
    from samples.nucleus.runs import run_detect

    _need(options, "dataset", "subset", "weights")
    dataset = nucleus.load_dataset(options.dataset, options.subset)
    output = Path(options.output or nucleus.results_folder("submit"))
    failed = run_detect(_inference_model(options), dataset, output, options.limit,
                        not options.no_pictures)
    return _report_failures(failed)


def evaluate_command(options: argparse.Namespace) -> int:
    """nucleus.py evaluate"""
    from samples.nucleus.runs import run_evaluate
    from samples.nucleus.submission import Submission

    _need(options, "dataset", "subset")
    if not options.submission:
        _need(options, "weights")
    elif options.min_confidence is not None:
        raise UserError("--min-confidence is for detecting: it has no effect on --submission")
    dataset = nucleus.load_dataset(options.dataset, options.subset, labelled=True)
    output = Path(options.output or nucleus.results_folder("evaluate"))
    if options.submission:
        submission = Submission(options.submission)
        _compare_ids(submission, dataset, options.limit)
        source, model = options.submission, None
    else:
        submission, source, model = None, options.weights, _inference_model(options)
    failed = run_evaluate(dataset, output, source, model, submission, options.limit,
                          not options.no_pictures)
    return _report_failures(failed)


def _compare_ids(submission, dataset, limit: int | None) -> None:
    wanted = {dataset.image_reference(i) for i in list(dataset.image_ids)[:limit]}
    absent = wanted - set(submission.image_ids)
    if absent == wanted:
        raise UserError(f"{submission.path} has none of the {len(wanted)} images of the subset")
    if absent:
        print(f"{submission.path}: {len(absent)} of {len(wanted)} images are not in it and count "
              f"as empty (first: {min(absent)})", file=sys.stderr)


def _report_failures(failed: list[str]) -> int:
    if not failed:
        return 0
    names = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
    print(f"{len(failed)} images failed: {names}", file=sys.stderr)
    return 2


def synthesize_command(options: argparse.Namespace) -> int:
    """nucleus.py synthesize"""
    from samples.nucleus.synthesize import synthesize

    line = Progress(options.count, "synthesize")
    synthesize(options.output, options.count, options.size, options.seed, options.subset,
               progress=lambda done, total: line.step())
    print(f"{options.count} pictures in {Path(options.output) / options.subset}")
    return 0


def run(arguments: list[str] | None = None) -> int:
    """Parse and run; returns the exit code. Wrong flags exit with 2 from argparse."""
    options = build_parser().parse_args(arguments)
    options.logs = getattr(options, "logs", nucleus.DEFAULT_LOGS_DIR)
    command = {"train": train_command, "detect": detect_command,
               "evaluate": evaluate_command, "synthesize": synthesize_command}[options.command]
    with warnings.catch_warnings():
        warnings.simplefilter("always", MRCNNWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"Warning: {message}",
                                                               file=sys.stderr)
        try:
            return command(options)
        except (UserError, OSError) as error:  # OSError: no permission, disk full
            print(f"nucleus.py: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("nucleus.py: interrupted", file=sys.stderr)
            return 130
