"""What the commands do with their options; `flags` has the options themselves.

Every command takes the parsed options and the application, and returns the exit code; what is
wrong with its input is a UserError. Keras is imported by what needs it: it takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mrcnn.atomic import locked
from mrcnn.cli.application import Application, Found, need
from mrcnn.cli.flags import MAX_STEPS
from mrcnn.cli.inputs import Input
from mrcnn.cli.models import build_model
from mrcnn.cli.runs import predictions_of, run_detect, run_evaluate, ways_of
from mrcnn.config import Config
from mrcnn.data.augment import flip_left_right
from mrcnn.data.disk_cache import DiskCache
from mrcnn.data.micrographs import MICROGRAPHS
from mrcnn.errors import UserError, one_line
from mrcnn.files import open_regular
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS, PostProcessing
from mrcnn.results.run_log import RunLog, forget
from mrcnn.segmenter import Segmenter
from mrcnn.training.stages import SCHEDULES, train_in_stages
from mrcnn.weights import description
from mrcnn.weights.description import Description, describe


def train(options: argparse.Namespace, app: Application) -> int:
    """Train a network on labelled images."""
    need(options, "weights")
    app.check_data_flags(options)
    if options.cache is not None:
        DiskCache(options.cache)  # a wrong folder is an error now, not after the model is built
    path = app.weight_file(options, "training")
    known, chosen = app.description(path), app.settings(options, path)
    data = app.training_data(options, known.classes[0])
    augmentation = chosen.augmentation(MICROGRAPHS)
    base = app.training_class(path, chosen)

    class TrainConfig(base):
        IMAGES_PER_GPU = options.batch_size or base.IMAGES_PER_GPU
        STEPS_PER_EPOCH = options.steps or min(
            MAX_STEPS, max(1, round(data.images / IMAGES_PER_GPU))
        )
        VALIDATION_STEPS = max(1, round(24 / IMAGES_PER_GPU)) if options.validate else 0
        SEED = options.seed
        PRECISION = options.precision
        CACHE_DIR = options.cache
        DATA_WORKERS = options.workers

    model = build_model("training", TrainConfig(), options.weights, options.logs)
    model.claim_log_dir()
    folder = Path(model.log_dir)
    detecting = app.inference_class(path, chosen)()
    with locked(folder):
        description.write(folder / description.RUN_FILE, described(detecting, known, chosen))
        train_in_stages(
            model,
            *data.datasets(folder),
            options.epochs,
            options.time_budget,
            chosen.schedule or SCHEDULES[0],
            flip_left_right if chosen.preset == "paper" else augmentation,
        )
    return 0


def described(config: Config, known: Description, chosen: Any) -> Description:
    """The description of a network that was made from a described one."""
    how = known.postprocessing or DEFAULTS.to_dict()
    return describe(config, known.classes, how, known.plural, chosen.to_dict())


def postprocessing(options: argparse.Namespace, known: Description) -> PostProcessing:
    """That of the network, with the changes asked for."""
    own = PostProcessing.of(known.postprocessing, options.weights)
    chosen = PostProcessing.plain() if options.plain else own
    if getattr(options, "min_confidence", None) is not None:
        chosen = replace(chosen, min_score=options.min_confidence)
    return chosen.changed(options.set)


def inference_config(options: argparse.Namespace, app: Application) -> Config:
    """The configuration of the network that the weights belong to."""
    path = app.weight_file(options, "inference")
    config = app.inference_class(path, app.settings(options, path))()

    from mrcnn.weights.weight_files import ranks_in_file  # Keras: seconds

    config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
    return config


def inference_model(options: argparse.Namespace, app: Application, chosen: PostProcessing) -> Any:
    """A `MaskRCNN` that detects."""
    config = inference_config(options, app)
    config.PRECISION = options.precision
    # The post-processing has the last word, and merging variants needs the less sure ones too.
    config.DETECTION_MIN_CONFIDENCE = min(config.DETECTION_MIN_CONFIDENCE or 0.0, chosen.min_score)
    return build_model("inference", config, options.weights, options.logs)


def segmenter(options: argparse.Namespace, app: Application) -> Segmenter:
    """What detect and evaluate detect with."""
    known = app.description(app.weight_file(options, "inference"))
    chosen = postprocessing(options, known)
    return Segmenter(
        inference_model(options, app, chosen),
        known.classes,
        chosen,
        tta.variants_of(options.tta),
        known.plural,
    )


def facts(options: argparse.Namespace, settings: PostProcessing | None) -> dict[str, str]:
    """What a report says about how it was made."""
    try:
        known = {"Version": version("mrcnn-keras")}
    except PackageNotFoundError:  # run from a folder, without installation
        known = {}
    if settings is None:
        return known
    return {
        **known,
        "Weights": options.weights,
        "Post-processing": str(settings),
        **({"Test-time augmentation": options.tta} if options.tta else {}),
    }


def detect(options: argparse.Namespace, app: Application) -> int:
    """Find the objects of images, and write what --format names."""
    DEFAULTS.changed(options.set)  # a wrong setting is an error before anything is read
    found = app.find_inputs(options)
    for path, reason in found.unreadable.items():
        print(f"{path}: skipped: {reason}", file=sys.stderr)
    for said in found.left_out:
        print(said, file=sys.stderr)
    formats = [
        name
        for name in options.format or found.formats
        if not (options.no_pictures and name == "pictures")
    ]
    output = Path(options.output or app.results_folder("detect"))
    inputs = found.inputs[: options.limit]
    left_out = {"Left out": "; ".join(found.left_out)} if found.left_out else {}
    with locked(output):
        about = {"settings": settings_of(options, formats), "weights": weights_of(options, app)}
        log = RunLog(output, about | {"images": states_of(found, inputs)}, options.overwrite)
        if log.complete:
            count = len(log.done)
            print(f"detect {count}/{count}: all are in {output} already; --overwrite detects anew")
            return report_failures(log.failed)
        detector = segmenter(options, app)
        failed = run_detect(
            detector,
            inputs,
            output,
            formats,
            options.mpp,
            found.unreadable,
            facts(options, detector.settings) | left_out,
            app.writers(output, formats, log.lengths),
            log,
            diameter=options.diameter,
            tile=options.tile,
            inverted={"auto": None, "yes": True, "no": False}[options.invert],
        )
    return report_failures(failed)


# What the results do not depend on, or what `RunLog` compares by its content.
NO_SETTINGS = {"command", "output", "overwrite", "logs", "weights", "inputs", "limit", "dataset",
               "subset", "images", "labels", "no_pictures"}  # fmt: skip


def settings_of(options: argparse.Namespace, formats: Sequence[str]) -> dict[str, Any]:
    """What a detection's results depend on besides images and weights, by the names of flags."""
    chosen = {**vars(options), "format": list(formats)}
    named = {f"--{k.replace('_', '-')}": v for k, v in chosen.items() if k not in NO_SETTINGS}
    return named | facts(options, None)


