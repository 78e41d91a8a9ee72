"""Training in stages: heads first, then all layers; all at once; or the paper's four steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mrcnn.data.dataset import Dataset
from mrcnn.errors import UserError


class Stage(NamedTuple):
    """A part of training."""

    layers: str  # as `MaskRCNN.train` takes them
    end: float  # share of all epochs, or of the time budget, by which the stage ends
    factor: float = 1.0  # of LEARNING_RATE
    freeze_bn: bool = False  # whether the statistics of the batch norms stay as they are


# The heads start from random numbers: they train alone first, so that their large gradients do not
# disturb the backbone.
STAGES = (Stage("heads", 0.05), Stage("all", 1.0))
# "alternating", the four steps of `training.alternating`, is not a list of such stages.
SCHEDULES = ("stagewise", "joint", "alternating")
DEFAULT_EPOCHS = 20
MAX_EPOCHS = 9999  # names of checkpoints have four digits


def train_in_stages(
    model: Any,
    dataset_train: Dataset,
    dataset_val: Dataset | None,
    epochs: int | None = None,
    time_budget: float | None = None,
    schedule: str = SCHEDULES[0],
    augmentation: Any = None,
    stages: Sequence[Stage] = STAGES,
) -> None:
    """Train a `MaskRCNN` in "training" mode.

    A model loaded from a checkpoint resumes where its run stopped.

    Args:
        model: the `MaskRCNN`.
        dataset_train: prepared.
        dataset_val: prepared, or None; nothing is selected by validation.
        epochs: in all, finished ones included; by default DEFAULT_EPOCHS, or no limit under a
            budget.
        time_budget: minutes in all, those of the finished epochs included. Every stage has its
            share of it, and the learning rate's schedule ends with it.
        schedule: one of SCHEDULES: in `stages`; all layers at once; proposal network and detector
            in turn, in four steps with a quarter of the epochs or time each.
        augmentation: see `data.augment`.
        stages: of the schedule "stagewise".

    Raises UserError for data that cannot be trained on.
    """
    epochs = epochs or (DEFAULT_EPOCHS if time_budget is None else MAX_EPOCHS)
    if model.epoch >= epochs:
        print(f"Nothing to train: {model.epoch} epochs are done already, {epochs} were asked for")
    elif schedule == "alternating":
        _train_alternating(model, dataset_train, dataset_val, epochs, time_budget, augmentation)
        return
    if schedule == "joint":
        stages = [Stage("all", 1.0)]
    stages = [Stage(*stage) for stage in stages]
    layers, start = [stage.layers for stage in stages], 0
    # More epochs or time prolong the first stages too, but no run goes back to one it has left.
    reached = layers.index(model.resumed_layers) if model.resumed_layers in layers else 0
    for number, stage in enumerate(stages):
        end = epochs if stage.end == 1.0 else min(epochs, max(1, round(stage.end * epochs)))
        if number >= reached and end > start and model.epoch < end:
            seconds, until = None, f"epoch {end} of {epochs}"
            if time_budget is not None:
                seconds = 60 * stage.end * time_budget
                until = f"minute {seconds / 60:.1f} of {time_budget:g}"
            print(f"Training {stage.layers}: to {until}")
            model.train(
                dataset_train,
                dataset_val,
                layers=stage.layers,
                epochs=end,
                learning_rate=model.config.LEARNING_RATE * stage.factor,
                augmentation=augmentation,
                freeze_bn=stage.freeze_bn,
                time_budget=seconds,
            )
        start = end


def _train_alternating(model, dataset_train, dataset_val, epochs, time_budget, augmentation):
    from mrcnn.training.alternating import four_steps, train_alternating

    steps = len(four_steps(model.config))
    if epochs < steps:
        raise UserError(f"alternating training has {steps} steps: {epochs} epochs are too few")
    ends = [round(epochs * (i + 1) / steps) for i in range(steps)]
    seconds = [None] * steps
    if time_budget is not None:
        seconds = [60 * time_budget * (i + 1) / steps for i in range(steps)]
    train_alternating(
        model,
        dataset_train,
        dataset_val,
        model.config.LEARNING_RATE,
        ends,
        augmentation,
        seconds,
    )
