"""Teach a network with a few corrected images: minutes of training that keep what it has learnt.

    mrcnn.add_to_training_set("corrections", "cells", image, corrected_labels)
    weights = mrcnn.fine_tune("corrections/images", "corrections/labels", "nucleus")
    mrcnn.load(weights).detect(image)

What keeps a network from forgetting, see `FineTuneConfig` and `Recipe`: few steps, frozen
statistics of all batch norms, the average of the weights during training, rehearsal (a share of
the training uses images on which the network is already good, with its own detections as labels),
and in the end weights half way between the old and the new ones (Wortsman et al., "Robust
fine-tuning of zero-shot models", 2022).
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.atomic import locked
from mrcnn.data.dataset import Dataset, ImageDataset
from mrcnn.data.labelled import LabelledImages
from mrcnn.data.micrographs import MICROGRAPHS
from mrcnn.data.mixture import Mixture
from mrcnn.data.pairs import check_pairs, find_pairs
from mrcnn.data.synthetic import bright_ellipses
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.images.image_files import LazyImage, find_images
from mrcnn.presets import FINE_TUNE_MINUTES, FINE_TUNE_STEPS, FineTuneConfig
from mrcnn.segmenter import Segmenter, load
from mrcnn.weights import description
from mrcnn.weights.download import resolve_weights
from mrcnn.weights.legacy_h5 import ranks_in_file

REHEARSED, MIDDLE = 12, 1024  # most images, and most pixels per side


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned, in addition to `FineTuneConfig`."""

    layers: str = "all"  # what trains
    factor: float = 1.0  # of LEARNING_RATE
    freeze_bn: bool = True  # whether the statistics of the batch norms stay as they are
    rehearsal: float = 1 / 3  # share of the crops; 0 for none
    way: float = 0.5  # how far the final weights are from the old ones towards the new ones


RECIPE = Recipe()


