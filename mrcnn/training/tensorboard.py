"""Scalar logs for TensorBoard, written without TensorFlow, so that every backend has them.

An event file is a sequence of records (TensorFlow's TFRecord framing): the length as uint64, a
checksum of the length, the data, a checksum of the data, all little-endian. The data is an `Event`
message in protocol-buffer encoding; these fields of it are used:

    Event    1: wall_time (double)   2: step (int64)   3: file_version (string)   5: Summary
    Summary  1: Value, repeated      Value  1: tag (string)   2: simple_value (float)

To look at the logs: `pip install tensorboard`, then `tensorboard --logdir logs`.
"""

import os
import socket
import struct
import time
from typing import BinaryIO

import keras

_CRC32C_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected


class TensorBoardLog(keras.callbacks.Callback):
    """Write the logs of every epoch to `log_dir`/train and, without `val_`, /validation.

    Tags are `epoch_loss`, `epoch_rpn_class_loss`, ... and `epoch_learning_rate`, as those of
    Keras's own TensorBoard callback; steps are epochs, counted from 0 as Keras does.
    """

    def __init__(self, log_dir: str | os.PathLike):
        super().__init__()
        self.log_dir = log_dir
        self._writers: dict[str, EventWriter] = {}

    def on_train_begin(self, logs=None):
        self._writers = {}

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        training = {f"epoch_{k}": v for k, v in logs.items() if not k.startswith("val_")}
        training["epoch_learning_rate"] = float(self.model.optimizer.learning_rate)
        validation = {
            f"epoch_{k.removeprefix('val_')}": v for k, v in logs.items() if k.startswith("val_")
        }
        self._write("train", epoch, training)
        if validation:
            self._write("validation", epoch, validation)

    def _write(self, run: str, epoch: int, scalars: dict[str, float]) -> None:
        if run not in self._writers:
            self._writers[run] = EventWriter(os.path.join(self.log_dir, run))
        self._writers[run].write(epoch, scalars)


class EventWriter:
    """A new event file in `folder`. The file is open only while something is being written."""

    def __init__(self, folder: str | os.PathLike):
        os.makedirs(folder, exist_ok=True)
        # TensorBoard reads files with "tfevents" in the name; the rest keeps names unique.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.path = os.path.join(folder, name)
        with open(self.path, "xb") as file:
            _write_record(file, _double(1, time.time()) + _bytes(3, b"brain.Event:2"))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Append one event with all `scalars` (tag -> value)."""
        values = [_bytes(1, tag.encode()) + _float(2, v) for tag, v in scalars.items()]
        summary = b"".join(_bytes(1, value) for value in values)
        event = _double(1, time.time()) + _integer(2, step) + _bytes(5, summary)
        with open(self.path, "ab") as file:
            _write_record(file, event)


def _write_record(file: BinaryIO, data: bytes) -> None:
    length = struct.pack("<Q", len(data))
    file.write(length + _masked_crc(length) + data + _masked_crc(data))


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, then the rotation and the constant that the TFRecord format adds to it."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) checksum, bit by bit: the records are a few hundred bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# Protocol-buffer fields: a key (field number and wire type), then the value.
def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
