"""The exponential moving average of a model's weights, which detects better than the weights.

Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992); the
warm-up of the decay is that of TensorFlow's `ExponentialMovingAverage`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import ops

# Steps between updates. The decay to the power of the steps since the last update makes up for the
# gap; updating at every step would cost a tenth of a step's time on a processor.
UPDATE_EVERY = 8


def decay_after(decay: float, step: int, steps: int) -> float:
    """The share of the old average that stays in an update for the last `steps` steps.

    decay: per step. step: steps since averaging began; when they are few, the decay is lower.
    """
    return min(decay, (1 + step) / (10 + step)) ** steps


class WeightAverage:
    """The average of all weights of a model, batch-norm statistics included.

    Batch-norm statistics are averaged with the kernels they were measured under.
    The average starts as the model's weights. `apply` puts it into the model, `restore` puts back
    the weights that are being trained.
    """

    def __init__(self, model: keras.Model, decay: float):
        """decay: per step, in (0, 1)."""
        self.variables = list(model.weights)
        self.decay = decay
        self.values = [_copy(variable) for variable in self.variables]
        self._weights: list | None = None  # those being trained, while the average is in the model

    def update(self, step: int, steps: int) -> None:
        """Update the average with the model's weights.

        step: steps since averaging began. steps: steps since the last update.
        """
        share = 1.0 - decay_after(self.decay, step, steps)
        self.values = [
            value + (ops.stop_gradient(variable.value) - value) * share
            for value, variable in zip(self.values, self.variables, strict=True)
        ]

    def apply(self) -> None:
        """Put the average into the model, unless it is there already."""
        if self._weights is None:
            self._weights = [_copy(variable) for variable in self.variables]
            # JAX donates the buffers of variables: the average must not share them.
            _assign(self.variables, map(ops.copy, self.values))

    def restore(self) -> None:
        """Put back the weights that are being trained."""
        if self._weights is not None:
            _assign(self.variables, self._weights)
            self._weights = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average within the block, and the weights being trained after it."""
        self.apply()
        try:
            yield
        finally:
            self.restore()


def _copy(variable):
    return ops.copy(ops.stop_gradient(variable.value))


def _assign(variables, values) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
