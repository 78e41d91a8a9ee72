"""Several devices and processes train what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from mrcnn.data.batches import BatchLoader
from mrcnn.errors import UserError
from mrcnn.model import MaskRCNN
from mrcnn.training import devices
from tests.training.test_fit import Squares, SquaresConfig

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "tests.support.train_on_devices"]
BACKEND = keras.backend.backend()
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
# After a convolution whose batch norm learns, a bias changes nothing: it has rounding for values.
NOTHING = 1e-6


def start(runs, **environment):
    return subprocess.Popen(
        [*PROGRAM, *runs],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_equal(one, other, what):
    scale = max(np.abs(one).max(), NOTHING)
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-4 * scale + NOTHING, err_msg=what)


def assert_same_weights(one, other, epoch):
    """Of the checkpoints of an epoch in the folders of two runs."""
    arrays = []
    for folder in (one, other):
        [path] = folder.glob(f"squares*/mask_rcnn_squares_{epoch:04d}.h5")
        arrays.append(arrays_in(path))
    assert arrays[0].keys() == arrays[1].keys()
    for path, value in arrays[0].items():
        assert_equal(value, arrays[1][path], path)


def arrays_in(path):
    """All arrays of a weight file, by their paths."""
    found = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(note)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the runs: `one`, 25 steps on one device; `two`, the last 20 of them on two devices;
    `back`, five on one device that follow the first five of `two`."""
    folder = tmp_path_factory.mktemp("devices")
    running = start(
        [f"{folder}/one,1,5", f"{folder}/two,2,5,{folder}/one", f"{folder}/back,1,3,{folder}/two"]
    )
    said, _ = running.communicate()
    assert running.returncode == 0, said
    return folder


# JAX compiles for a minute, and XLA rounds otherwise for two devices: with batch norms that learn,
# a proposal changes within some steps, and the losses with it.
@on_tensorflow
@pytest.mark.parametrize("name, epochs", [("two", (2, 5)), ("back", (3, 3))])
def test_two_devices_resume_and_train_what_one_does_and_back(runs, name, epochs):
    one, other = np.load(runs / "one.npy"), np.load(runs / f"{name}.npy")
    expected = one[5 * (epochs[0] - 1) : 5 * epochs[1]]
    assert len(other) == len(expected)
    for number, (losses, found) in enumerate(zip(expected, other, strict=True)):
        assert_equal(losses, found, f"losses of step {number}")
    for epoch in epochs:
        assert_same_weights(runs / "one", runs / name, epoch)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@on_tensorflow
def test_two_processes_train_what_one_does_until_one_of_them_is_ended(runs, tmp_path):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    running = []
    for number in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": number}}
        die = {"DIE_AT_STEP": "21"} if number else {}
        running.append(start([f"{tmp_path}/{number},2,5"], TF_CONFIG=json.dumps(task), **die))
    try:
        said = [process.communicate(timeout=600)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert running[0].returncode == 1 and running[1].returncode == -15, "\n".join(said)
    last = said[0].strip().splitlines()[-1]
    assert "another process of this training has ended" in last and "_0004.h5" in last
    assert "Traceback" not in said[0] and "most recent call" not in last
    assert not list((tmp_path / "1").glob("*/*.h5"))  # process 0 writes for all
    for epoch in (1, 4):
        assert_same_weights(runs / "one", tmp_path / "0", epoch)


def test_parts_of_a_batch_make_the_whole():
    class Four(SquaresConfig):
        IMAGES_PER_GPU = 4

    squares = Squares().fill()
    whole, *parts = (
        BatchLoader(squares, Four(), part=part)[1][0] for part in ((0, 1), (0, 2), (1, 2))
    )
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def config_for(count):
    return type("Several", (SquaresConfig,), {"GPU_COUNT": count, "IMAGES_PER_GPU": 1})()


@pytest.mark.backend
def test_more_devices_than_there_are_is_one_line(tmp_path):
    said = "not supported on Torch" if BACKEND == "torch" else "GPU_COUNT = 64 .*this process has"
    with pytest.raises(UserError, match=said):
        MaskRCNN("training", config_for(64), str(tmp_path))
    MaskRCNN("inference", config_for(64), str(tmp_path))  # which needs no devices


def test_a_batch_that_cannot_be_divided_is_one_line():
    with pytest.raises(UserError, match="batch of 5 images cannot be divided among 2 devices"):
        devices.check(2, 5)


@on_tensorflow
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_a_wrong_environment_is_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    devices.processes.cache_clear()
    try:
        with pytest.raises(UserError, match="TF_CONFIG is wrong"):
            devices.processes()
    finally:
        devices.processes.cache_clear()
