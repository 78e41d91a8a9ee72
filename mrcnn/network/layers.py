"""Kinds of layers with weights that all parts of the network use.

Shape shorthand: B images, R regions of interest, H W rows and columns, C channels.
"""

import keras
import numpy as np
from keras import ops


def first_values(gaussian: bool, deviation: float):
    """What a kernel starts from: the paper's Gaussian with this deviation, or Keras's default."""
    return keras.initializers.RandomNormal(0.0, deviation) if gaussian else "glorot_uniform"


@keras.saving.register_keras_serializable("mrcnn")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch normalization that can be frozen (matterport: `BatchNorm`).

    Called with `training=False` while the graph is built, the statistics stay frozen; with `True`
    the batch's own are always used; `None` follows the model, as `Config.TRAIN_BN` says.

    Images on TensorFlow go through its fused kernel, which takes a third of the time, because Keras
    would go through float32 and back in several passes. Frozen on other backends, it is one
    multiply-add in the input's own dtype.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mode = None

    def __call__(self, inputs, training=None, **kwargs):
        # A functional model replaces the `training` of its layers with its own: remember it here.
        if training is not None and isinstance(inputs, keras.KerasTensor):
            self.mode = training
        return super().__call__(inputs, training=training, **kwargs)

    def call(self, inputs, training=None, mask=None):
        training = training if self.mode is None else self.mode
        training = bool(training) and self.trainable
        if mask is None and self._has_fused_kernel(inputs, training):
            return self._call_fused(inputs, training)
        if training:
            return super().call(inputs, training=True, mask=mask)
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        offset = self.beta - self.moving_mean * scale
        return inputs * ops.cast(scale, inputs.dtype) + ops.cast(offset, inputs.dtype)

    def _has_fused_kernel(self, inputs, training):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and keras.backend.standardize_dtype(inputs.dtype) in ("bfloat16", "float16", "float32")
            and not self.renorm
            and not (training and self.synchronized)  # by `training.devices`
        )

    def _call_fused(self, inputs, training):
        """TensorFlow's kernel; statistics and arithmetic in float32, one rounding at the end."""
        from tensorflow.compat.v1 import nn

        frozen = {"mean": self.moving_mean.value, "variance": self.moving_variance.value}
        outputs, mean, variance = nn.fused_batch_norm(
            inputs,
            self.gamma.value,
            self.beta.value,
            epsilon=self.epsilon,
            is_training=training,
            **({} if training else frozen),
        )
        if training:
            # The kernel estimates the population's variance, divided by one less than the count;
            # Keras's moving average uses the batch's own.
            count = ops.cast(ops.size(inputs), "float32") / inputs.shape[-1]
            variance = variance * (count - 1.0) / count
            for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + new * (1.0 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable("mrcnn")
class RoiConv2D(keras.layers.Conv2D):
    """A convolution over [B, R, H, W, C]: every region of interest is an image of its own.

    `call(..., logits=True)` leaves the activation out, for losses computed from logits.
    """

    def build(self, input_shape):
        super().build((None, *input_shape[2:]))

    def call(self, inputs, logits=False):
        regions = ops.shape(inputs)[1]
        outputs = self.convolution_op(ops.reshape(inputs, (-1, *inputs.shape[2:])), self.kernel)
        outputs = ops.reshape(outputs, (-1, regions, *outputs.shape[1:])) + self.bias
        return outputs if logits else self.activation(outputs)

    def compute_output_shape(self, input_shape):
        if len(input_shape) == 4:  # Conv2D.build asks for plain images
            return super().compute_output_shape(input_shape)
        spatial = super().compute_output_shape((None, *input_shape[2:]))
        return (*input_shape[:2], *spatial[1:])


@keras.saving.register_keras_serializable("mrcnn")
class FullWindowConv2D(keras.layers.Conv2D):
    """A convolution whose window covers all of its input, computed as the matrix product it is.

    Input [N, h, w, C] with (h, w) the kernel's size, output [N, 1, 1, filters].
    """

    def call(self, inputs):
        kernel = ops.reshape(self.kernel, (-1, self.filters))
        outputs = ops.matmul(ops.reshape(inputs, (-1, kernel.shape[0])), kernel)
        if self.use_bias:
            outputs = outputs + self.bias
        return ops.reshape(outputs, (-1, 1, 1, self.filters))


# Layers whose kernels start from random numbers.
WITH_KERNEL = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
    FullWindowConv2D,
    RoiConv2D,
)


class LayerBank:
    """Makes layers by name, once: the same name again returns the same layer.

    Graphs for several image shapes, and the training and inference graphs, are built by the same
    functions from one bank and so share their weights.

    Attributes:
        layers: by name.
        unfilled: the values of the layers that loading weights has left as they were, see
            `MaskRCNN.check_weights`; None until weights are loaded.
    """

    def __init__(self, dtype: str = "float32", zeros: bool = False):
        """zeros: kernels start from zeros, which takes no time, as other values are set next."""
        self.dtype = dtype
        self.zeros = zeros
        self.layers: dict[str, keras.layers.Layer] = {}
        self.unfilled: dict[str, list[np.ndarray]] | None = None

    def __call__(self, kind, *args, name: str, **kwargs) -> keras.layers.Layer:
        """The layer called `name`, made as `kind(*args, name=name, **kwargs)` when it is new."""
        if name not in self.layers:
            kwargs.setdefault("dtype", self.dtype)
            if self.zeros and kind in WITH_KERNEL:
                kwargs["kernel_initializer"] = "zeros"
            self.layers[name] = kind(*args, name=name, **kwargs)
        return self.layers[name]
