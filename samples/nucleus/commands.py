"""What the commands of nucleus.py do with their options; `cli` has the options themselves.

Every command takes the parsed options and returns the exit code; what is wrong with its input is a
UserError. Keras is imported by what needs it: it takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mrcnn.console import Progress
from mrcnn.errors import UserError
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS, PostProcessing
from mrcnn.weights import description
from samples.nucleus import nucleus
from samples.nucleus.kinds import KINDS, LEFT_OUT
from samples.nucleus.settings import FILE, Settings, beside, own_file, save

MAX_STEPS = 300  # of an epoch by default: a few minutes on a processor


def _need(options: argparse.Namespace, *flags: str) -> None:
    for flag in flags:
        if not getattr(options, flag, None):
            raise UserError(f"{options.command} needs --{flag}; see {options.command} --help")


def train(options: argparse.Namespace) -> int:
    """nucleus.py train"""
    from mrcnn.data.augment import flip_left_right
    from mrcnn.data.disk_cache import DiskCache
    from samples.nucleus.models import build_model

    _need(options, "weights")
    _check_data_flags(options, "train")
    if options.images and (options.also or options.leave_out):
        raise UserError("--also and --leave-out go with --dataset and --subset")
    if options.cache is not None:
        DiskCache(options.cache)  # a wrong folder is an error now, not after the model is built
    pairs = _own_pairs(options)
    if pairs:
        _refuse_wrong_files(pairs)
    kinds = kept_kinds(options.leave_out)
    also = [(_other_dataset(path), part) for path, part in options.also]
    images = len(
        pairs or nucleus.load_dataset(options.dataset, options.subset, True, kinds).image_ids
    )
    settings = _settings(options, "training")
    augmentation = settings.augmentation(nucleus.AUGMENTATION)
    base = settings.applied_to(nucleus.NucleusConfig)

    class TrainConfig(base):
        IMAGES_PER_GPU = options.batch_size or base.IMAGES_PER_GPU
        STEPS_PER_EPOCH = options.steps or min(MAX_STEPS, max(1, round(images / IMAGES_PER_GPU)))
        VALIDATION_STEPS = max(1, round(24 / IMAGES_PER_GPU)) if options.validate else 0
        SEED = options.seed
        PRECISION = options.precision
        CACHE_DIR = options.cache
        DATA_WORKERS = options.workers

    model = build_model("training", TrainConfig(), options.weights, options.logs)
    save(Path(model.log_dir) / FILE, settings)
    detecting = _inference_class(settings)()
    description.write(
        Path(model.log_dir) / description.RUN_FILE,
        description.describe(detecting, nucleus.CLASSES, DEFAULTS.to_dict()),
    )
    how = (
        options.epochs,
        options.time_budget,
        settings.schedule or nucleus.SCHEDULES[0],
        flip_left_right if settings.preset == "paper" else augmentation,
    )
    if pairs:
        nucleus.train_on(model, *_split(pairs, options, Path(model.log_dir)), *how)
    else:
        nucleus.train(model, options.dataset, options.subset, *how, kinds, also)
    return 0


def _other_dataset(path: str):
    """The data set in a folder: images/ and labels/, or a folder or zip file in Kaggle's layout."""
    folder = Path(path)
    if not folder.exists():
        raise UserError(f"--also {path}: no such folder")
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        from samples.nucleus.own_data import find_pairs

        pairs = find_pairs(folder / "images", folder / "labels")
        _refuse_wrong_files(pairs)
        return _own_dataset(pairs)
    if folder.is_file():
        return nucleus.load_dataset(path, folder.stem, labelled=True)
    return nucleus.load_dataset(str(folder.parent), folder.name, labelled=True)


def kept_kinds(left_out: str | None) -> list[str] | None:
    """The kinds of images that remain without a group of kinds.LEFT_OUT; None for all."""
    if left_out is None:
        return None
    return [kind for kind in KINDS if kind not in LEFT_OUT[left_out]]


