"""The exponential moving average of a model's weights, which detects better than the weights.

Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992); the
warm-up of the decay is that of TensorFlow's `ExponentialMovingAverage`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import ops

# Steps between updates. A decay to the power of the steps that passed makes up for the waiting;
# every step would cost a tenth of a step on a processor.
UPDATE_EVERY = 8


def decay_after(decay: float, step: int, steps: int) -> float:
    """The share of the old average that stays in an update for the last `steps` steps.

    decay: of one step. step: steps since averaging began, to which a short run's decay adapts.
    """
    return min(decay, (1 + step) / (10 + step)) ** steps


class WeightAverage:
    """The average of all weights of a model, batch-norm statistics included.

    Batch-norm statistics are averaged with the kernels they were measured under.
    The average begins as the model's weights. `apply` puts it into the model, `restore` puts the
    weights that train back.
    """

    def __init__(self, model: keras.Model, decay: float):
        """decay: of one step, in (0, 1)."""
        self.variables = list(model.weights)
        self.decay = decay
        self.values = [_copy(variable) for variable in self.variables]
        self._weights: list | None = None  # those that train, while the average is in the model

    def update(self, step: int, steps: int) -> None:
        """Take in the model's weights.

        step: steps since averaging began. steps: how many of them since the last update.
        """
        share = 1.0 - decay_after(self.decay, step, steps)
        self.values = [
            value + (ops.stop_gradient(variable.value) - value) * share
            for value, variable in zip(self.values, self.variables, strict=True)
        ]

    def apply(self) -> None:
        """Put the average into the model; nothing happens where it is there already."""
        if self._weights is None:
            self._weights = [_copy(variable) for variable in self.variables]
            # JAX gives the memory of a variable away: the average must not share it.
            _assign(self.variables, map(ops.copy, self.values))

    def restore(self) -> None:
        """Put the weights that train back."""
        if self._weights is not None:
            _assign(self.variables, self._weights)
            self._weights = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average within the block, and the weights that train after it."""
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
