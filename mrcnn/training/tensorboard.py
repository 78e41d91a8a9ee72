"""Scalar logs for TensorBoard, where it is installed; it writes them without TensorFlow, so that
every backend has them.

To look at the logs: `tensorboard --logdir logs`.
"""

import importlib.util
import os
import socket
import time
from pathlib import Path

import keras
from keras import ops

from mrcnn.atomic import file_system_errors
from mrcnn.errors import UserError


def installed() -> bool:
    """Whether `TensorBoardLog` can be made."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoardLog(keras.callbacks.Callback):
    """Write the logs of every epoch to `log_dir`/train and, without `val_`, /validation.

    Tags are `epoch_loss`, `epoch_rpn_class_loss`, ... and `epoch_learning_rate`, like those of
    Keras's own TensorBoard callback; steps are epochs, counted from 0 as in Keras.
    """

    def __init__(self, log_dir: str | os.PathLike):
        """Raises UserError where TensorBoard is not installed."""
        super().__init__()
        if not installed():
            raise UserError(
                'TensorBoard logs need its package: pip install "mrcnn-keras[tensorboard]"'
            )
        self.log_dir = Path(log_dir)
        self._files: dict[str, Path] = {}

    def on_train_begin(self, logs=None):
        self._files = {}

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        training = {f"epoch_{k}": v for k, v in logs.items() if not k.startswith("val_")}
        training["epoch_learning_rate"] = float(
            ops.convert_to_numpy(self.model.optimizer.learning_rate)
        )
        validation = {
            f"epoch_{k.removeprefix('val_')}": v for k, v in logs.items() if k.startswith("val_")
        }
        self._write("train", epoch, training)
        if validation:
            self._write("validation", epoch, validation)

    def _write(self, run: str, epoch: int, scalars: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if run not in self._files:
            self._files[run] = _new_file(self.log_dir / run)
            _append(self._files[run], file_version="brain.Event:2")
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        _append(self._files[run], step=epoch, summary=Summary(value=values))


def _new_file(folder: Path) -> Path:
    # TensorBoard reads files with "tfevents" in the name; the rest keeps names unique.
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
    return folder / name


def _append(path: Path, **fields) -> None:
    """Write an event now. (TensorBoard's own writer does so in a thread, from a queue, and keeps
    the file open.)"""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    event = Event(wall_time=time.time(), **fields)
    with file_system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            RecordWriter(file).write(event.SerializeToString())