def _check_data_flags(options: argparse.Namespace, command: str) -> None:
    """Raise UserError unless one kind of data is named, and completely."""
    own, competition = (
        any(getattr(options, flag, None) for flag in flags)
        for flags in (("images", "labels"), ("dataset", "subset"))
    )
    if own and competition:
        raise UserError(
            f"{command} takes --images and --labels, or --dataset and --subset, not both"
        )
    _need(options, *(("images", "labels") if own else ("dataset", "subset")))


def _own_pairs(options: argparse.Namespace) -> list:
    """The user's own pictures with labels; none where a data set is named."""
    if not options.images:
        return []
    from samples.nucleus.own_data import find_pairs

    return find_pairs(options.images, options.labels)


def _refuse_wrong_files(pairs: Sequence) -> None:
    """Raise UserError where a picture and its labels cannot be trained on."""
    from samples.nucleus.own_data import check_pairs

    wrong = check_pairs(pairs)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}; mend or remove the file")


def _own_dataset(pairs: Sequence):
    from samples.nucleus.own_data import OwnDataset

    dataset = OwnDataset()
    dataset.load_pairs(pairs)
    dataset.prepare()
    return dataset


def _split(pairs: Sequence, options: argparse.Namespace, folder: Path) -> tuple:
    """Data sets for training and, or None, for validation, as the run's split.csv says."""
    from samples.nucleus.own_data import read_split, split, write_split

    written = folder / "split.csv"
    if options.split or written.is_file():
        subsets = read_split(options.split or written, pairs, options.val_share, options.seed)
    else:
        subsets = split(pairs, options.val_share, options.seed)
    write_split(written, subsets)
    parts = [[pair for pair in pairs if subsets[pair.name] == part] for part in ("train", "val")]
    print(f"{len(parts[0])} pictures for training, {len(parts[1])} for validation: {written}")
    return tuple(_own_dataset(part) if part else None for part in parts)


def _settings(options: argparse.Namespace, mode: str) -> Settings:
    """Those asked for, over those that the weights were trained with."""
    from samples.nucleus.models import weight_file

    path = weight_file(mode, options.weights, options.logs, nucleus.NucleusConfig.NAME)
    asked = Settings(
        options.preset,
        tuple(options.config),
        getattr(options, "schedule", None),
        tuple(getattr(options, "augment", ())),
    )
    return asked.over(beside(path))


def _postprocessing(options: argparse.Namespace) -> PostProcessing:
    chosen = PostProcessing.plain() if options.plain else DEFAULTS
    if getattr(options, "min_confidence", None) is not None:
        chosen = replace(chosen, min_score=options.min_confidence)
    return chosen.changed(options.set)


def _inference_class(settings: Settings):
    base = nucleus.NucleusInferenceConfig
    return settings.applied_to(base, keep=vars(base))  # how training cuts pictures stays there


def inference_config(options: argparse.Namespace, settings: Settings):
    """The configuration of the network that the weights belong to."""
    from samples.nucleus.models import weight_file

    config = _inference_class(settings)()
    path = weight_file("inference", options.weights, options.logs, config.NAME)

    from mrcnn.weights.weight_files import ranks_in_file  # Keras: seconds

    config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
    return config


def inference_model(options: argparse.Namespace, chosen: PostProcessing):
    from samples.nucleus.models import build_model

    config = inference_config(options, _settings(options, "inference"))
    config.PRECISION = options.precision
    # The post-processing has the last word, and merging variants needs the less sure ones too.
    config.DETECTION_MIN_CONFIDENCE = min(config.DETECTION_MIN_CONFIDENCE or 0.0, chosen.min_score)
    return build_model("inference", config, options.weights, options.logs)


