"""Four-step alternating training of proposal network and detector.

    1. The proposal network trains, the backbone with it.
    2. A detector trains, from the initial backbone, on regions that the network of step 1 proposes.
    3. The proposal network trains on the detector's backbone, which stays as it is.
    4. The detector's heads train; backbone and proposal network stay as they are.

After steps 3 and 4 both share one backbone, as after joint training, which learns the same at
once; this is here for comparison.

Source: paper section 3.10.1; Ren et al., "Faster R-CNN", section 3.2.
Shape shorthand: B images, H W C of the molded image, N proposals.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from mrcnn.config_rules import LOSS_NAMES
from mrcnn.errors import UserError
from mrcnn.network.anchors import normalized_anchors
from mrcnn.network.boxes import denorm_boxes_graph
from mrcnn.network.compiled import compiled
from mrcnn.network.layers import LayerBank
from mrcnn.network.models import feature_maps, proposals_of
from mrcnn.training import devices, state
from mrcnn.training.run import is_done
from mrcnn.weights import weight_files

RPN_LOSSES = tuple(name for name in LOSS_NAMES if name.startswith("rpn"))
DETECTOR_LOSSES = tuple(name for name in LOSS_NAMES if name.startswith("mrcnn"))

# Files in the run's folder, for resuming after an interruption.
INITIAL_FILE = "initial_weights.h5"
PROPOSER_FILE = "proposer_weights.h5"


class Step(NamedTuple):
    """One of the four steps."""

    layers: str  # regular expression of the names of the layers that train
    losses: tuple[str, ...]  # that count
    new_backbone: bool = False  # starts from the initial backbone, on proposals of step 1


def four_steps(config) -> list[Step]:
    """The steps; in the "c4" architecture the fifth stage belongs to the detector's heads."""
    heads = "mrcnn_.*|roi_transformer_.*" + ("|res5.*|bn5.*" if config.ARCHITECTURE == "c4" else "")
    backbone = rf"(?!(rpn_.*|{heads})$).*"  # everything else
    return [
        Step(f"({backbone})|rpn_.*", RPN_LOSSES),
        Step(f"({backbone})|{heads}", DETECTOR_LOSSES, new_backbone=True),
        Step("rpn_.*", RPN_LOSSES),
        Step(heads, DETECTOR_LOSSES),
    ]


