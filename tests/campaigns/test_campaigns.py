"""The campaigns in short: a few cases of each, and that a campaign counts what is wrong."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mrcnn.errors import UserError
from tests.campaigns.__main__ import SHORT
from tests.campaigns.common import Case, Tally, isolated, torn_file, verdict, wrong_message
from tests.campaigns.damage import with_checksums

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def printed():
    """What each campaign prints. One process for all, and not this one: its children must come
    from a process that has not used TensorFlow."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns", "--short"],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    parts = re.split(r"^== (\w+) ==$", done.stdout, flags=re.MULTILINE)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    return {name: found.get(name, done.stderr[-3000:]) for name in SHORT}


@pytest.mark.parametrize("name", SHORT)
def test_short_form(name, printed):
    last = printed[name].strip().splitlines()[-1]
    assert re.fullmatch(r"tried [1-9]\d*, right \d+, wrong 0", last), printed[name]


def refuse(message: str):
    raise UserError(message)


@pytest.mark.parametrize(
    "message, wrong",
    [
        ("a.png: is empty", None),
        ("is empty", "does not name the file"),
        ("a.png: bad\nworse", "several lines"),
        ("a.png: \x1b[31m", "control characters"),
        ("a.png" + "x" * 1000, "many characters"),
        ("a.png: needs more memory than there is", "memory was asked for"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_file(message, wrong):
    found = wrong_message(message, ["a.png"])
    assert found is None if wrong is None else wrong in found


def test_errors_that_refuse_are_judged_by_their_message():
    assert verdict(lambda: refuse("a.png: is empty"), "a.png") is None
    assert "does not name the file" in verdict(lambda: refuse("is empty"), "a.png")


def test_other_errors_are_wrong_and_say_where():
    assert "ZeroDivisionError in campaigns/test_campaigns.py" in verdict(lambda: 1 / 0)


def judged(*judges, limit=1.0, megabytes=200):
    def cases(first):
        return [Case(f"case {number}", judge) for number, judge in enumerate(judges)][first:]

    return [wrong for _, _, wrong in isolated(cases, 0, limit, megabytes)]


def test_a_child_that_hangs_or_dies_costs_one_case():
    found = judged(
        lambda: None,
        lambda: time.sleep(60),
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        lambda: "bad",
    )
    assert found[0] is None and "hangs" in found[1] and "died" in found[2] and found[3] == "bad"


def test_memory_of_a_case_is_measured():
    def large():
        np.ones(60 * 2**20).sum()

    found = judged(large, lambda: None, limit=30)
    assert "more than 200 MB" in found[0] and found[1] is None


def test_a_tally_counts_and_says_how_to_repeat(capsys):
    tally = Tally(argparse.Namespace(name="damage", seed=7, seconds=60))
    tally.add("roi", 3, "cut", None)
    tally.add("roi", 4, "cut", "hangs: 30 s", None, "torn: a")
    assert tally.finish() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "tried 2, right 1, wrong 1"
    assert any("damage --seed 7 --only roi --first 4 --count 1" in line for line in lines)


def test_torn_files_are_seen(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.json.tmp").write_text("{")
    assert torn_file(tmp_path) is None
    (tmp_path / "c.csv").write_text("a,b\n1,")
    assert "c.csv" in torn_file(tmp_path)


def test_checksums_of_damaged_png_files(tmp_path):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    assert with_checksums(whole) == whole
    wider = bytearray(whole)
    wider[19] = 5
    assert Image.open(io.BytesIO(with_checksums(bytes(wider)))).size == (5, 4)
