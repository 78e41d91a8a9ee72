"""What the commands do with their options; `flags` has the options themselves.

Every command takes the parsed options and the application, and returns a `Summary`; what is wrong
with its input is a UserError. Keras is imported by what needs it: it takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mrcnn.atomic import locked
from mrcnn.cli.application import Application, Found, need
from mrcnn.cli.fine_tune import fine_tune
from mrcnn.cli.flags import MAX_STEPS
from mrcnn.cli.inputs import Input
from mrcnn.cli.models import Recipe, build_model
from mrcnn.cli.runs import OnCluster, detected, predictions_of, run_detect, run_evaluate, ways_of
from mrcnn.cli.summary import Summary
from mrcnn.config import Config
from mrcnn.data.augment import flip_left_right
from mrcnn.data.dataset import Dataset
from mrcnn.data.disk_cache import DiskCache
from mrcnn.data.micrographs import MICROGRAPHS
from mrcnn.environment import import_keras
from mrcnn.errors import UserError, one_line
from mrcnn.files import open_regular
from mrcnn.images.contents import contents_of
from mrcnn.images.listing import RUN_LOG
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS, PostProcessing
from mrcnn.results.run_log import RunLog, forget
from mrcnn.results.writers import paths_of
from mrcnn.segmenter import Segmenter
from mrcnn.training.stages import SCHEDULES, train_in_stages
from mrcnn.weights import description
from mrcnn.weights.description import Description, describe


def train(options: argparse.Namespace, app: Application) -> Summary:
    """Train a network on labelled images."""
    need(options, "weights")
    app.check_data_flags(options)
    if options.fine_tune or options.rehearse:
        return fine_tune(options, app)
    if options.cache is not None:
        DiskCache(options.cache)  # a wrong folder is an error now, not after the model is built
    path = app.weight_file(options, "training")
    known, chosen = app.description(path), app.settings(options, path)
    data = app.training_data(options, known.classes[0])
    augmentation = chosen.augmentation(MICROGRAPHS)
    base = app.training_class(path, chosen)
    batch = options.batch_size or base.IMAGES_PER_GPU * options.devices
    if batch % options.devices:
        raise UserError(
            f"--batch-size {batch} cannot be divided among --devices {options.devices}: it counts "
            "the crops of all devices"
        )

    class TrainConfig(base):
        GPU_COUNT = options.devices
        IMAGES_PER_GPU = batch // options.devices
        STEPS_PER_EPOCH = options.steps or min(MAX_STEPS, max(1, round(data.images / batch)))
        VALIDATION_STEPS = max(1, round(24 / batch)) if options.validate else 0
        SEED = options.seed
        PRECISION = options.precision
        CACHE_DIR = options.cache
        DATA_WORKERS = options.workers

    model = build_model("training", TrainConfig(), options.weights, options.logs)
    model.claim_log_dir()
    folder = Path(model.output_dir)
    _see_the_split(Path(model.log_dir), folder)
    detecting = app.inference_class(path, chosen)()
    with locked(folder):
        description.write(folder / description.RUN_FILE, described(detecting, known, chosen))
        datasets = data.datasets(folder)
        began, epochs = time.monotonic(), model.epoch
        train_in_stages(
            model,
            *datasets,
            options.epochs,
            options.time_budget,
            chosen.schedule or SCHEDULES[0],
            flip_left_right if chosen.preset == "paper" else augmentation,
        )
        return trained(model, datasets, model.epoch - epochs, time.monotonic() - began)


def _see_the_split(run: Path, folder: Path) -> None:
    """Let a process that writes elsewhere divide the images as the run that it resumes."""
    if folder != run and (run / "split.csv").is_file():
        shutil.copy(run / "split.csv", folder)


def trained(model: Any, datasets: Sequence[Dataset | None], epochs: int, seconds: float) -> Summary:
    """What a training has done. datasets: for training and, or None, for validation; epochs,
    seconds: of this run."""
    from mrcnn.training import devices  # Keras: seconds
    from mrcnn.training.checkpoints import newest
    from mrcnn.training.log import read_log

    if not devices.is_chief():
        number, count = devices.processes()
        done = f"process {number} of {count} is done; process 0 has written the run's files"
        return Summary(done, {"epochs": model.epoch, "process": number})
    folder = Path(model.log_dir)
    train_images, val_images = (len(one.image_ids) if one else 0 for one in datasets)
    last = (read_log(folder / "training.csv") or [{}])[-1]
    loss, val_loss, checkpoint = last.get("loss"), last.get("val_loss"), newest(folder)
    facts = {
        "images": train_images,
        "validation_images": val_images,
        "epochs": model.epoch,
        "epochs_this_time": epochs,
        "seconds": round(seconds, 3),
        "loss": loss,
        "validation_loss": val_loss,
        "checkpoint": checkpoint,
        "output": folder,
    }
    losses = f"{loss:.3f}" if loss is not None else "not known"
    table = {
        "Images": f"{train_images} for training, {val_images} for validation",
        "Epochs": f"{model.epoch}" + (f" ({epochs} of them now)" if epochs < model.epoch else ""),
        "Seconds": f"{seconds:.1f}" + (f" ({seconds / epochs:.1f} per epoch)" if epochs else ""),
        "Loss": losses + (f", validation {val_loss:.3f}" if val_loss is not None else ""),
        "Weights": checkpoint or "none yet",
        "Loss curve": str(folder / "loss_curve.png"),
        "Table": str(folder / "training.csv"),
    }
    result = f"{model.epoch} epochs, loss {table['Loss']}. Weights: {table['Weights']}"
    return Summary(result, facts, table)


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
    import_keras()

    from mrcnn.weights.weight_files import ranks_in_file  # Keras: seconds

    config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
    return config


def inference_model(options: argparse.Namespace, app: Application, chosen: PostProcessing) -> Any:
    """A `MaskRCNN` that detects."""
    config = inference_config(options, app)
    configure(options, config, chosen)
    return build_model("inference", config, options.weights, options.logs)


def configure(options: argparse.Namespace, config: Config, chosen: PostProcessing) -> None:
    """Set what the flags of a detection ask for."""
    config.PRECISION = options.precision
    # The post-processing has the last word, and merging variants needs the less sure ones too.
    config.DETECTION_MIN_CONFIDENCE = min(config.DETECTION_MIN_CONFIDENCE or 0.0, chosen.min_score)


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


def detect(options: argparse.Namespace, app: Application) -> Summary:
    """Find the objects of images, and write what --format names."""
    if options.list:
        return list_contents(options)
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
        if options.resume:
            require_begun(output, options)
        log = RunLog(output, about | {"images": states_of(found, inputs)}, options.overwrite)
        if log.complete:
            return found_before(options, app, log, formats)
        with detecting(options, app) as (detector, settings):
            return run_detect(
                detector,
                inputs,
                output,
                formats,
                options.mpp,
                found.unreadable,
                facts(options, settings) | left_out,
                app.writers(output, formats, log.lengths),
                log,
                diameter=options.diameter,
                tile=options.tile,
                inverted={"auto": None, "yes": True, "no": False}[options.invert],
            )


@contextlib.contextmanager
def detecting(
    options: argparse.Namespace, app: Application
) -> Iterator[tuple[Any, PostProcessing]]:
    """What `run_detect` detects with, and the settings: a network in this process, or with
    --workers and --scheduler those of a cluster."""
    if not (options.workers or options.scheduler):
        detector = segmenter(options, app)
        yield detector, detector.settings
        return
    from mrcnn.distributed import cluster, team

    known, recipe = described_detector(options, app)
    own = options.scheduler is None
    with contextlib.ExitStack() as stack:
        where = (
            cluster.local_cluster(options.workers)
            if own
            else cluster.running_cluster(options.scheduler)
        )
        client = stack.enter_context(where)
        print(f"Dashboard: {cluster.dashboard_of(client) or 'none'}")
        found = team.team_of(client, recipe, recipe.settings, recipe.classes, own)
        workers = stack.enter_context(found)
        workers.wait_until_ready(print)
        yield OnCluster(workers, known.nouns), recipe.settings


def described_detector(options: argparse.Namespace, app: Application) -> tuple[Description, Recipe]:
    """What is known of the network, and how workers make the detector that `segmenter` gives."""
    path = app.weight_file(options, "inference")
    known = app.description(path)
    chosen = postprocessing(options, known)
    config = app.inference_class(path, app.settings(options, path))()
    configure(options, config, chosen)
    return known, Recipe.of(
        options.weights,
        path,
        config,
        classes=known.classes,
        settings=chosen,
        variants=tta.variants_of(options.tta),
        plural=known.plural,
    )


def require_begun(output: Path, options: argparse.Namespace) -> None:
    """Raise UserError unless --resume finds a run; `RunLog` says whether it is this one."""
    if options.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if options.output is None:
        raise UserError("--resume needs --output, the folder of the run")
    if not (output / RUN_LOG).is_file():
        raise UserError(f"{output}: no run to resume there; without --resume one begins")


def found_before(
    options: argparse.Namespace, app: Application, log: RunLog, formats: Sequence[str]
) -> Summary:
    """What a run has found that is complete."""
    nouns = app.description(app.weight_file(options, "inference")).nouns
    count, output = len(log.done), log.folder
    result = f"detect {count}/{count}: all are in {output} already; --overwrite detects anew"
    print(result)
    files = paths_of(output, formats, log.files)
    return detected(result, (log.objects, nouns), (count, 0, count), 0.0, output, files, log.failed)


def list_contents(options: argparse.Namespace) -> Summary:
    """What is in files, without a network."""
    if not options.inputs:
        raise UserError("detect --list needs files, folders or patterns; see detect --help")
    found, unreadable = contents_of(options.inputs)
    lines = []
    for one in found:
        lines.append(one_line(one.path, 300))
        lines += [f"  {one_line(line, 1000)}" for line in one.lines]
        lines += [f"  left out: {one_line(reason, 1000)}" for reason in one.left_out]
    files = [{"path": f.path, "contents": f.lines, "left_out": f.left_out} for f in found]
    failed = {str(one.path): one.reason for one in unreadable}
    return Summary("\n".join(lines), {"files": files}, failed=failed)


# What the results do not depend on, or what `RunLog` compares by its content.
NO_SETTINGS = {"command", "output", "overwrite", "logs", "weights", "inputs", "limit", "list",
               "dataset", "subset", "images", "labels", "no_pictures", "quiet", "json",
               "version", "workers", "scheduler", "resume"}  # fmt: skip


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


def evaluate(options: argparse.Namespace, app: Application) -> Summary:
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
        return run_evaluate(
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


def compress(options: argparse.Namespace, app: Application) -> Summary:
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
    return Summary(
        f"Ranks {ranks}: {after:,} parameters in place of {before:,}. Written to "
        f"{options.output}; --weights takes it as it is",
        {
            "ranks": smaller.config.FPN_CLASSIF_FC_RANKS,
            "parameters": after,
            "parameters_before": before,
            "output": options.output,
        },
    )


def export(options: argparse.Namespace, app: Application) -> Summary:
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
    return Summary(
        f"Written to {path}: images of {options.size} x {options.size} pixels, any number at "
        "once. What goes in and comes out stands at the top of mrcnn/export.py",
        {"format": options.format, "size": options.size, "output": path},
    )
