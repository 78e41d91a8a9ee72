"""One stage of training: what was asked for, its clocks and schedules, its checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras

from mrcnn.console import duration_text
from mrcnn.data.batches import BatchLoader
from mrcnn.errors import UserError
from mrcnn.training import checkpoints, devices, fit, state
from mrcnn.training.averaging import WeightAverage
from mrcnn.training.callbacks import Plateau, TimeBudget


@dataclass(frozen=True)
class Asked:
    """What a stage is to do; checkpoints store it. See `MaskRCNN.train` for the arguments."""

    layers: str
    learning_rate: float
    epochs: int
    freeze_bn: bool
    seconds: float | None  # of training in all, those of earlier stages included
    losses: list[str] | None


def is_done(owner: Any, epochs: int, seconds: float | None) -> bool:
    """Whether a `MaskRCNN` has already done the epochs or the time of a stage; if so, prints it."""
    if owner.epoch >= epochs:
        _say(f"Stage up to epoch {epochs} is done already")
        return True
    if seconds is not None and owner.seconds >= seconds:
        _say(f"Stage up to {duration_text(seconds)} of training is done already")
        return True
    return False


class StageRun:
    """Runs a stage of a `MaskRCNN` in "training" mode.

    Attributes:
        owner: the `MaskRCNN`; its epoch, seconds and weights move on.
        asked: what the stage is to do.
        resumes: whether it continues with the optimizer of a checkpoint.
        start: epoch and seconds at which the stage began, perhaps in an earlier process.
        budget: of time, or None; plateau: the schedule of that name, or None.
        average: of the weights, or None.
    """

    def __init__(self, owner: Any, asked: Asked):
        """Raises UserError where the configuration cannot do what was asked."""
        self.owner, self.asked, self.config = owner, asked, owner.config
        if self.config.LEARNING_SCHEDULE == "plateau" and asked.seconds is not None:
            raise UserError(
                'LEARNING_SCHEDULE = "plateau" cannot follow a time budget: '
                'use "cosine" or "step" with it, or limit the epochs'
            )
        self.saved = owner._resume
        self.resumes = bool(self.saved) and checkpoints.continues(self.saved, asdict(asked))
        self.start = {"stage_start": owner.epoch, "stage_seconds": owner.seconds}
        if self.resumes:
            self.start = {key: self.saved.get(key, 0) for key in self.start}
        self.clock = fit.stopwatch(owner.seconds)
        self.budget: TimeBudget | None = None
        self.plateau: Plateau | None = None
        self.average: WeightAverage | None = None

    def load(
        self, train_dataset: Any, val_dataset: Any, augmentation: Any, not_augmented: Any
    ) -> None:
        """Make the batches of the two data sets, the second of which may be None; see
        `MaskRCNN.train` for the arguments. Raises UserError for wrong data."""
        owner, config = self.owner, self.config
        shared = {"proposer": owner.proposer, "part": devices.processes()}
        self.batches = BatchLoader(
            train_dataset,
            config,
            augmentation=augmentation,
            start_epoch=owner.epoch,
            no_augmentation_sources=not_augmented,
            **shared,
        )
        self.validation = None
        if val_dataset is not None and config.VALIDATION_STEPS:
            self.validation = BatchLoader(val_dataset, config, training=False, **shared)
        if config.IMAGE_RESIZE_MODE in ("none", "pad64"):
            self._fit_shape()

    def _fit_shape(self) -> None:
        """Rebuild the model where "none" and "pad64" give images another shape.

        All images of a run must have that shape: the loaders raise UserError if they do not.
        """
        owner, shape = self.owner, self.batches[0][0]["input_image"].shape[1:]
        for batches in (self.batches, self.validation):
            if batches is not None:
                batches.image_shape = shape
        if shape != tuple(owner.keras_model.input["input_image"].shape[1:]):
            owner.keras_model = owner.build("training", self.config, shape)

    def prepare(self) -> None:
        """Choose what trains, compile, and load the state of a checkpoint."""
        owner, asked, config = self.owner, self.asked, self.config
        owner.set_trainable(fit.layer_regex(asked.layers, config), verbose=0)
        fit.set_batch_norms(owner.keras_model, False if asked.freeze_bn else config.TRAIN_BN)
        owner.keras_model.loss_weights = fit.loss_weights(config, asked.losses)
        steps = (asked.epochs - self.start["stage_start"]) * config.STEPS_PER_EPOCH
        if config.LEARNING_SCHEDULE == "plateau":
            seen = self.saved.get("plateau") if self.resumes else None
            self.plateau = Plateau(config.LEARNING_PATIENCE, asked.learning_rate, seen)
        if asked.seconds is not None:
            schedule = fit.make_schedule(config, asked.learning_rate, steps)
            began = self.start["stage_seconds"]
            self.budget = TimeBudget(self.clock, began, asked.seconds, schedule, devices.agreed)
        # Under a time budget the rate is a number, which the budget changes.
        owner.compile(asked.learning_rate, total_steps=None if self.budget else steps)
        if config.WEIGHT_AVERAGING is not None:
            self.average = WeightAverage(owner.keras_model, config.WEIGHT_AVERAGING)
        if self.saved:
            path = checkpoints.state_path(owner.log_dir, owner.epoch)
            state.load_state(path, owner.keras_model, optimizer=self.resumes)
            owner._resume = None
            _say(
                "Resuming with the saved optimizer"
                if self.resumes
                else "A new stage, with a new optimizer"
            )
        devices.demand_same_weights(owner.keras_model)

    def fit(self, callbacks: Sequence[keras.callbacks.Callback] = ()) -> None:
        """Train to the end of the stage. Ctrl-C prints where the last checkpoint is."""
        owner, asked = self.owner, self.asked
        until = f"{asked.epochs}"
        if self.budget is not None:
            until += f", {duration_text(asked.seconds)} in all"
        _say(
            f"Epochs {owner.epoch + 1} to {until}, layers {asked.layers}, learning rate "
            f"{asked.learning_rate}"
        )
        if devices.is_chief():
            _say(f"Logs, loss curve and checkpoints: {owner.log_dir}")
        try:
            fit.fit(
                owner.keras_model,
                self.batches,
                self.validation,
                owner.epoch,
                asked.epochs,
                owner.output_dir,
                self.save,
                self.last_checkpoint,
                callbacks,
                self.average,
                self.budget or self.plateau,
            )
        except KeyboardInterrupt:
            print(f"Stopped{self.remains()}", file=sys.stderr, flush=True)
            raise
        finally:
            if self.average:
                self.average.apply()
        if not (self.budget and self.budget.used_up):
            owner.epoch = max(owner.epoch, asked.epochs)

    def save(self, epoch: int, logs: dict | None = None) -> None:
        """Write the checkpoint of a finished epoch."""
        owner = self.owner
        # What is left of a used-up budget is too short for a step: it counts as spent.
        spent = self.asked.seconds if self.budget and self.budget.used_up else 0
        owner.epoch, owner.seconds = epoch, max(spent, devices.agreed(self.clock()))
        progress = {"epoch": epoch, "seconds": owner.seconds, "stage": asdict(self.asked)}
        if self.plateau:
            progress["plateau"] = self.plateau.seen
        checkpoints.save(
            owner.keras_model,
            owner.output_dir,
            owner._name(),
            epoch,
            {**progress, **self.start},
            self.config.CHECKPOINTS_TO_KEEP,
            self.average,
        )

    def remains(self) -> str:
        """End of a message about a run that stops: what it leaves."""
        last = self.last_checkpoint()
        if last:
            return f". Resume from {last}"
        return " before the first checkpoint" if devices.is_chief() else ""

    def last_checkpoint(self) -> str | None:
        """Path of the newest checkpoint of the run."""
        return checkpoints.newest(self.owner.log_dir)


def _say(text: str) -> None:
    print(text, flush=True)