def fine_tune(
    images: str | os.PathLike,
    labels: str | os.PathLike,
    weights: str | os.PathLike = "nucleus",
    *,
    channel: int | str | None = None,
    rehearse: str | os.PathLike | None = None,
    steps: int = FINE_TUNE_STEPS,
    minutes: float | None = FINE_TUNE_MINUTES,
    logs: str | os.PathLike = "logs",
    seed: int = 0,
    workers: int = 1,
    precision: str = "auto",
    recipe: Recipe = RECIPE,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train a network a little further on a few images.

    Args:
        images, labels: as `data.pairs.find_pairs` takes them; `add_to_training_set` makes both.
        weights: to start from: "nucleus", or a weight file with its description.
        channel: of the images, see `images.image_files.find_images`.
        rehearse: folder of images on which the network is already good, without labels; by default
            synthetic nuclei.
        steps, minutes: the training ends with whichever is over first; minutes None: no time limit.
        logs: folder for the run's folder.
        seed: of order and augmentation.
        workers: threads that prepare batches.
        precision: of the convolutions: "auto", "float32" or "bfloat16".
        recipe: what trains, and how.
        progress: called after every step with the number of steps done and in all, as far as that
            is known yet. An error that it raises ends the training and leaves nothing behind.

    Returns:
        The new weight file, for `mrcnn.load` and `--weights`. The one it started from stays.

    Raises:
        UserError: images, labels or weights that cannot be used for training.
    """
    path = Path(resolve_weights(weights))
    known = description.beside(path)
    if known is None:
        raise UserError(
            f"{path}: there is no description {path.stem}.json next to it, so its "
            "network is unknown"
        )
    taught = labelled_images(images, labels, known.classes[0], channel)
    report = progress or (lambda done, total: None)
    data: Dataset = taught
    if recipe.rehearsal:
        rehearsed = rehearsal(load(path), rehearse, lambda: report(0, steps))
        data = Mixture(taught, [(rehearsed, recipe.rehearsal)]) if rehearsed else taught
    config = training_config(path, known)
    config.STEPS_PER_EPOCH, config.SEED, config.DATA_WORKERS = steps, seed, workers
    config.PRECISION = precision

    from mrcnn.model import MaskRCNN  # Keras: seconds

    model = MaskRCNN("training", config, str(logs))
    model.load_weights(path, by_name=True).demand_all()
    model.set_log_dir()  # a run of its own, even from the checkpoint of another
    others = set(Path(logs).glob("*"))
    model.claim_log_dir()
    folder = Path(model.log_dir)
    try:
        with locked(folder):
            description.write(folder / description.RUN_FILE, known)
            report(0, steps)
            return _train(model, data, recipe, minutes, report)
    except BaseException:
        if folder not in others:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def labelled_images(
    images: str | os.PathLike, labels: str | os.PathLike, noun: str, channel: int | str | None
) -> LabelledImages:
    """The images to learn from, of one class. Raises UserError where files are wrong."""
    pairs = find_pairs(images, labels, channel)
    wrong = check_pairs(pairs)
    if wrong:
        raise UserError(f"{wrong[0]}; fix or remove the file")
    dataset = LabelledImages()
    dataset.load_pairs(pairs, noun)
    dataset.prepare()
    return dataset


def training_config(path: Path, known: description.Description) -> FineTuneConfig:
    """The configuration with which a described network is fine-tuned."""
    config = known.config_class(FineTuneConfig, description.NETWORK)()
    config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
    return config


def _train(
    model: Any,
    data: Dataset,
    recipe: Recipe,
    minutes: float | None,
    report: Callable[[int, int], None],
) -> Path:
    """Train one epoch of the configured steps; returns the weight file."""
    import keras

    from mrcnn.training import checkpoints

    began, steps = time.monotonic(), model.config.STEPS_PER_EPOCH
    limit = None if minutes is None else 60 * minutes

    def step_done(batch: int, logs: Any = None) -> None:
        done, total = batch + 1, steps
        if limit is not None:  # as many steps as it allows at this pace
            pace = (time.monotonic() - began) / done
            total = min(steps, max(done, round(limit / max(pace, 1e-9))))
        report(done, total)

    old = model.keras_model.get_weights()
    model.train(
        data,
        None,
        learning_rate=model.config.LEARNING_RATE * recipe.factor,
        epochs=1,
        layers=recipe.layers,
        augmentation=MICROGRAPHS,
        custom_callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=step_done)],
        freeze_bn=recipe.freeze_bn,
        time_budget=limit,
    )
    # Nobody resumes so short a run, and the optimizer's state is three times the weights' size.
    with contextlib.suppress(OSError):
        checkpoints.state_path(model.log_dir, 1).unlink()
    new, path = model.keras_model.get_weights(), Path(checkpoints.newest(model.log_dir))
    between = [a + recipe.way * (b - a) for a, b in zip(old, new, strict=True)]
    model.keras_model.set_weights(between)
    model.save_weights(path)
    return path


# ---- Rehearsal ---------------------------------------------------------------------------------


class Detected(ImageDataset):
    """Images in memory with the detections of a network as their labels; one class."""

    def __init__(
        self,
        images: Sequence[np.ndarray],
        detector: Segmenter,
        before_each: Callable[[], None] = lambda: None,
    ):
        """Images in which nothing is found are left out. before_each: called before each image."""
        super().__init__()
        noun = detector.classes[0]
        self.add_class(noun, 1, noun)
        for number, image in enumerate(images):
            before_each()
            labels = np.asarray(detector.detect(image).labels)
            if labels.any():
                self.add_image(noun, number, None, image=image, labels=labels)
        self.prepare()

    def open_image(self, image_id: int) -> np.ndarray:
        """The image as it was given."""
        return self.image_info[image_id]["image"]

    def load_layers(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The detections as label layers int32 [H, W, 1] and class ids int32 [N]."""
        labels = self.image_info[image_id]["labels"]
        return labels[..., np.newaxis].astype(np.int32), np.ones(labels.max(), np.int32)

    def image_reference(self, image_id: int) -> str:
        """The image's number among those given."""
        return f"rehearsal {self.image_info[image_id]['id']}"


def rehearsal(
    detector: Segmenter,
    folder: str | os.PathLike | None,
    before_each: Callable[[], None] = lambda: None,
) -> Detected | None:
    """What a network must not forget: images of a folder, or synthetic nuclei, with what it finds
    now. None for synthetic ones in which it finds nothing: it was not trained for nuclei.

    Raises UserError for a folder of images in which it finds nothing.
    """
    if folder is None:
        images = [bright_ellipses(256, seed) for seed in range(REHEARSED)]
    else:
        images = [middle(image) for image in images_of(folder)]
    found = Detected(images, detector, before_each)
    if len(found.image_ids):
        return found
    if folder is not None:
        raise UserError(f"{folder}: the network finds nothing in these images: rehearse others")
    return None


def images_of(folder: str | os.PathLike) -> list[LazyImage]:
    """At most REHEARSED images of a folder, evenly spaced. Warns of those that cannot be read."""
    images, unreadable = find_images([folder])
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} images are not rehearsed; {unreadable[0].path}: "
            f"{unreadable[0].reason}",
            MRCNNWarning,
            stacklevel=3,
        )
    return images[:: math.ceil(len(images) / REHEARSED)] if images else []


def middle(image: Any) -> np.ndarray:
    """The middle of a large image, of at most MIDDLE pixels per side."""
    starts = [max(0, (side - MIDDLE) // 2) for side in image.shape[:2]]
    return np.asarray(image[tuple(slice(start, start + MIDDLE) for start in starts)])
