"""A network that is built in a second, its images, and the command line in child processes.

The children are forked from a process that has imported Keras but computed nothing, so that a run
of the command line costs a few seconds. A process that has used TensorFlow must not start them.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mrcnn.cli.application import Application
from mrcnn.presets import MicrographConfig, inference_config
from tests.support.tiny import small_backbone

PIPE_BYTES = 2**20  # more than a run prints


class SmallRecipe(MicrographConfig):
    """The recipe for micrographs with small layers."""

    NAME = "small"
    BACKBONE = staticmethod(small_backbone)
    COMPUTE_BACKBONE_SHAPE = staticmethod(
        lambda shape: np.array([[shape[0] // s, shape[1] // s] for s in (4, 8, 16, 32, 64)])
    )
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 64
    IMAGE_MIN_SCALE = 1.0
    IMAGE_SCALE_JITTER = (1.0, 1.0)
    TOP_DOWN_PYRAMID_SIZE = 16
    RPN_CONV_CHANNELS = 16
    FPN_CLASSIF_FC_LAYERS_SIZE = 32
    MASK_CONV_CHANNELS = 16
    PRE_NMS_LIMIT = 200
    POST_NMS_ROIS_TRAINING = 50
    POST_NMS_ROIS_INFERENCE = 40
    TRAIN_ROIS_PER_IMAGE = 16
    MAX_GT_INSTANCES = 100
    DETECTION_MAX_INSTANCES = 40
    PRECISION = "float32"


def make_images(folder: Path, count: int, side: int = 64, seed: int = 0) -> tuple[Path, Path]:
    """Folders of images with two bright squares each, and of their label images."""
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = np.zeros((side, side), np.uint8)
        top, left = rng.integers(0, side // 2 - 16, 2)
        label[top : top + 16, left : left + 14] = 1
        label[top + side // 2 :, left + side // 2 :][:14, :14] = 2
        image = rng.integers(0, 60, label.shape) + 150 * (label > 0)
        Image.fromarray(image.astype(np.uint8)).save(images / f"{number:03d}.png")
        Image.fromarray(label).save(labels / f"{number:03d}.png")
    return images, labels


def small_model(mode: str = "inference"):
    """A `MaskRCNN` of SmallRecipe with random weights that are always the same."""
    import keras

    from mrcnn.model import MaskRCNN

    keras.utils.set_random_seed(0)
    config = (inference_config(SmallRecipe) if mode == "inference" else SmallRecipe)()
    return MaskRCNN(mode, config, os.devnull)


def make_weights(path: Path) -> None:
    """Write the weights of `small_model` and their description."""
    from mrcnn.weights import description

    def work() -> int:
        model = small_model()
        model.save_weights(path)
        known = description.describe(model.config, ("cell",), {"min_score": 0.0}, "cells")
        description.write(description.own_file(path), known)
        return 0

    made = Launched(work)
    assert made.wait(120) == 0, made.output


def mrcnn(*arguments: str | os.PathLike, eager: bool = False) -> Callable[[], int]:
    """The console command on the small network, for `Launched`.

    eager: TensorFlow works operation by operation: a short training is three times as fast.
    """

    def work() -> int:
        from mrcnn.cli.main import main

        Application.recipe = SmallRecipe
        if eager:
            import tensorflow

            tensorflow.config.run_functions_eagerly(True)
        return main([str(argument) for argument in arguments])

    return work


class Launched:
    """A child process that does some work and exits with the code that this returns.

    Attributes:
        output: what it has printed, when it has ended.
        seconds: how long it ran.
    """

    def __init__(self, work: Callable[[], int]):
        self._reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.started = time.monotonic()
        self.code: int | None = None
        self.output, self.seconds = "", 0.0
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(work, writing)
        os.close(writing)

    def send(self, number: int) -> None:
        """Send it a signal, where it is still there."""
        if not self.ended():
            os.kill(self.pid, number)

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self.seconds = time.monotonic() - self.started
                self._read()
        return self.code is not None

    def wait_at_most(self, seconds: float) -> int | None:
        """Its exit code, negative for the signal that it died of; None where it goes on after so
        many seconds."""
        until = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.005)
        return self.code

    def wait(self, seconds: float) -> int | None:
        """`wait_at_most`, after which it is killed."""
        if self.wait_at_most(seconds) is None:
            self.send(signal.SIGKILL)
            while not self.ended():
                time.sleep(0.005)
            return None
        return self.code

    def _read(self) -> None:
        os.set_blocking(self._reading, False)
        with os.fdopen(self._reading, "rb") as pipe:
            self.output = (pipe.read() or b"").decode(errors="replace")

    def last_line(self) -> str:
        lines = self.output.strip().splitlines()
        return lines[-1][:300] if lines else "(nothing printed)"


def _become(work: Callable[[], int], writing: int) -> None:
    """Do the work in this process, and end it."""
    code = 1
    try:
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        # Python's own streams may be replaced (pytest) or hold text of the parent.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def refused(done: Launched, code: int | None, words: Sequence[str] = ()) -> str | None:
    """What is wrong with how a command has refused: exit code 2 and one line is right.

    words: of which the line must hold one.
    """
    if code is None:
        return "hangs"
    if code < 0:
        return f"died of {signal.Signals(-code).name}: {done.last_line()}"
    if "Traceback (most recent call last)" in done.output:
        return f"traceback: {done.last_line()}"
    if code != 2:
        return f"exit code {code} and not 2: {done.last_line()}"
    said = [line for line in done.output.splitlines() if line.startswith(("mrcnn: ", "nucleus.py"))]
    if len(said) != 1:
        return f"{len(said)} lines of error and not one: {done.last_line()}"
    if words and not any(word in said[0] for word in words):
        return f"the error says another thing: {said[0]}"
    return None
