"""Keras callbacks of a training run: progress, logs, images, checkpoints, and a safety stop.

They read nothing but Keras's logs, a dictionary of floats, and run on every backend. Keras calls
callbacks in the order of the list, and that order matters here:

1. `LoaderEpoch`; `StopOnNonFiniteLoss`, before anything that writes: it raises, so that whatever
   comes after it never sees the bad weights;
2. `AverageWeights`, `TimeBudget` and `Plateau`, then `CSVLog`, and `Checkpoint`, which saves their
   state: a run that is killed between the last two has one row too many, which resuming replaces,
   and never one too few;
3. `LossCurve`, which plots the CSV file; TensorBoard, where it is installed; the user's own;
4. `ProgressLine`, last, so that its time for the end of an epoch includes all of the above.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from mrcnn.errors import UserError
from mrcnn.training.averaging import UPDATE_EVERY, WeightAverage
from mrcnn.training.log import CSVLog, LossCurve
from mrcnn.training.progress import ProgressLine
from mrcnn.training.tensorboard import TensorBoardLog

__all__ = [
    "AverageWeights",
    "CSVLog",
    "Checkpoint",
    "LoaderEpoch",
    "LossCurve",
    "Plateau",
    "ProgressLine",
    "StopOnNonFiniteLoss",
    "TensorBoardLog",
    "TimeBudget",
]

# Steps between changes of the learning rate under a time budget.
RATE_EVERY = UPDATE_EVERY


class LoaderEpoch(keras.callbacks.Callback):
    """Tell the loader which epoch is starting: sets `loader.epoch`, counted from 0.

    The loader cannot count by itself: depending on the backend and on whether the model is built,
    Keras takes a batch and ends an "epoch" before the first one, so that the batches of a run
    would differ from those of the same run resumed.
    """

    def __init__(self, loader: Any):
        super().__init__()
        self.loader = loader

    def on_epoch_begin(self, epoch, logs=None):
        self.loader.epoch = epoch


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Stop when a loss or a weight is not finite, before a checkpoint is written.

    Looks at the losses after every batch, and at the validation losses and at every weight and
    optimizer variable after every epoch: the last update of an epoch can spoil the weights although
    its loss, computed before the update, was finite. Must come before `Checkpoint` in the list.

    Raises UserError out of `fit`, naming the images of the batch and the last good checkpoint.
    """

    def __init__(
        self,
        loader: Any = None,
        last_good_checkpoint: Callable[[], str | None] | None = None,
    ):
        """loader: the `mrcnn.data.batches.BatchLoader` being trained on, which must be passed to
        `fit(shuffle=False)`, as it shuffles by itself; otherwise the images named are not those of
        the batch. last_good_checkpoint: returns the path of the newest file, or None."""
        super().__init__()
        self.loader = loader
        self.last_good_checkpoint = last_good_checkpoint
        self._next_batch = 0
        self._last_images = ""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._next_batch = 0

    def on_train_batch_end(self, batch, logs=None):
        # With steps_per_execution > 1 Keras reports only the last of several batches.
        batches = range(min(self._next_batch, batch), batch + 1)
        self._next_batch = batch + 1
        bad = _non_finite(logs)
        if bad:
            self._stop(f"{bad} at epoch {self._epoch + 1}, step {batch + 1}{self._images(batches)}")
        if batch + 1 == self.params.get("steps"):
            # Kept for on_epoch_end: by then the loader has moved on to the next epoch.
            self._last_images = self._images(batches)

    def on_epoch_end(self, epoch, logs=None):
        bad = _non_finite(logs)
        if bad:
            self._stop(f"{bad} at the end of epoch {epoch + 1}")
        bad = _non_finite_variable(self.model)
        if bad:
            self._stop(
                f"{bad} is not finite after the last step of epoch {epoch + 1}{self._last_images}"
            )

    def _images(self, batches: Iterable[int]) -> str:
        """Text that names the images of these batches of the current epoch."""
        if self.loader is None:
            return ""
        ids = [image_id for batch in batches for image_id in self.loader.image_ids(batch)]
        return ", images " + ", ".join(_image_name(self.loader, image_id) for image_id in ids)

    def _stop(self, what: str) -> None:
        path = self.last_good_checkpoint() if self.last_good_checkpoint else None
        kept = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
        raise UserError(
            f"training stopped: {what}; {kept}. Look at these images, lower LEARNING_RATE or lower "
            "GRADIENT_CLIP_NORM, and resume from the checkpoint"
        )


def _non_finite(logs: dict[str, float] | None) -> str:
    """The losses that are not finite, such as `loss = nan, rpn_bbox_loss = inf`."""
    return ", ".join(f"{k} = {v}" for k, v in (logs or {}).items() if not math.isfinite(v))


def _non_finite_variable(model: keras.Model) -> str:
    """The path of the first weight or optimizer variable with a NaN or an infinity, or ''."""
    optimizer = getattr(model, "optimizer", None)
    for variable in [*model.weights, *(optimizer.variables if optimizer else [])]:
        if "float" in keras.backend.standardize_dtype(variable.dtype):
            if not bool(ops.all(ops.isfinite(variable.value))):
                return variable.path
    return ""


def _image_name(loader: Any, image_id: Any) -> str:
    """`12 (cell_b.png)`: the id, and the name that the data set has for the image."""
    dataset = getattr(loader, "dataset", None)
    information = getattr(dataset, "image_info", None)
    return f"{image_id} ({information[image_id]['id']})" if information else str(image_id)


