"""Training: the model with its total loss, optimizers and schedules, stages, and one `fit`.

Source: paper sections 3.1 and 4.1.1; matterport `MaskRCNN.compile`, `set_trainable`, `train`.
"""

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from mrcnn.config_rules import LOSS_NAMES
from mrcnn.errors import UserError, quoted
from mrcnn.network.layers import BatchNorm
from mrcnn.network.models import WeightsOnly, compiles_whole_graphs
from mrcnn.network.replicas import replica_count
from mrcnn.training import devices, tensorboard
from mrcnn.training.callbacks import (
    AverageWeights,
    Checkpoint,
    CSVLog,
    LoaderEpoch,
    LossCurve,
    ProgressLine,
    StopOnNonFiniteLoss,
    TensorBoardLog,
)

if keras.backend.backend() == "tensorflow":
    from mrcnn.training.tensorflow_optimizers import SGD, Adam, sum_of_squares
else:
    from keras.optimizers import SGD, Adam

    def sum_of_squares(tensor):
        return ops.sum(ops.square(tensor))


# What matterport's names for the stages of fine-tuning stand for. Layers are named res4a_...,
# bn4a_... in the backbone, and by their purpose above it.
_TOP = r"(mrcnn\_.*)|(rpn\_.*)|(fpn\_.*)|(roi\_transformer\_.*)"


def _from_stage(first: int) -> str:
    stages = [rf"(res{n}.*)|(bn{n}.*)" for n in range(first, 6)]
    return "|".join([*stages, _TOP])


LAYER_REGEX = {
    "heads": _TOP,
    "3+": _from_stage(3),
    "4+": _from_stage(4),
    "5+": _from_stage(5),
    "all": ".*",
}


def loss_weights(config, names: Iterable[str] | None = None) -> list[float]:
    """Factors of the losses in the order of `LOSS_NAMES`; 0 for those not in `names`.

    Raises:
        UserError: a name is not one of `LOSS_NAMES`.
    """
    counted = set(LOSS_NAMES if names is None else names)
    unknown = sorted(counted - set(LOSS_NAMES))
    if unknown:
        raise UserError(f"losses: {quoted(unknown[0])} is not one of {', '.join(LOSS_NAMES)}")
    return [float(config.LOSS_WEIGHTS.get(name, 1.0)) * (name in counted) for name in LOSS_NAMES]


def layer_regex(layers: str, config) -> str:
    """The regular expression of a name in `LAYER_REGEX`; any other string is returned unchanged."""
    if layers == "heads" and config.ARCHITECTURE == "c4":
        layers = "5+"  # there the fifth stage is a part of the heads
    return LAYER_REGEX.get(layers, layers)


