"""Several devices and processes train what one does."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the runs: `one`, 30 steps on one device; `two`, 20 on two; on TensorFlow `back`,
    the first ten of `two` and 20 on one device."""
    folder = tmp_path_factory.mktemp("devices")
    chosen = [f"{folder}/one,1,3", f"{folder}/two,2,2", f"{folder}/back,1,3,{folder}/two"]
    if BACKEND == "jax":  # which compiles for a minute
        chosen = [f"{folder}/one,1,2", f"{folder}/two,2,2"]
    running = start(chosen)
    said, _ = running.communicate()
    assert running.returncode == 0, said
    return folder


@pytest.mark.backend
@pytest.mark.skipif(BACKEND == "torch", reason="not supported on Torch")
def test_two_devices_train_what_one_does(runs):
    one, two = np.load(runs / "one.npz"), np.load(runs / "two.npz")
    assert len(two["losses"]) == 20
    for number, losses in enumerate(two["losses"]):
        assert_equal(one["losses"][number], losses, f"step {number}")
    if BACKEND == "jax":
        for name in one.files[1:]:
            assert_equal(one[name], two[name], name)


@on_tensorflow
def test_one_device_resumes_what_two_began(runs):
    one, back = np.load(runs / "one.npz"), np.load(runs / "back.npz")
    assert_equal(one["losses"][10:], back["losses"], "losses")
    for name in one.files[1:]:
        assert_equal(one[name], back[name], name)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@on_tensorflow
def test_two_processes_resume_what_one_began_until_one_is_killed(runs, tmp_path):
    shutil.copytree(runs / "one" / "half", tmp_path / "one" / "half")
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    running = []
    for number in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": number}}
        run = f"{tmp_path}/pair{number},2,4,{tmp_path}/one"
        die = {"DIE_AT_STEP": "21"} if number else {}
        running.append(start([run], TF_CONFIG=json.dumps(task), **die))
    said = [process.communicate(timeout=600)[0] for process in running]
    assert running[0].returncode == 1 and running[1].returncode == -9, "\n".join(said)
    last = said[0].strip().splitlines()[-1]
    assert "another process of this training has ended" in last and "_0003.h5" in last
    assert "Traceback" not in said[0]
    [checkpoint] = (tmp_path / "pair0").glob("*/mask_rcnn_squares_0003.h5")
    assert not list((tmp_path / "pair1").glob("*/mask_rcnn_squares_0003.h5"))
    model = MaskRCNN("training", SquaresConfig(), str(tmp_path / "again"))
    model.load_weights(str(checkpoint))
    one = np.load(runs / "one.npz")
    for weight in model.keras_model.weights:
        assert_equal(one[weight.path], keras.ops.convert_to_numpy(weight), weight.path)


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
