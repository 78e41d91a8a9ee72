"""Files whole or not at all; one run in a folder; what killed runs leave goes away."""

import subprocess
import sys

import numpy as np
import pytest

from mrcnn.atomic import (
    TEMPORARY,
    atomic_folder,
    atomic_path,
    locked,
    remove_leftovers,
    temporary_path,
)
from mrcnn.errors import UserError

LEAVE = """
import os, sys, time
from mrcnn.atomic import locked, temporary_path
with locked(sys.argv[1]):
    temporary_path(sys.argv[1]).write_text("half")
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds a folder, and has a temporary file in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_one_run_a_folder_and_nothing_of_a_killed_one(other, tmp_path):
    with pytest.raises(UserError, match="in use by another run"), locked(tmp_path):
        pass
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.glob(TEMPORARY))) == 1  # its writer lives
    other.kill()
    other.wait()
    with locked(tmp_path):
        assert not list(tmp_path.glob(TEMPORARY))


def test_only_what_is_left_by_the_dead_is_removed(tmp_path):
    ours = temporary_path(tmp_path)
    host, pid, _, unique = ours.name.removeprefix(".mrcnn-").split("-")
    reborn = tmp_path / f".mrcnn-{host}-{pid}-1-{unique}"  # the same number, an earlier process
    elsewhere = tmp_path / f".mrcnn-00000000-{pid}-1-{unique}"
    foreign = tmp_path / ".somebody.tmp"
    for path in (ours, reborn, elsewhere, foreign):
        path.write_text("half")
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {ours, elsewhere, foreign}


def test_a_process_may_hold_its_folder_twice_where_it_says_so(tmp_path):
    with locked(tmp_path), locked(tmp_path, again=True):
        with pytest.raises(UserError, match="in use"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("a")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("a")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "a"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "made") as folder:
        (folder / "new").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "old"]
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "new"]


def test_errors_that_follow_from_a_full_disk_are_one_line(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        # np.savez answers with "Can't close the ZIP file while there is an open writing handle".
        with pytest.raises(UserError, match="a.npz: could not be written: "):
            with atomic_path(tmp_path / "a.npz") as temporary, open(temporary, "wb") as file:
                np.savez(file, a=np.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_long_names_are_written(tmp_path):
    path = tmp_path / ("x" * 255)
    with atomic_path(path) as temporary:
        temporary.write_text("a")
    assert path.read_text() == "a"


def test_a_new_folder_in_which_nothing_was_written_goes_away(tmp_path):
    with pytest.raises(UserError, match="wrong"), locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / ".mrcnn-run.jsonl").write_text("{}")
        raise UserError("wrong")
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "labels.tif").write_text("")
    with locked(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".mrcnn-lock", "a"}
