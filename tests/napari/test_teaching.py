"""Fine-tuning in a process of its own."""

import subprocess

import numpy as np
import pytest

import mrcnn
from mrcnn.data.synthetic import bright_ellipses
from mrcnn.errors import UserError
from mrcnn.napari.teaching import teach
from tests.test_fine_tuning import small_weights


@pytest.fixture
def corrections(tmp_path):
    image = bright_ellipses(96, 0)
    labels = np.zeros(image.shape[:2], np.int32)
    labels[20:40, 20:40], labels[60:80, 50:80] = 1, 2
    mrcnn.add_to_training_set(tmp_path / "set", "cells", image, labels)
    return tmp_path / "set"


@pytest.fixture
def processes(monkeypatch):
    """Those that are started meanwhile."""
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    return started


def nothing(done, total):
    pass


def test_new_weights_lie_below_the_training_set(corrections, tmp_path, processes):
    seen = []
    path = teach(corrections, str(small_weights(tmp_path)), 0.01, lambda *at: seen.append(at))
    assert path.parent.parent == corrections / "runs" and path.is_file()
    assert seen[0] == (0, 0) and seen[-1][0] >= 1
    assert processes[0].returncode == 0


def test_what_is_wrong_comes_back_in_one_line(corrections, tmp_path):
    with pytest.raises(UserError, match="no training set yet"):
        teach(tmp_path, "nucleus", 1, nothing)
    with pytest.raises(UserError, match="none.h5"):
        teach(corrections, str(tmp_path / "none.h5"), 1, nothing)


def test_a_process_that_dies_is_one_line(corrections, processes):
    with pytest.raises(UserError, match="without a result: nothing was printed"):
        teach(corrections, "nucleus", 1, lambda done, total: processes[0].kill())


def test_an_error_of_progress_ends_the_training(corrections, tmp_path, processes):
    weights = small_weights(tmp_path)

    def cancel(done, total):
        if total:
            raise KeyError("cancelled")

    with pytest.raises(KeyError):
        teach(corrections, str(weights), 1, cancel)
    assert processes[0].returncode == 0 and not list((corrections / "runs").glob("*"))
