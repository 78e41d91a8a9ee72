"""One batch on several devices: what each of them must know about the parts that the others have.

TensorFlow (tf.distribute) runs the network once per device, on a part of the batch; these copies
are called replicas. JAX runs one program that sees the whole batch, whatever the devices: there,
and on one device, the functions below change nothing.
"""

import keras
from keras import ops


def _context():
    """TensorFlow's replica context where there are several replicas; None elsewhere."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def replica_count() -> int:
    """The number of parts that the batch is split into: 1 where the whole of it is seen."""
    context = _context()
    return 1 if context is None else context.num_replicas_in_sync


def mean_over_replicas(value):
    """The mean of a tensor, or of each of a list of them, over the replicas."""
    context = _context()
    return value if context is None else context.all_reduce("MEAN", value)


def sum_over_replicas(value):
    """As `mean_over_replicas`, but their sum."""
    context = _context()
    return value if context is None else context.all_reduce("SUM", value)


def random_uniform(shape, seed_generator):
    """Random numbers in [0, 1), float32 of a shape [B, ...], for the images of the batch.

    Every replica draws those of the whole batch and keeps those of its own images, so that an
    image gets the same ones on any number of devices.
    """
    context = _context()
    if context is None:
        return keras.random.uniform(shape, seed=seed_generator)
    images = shape[0]
    whole = (images * context.num_replicas_in_sync, *shape[1:])
    numbers = keras.random.uniform(whole, seed=seed_generator)
    first = context.replica_id_in_sync_group * images
    return ops.reshape(numbers[first : first + images], shape)
