"""The command line of the nucleus sample."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.presets import PRESETS
from samples.nucleus import nucleus, tta
from samples.nucleus.postprocess import DEFAULTS, PostProcessing
from samples.nucleus.progress import Progress
from samples.nucleus.results import DEFAULT_FORMATS, FORMATS
from samples.nucleus.settings import FILE, Settings, beside, own_file, save

COMMANDS = ("train", "detect", "evaluate", "choose", "compress", "ceiling", "synthesize")
MAX_STEPS = 300  # of an epoch by default: a few minutes on a processor
EXAMPLES = {
    "train": """\
  # ten epochs from ImageNet weights, on stage1_train without the 25 validation images
  nucleus.py train --dataset data --subset train --weights imagenet --epochs 10
  # train for an hour; the same with --weights last goes on after an interruption
  nucleus.py train --dataset data --subset train --weights imagenet --time-budget 60
  # go on where the newest run stopped
  nucleus.py train --dataset data --subset train --weights last --epochs 20
  # another network: the report's, or single keys of mrcnn/config.py
  nucleus.py train --dataset data --subset train --weights imagenet --preset paper
  nucleus.py train --dataset data --subset train --weights imagenet --config ROI_POOLING=pool""",
    "detect": """\
  # a file for Kaggle and a picture per image
  nucleus.py detect --dataset data --subset stage1_test --weights last
  # your own pictures, laid out as pictures/mine/<name>/images/<name>.png
  nucleus.py detect --dataset pictures --subset mine --weights last --output found
  # label images for Fiji and napari, outlines for QuPath, a table of measurements in microns
  nucleus.py detect --dataset pictures --subset mine --format labels,geojson,measurements \\
      --mpp .5""",
    "evaluate": """\
  # detect, then score against the masks
  nucleus.py evaluate --dataset data --subset val --weights last
  # score a file that exists already (no network is loaded)
  nucleus.py evaluate --dataset data --subset val --submission submit.csv""",
    "choose": """\
  # which post-processing suits a model best
  nucleus.py choose --dataset data --subset tune --weights last""",
    "compress": """\
  # the class and box head's fully connected layers at rank 64 (report section 3.8.6)
  nucleus.py compress --weights nucleus --rank 64 --output smaller.h5
  nucleus.py evaluate --dataset data --subset val --weights smaller.h5""",
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
    "detect": "find nuclei; writes submit.csv and pictures",
    "evaluate": "score detections against the true masks",
    "choose": "score a grid of post-processing settings; writes choose.csv",
    "compress": "make a weight file with thinner fully connected layers (truncated SVD)",
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
        prog="nucleus.py", description="Mask R-CNN for nuclei in microscope pictures.",
        epilog="examples:\n" + "\n".join(EXAMPLES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_data_flags(parser)
    _add_weight_flags(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for name in COMMANDS:
        made[name] = commands.add_parser(
            name, help=SUMMARIES[name], description=SUMMARIES[name].capitalize() + ".",
            epilog="examples:\n" + EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "detect", "evaluate", "choose"):
        _add_data_flags(made[name])
        _add_weight_flags(made[name])
        _add_configuration_flags(made[name])
        made[name].add_argument(
            "--precision", choices=("auto", "float32", "bfloat16"),
            default=nucleus.NucleusConfig.PRECISION,
            help="of the convolutions; auto takes bfloat16 where the device has instructions for "
                 "it (default: %(default)s)")
    _add_train_flags(made["train"])
    for name in ("detect", "evaluate", "choose"):
        _add_detect_flags(made[name], name)
    made["evaluate"].add_argument("--submission", metavar="FILE.csv",
                                  help="score this file instead of detecting")
    made["evaluate"].add_argument("--figures", action="store_true",
                                  help="also draw the report's figures 7 and 8 of every image: "
                                       "boxes of truth and detections, and labelled detections")
    _add_weight_flags(made["compress"])
    _add_configuration_flags(made["compress"])
    _add_compress_flags(made["compress"])
    _add_result_flags(made["detect"])
    _add_data_flags(made["ceiling"])
    _add_ceiling_flags(made["ceiling"])
    _add_synthesize_flags(made["synthesize"])
    return parser


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a flag given before the command must not be reset by the command's default.
    add = parser.add_argument
    add("--dataset", metavar="DIR", default=argparse.SUPPRESS,
        help="folder that holds stage1_train/ or stage1_train.zip, stage1_test/, ...")
    add("--subset", metavar="NAME", default=argparse.SUPPRESS,
        help="'train' (stage1_train without the validation images), 'val', 'fit' and 'tune' (two "
             "parts of train), or the name of a folder or zip file in DIR such as stage1_train")


def _add_weight_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights", metavar="W", default=argparse.SUPPRESS,
        help="path of a weight file, or 'last' (newest checkpoint in --logs), 'imagenet', 'coco' "
             "(both downloaded), 'nucleus' (comes with the project; the default of detect, "
             "evaluate and choose)")
    add("--logs", metavar="DIR", default=argparse.SUPPRESS,
        help="folder of logs and checkpoints (default: logs/ of the project)")


def _add_configuration_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    remembered = "a run's checkpoints remember theirs"
    add("--preset", choices=tuple(PRESETS),
        help=f"another configuration; paper: the report's own ({remembered})")
    add("--config", metavar="KEY=VALUE", action="append", default=[],
        help="a key of mrcnn/config.py, may be repeated: --config ROI_POOLING=pool --config "
             f"'RPN_ANCHOR_RATIOS=[1]' ({remembered})")


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=positive, metavar="N",
                        help="epochs in all, finished ones included (default: "
                             f"{nucleus.DEFAULT_EPOCHS}, or no limit with --time-budget)")
    parser.add_argument("--time-budget", type=above_zero, metavar="MINUTES",
                        help="minutes of training in all, those of finished epochs included; the "
                             "learning rate's schedule ends with them (default: no limit)")
    parser.add_argument("--schedule", choices=nucleus.SCHEDULES,
                        help="heads first, then all layers; all at once; or proposal network and "
                             "detector by turns (default: that of the run that is gone on with, "
                             f"otherwise {nucleus.SCHEDULES[0]})")
    parser.add_argument("--steps", type=positive, metavar="N",
                        help="batches an epoch, after which a checkpoint is written (default: "
                             f"once through the images, {MAX_STEPS} at most)")
    parser.add_argument("--batch-size", type=positive, metavar="N",
                        help=f"crops a batch (default: {nucleus.NucleusConfig.IMAGES_PER_GPU})")
    parser.add_argument("--workers", type=positive, default=default_workers(), metavar="N",
                        help="threads that prepare batches (default: %(default)s, by the number "
                             "of processor cores)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N",
                        help="of weights, order and augmentation (default: %(default)s)")
    parser.add_argument("--cache", metavar="DIR",
                        help="folder to keep decoded images in, which later runs start from "
                             "(default: none)")


def _add_detect_flags(parser: argparse.ArgumentParser, name: str) -> None:
    folder = "submit" if name == "detect" else name
    add = parser.add_argument
    add("--output", metavar="DIR",
        help=f"where to write (default: results/nucleus/{folder}_<time>)")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add("--tta", nargs="?", choices=tuple(tta.SETS), const="turns",
        help="test-time augmentation: also detect on changed copies of each image and merge; "
             + ", ".join(f"{name}: {len(made)} times" for name, made in tta.SETS.items())
             + " the work (turns when no name is given)")
    add("--plain", action="store_true",
        help="no post-processing" + (": start from it" if name == "choose" else ""))
    add("--set", metavar="NAME=VALUE", action="append", default=[],
        help="a setting of the post-processing, may be repeated; 'off' switches a step off "
             f"(defaults: {DEFAULTS})")
    if name == "choose":
        return
    add("--no-pictures", action="store_true", help="write no pictures")
    add("--min-confidence", type=share, metavar="P",
        help=f"drop detections below this probability (default: {DEFAULTS.min_score})")


def formats(text: str) -> tuple[str, ...]:
    """argparse type: names of FORMATS with commas between them."""
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    return names


def _add_result_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", type=formats, default=DEFAULT_FORMATS, metavar="NAME,...",
        help=f"what to write, of {', '.join(FORMATS)} (default: {','.join(DEFAULT_FORMATS)})")
    add("--mpp", type=above_zero, metavar="MICRONS",
        help="side of a pixel in microns: measurements then come in microns too")


def _add_compress_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--rank", type=positive, metavar="N", help="of both layers")
    size.add_argument("--energy", type=share, metavar="E",
                      help="share of the sum of squares of each kernel's singular values to keep")
    add("--output", metavar="FILE.h5", required=True, help="weight file to write")


def _add_ceiling_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--zoom", type=zoom, metavar="Z",
        help="enlarge all images by this factor (default: by the size of their nuclei as "
             "configured, 2, and random factors from 1 to 4)")
    add("--convention", choices=("exact", "matterport"),
        help="PIXEL_CONVENTION (default: both)")
    add("--mask-roi-scale", type=zoom, default=nucleus.NucleusConfig.MASK_ROI_SCALE, metavar="S",
        help="MASK_ROI_SCALE, by which masks see more than their boxes (default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add("--seed", type=whole, default=0, metavar="N",
        help="of crops, zooms and moved boxes (default: %(default)s)")


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
    from mrcnn.augment import flip_left_right
    from mrcnn.disk_cache import DiskCache
    from samples.nucleus.models import build_model

    _need(options, "dataset", "subset", "weights")
    if options.cache is not None:
        DiskCache(options.cache)  # a wrong folder is an error now, not after the model is built
    images = len(nucleus.load_dataset(options.dataset, options.subset, labelled=True).image_ids)
    settings = _settings(options, "training")
    base = settings.applied_to(nucleus.NucleusConfig)

    class TrainConfig(base):
        IMAGES_PER_GPU = options.batch_size or base.IMAGES_PER_GPU
        STEPS_PER_EPOCH = options.steps or min(MAX_STEPS, max(1, round(images / IMAGES_PER_GPU)))
        VALIDATION_STEPS = max(1, round(24 / IMAGES_PER_GPU))
        SEED = options.seed
        PRECISION = options.precision
        CACHE_DIR = options.cache
        DATA_WORKERS = options.workers

    model = build_model("training", TrainConfig(), options.weights, options.logs)
    save(Path(model.log_dir) / FILE, settings)
    nucleus.train(model, options.dataset, options.subset, options.epochs, options.time_budget,
                  settings.schedule or nucleus.SCHEDULES[0],
                  flip_left_right if settings.preset == "paper" else None)
    return 0


def _settings(options: argparse.Namespace, mode: str) -> Settings:
    """Those asked for, over those that the weights were trained with."""
    from samples.nucleus.models import weight_file

    path = weight_file(mode, options.weights, options.logs, nucleus.NucleusConfig.NAME)
    asked = Settings(options.preset, tuple(options.config), getattr(options, "schedule", None))
    return asked.over(beside(path))


def _postprocessing(options: argparse.Namespace) -> PostProcessing:
    chosen = PostProcessing.plain() if options.plain else DEFAULTS
    if getattr(options, "min_confidence", None) is not None:
        chosen = replace(chosen, min_score=options.min_confidence)
    return chosen.changed(options.set)


def _inference_config(options: argparse.Namespace, settings: Settings):
    """The configuration of the network that the weights belong to."""
    from samples.nucleus.models import weight_file

    base = nucleus.NucleusInferenceConfig
    config = settings.applied_to(base, keep=vars(base))()  # how training cuts pictures stays there
    path = weight_file("inference", options.weights, options.logs, config.NAME)

    from mrcnn.compression import ranks_in_file  # Keras: seconds

    config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
    return config


def _inference_model(options: argparse.Namespace, chosen: PostProcessing):
    from samples.nucleus.models import build_model

    config = _inference_config(options, _settings(options, "inference"))
    config.PRECISION = options.precision
    # The post-processing has the last word, and merging variants needs the less sure ones too.
    config.DETECTION_MIN_CONFIDENCE = min(config.DETECTION_MIN_CONFIDENCE, chosen.min_score)
    return build_model("inference", config, options.weights, options.logs)


def compress_command(options: argparse.Namespace) -> int:
    """nucleus.py compress"""
    from samples.nucleus.models import build_model

    settings = _settings(options, "inference")
    config = _inference_config(options, settings)
    config.PRECISION = "float32"

    from mrcnn.compression import compress

    whole = build_model("inference", config, options.weights, options.logs)
    smaller = compress(whole, options.rank, options.energy)
    smaller.save_weights(options.output, half=True)
    if settings != Settings():
        save(own_file(options.output), settings)
    ranks = " and ".join(map(str, smaller.config.FPN_CLASSIF_FC_RANKS))
    before, after = (m.keras_model.count_params() for m in (whole, smaller))
    print(f"Ranks {ranks}: {after:,} parameters in place of {before:,}. Written to "
          f"{options.output}; --weights takes it as it is")
    return 0


def detect_command(options: argparse.Namespace) -> int:
    """nucleus.py detect"""
    from samples.nucleus.runs import run_detect

    _need(options, "dataset", "subset")
    chosen = _postprocessing(options)
    dataset = nucleus.load_dataset(options.dataset, options.subset)
    output = Path(options.output or nucleus.results_folder("submit"))
    formats = [name for name in options.format if not (options.no_pictures and name == "pictures")]
    failed = run_detect(_inference_model(options, chosen), dataset, output, options.limit,
                        formats, chosen, tta.variants_of(options.tta), options.mpp)
    return _report_failures(failed)


def evaluate_command(options: argparse.Namespace) -> int:
    """nucleus.py evaluate"""
    from samples.nucleus.runs import run_evaluate
    from samples.nucleus.submission import Submission

    _need(options, "dataset", "subset")
    chosen = _postprocessing(options)
    detecting = options.min_confidence is not None or options.set or options.plain or options.tta
    if options.submission and detecting:
        raise UserError("--min-confidence, --set, --plain and --tta are for detecting: they have "
                        "no effect on --submission")
    dataset = nucleus.load_dataset(options.dataset, options.subset, labelled=True)
    output = Path(options.output or nucleus.results_folder("evaluate"))
    if options.submission:
        submission = Submission(options.submission)
        _compare_ids(submission, dataset, options.limit)
        source, model = options.submission, None
    else:
        submission, source = None, options.weights
        model = _inference_model(options, chosen)
    failed = run_evaluate(dataset, output, source, model, submission, options.limit,
                          not options.no_pictures, chosen, tta.variants_of(options.tta),
                          options.figures)
    return _report_failures(failed)


def choose_command(options: argparse.Namespace) -> int:
    """nucleus.py choose"""
    from samples.nucleus.choose import run_choose

    _need(options, "dataset", "subset")
    chosen = _postprocessing(options)
    dataset = nucleus.load_dataset(options.dataset, options.subset, labelled=True)
    output = Path(options.output or nucleus.results_folder("choose"))
    failed = run_choose(_inference_model(options, chosen), dataset, output, options.limit,
                        chosen, tta.variants_of(options.tta))
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


def ceiling_command(options: argparse.Namespace) -> int:
    """nucleus.py ceiling"""
    from samples.nucleus.ceiling import Setting, run_ceiling

    _need(options, "dataset", "subset")
    dataset = nucleus.load_dataset(options.dataset, options.subset, labelled=True)
    config = nucleus.NucleusConfig()
    config.MASK_ROI_SCALE = options.mask_roi_scale
    zooms = [(options.zoom, options.zoom)] if options.zoom else [(2.0, 2.0), (1.0, 4.0)]
    conventions = [options.convention] if options.convention else ["exact", "matterport"]
    ways = [Setting(name, limits) for name in conventions for limits in zooms]
    if not options.zoom:
        ways.insert(0, Setting(options.convention or config.PIXEL_CONVENTION))
    run_ceiling(dataset, config, ways, options.limit, options.seed)
    return 0


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
    if options.command in ("detect", "evaluate", "choose", "compress"):
        options.weights = getattr(options, "weights", "nucleus")
    command = {"train": train_command, "detect": detect_command,
               "evaluate": evaluate_command, "choose": choose_command,
               "compress": compress_command, "ceiling": ceiling_command,
               "synthesize": synthesize_command}[options.command]
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
