"""`mrcnn train`: train a network on labelled images."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrcnn.atomic import locked
from mrcnn.cli import detectors
from mrcnn.cli.application import Application, need
from mrcnn.cli.fine_tune import fine_tune
from mrcnn.cli.flags import MAX_STEPS
from mrcnn.cli.models import build_model
from mrcnn.cli.summary import Summary
from mrcnn.data.augment import flip_left_right
from mrcnn.data.dataset import Dataset
from mrcnn.data.disk_cache import DiskCache
from mrcnn.data.micrographs import MICROGRAPHS
from mrcnn.errors import UserError
from mrcnn.training.stages import SCHEDULES, train_in_stages
from mrcnn.weights import description


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
        about = detectors.described(detecting, known, chosen)
        description.write(folder / description.RUN_FILE, about)
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
    """Let a process that writes elsewhere divide the images like the run that it resumes."""
    if folder != run and (run / "split.csv").is_file():
        shutil.copy(run / "split.csv", folder)


def trained(model: Any, datasets: Sequence[Dataset | None], epochs: int, seconds: float) -> Summary:
    """What a training run has done. datasets: for training and for validation (or None); epochs,
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
        "Epochs": f"{model.epoch}" + (f" ({epochs} in this run)" if epochs < model.epoch else ""),
        "Seconds": f"{seconds:.1f}" + (f" ({seconds / epochs:.1f} per epoch)" if epochs else ""),
        "Loss": losses + (f", validation {val_loss:.3f}" if val_loss is not None else ""),
        "Weights": checkpoint or "none yet",
        "Loss curve": str(folder / "loss_curve.png"),
        "Table": str(folder / "training.csv"),
    }
    result = f"{model.epoch} epochs, loss {table['Loss']}. Weights: {table['Weights']}"
    return Summary(result, facts, table)
