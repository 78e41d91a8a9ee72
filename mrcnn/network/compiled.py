"""Functions of tensors, compiled as each backend does it best for inference.

TensorFlow: one graph for all sizes, since its executor gains nothing from fixed ones. JAX: one
XLA program per size. Torch: no compilation, no gradients.
"""

import itertools
from collections.abc import Callable, Sequence

import keras
import numpy as np

# Number of calls of a function of hundreds of small operations that take as long as tracing it.
EAGER_CALLS = 8

# JAX keeps a program for every size it has seen; beyond this many it forgets them all, so that a
# run over images of thousands of sizes stays within memory.
PROGRAMS_KEPT = 64


def compiled(
    function: Callable, variables: Sequence, signature: Sequence[keras.KerasTensor]
) -> Callable:
    """A fast version of a function that only reads its variables.

    Args:
        function: takes tensors, returns a list of tensors.
        variables: the Keras variables that it reads.
        signature: shapes and dtypes of its arguments; None for sizes that may change from call
            to call.

    Returns:
        A function of arrays or tensors that returns a list of the backend's tensors.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _tensorflow_graph(function, signature)
    if backend == "jax":
        return _JaxPrograms(function, variables)
    return _without_gradients(function)


def compiled_for_many(function: Callable, variables: Sequence) -> Callable:
    """As `compiled`, for a cheap function without arguments: on TensorFlow it is compiled only
    after `EAGER_CALLS` calls, which a single image does not reach."""
    fast = compiled(function, variables, [])
    if keras.backend.backend() != "tensorflow":
        return fast
    calls = itertools.count()
    return lambda: function() if next(calls) < EAGER_CALLS else fast()


def _tensorflow_graph(function, signature):
    import tensorflow as tf

    specs = [tf.TensorSpec(argument.shape, argument.dtype) for argument in signature]
    return tf.function(function, input_signature=specs, autograph=False)


class _JaxPrograms:
    """`jax.jit` with the variables as arguments (else they would be constants of the program)."""

    def __init__(self, function, variables):
        import jax

        self.variables = list(variables)
        self.sizes: set = set()

        def stateless(values, *arguments):
            with keras.StatelessScope(list(zip(self.variables, values, strict=True))):
                return function(*arguments)

        self.program = jax.jit(stateless)

    def __call__(self, *arguments):
        self.sizes.add(tuple(np.shape(argument) for argument in arguments))
        if len(self.sizes) > PROGRAMS_KEPT:
            self.program.clear_cache()
            self.sizes.clear()
        return self.program([variable.value for variable in self.variables], *arguments)


def _without_gradients(function):
    import torch

    def call(*arguments):
        with torch.inference_mode():
            return function(*map(keras.ops.convert_to_tensor, arguments))

    return call