class Proposer:
    """Proposes regions with a copy of a model's current weights."""

    def __init__(self, model):
        """model: a `MaskRCNN`."""
        self.config = copy.copy(model.config)
        self.config.TRAIN_BN = False  # it does not learn
        self.bank = LayerBank(model.bank.dtype)
        self.anchors = lru_cache(lambda *shape: normalized_anchors(self.config, shape)[None])
        image = (None, None, self.config.IMAGE_CHANNEL_COUNT)
        shape = tuple(model.keras_model.input["input_image"].shape[1:])
        self._graph(keras.Input(shape), ops.convert_to_tensor(self.anchors(*shape[:2])))
        for name, layer in self.bank.layers.items():  # made by the call above
            if layer.weights:
                layer.set_weights(model.bank.layers[name].get_weights())
        variables = [v for layer in self.bank.layers.values() for v in layer.variables]
        signature = [keras.KerasTensor((None, *image)), keras.KerasTensor((1, None, 4))]
        self._propose = compiled(self._graph, variables, signature)

    def _graph(self, image, anchors):
        features = feature_maps(image, self.config, self.bank)
        count = self.config.POST_NMS_ROIS_TRAINING
        *_, rois = proposals_of(features, anchors, count, self.config, self.bank)
        return [rois]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Molded images [B, H, W, C] -> float32 [B, N, 4] in pixels, padded with zero rows."""
        shape = images.shape[1:3]
        [rois] = self._propose(images, self.anchors(*shape))
        pixels = denorm_boxes_graph(rois, shape, exact=self.config.exact_pixels)
        real = ops.any(rois != 0, axis=-1, keepdims=True)
        pixels = ops.where(real, ops.cast(pixels, "float32"), 0.0)
        return ops.convert_to_numpy(pixels)


def train_alternating(
    model,
    train_dataset,
    val_dataset,
    learning_rate: float,
    epochs: Sequence[int],
    augmentation=None,
    seconds: Sequence[float | None] = (None,) * 4,
) -> None:
    """Train a `MaskRCNN` in the four steps; a model loaded from a checkpoint resumes in its step.

    Args:
        train_dataset, val_dataset, learning_rate, augmentation: as for `MaskRCNN.train`.
        epochs: total number of epochs at the end of each step, ascending.
        seconds: total seconds of training at the end of each step; None for no limit.

    Raises:
        UserError: as `MaskRCNN.train`; a checkpoint of another kind of training; no time or epochs
            for a step; several processes.
        RuntimeError: a frozen layer has changed.
    """
    if devices.processes()[1] > 1:
        raise UserError("alternating training is not supported in several processes: use one")
    model.claim_log_dir()
    folder, steps = Path(model.log_dir), four_steps(model.config)
    reached = _reached_step(model, steps)
    if reached is None:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_weights(folder / INITIAL_FILE)
    own_rois = model.config.USE_RPN_ROIS
    try:
        for number, step in enumerate(steps[reached or 0 :], start=reached or 0):
            goes_on = number == reached
            if is_done(model, epochs[number], seconds[number]):
                if goes_on:
                    continue
                raise UserError(
                    f"step {number + 1} of {len(steps)} has no epochs or time left: ask for more"
                )
            print(f"Step {number + 1} of {len(steps)}: {' and '.join(step.losses)}")
            _prepare(model, step, folder, goes_on)
            still = _frozen_weights(model, step)
            model.train(
                train_dataset,
                val_dataset,
                learning_rate,
                epochs[number],
                step.layers,
                augmentation=augmentation,
                losses=step.losses,
                time_budget=seconds[number],
            )
            _demand_unchanged(model, still)
    finally:
        model.proposer = None
        _use_rpn_rois(model, own_rois)


def _reached_step(model, steps: list[Step]) -> int | None:
    """The step that a loaded checkpoint belongs to; None where training begins."""
    names = [step.layers for step in steps]
    if model.resumed_layers in names:
        return names.index(model.resumed_layers)
    if model.epoch > 0:
        raise UserError(
            f"{model.log_dir}: epoch {model.epoch} is not a checkpoint of alternating "
            "training with its state file: resume from the run's newest one, or start "
            "from a weight file outside a run's folder"
        )
    return None


def _prepare(model, step: Step, folder: Path, goes_on: bool) -> None:
    """Give the model the graph, and at the beginning of step 2 the weights, that a step needs."""
    model.proposer = None
    if step.new_backbone:
        if not goes_on:
            model.save_weights(folder / PROPOSER_FILE)
        model.proposer = _proposer_in(folder / PROPOSER_FILE, model)
    _use_rpn_rois(model, not step.new_backbone)
    if step.new_backbone and not goes_on:
        others = [
            name
            for name in weight_files.layer_tensors(model.keras_model)
            if not re.fullmatch(step.layers, name)
        ]
        weight_files.load_weights(model.keras_model, folder / INITIAL_FILE, exclude=others)


def _use_rpn_rois(model, use: bool) -> None:
    """Rebuild the training graph if the regions now come from a different source."""
    if model.config.USE_RPN_ROIS == use:
        return
    seeds = [ops.convert_to_numpy(v) for v in state.seeds(model.keras_model)]
    model.config.USE_RPN_ROIS = use
    model.keras_model = model.build("training", model.config)
    # The random streams continue, as they do for a run that is resumed here.
    for variable, value in zip(state.seeds(model.keras_model), seeds, strict=True):
        variable.assign(value)


def _proposer_in(path: Path, model) -> Proposer:
    """A proposer with the weights of step 1, from their file; the model keeps its own."""
    now = {name: layer.get_weights() for name, layer in model.bank.layers.items()}
    weight_files.load_weights(model.keras_model, path)
    proposer = Proposer(model)
    for name, values in now.items():
        model.bank.layers[name].set_weights(values)
    return proposer


def _frozen_weights(model, step: Step) -> dict[str, list[np.ndarray]]:
    tensors = weight_files.layer_tensors(model.keras_model)
    return {
        name: [ops.convert_to_numpy(v).copy() for _, v in pairs]
        for name, pairs in tensors.items()
        if not re.fullmatch(step.layers, name)
    }


def _demand_unchanged(model, before: dict[str, list[np.ndarray]]) -> None:
    for name, pairs in weight_files.layer_tensors(model.keras_model).items():
        for old, (_, new) in zip(before.get(name, ()), pairs, strict=False):
            if not np.array_equal(old, ops.convert_to_numpy(new)):
                raise RuntimeError(f"{name} has changed in a step in which it was frozen")