def compress(options: argparse.Namespace) -> int:
    """nucleus.py compress"""
    from samples.nucleus.models import build_model

    settings = _settings(options, "inference")
    config = inference_config(options, settings)
    config.PRECISION = "float32"

    from mrcnn.compression import compress

    whole = build_model("inference", config, options.weights, options.logs)
    smaller = compress(whole, options.rank, options.energy)
    smaller.save_weights(options.output, half=True)
    if settings != Settings():
        save(own_file(options.output), settings)
    described = description.describe(smaller.config, nucleus.CLASSES, DEFAULTS.to_dict())
    description.write(description.own_file(options.output), described)
    ranks = " and ".join(map(str, smaller.config.FPN_CLASSIF_FC_RANKS))
    before, after = (m.keras_model.count_params() for m in (whole, smaller))
    print(
        f"Ranks {ranks}: {after:,} parameters in place of {before:,}. Written to "
        f"{options.output}; --weights takes it as it is"
    )
    return 0


def export(options: argparse.Namespace) -> int:
    """nucleus.py export"""
    from mrcnn import export as exporting
    from samples.nucleus.models import build_model

    config = inference_config(options, _settings(options, "inference"))
    config.PRECISION = "float32"
    model = build_model("inference", config, options.weights, options.logs)
    path = exporting.export(
        model,
        options.output,
        options.format,
        size=options.size,
        max_instances=options.max_instances,
        classes=nucleus.CLASSES,
    )
    print(
        f"Written to {path}: pictures of {options.size} x {options.size} pixels, any number at "
        "once. What goes in and comes out stands at the top of mrcnn/export.py"
    )
    return 0


def segmenter(options: argparse.Namespace):
    """The detector that detect and evaluate use."""
    from mrcnn.segmenter import Segmenter

    chosen = _postprocessing(options)
    return Segmenter(
        inference_model(options, chosen), nucleus.CLASSES, chosen, tta.variants_of(options.tta)
    )


def _facts(options: argparse.Namespace) -> dict[str, str]:
    """What a report says about how it was made."""
    try:
        facts = {"Version": version("mrcnn-keras")}
    except PackageNotFoundError:  # run from a folder, without installation
        facts = {}
    if getattr(options, "submission", None):
        return {**facts, "Detections": options.submission}
    return {
        **facts,
        "Weights": options.weights,
        "Post-processing": str(_postprocessing(options)),
        **({"Test-time augmentation": options.tta} if options.tta else {}),
    }


def detect(options: argparse.Namespace) -> int:
    """nucleus.py detect"""
    from samples.nucleus.inputs import of_dataset, of_files
    from samples.nucleus.results import DEFAULT_FORMATS, DEFAULT_FORMATS_OF_FILES
    from samples.nucleus.runs import run_detect

    if options.pictures and (hasattr(options, "dataset") or hasattr(options, "subset")):
        raise UserError("detect takes pictures, or --dataset and --subset, not both")
    formats = options.format
    if options.pictures:
        inputs, unreadable = of_files(options.pictures, options.channel)
        formats = formats or DEFAULT_FORMATS_OF_FILES
    elif hasattr(options, "dataset") or hasattr(options, "subset"):
        _need(options, "dataset", "subset")
        if options.channel:
            raise UserError("--channel is for pictures named as files, not for --dataset")
        inputs = of_dataset(nucleus.load_dataset(options.dataset, options.subset))
        unreadable, formats = [], formats or DEFAULT_FORMATS
    else:
        raise UserError("detect needs pictures, or --dataset and --subset; see detect --help")
    for file in unreadable:
        print(f"{file.path}: skipped: {file.reason}", file=sys.stderr)
    formats = [name for name in formats if not (options.no_pictures and name == "pictures")]
    output = Path(options.output or nucleus.results_folder("detect"))
    failed = run_detect(
        segmenter(options),
        inputs[: options.limit],
        output,
        formats,
        options.mpp,
        {str(file.path): file.reason for file in unreadable},
        _facts(options),
        diameter=options.diameter,
        tile=options.tile,
        inverted={"auto": None, "yes": True, "no": False}[options.invert],
    )
    return _report_failures(failed)