class Checkpoint(keras.callbacks.Callback):
    """Call `save(epoch, logs)` after every epoch.

    `epoch` is the number of finished epochs: 1 after the first.
    """

    def __init__(self, save: Callable[[int, dict[str, float]], Any]):
        super().__init__()
        self.save = save

    def on_epoch_end(self, epoch, logs=None):
        self.save(epoch + 1, dict(logs or {}))


class AverageWeights(keras.callbacks.Callback):
    """Keep a `WeightAverage` up to date, and validate with it.

    Outside validation the model has the weights being trained, also when an epoch ends.
    """

    def __init__(self, average: WeightAverage):
        super().__init__()
        self.average = average

    def on_train_begin(self, logs=None):
        # The optimizer's counter continues in a resumed run.
        self._step = self._updated = int(ops.convert_to_numpy(self.model.optimizer.iterations))

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        if self._step % UPDATE_EVERY == 0:
            sync_weights(self.model)
            self._catch_up()

    def on_test_begin(self, logs=None):
        self._catch_up()
        self.average.apply()

    def on_test_end(self, logs=None):
        self.average.restore()

    def on_epoch_end(self, epoch, logs=None):
        self._catch_up()

    def _catch_up(self):
        if self._step > self._updated:
            self.average.update(self._step, self._step - self._updated)
            self._updated = self._step


class TimeBudget(keras.callbacks.Callback):
    """Spread a learning-rate schedule over a stretch of time, and end training when it is over.

    The schedule follows elapsed time, so it ends exactly when the budget does. Where the planned
    steps are ahead of the time, it follows the steps. Time for the validation and checkpoint of the
    last epoch is reserved: as much as those of the previous epoch took.
    """

    def __init__(
        self,
        elapsed: Callable[[], float],
        start: float,
        end: float,
        schedule: Any,
        agreed: Callable[[float], float] = float,
    ):
        """
        Args:
            elapsed: seconds of training so far, those of earlier runs included.
            start, end: the stretch of time, on the same clock.
            schedule: a `training.LearningSchedule`; its `total` is the steps planned. The
                optimizer must have been made with a number as its learning rate.
            agreed: turns the times of several processes into one that holds for all, so that they
                have the same rate and stop at the same step. See `devices.agreed`.
        """
        super().__init__()
        self.elapsed, self.start, self.end, self.schedule = elapsed, start, end, schedule
        self.agreed = agreed
        self.used_up = False
        self._epoch_end_seconds = 0.0

    def on_train_begin(self, logs=None):
        self._step = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        self._last_step_end = None
        self._set_rate()

    def on_epoch_begin(self, epoch, logs=None):
        if self._last_step_end is not None:
            self._epoch_end_seconds = self._now() - self._last_step_end

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        self._last_step_end = self._now()
        if self._step % RATE_EVERY == 0:
            sync_weights(self.model)
            self._set_rate()
        self._check(self._last_step_end + self._epoch_end_seconds)

    def on_epoch_end(self, epoch, logs=None):
        self._check(self._now())

    def seconds_left(self) -> float:
        return max(0.0, self.end - self.elapsed())

    def _now(self) -> float:
        return self.agreed(self.elapsed())

    def _check(self, now: float) -> None:
        if now >= self.end:
            self.used_up = self.model.stop_training = True

    def _set_rate(self) -> None:
        span = self.end - self._epoch_end_seconds - self.start
        share = (self._now() - self.start) / span if span > 0 else 1.0
        share = min(1.0, max(share, float(self.schedule.progress(self._step))))
        self.model.optimizer.learning_rate = float(self.schedule.at(self._step, share))


class Plateau(keras.callbacks.Callback):
    """Divide the learning rate by ten when the loss has not fallen for `patience` epochs.

    Looks at the loss of the validation images, where there are any (paper section 3.3.1). Keras's
    `ReduceLROnPlateau` forgets what it has seen when a run is interrupted.
    """

    def __init__(self, patience: int, rate: float, seen: dict[str, float] | None = None):
        """
        Args:
            patience: epochs.
            rate: the initial one. The optimizer must have been made with a number as its rate.
            seen: `self.seen` of the resumed run: how often the rate was divided, the
                best loss, and the epochs since then.
        """
        super().__init__()
        self.patience, self.rate = patience, rate
        self.seen = dict(seen or {"divisions": 0, "best": math.inf, "waited": 0})

    def on_train_begin(self, logs=None):
        self._set_rate()

    def on_epoch_end(self, epoch, logs=None):
        loss = float(logs.get("val_loss", logs["loss"]))
        divisions, best, waited = (self.seen[key] for key in ("divisions", "best", "waited"))
        waited = 0 if loss < best else waited + 1
        divide = waited >= self.patience
        self.seen = {
            "divisions": divisions + divide,
            "best": min(loss, best),
            "waited": 0 if divide else waited,
        }
        if divide:
            self._set_rate()

    def _set_rate(self) -> None:
        sync_weights(self.model)
        self.model.optimizer.learning_rate = self.rate / 10 ** self.seen["divisions"]


def sync_weights(model: keras.Model) -> None:
    """On JAX, `fit` holds the values of weights and optimizer: copy them to the variables."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
