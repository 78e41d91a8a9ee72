"""The progress of a training run, and the text of losses and durations in it.

The losses in Keras's logs are means over the epoch so far, not those of one batch.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

import keras

from mrcnn.config_rules import LOSS_NAMES
from mrcnn.console import Bar, countdown, duration_text, on_terminal

# The loss trackers in the order of the network's outputs; "loss" is the weighted total and
# includes the weight decay.
LOSSES = ("loss", *LOSS_NAMES)


COMPILING = "the first step takes longer: the network is being compiled"


class ProgressLine(keras.callbacks.Callback):
    """Shows the epoch, the step, every loss, the speed and the time left.

    `epoch 3/20  step 57/100  loss 1.234 (rpn_class .12 rpn_bbox .33 ...)  .83 s/step  ETA 00:12:31`

    On a terminal that is a bar with the losses below it; elsewhere (a file, a pipe) a plain line is
    written every `interval` seconds. The end of an epoch always leaves a line, with the validation
    losses.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        interval: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
        seconds_left: Callable[[], float] | None = None,
    ):
        """
        Args:
            stream: standard output by default.
            interval: seconds.
            clock: seconds, for the tests.
            seconds_left: of a run that is limited by time and not only by a number of epochs.
        """
        super().__init__()
        self.stream = stream
        self.interval = interval
        self.clock = clock
        self.seconds_left = seconds_left
        self._epoch = None
        self._step_seconds = deque(maxlen=20)
        self._validation_seconds = 0.0
        self._first_step = True
        self._last_shown = -math.inf
        self._bar: Bar | None = None

    def on_train_begin(self, logs=None):
        self._first_step = True
        self._last_shown = -math.inf
        self._train_start = self.clock()
        stream = self.stream or sys.stdout
        if on_terminal(stream):
            self._bar = self._bar or Bar(stream, keep=False)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._epoch_start = self._last_step_end = self.clock()
        if self._bar:
            self._draw(-1, {}, COMPILING if self._first_step else " ")

    def on_train_batch_end(self, batch, logs=None):
        now = self.clock()
        # The first step of a run compiles the graph: it says nothing about the steps to come.
        if not self._first_step:
            self._step_seconds.append(now - self._last_step_end)
        self._first_step = False
        self._last_step_end = now
        if self._bar:
            self._draw(batch, logs)
        elif self._is_due(now):
            speed = f"  {self._speed_text()}" if self._step_seconds else ""
            self._print(
                f"{self._epoch_text()}  step {batch + 1}/{self.params.get('steps') or '?'}  "
                f"{losses_text(logs)}{speed}{self._eta_text(batch)}"
            )

    def on_test_batch_end(self, batch, logs=None):
        text = f"validation step {batch + 1}  {losses_text(logs)}"
        if self._bar:
            self._draw((self.params.get("steps") or 0) - 1, logs, text)
        elif self._is_due(self.clock()):
            self._print(text if self._epoch is None else f"{self._epoch_text()}  {text}")

    def on_epoch_end(self, epoch, logs=None):
        now = self.clock()
        self._validation_seconds = now - self._last_step_end
        text = f"{self._epoch_text()}  {losses_text(logs)}"
        validation = {
            k.removeprefix("val_"): v for k, v in (logs or {}).items() if k.startswith("val_")
        }
        if validation:
            text += f"  val {losses_text(validation)}"
        self._print(f"{text}  {duration_text(now - self._epoch_start)}{self._eta_text(None)}")

    def finish(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.close()
            self._bar = None

    def _is_due(self, now: float) -> bool:
        return now - self._last_shown >= self.interval

    def _print(self, text: str) -> None:
        self._last_shown = self.clock()
        if self._bar:
            self._bar.print(text)
        else:
            print(text, file=self.stream or sys.stdout, flush=True)

    def _draw(self, batch: int, logs: dict[str, float] | None, below: str = "") -> None:
        """Show that a batch is done, -1 for none yet."""
        steps, left = self.params.get("steps") or 0, self._seconds_to_go(batch)
        clock = self._elapsed if left is None else countdown(left)
        speed = self._speed_text() if self._step_seconds else ""
        self._bar.show(
            self._epoch_text(), batch + 1, steps, clock, speed, below or losses_text(logs)
        )

    def _elapsed(self) -> str:
        return duration_text(self.clock() - self._train_start)

    def _epoch_text(self) -> str:
        if self.seconds_left is not None:
            return f"epoch {self._epoch + 1}"
        return f"epoch {self._epoch + 1}/{self.params.get('epochs') or '?'}"

    def _speed_text(self) -> str:
        mean = sum(self._step_seconds) / len(self._step_seconds)
        return f"{number_text(mean)} s/step"

    def _seconds_to_go(self, batch: int | None) -> float | None:
        """Left of the run; `batch` is None at the end of an epoch. None where not known."""
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        if not (epochs and steps and self._step_seconds):
            return None
        step = sum(self._step_seconds) / len(self._step_seconds)
        full_epochs = epochs - self._epoch - 1
        seconds = full_epochs * (steps * step + self._validation_seconds)
        if batch is not None:
            seconds += (steps - batch - 1) * step + self._validation_seconds
        return seconds if self.seconds_left is None else min(seconds, self.seconds_left())

    def _eta_text(self, batch: int | None) -> str:
        seconds = self._seconds_to_go(batch)
        return "" if seconds is None else f"  ETA {duration_text(seconds)}"


def number_text(value: float) -> str:
    """Two decimals without the leading zero: .83, 1.25, 12.50."""
    text = f"{value:.2f}"
    return text[1:] if text.startswith("0.") else text


def losses_text(logs: dict[str, float] | None) -> str:
    """`loss 1.234 (rpn_class .12 rpn_bbox .33 class .21 bbox .30 mask .27)`.

    Parts that the logs do not have are left out.
    """
    logs = logs or {}
    parts = [
        f"{name.removeprefix('mrcnn_').removesuffix('_loss')} {number_text(logs[name])}"
        for name in LOSS_NAMES
        if name in logs
    ]
    total = f"loss {logs['loss']:.3f}" if "loss" in logs else "loss ?"
    return f"{total} ({' '.join(parts)})" if parts else total
