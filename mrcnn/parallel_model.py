"""Data parallelism on several GPUs of one machine: matterport's `ParallelModel`.

The batch is cut into slices, each runs through the same inner model on a GPU of its own, and the
outputs are put together again. Without enough GPUs the slices run on the default device: the
result is the same, but nothing is gained. Under JAX compiled code ignores device scopes; use
`keras.distribution` there.

`MaskRCNN` does not use it: `training.devices` trains on several devices. It is kept for programs
that wrap models themselves, as matterport's do.

Shapes: B images of the whole batch.
"""

import contextlib
from typing import Any

import keras
from keras import ops, tree

from mrcnn.errors import UserError


class ParallelModel(keras.Model):
    """A model that runs `keras_model` on `gpu_count` slices of the batch.

    It has the inputs, outputs and weights of the inner model. Outputs with a batch axis are
    concatenated; scalar outputs (losses) are averaged, which equals the whole batch's value where
    that is a mean over images and B is a multiple of gpu_count.

    `inner_model` holds the weights: loading, saving, `get_layer`, and every attribute that a
    wrapper lacks come from there. (matterport: parallel_model.ParallelModel)
    """

    def __init__(self, keras_model: keras.Model, gpu_count: int):
        """keras_model: a functional model. Raises UserError where gpu_count is below 1."""
        if gpu_count < 1:
            raise UserError(f"GPU_COUNT = {gpu_count} is not allowed: a whole number, 1 or more")
        outputs = SlicedCall(keras_model, gpu_count)(keras_model.input)
        super().__init__(inputs=keras_model.input, outputs=_named(outputs, keras_model))
        # Not tracked a second time: the layer above tracks the weights already.
        object.__setattr__(self, "inner_model", keras_model)
        object.__setattr__(self, "gpu_count", gpu_count)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what the wrapper lacks. Under Torch, layers have a __getattr__ too.
        inner = self.__dict__.get("inner_model")
        own = getattr(super(), "__getattr__", None)
        if own is not None:
            with contextlib.suppress(AttributeError):
                return own(name)
        if inner is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(inner, name)

    def load_weights(self, *args: Any, **kwargs: Any) -> Any:
        """As the inner model's."""
        return self.inner_model.load_weights(*args, **kwargs)

    def save_weights(self, *args: Any, **kwargs: Any) -> Any:
        """As the inner model's."""
        return self.inner_model.save_weights(*args, **kwargs)

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """As the inner model's."""
        return self.inner_model.save(*args, **kwargs)

    def get_layer(self, *args: Any, **kwargs: Any) -> Any:
        """As the inner model's."""
        return self.inner_model.get_layer(*args, **kwargs)

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Print the summary of the inner model."""
        self.inner_model.summary(*args, **kwargs)


class SlicedCall(keras.layers.Layer):
    """Call a model on each of `count` slices of the batch and merge what it returns."""

    def __init__(self, model: keras.Model, count: int):
        super().__init__(name=f"parallel_{model.name}", dtype=model.dtype_policy)
        # Each input keeps its type: class ids are whole numbers, images may be half precision.
        self.autocast = False
        self.model = model
        self.count = count

    def call(self, inputs, training=None):
        gpus = _gpu_count()
        results = []
        for index in range(self.count):
            part = tree.map_structure(lambda x, i=index: self._slice(x, i), inputs)
            with keras.device(f"gpu:{index}") if index < gpus else contextlib.nullcontext():
                results.append(self.model(part, training=training))
        return tree.map_structure(_merge, *results)

    def _slice(self, x, index):
        size = ops.shape(x)[0]
        # Equal slices where the count divides the batch; sizes that differ by one otherwise.
        return x[size * index // self.count : size * (index + 1) // self.count]

    def compute_output_spec(self, inputs, training=None):
        return tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), self.model.output)


def _merge(*parts):
    if len(parts[0].shape) == 0:
        return sum(parts) / len(parts)
    return ops.concatenate(parts, axis=0)


def _named(outputs: Any, model: keras.Model) -> Any:
    """The outputs, passed through identity layers with the names of the model's outputs.

    Losses and metrics given by output name then fit the parallel model too.
    """
    taken = {tensor.name for tensor in model.inputs}
    named = []
    for name, output in zip(model.output_names, tree.flatten(outputs), strict=True):
        # A layer with several outputs gives each the same name.
        unique = name if name not in taken else f"{name}_{len(named)}"
        taken.add(unique)
        named.append(keras.layers.Identity(name=unique, dtype=output.dtype)(output))
    return tree.pack_sequence_as(outputs, named)


def _gpu_count() -> int:
    """GPUs that the backend can use; 0 where it has none."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return len(tf.config.list_logical_devices("GPU"))
    if backend == "torch":
        import torch

        return torch.cuda.device_count()
    if backend == "jax":
        import jax

        return sum(device.platform == "gpu" for device in jax.local_devices())
    return 0
