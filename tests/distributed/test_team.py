"""Detection on a cluster gives the files that it gives without, whatever becomes of workers."""

import contextlib
import os
import signal

import pytest

from mrcnn.cli.application import Application
from mrcnn.cli.main import main
from mrcnn.distributed import cluster
from mrcnn.distributed.team import Team
from tests.campaigns.kill import FORMATS, content
from tests.campaigns.network import SmallRecipe


@pytest.fixture
def detect(data, client, tmp_path, monkeypatch):
    """Runs `detect` with these flags into a folder; the exit code."""
    monkeypatch.setattr(Application, "recipe", SmallRecipe)
    # The cluster of all tests in place of one that begins now.
    monkeypatch.setattr(cluster, "local_cluster", lambda n: contextlib.nullcontext(client))
    (data / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")

    how = ["--weights", str(data / "start.h5"), "--precision", "float32", "--diameter", "32"]

    def run(name, *more):
        output = ["--output", str(tmp_path / name), "--format", FORMATS]
        return main(["detect", str(data / "images"), *output, *how, *more])

    return run


def kill_a_worker(client):
    [pid, *_] = client.run(os.getpid).values()
    os.kill(pid, signal.SIGKILL)


def test_the_same_files_to_the_last_bit(detect, client, tmp_path, monkeypatch, capsys):
    """A run on a cluster, interrupted, and gone on with when a worker has just died."""
    whole, taken = Team.result, []

    def interrupted(self, *arguments):
        taken.append(None)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(Team, "result", interrupted)
    assert detect("here") == 2 and "broken.png: skipped" in capsys.readouterr().err
    assert detect("far", "--workers", "2") == 130
    assert "Dashboard: http" in capsys.readouterr().out
    monkeypatch.setattr(Team, "result", whole)
    kill_a_worker(client)  # a new one takes its place, which has no detector yet
    assert detect("far", "--resume", "--workers", "2") == 2  # one is broken
    assert "3 of 6 images are in" in capsys.readouterr().out
    here = content(tmp_path / "here")
    assert len(here) > 15 and here == content(tmp_path / "far")
    # With and without a cluster a run is the same one.
    assert detect("far", "--resume") == 2 and "detect 6/6: all are in" in capsys.readouterr().out


def test_nothing_to_resume_is_one_line(detect, tmp_path, capsys):
    assert detect("none", "--resume", "--workers", "2") == 2
    assert "no run to resume here" in capsys.readouterr().err


def test_no_scheduler_is_one_line(detect, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    assert detect("none", "--scheduler", "tcp://127.0.0.1:9") == 2
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mrcnn: ")]
    assert len(said) == 1 and "no scheduler answers at tcp://127.0.0.1:9" in said[0]
