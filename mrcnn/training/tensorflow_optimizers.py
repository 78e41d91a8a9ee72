"""Keras's SGD and Adam with updates that are one TensorFlow kernel per variable.

Keras writes an update as a dozen elementwise operations and the clipping as half a dozen, each of
which reads and writes every parameter. The arithmetic, the variables and their names are Keras's.

Only for the TensorFlow backend: the others compile such operations into one by themselves.
On several devices the gradients are summed over them before they are clipped; Keras clips each
device's own, whose sum has a different norm from the whole batch's gradient.
"""

import keras

from mrcnn.network.replicas import sum_over_replicas


def sum_of_squares(tensor):
    """Its gradient is one multiplication; that of sum(square(x)) is three operations."""
    import tensorflow as tf

    return 2.0 * tf.nn.l2_loss(tensor)


class _ClippedInOnePass:
    """`clipnorm`, by the norm of every gradient."""

    def _clip_gradients(self, grads):
        return super()._clip_gradients(sum_over_replicas(list(grads)))

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars  # they are sums already

    def _clip_by_norm(self, values, axes=None):
        import tensorflow as tf

        norm = tf.sqrt(sum_of_squares(values))
        return values * (self.clipnorm / tf.maximum(norm, self.clipnorm))


class SGD(_ClippedInOnePass, keras.optimizers.SGD):
    """SGD with momentum (without Nesterov's)."""

    def update_step(self, gradient, variable, learning_rate):
        if not self.momentum:
            super().update_step(gradient, variable, learning_rate)
            return
        import tensorflow as tf

        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
        )


class Adam(_ClippedInOnePass, keras.optimizers.Adam):
    """Adam (without AMSGrad)."""

    def update_step(self, gradient, variable, learning_rate):
        import tensorflow as tf

        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations.value + 1, variable.dtype)
        beta_1, beta_2 = (tf.cast(b, variable.dtype) for b in (self.beta_1, self.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.cast(self.epsilon, variable.dtype),
            grad=gradient,
        )