def evaluate(options: argparse.Namespace) -> int:
    """nucleus.py evaluate"""
    from samples.nucleus.runs import run_evaluate
    from samples.nucleus.submission import Submission

    _check_data_flags(options, "evaluate")
    detecting = options.min_confidence is not None or options.set or options.plain or options.tta
    if options.submission and detecting:
        raise UserError(
            "--min-confidence, --set, --plain and --tta are for detecting: they have "
            "no effect on --submission"
        )
    pairs = _own_pairs(options)
    if pairs and options.split:
        from samples.nucleus.own_data import read_split

        subsets = read_split(options.split, pairs, 0.0, 0)
        pairs = [pair for pair in pairs if subsets[pair.name] == "val"]
        if not pairs:
            raise UserError(f"--split {options.split}: leaves no picture for validation")
    dataset = (
        _own_dataset(pairs)
        if pairs
        else nucleus.load_dataset(options.dataset, options.subset, labelled=True)
    )
    output = Path(options.output or nucleus.results_folder("evaluate"))
    if options.submission:
        submission = Submission(options.submission)
        _compare_ids(submission, dataset, options.limit)
        source, detector = options.submission, None
    else:
        submission, source, detector = None, options.weights, segmenter(options)
    failed = run_evaluate(
        dataset,
        output,
        source,
        detector,
        submission,
        options.limit,
        not options.no_pictures,
        options.figures,
        _facts(options),
    )
    return _report_failures(failed)


def choose(options: argparse.Namespace) -> int:
    """nucleus.py choose"""
    from samples.nucleus.choose import run_choose

    _need(options, "dataset", "subset")
    chosen = _postprocessing(options)
    dataset = nucleus.load_dataset(options.dataset, options.subset, labelled=True)
    output = Path(options.output or nucleus.results_folder("choose"))
    failed = run_choose(
        inference_model(options, chosen),
        dataset,
        output,
        options.limit,
        chosen,
        tta.variants_of(options.tta),
    )
    return _report_failures(failed)


def generalise(options: argparse.Namespace) -> int:
    """nucleus.py generalise"""
    from samples.nucleus.generalise import DEFAULT_FOLDS, run, table

    _need(options, "dataset", "weights", "output")
    run(options, options.leave_out or DEFAULT_FOLDS)
    print(table(Path(options.output), options.against and Path(options.against)))
    return 0


def _compare_ids(submission, dataset, limit: int | None) -> None:
    wanted = {dataset.image_reference(i) for i in list(dataset.image_ids)[:limit]}
    absent = wanted - set(submission.image_ids)
    if absent == wanted:
        raise UserError(f"{submission.path} has none of the {len(wanted)} images of the subset")
    if absent:
        print(
            f"{submission.path}: {len(absent)} of {len(wanted)} images are not in it and count "
            f"as empty (first: {min(absent)})",
            file=sys.stderr,
        )


def _report_failures(failed: Collection[str]) -> int:
    """The exit code, after a line with the names of what failed."""
    if not failed:
        return 0
    names = ", ".join(list(failed)[:5]) + (", ..." if len(failed) > 5 else "")
    print(f"{len(failed)} images failed: {names}", file=sys.stderr)
    return 2


def ceiling(options: argparse.Namespace) -> int:
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


def synthesize(options: argparse.Namespace) -> int:
    """nucleus.py synthesize"""
    from samples.nucleus.synthesize import DEFAULT_KINDS, crowd_images, synthesize

    line = Progress(options.count, "synthesize")
    how = (options.count, options.size, options.seed, options.subset)
    if options.crowd:
        if options.kinds:
            raise UserError("--kinds is for drawn nuclei: it has no effect on --crowd")
        source = Path(options.crowd)
        dataset = nucleus.load_dataset(
            str(source.parent), source.name, True, kept_kinds(options.leave_out)
        )
        crowd_images(dataset, options.output, *how, progress=lambda done, total: line.step())
    elif options.leave_out:
        raise UserError("--leave-out goes with --crowd")
    else:
        synthesize(
            options.output,
            *how,
            options.kinds or DEFAULT_KINDS,
            progress=lambda done, total: line.step(),
        )
    print(f"{options.count} pictures in {Path(options.output) / options.subset}")
    return 0
