"""Training on several devices: each of them computes a part of every batch.

TensorFlow: `tf.distribute`, MirroredStrategy in one process, MultiWorkerMirroredStrategy where the
environment (TF_CONFIG) names several. JAX: `keras.distribution.DataParallel`, and `jax.distributed`
for several processes (KERAS_DISTRIBUTION_JOB_ADDRESSES, ..._NUM_PROCESSES, ..._PROCESS_ID, or
JAX_COORDINATOR_ADDRESS). The result is that of one device on the whole batch, except for rounding:
`network.replicas` explains how.

All processes run the same program; process 0 writes the run's files.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mrcnn.errors import UserError, one_line, reason_of

BACKEND = keras.backend.backend()
JAX_VARIABLES = ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "JAX_COORDINATOR_ADDRESS")


# ---- Processes -----------------------------------------------------------------------------------


@lru_cache
def processes() -> tuple[int, int]:
    """(number of this process, count of processes), of those that train together; connects them.

    Must be called before the backend computes anything.

    Raises:
        UserError: the environment is wrong, or the processes do not find each other.
    """
    if BACKEND == "tensorflow":
        return _tensorflow_processes()
    if BACKEND == "jax" and any(os.environ.get(name) for name in JAX_VARIABLES):
        return _jax_processes()
    return 0, 1


def _tensorflow_processes() -> tuple[int, int]:
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 0, 1
    try:
        described = json.loads(text)
        cluster = described.get("cluster")
        if not cluster:
            return 0, 1
        # In TensorFlow's order: a chief, where one is named, comes before the workers.
        chiefs, workers = (cluster.get(kind, ()) for kind in ("chief", "worker"))
        tasks = [("chief", number) for number in range(len(chiefs))]
        tasks += [("worker", number) for number in range(len(workers))]
        own = described["task"]["type"], int(described["task"]["index"])
        if own not in tasks:
            raise ValueError(f"task {own[0]} {own[1]} is not in the cluster")
        return tasks.index(own), len(tasks)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"the environment variable TF_CONFIG is wrong ({reason_of(error)}): it must look like "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", '
            '"index": 0}}'
        ) from error


def _jax_processes() -> tuple[int, int]:
    import jax

    try:
        with _own_sigterm():
            if os.environ.get(JAX_VARIABLES[0]):
                keras.distribution.initialize()
            else:
                jax.distributed.initialize()
    except Exception as error:  # ValueError, RuntimeError, and what gRPC raises
        raise UserError(
            f"the processes that {' or '.join(JAX_VARIABLES)} names did not find each other "
            f"({reason_of(error)}): set the same addresses and count in each, with a number of its "
            "own, and start all of them"
        ) from error
    return jax.process_index(), jax.process_count()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep Python's handler of SIGTERM in the block: where processes are connected, TensorFlow and
    JAX set one of their own, which treats the signal as a warning and carries on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def is_chief() -> bool:
    """Whether this process writes the run's files."""
    return processes()[0] == 0