def weights_of(options: argparse.Namespace, app: Application) -> str:
    """A digest of a weight file and of what is known of its network."""
    path = app.weight_file(options, "inference")
    if path is None:  # a public file, whose content its name says
        return options.weights
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr((app.description(path), app.settings(options, path))).encode())
    return digest.hexdigest()


def states_of(found: Found, inputs: Sequence[Input]) -> dict[str, str]:
    """By the names of images, and of files that are none, texts that change when they do."""

    def state(item: Input) -> str:
        with contextlib.suppress(UserError):  # a file that has gone: reading it says so
            return hashlib.sha256(item.state().encode(errors="replace")).hexdigest()[:16]
        return ""

    return {**found.unreadable, **{item.name: state(item) for item in inputs}}


def evaluate(options: argparse.Namespace, app: Application) -> int:
    """Score detections against true masks."""
    DEFAULTS.changed(options.set)
    app.check_data_flags(options)
    path = app.weight_file(options, "inference") if app.detects(options) else None
    known = app.description(path)
    dataset = app.scored_data(options, known.classes[0])
    output = Path(options.output or app.results_folder("evaluate"))
    with locked(output):
        given = app.given_predictions(options, dataset)
        if given is None:
            detector = segmenter(options, app)
            predict, ways = predictions_of(detector), ways_of(detector, options.weights)
            extra, said = app.writers(output, ("submission",)), facts(options, detector.settings)
        else:
            predict, ways = given
            extra, said = [], {**facts(options, None), "Detections": ways["detections"]}
        forget(output)
        failed = run_evaluate(
            dataset,
            output,
            predict,
            nouns=known.nouns,
            kinds=app.kinds,
            extra=extra,
            limit=options.limit,
            pictures=not options.no_pictures,
            figures=options.figures,
            facts=said,
            ways=ways,
        )
    return report_failures(failed)


def compress(options: argparse.Namespace, app: Application) -> int:
    """Make a weight file with thinner fully connected layers."""
    config = inference_config(options, app)
    config.PRECISION = "float32"

    from mrcnn.compression import compress

    whole = build_model("inference", config, options.weights, options.logs)
    smaller = compress(whole, options.rank, options.energy)
    smaller.save_weights(options.output, half=True)
    path = app.weight_file(options, "inference")
    known, chosen = app.description(path), app.settings(options, path)
    description.write(
        description.own_file(options.output), described(smaller.config, known, chosen)
    )
    ranks = " and ".join(map(str, smaller.config.FPN_CLASSIF_FC_RANKS))
    before, after = (m.keras_model.count_params() for m in (whole, smaller))
    print(
        f"Ranks {ranks}: {after:,} parameters in place of {before:,}. Written to "
        f"{options.output}; --weights takes it as it is"
    )
    return 0


def export(options: argparse.Namespace, app: Application) -> int:
    """Write the network for other runtimes."""
    from mrcnn import export as exporting

    config = inference_config(options, app)
    config.PRECISION = "float32"
    model = build_model("inference", config, options.weights, options.logs)
    path = exporting.export(
        model,
        options.output,
        options.format,
        size=options.size,
        max_instances=options.max_instances,
        classes=app.description(app.weight_file(options, "inference")).classes,
    )
    print(
        f"Written to {path}: images of {options.size} x {options.size} pixels, any number at "
        "once. What goes in and comes out stands at the top of mrcnn/export.py"
    )
    return 0


MOST_REASONS = 5


def report_failures(failed: Mapping[str, str]) -> int:
    """The exit code, after lines that say what failed and why."""
    if not failed:
        return 0
    print(f"{len(failed)} images failed:", file=sys.stderr)
    for name, reason in list(failed.items())[:MOST_REASONS]:
        reason = reason.removeprefix(f"{name}: ")
        print(f"  {one_line(name)}: {one_line(reason, 200)}", file=sys.stderr)
    if len(failed) > MOST_REASONS:
        print(f"  and {len(failed) - MOST_REASONS} more", file=sys.stderr)
    return 2