class TrainingModel(WeightsOnly):
    """A model whose outputs are the five losses.

    The total, which training minimises, is their sum weighted by `LOSS_WEIGHTS` plus the plain L2
    penalty of the paper, `WEIGHT_DECAY` times the sum of squares of all trainable kernels; batch
    normalization and biases are not decayed. (matterport divides each kernel's penalty by its
    size, which all but removes it.)
    """

    def __init__(self, inputs, outputs, config, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.loss_weights = loss_weights(config)
        self.weight_decay = float(config.WEIGHT_DECAY)
        self.loss_trackers = [keras.metrics.Mean(name=name) for name in LOSS_NAMES]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        for tracker, loss in zip(self.loss_trackers, y_pred, strict=True):
            tracker.update_state(loss)
        total = sum(w * loss for w, loss in zip(self.loss_weights, y_pred, strict=True))
        # On several devices the sum over them is minimised.
        return (total + self.l2_penalty()) / replica_count()

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        # Between processes TensorFlow's Keras takes the mean over the first axis of every value.
        one_axis = devices.BACKEND == "tensorflow" and devices.processes()[1] > 1
        return {name: value[None] for name, value in logs.items()} if one_axis else logs

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass  # TensorFlow on several devices: Keras would take a batch to build a built model

    def l2_penalty(self):
        """The weight decay of the kernels that train, a scalar."""
        kernels = [v for v in self.trainable_variables if v.path.endswith("kernel")]
        squares = [sum_of_squares(ops.cast(kernel, "float32")) for kernel in kernels]
        return self.weight_decay * sum(squares) if squares else 0.0


def give_biases_a_rate(optimizer, factor: float) -> None:
    """Let biases learn at `factor` times the rate of everything else (paper section 3.8.3: 2)."""
    update = optimizer._backend_update_step  # of all variables together, on every backend

    def update_by_kind(grads, variables, learning_rate):
        pairs = list(zip(grads, variables, strict=True))
        for is_bias, rate in ((False, learning_rate), (True, factor * learning_rate)):
            chosen = [p for p in pairs if p[1].path.endswith("/bias") == is_bias]
            if chosen:
                update(*zip(*chosen, strict=True), rate)

    optimizer._backend_update_step = update_by_kind


class LearningSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear rise over `warmup` steps, then what `kind` says up to step `total`.

    kind: "constant"; "cosine", down to zero; "step", divided by ten after each of the fractions
    `drops` of the steps. The warm-up is part of the total; after its end the rate stays as it is.
    """

    def __init__(self, rate: float, kind: str = "constant", warmup=0, total=0, drops=()):
        super().__init__()
        self.rate, self.kind, self.warmup, self.total = rate, kind, warmup, total
        self.drops = tuple(drops)

    def __call__(self, step):
        return self.at(step, self.progress(step))

    def progress(self, step):
        """The fraction of the run, in [0, 1], before a step; warm-up does not count."""
        span = max(1, self.total - self.warmup)
        return ops.clip((ops.cast(step, "float32") - self.warmup) / span, 0.0, 1.0)

    def at(self, step, progress):
        """The learning rate at a step, after a fraction `progress` of the run."""
        factor = 1.0
        if self.warmup:
            factor = ops.minimum((ops.cast(step, "float32") + 1.0) / self.warmup, 1.0)
        if self.kind == "cosine":
            factor = factor * 0.5 * (1.0 + ops.cos(np.float32(np.pi) * progress))
        for drop in self.drops if self.kind == "step" else ():
            factor = factor * ops.where(progress >= drop, 0.1, 1.0)
        return self.rate * factor

    def get_config(self):
        return {
            "rate": self.rate,
            "kind": self.kind,
            "warmup": self.warmup,
            "total": self.total,
            "drops": self.drops,
        }


def make_schedule(config, learning_rate: float, total_steps: int) -> LearningSchedule:
    """The learning rate of a stage of `total_steps` steps, as the configuration says."""
    return LearningSchedule(
        learning_rate,
        config.LEARNING_SCHEDULE,
        config.LEARNING_WARMUP_STEPS,
        total_steps,
        config.LEARNING_DROPS,
    )


def make_optimizer(config, learning_rate, total_steps: int | None = None):
    """SGD with momentum or Adam (paper sections 3.1.1 and 3.1.2), with clipping.

    total_steps: the steps that the learning rate's schedule is for; None: no schedule.
    """
    scheduled = config.LEARNING_SCHEDULE in ("cosine", "step") or config.LEARNING_WARMUP_STEPS
    if total_steps is not None and scheduled:
        learning_rate = make_schedule(config, learning_rate, total_steps)
    common = {"clipnorm": config.GRADIENT_CLIP_NORM or None}
    if config.OPTIMIZER == "adam":
        optimizer = Adam(learning_rate, beta_1=0.9, beta_2=0.999, epsilon=1e-8, **common)
    else:
        optimizer = SGD(learning_rate, momentum=config.LEARNING_MOMENTUM, **common)
    if config.LEARNING_BIAS_FACTOR != 1.0:
        give_biases_a_rate(optimizer, float(config.LEARNING_BIAS_FACTOR))
    return optimizer


def compile_model(model, optimizer):
    """Get a training model ready for `fit`."""
    model.compile(optimizer=optimizer, jit_compile=compiles_whole_graphs())
    # Variables made in the first step would make TensorFlow trace that step a second time.
    model.optimizer.build(model.trainable_variables)


def set_trainable(model: keras.Model, layer_regex: str) -> list[str]:
    """Make the layers whose names match trainable, and all others not, nested models included.

    Returns:
        The names of the trainable layers that have weights.

    Raises:
        UserError: not a regular expression.
    """
    try:
        re.compile(layer_regex)
    except re.error as error:
        raise UserError(
            f"layers = {quoted(layer_regex)} is neither a regular expression ({error}) nor one of "
            f"{', '.join(LAYER_REGEX)}"
        ) from error
    names = []
    for layer in getattr(model, "inner_model", model).layers:
        if isinstance(layer, keras.Model):
            names += set_trainable(layer, layer_regex)
        elif layer.weights:
            layer.trainable = bool(re.fullmatch(layer_regex, layer.name))
            names += [layer.name] if layer.trainable else []
    return names


def set_batch_norms(model: keras.Model, mode: bool | None) -> None:
    """Set how all `BatchNorm` layers take their statistics, nested models included.

    mode: as `Config.TRAIN_BN`. Needs no new graph, only `compile`.
    """
    for layer in getattr(model, "inner_model", model).layers:
        if isinstance(layer, keras.Model):
            set_batch_norms(layer, mode)
        elif isinstance(layer, BatchNorm):
            layer.mode = mode


def stopwatch(seconds: float) -> Callable[[], float]:
    """A function that returns `seconds` plus those since this call."""
    began = time.monotonic()
    return lambda: seconds + time.monotonic() - began


def fit(
    model,
    loader,
    validation,
    first_epoch,
    epochs,
    log_dir,
    save,
    last_good,
    callbacks=(),
    average=None,
    rate_callback=None,
):
    """Run `keras.Model.fit` with everything else that a long run needs.

    Args:
        model: a compiled `TrainingModel`.
        loader, validation: `data.BatchLoader`; validation may be None.
        first_epoch: epochs done already.
        epochs: epochs in all, those done already included.
        log_dir: where logs and images go.
        save: called with (finished epochs, logs) after every epoch.
        last_good: returns the path of the newest checkpoint or None.
        callbacks: the user's own.
        average: `averaging.WeightAverage` to keep up to date and to validate with, or None.
        rate_callback: `callbacks.TimeBudget` or `callbacks.Plateau`, or None.

    Returns:
        Keras's history.
    """
    count = loader.config.GPU_COUNT
    log_dir = Path(log_dir)
    log_dir.mkdir(parents=True, exist_ok=True)
    csv_path = log_dir / "training.csv"
    # The order matters: see `callbacks`.
    own = [
        LoaderEpoch(loader),
        StopOnNonFiniteLoss(loader, last_good),
        *([AverageWeights(average)] if average else []),
        *([rate_callback] if rate_callback else []),
        CSVLog(csv_path),
        Checkpoint(save),
        LossCurve(csv_path, log_dir / "loss_curve.png"),
        *([TensorBoardLog(log_dir)] if tensorboard.installed() else []),
    ]
    progress = ProgressLine(seconds_left=getattr(rate_callback, "seconds_left", None))
    try:
        return model.fit(
            devices.batches(loader, count),
            validation_data=devices.batches(validation, count),
            initial_epoch=first_epoch,
            epochs=epochs,
            shuffle=False,  # the loader shuffles, reproducibly
            callbacks=[*own, *callbacks, progress],
            verbose=0,
        )
    except Exception:
        # TensorFlow wraps what a loader raises in an error of its own, with a page of text.
        for batches in (loader, validation):
            if batches is not None and batches.error is not None:
                raise batches.error from None
        raise
    finally:
        progress.finish()