@lru_cache
def scratch_folder() -> Path:
    """Where a process that is not the chief writes files that nobody needs; removed when it ends.

    It writes as the chief does, so that all processes compute the same things in the same order.
    """
    folder = Path(tempfile.mkdtemp(prefix="mrcnn-process-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# ---- Devices -------------------------------------------------------------------------------------


def check(count: int, batch_size: int) -> None:
    """Raise UserError where `count` devices, of all processes, cannot compute a batch."""
    if count == 1 and processes()[1] == 1:
        return
    if BACKEND == "torch":
        raise UserError(
            f"GPU_COUNT = {count}: several devices are not supported on Torch; set it to 1, or "
            "KERAS_BACKEND to tensorflow or jax"
        )
    total = processes()[1]
    if total > 1 and count % total:
        raise UserError(
            f"GPU_COUNT = {count} (--devices) counts the devices of all {total} processes: it must "
            f"be a multiple of {total}"
        )
    if batch_size % count:
        raise UserError(f"a batch of {batch_size} images cannot be divided among {count} devices")
    distribution(count)


@lru_cache
def distribution(count: int) -> Any:
    """TensorFlow's strategy or Keras's distribution for `count` devices; None for one.

    Raises UserError where there are fewer.
    """
    total = processes()[1]
    if count == 1 and total == 1:
        return None
    return _strategy(count, total) if BACKEND == "tensorflow" else _data_parallel(count, total)


def _strategy(count: int, total: int) -> Any:
    import tensorflow as tf

    if total > 1:
        made = _multi_worker_strategy()
        _demand(made.num_replicas_in_sync == count, count, made.num_replicas_in_sync, total)
        return made
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    _demand(count <= len(names), count, len(names), total)
    return tf.distribute.MirroredStrategy(names[:count])


def _multi_worker_strategy() -> Any:
    import tensorflow as tf

    try:
        with _own_sigterm():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"the processes that TF_CONFIG names did not find each other ({reason_of(error)}): "
            "start all of them, each with its own index, and make the model before TensorFlow "
            "computes anything"
        ) from error


def _data_parallel(count: int, total: int) -> Any:
    import jax

    found = jax.devices()
    if total > 1:
        _demand(count == len(found), count, len(found), total)
    _demand(count <= len(found), count, len(found), total)
    # The loaders give every process its own images already.
    return keras.distribution.DataParallel(devices=found[:count], auto_shard_dataset=False)


def _demand(enough: bool, count: int, found: int, total: int) -> None:
    if not enough:
        where = "this process has" if total == 1 else f"the {total} processes have, in all,"
        raise UserError(f"GPU_COUNT = {count} (--devices): {where} {found} that {BACKEND} can use")


@contextlib.contextmanager
def scope(count: int, remains: Callable[[], str] = str) -> Iterator[None]:
    """Within the block Keras makes variables for, and trains on, `count` devices.

    Raises UserError where another process has gone; remains: returns the end of that message, on
    what the run leaves.
    """
    chosen = distribution(count)
    try:
        with chosen.scope() if chosen is not None else contextlib.nullcontext():
            yield
    except lost_connections() as error:
        leave()
        raise UserError(
            "another process of this training has ended, or cannot be reached "
            f"({_without_stack(error)}){remains()}"
        ) from error


def _without_stack(error: Exception) -> str:
    """What an error says, without the lines of Python code that TensorFlow puts in front."""
    before, _, last = str(error).rpartition('\n  File "')
    said = last.partition("\n")[2].strip() if before else ""
    return one_line(" ".join(said.split()), 200) if said else reason_of(error)


def synchronize_batch_norms(model: keras.Model, count: int) -> None:
    """Make layers that learn statistics use those of the whole batch; nested models included.

    On JAX they do so anyway.
    """
    if count == 1 or BACKEND != "tensorflow":
        return
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            synchronize_batch_norms(layer, count)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


# ---- Batches -------------------------------------------------------------------------------------


def batches(loader: Any, count: int) -> Any:
    """What `keras.Model.fit` takes for a `data.BatchLoader` of this process's part of the batches.

    loader may be None.
    """
    if loader is None or BACKEND != "tensorflow" or distribution(count) is None:
        return loader
    return _divided(loader, distribution(count))


def _divided(loader: Any, strategy: Any) -> Any:
    # Keras would have every process load the whole batch and throw most of it away.
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    class DividedBatches(PyDatasetAdapter):
        def get_tf_dataset(self):
            whole = super().get_tf_dataset()
            images = loader.config.BATCH_SIZE // strategy.num_replicas_in_sync
            return strategy.distribute_datasets_from_function(
                lambda _: whole.rebatch(images, drop_remainder=True)
            )

    return DividedBatches(loader, shuffle=False)


# ---- Agreement of processes ----------------------------------------------------------------------


def agreed(number: float) -> float:
    """Process 0's number. All processes must call this equally often and in the same order."""
    own, total = processes()
    if total == 1:
        return number
    if BACKEND == "jax":
        from jax.experimental.multihost_utils import broadcast_one_to_all

        return float(broadcast_one_to_all(np.float32(number)))
    return float(_sum_of_processes()(number if own == 0 else 0.0))


@lru_cache
def _sum_of_processes():
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    each = strategy.num_replicas_in_sync // processes()[1]

    @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
    def summed(number):
        numbers = strategy.run(lambda: number / each)
        return strategy.reduce("SUM", numbers, axis=None)

    return summed


def demand_same_weights(model: keras.Model) -> None:
    """Raise UserError where this process has started with weights other than process 0's."""
    if processes()[1] == 1:
        return
    found = 0
    for variable in model.variables:
        found = zlib.crc32(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)), found)
    own = float(found % 2**20)  # float32 holds such numbers exactly
    if agreed(own) != own:
        raise UserError(
            f"process {processes()[0]} starts with weights that differ from those of process 0: "
            "give all processes the same --weights, configuration and seed"
        )


def lost_connections() -> tuple[type[Exception], ...]:
    """What training raises where another process has gone; nothing for a single process."""
    if processes()[1] == 1:
        return ()
    if BACKEND == "jax":
        import jax

        return (jax.errors.JaxRuntimeError,)
    from tensorflow import errors

    return errors.UnavailableError, errors.AbortedError, errors.DeadlineExceededError


def leave() -> None:
    """After a connection was lost: end this process with exit code 2 when Python ends.

    JAX would wait for the lost process until its heartbeat is overdue, a minute or two, and then
    abort with a page of text.
    """
    if BACKEND == "jax":
        atexit.register(_exit)  # the last one registered is the first one called


def _exit() -> None:
    if not is_chief():
        shutil.rmtree(scratch_folder(), ignore_errors=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(2)
