"""Detections that end in the middle and go on."""

import json
import re
import shutil

import numpy as np
import pytest

from mrcnn.cli import detectors
from mrcnn.errors import UserError
from mrcnn.images.listing import image_paths
from mrcnn.results.run_log import RUN_LOG, RunLog
from mrcnn.results.writers import FORMATS
from samples.nucleus import nucleus
from tests.support.nucleus_models import FixedModel, segmenter

ABOUT = {"settings": {"--tile": None}, "weights": "w", "images": {"a": "1", "b": "2"}}
LENGTHS = {"table.csv.partial": 3}


class Killed(BaseException):
    """Nothing catches this: a run that it ends leaves its folder as SIGKILL does."""


def files(folder):
    """What the files of a folder hold, but for times."""
    return {
        str(path.relative_to(folder)): re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d", b"", path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def images(tmp_path):
    """Five images, the third of which cannot be decoded and the last of which is no image."""
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(folder / f"{name}.png")
    whole = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(whole[: len(whole) // 2])
    (folder / "e.png").write_bytes(b"rubbish")
    return folder


@pytest.fixture
def detect(images, monkeypatch):
    """`nucleus.py detect` on the images into a folder, which `end` ends at its n-th image."""

    def detect(output, *flags, stop=None, by=Killed):
        class Model(FixedModel):
            calls = 0

            def detect_patches(self, *arguments, **keywords):
                Model.calls += 1
                if Model.calls == stop:
                    raise by
                return super().detect_patches(*arguments, **keywords)

        monkeypatch.setattr(detectors, "segmenter", lambda *_: segmenter(Model()))
        formats = ",".join((*FORMATS, "submission"))
        command = ["detect", str(images), "--output", str(output), "--format", formats]
        code = nucleus.main([*command, *flags])
        return code, Model.calls

    return detect


@pytest.mark.parametrize("by", [Killed, KeyboardInterrupt])
def test_what_was_begun_goes_on(detect, tmp_path, monkeypatch, capsys, by):
    pytest.importorskip("roifile")
    assert detect(tmp_path / "whole") == (2, 3)
    found = tmp_path / "found"
    if by is Killed:
        with monkeypatch.context() as patch:  # nothing is finished, and half a line is left
            patch.setattr("mrcnn.results.writers.ResultWriter.close", lambda *_: None)
            with pytest.raises(Killed):
                detect(found, stop=3)
        for name in ("measurements.csv", "submit.csv", "index.html", "coco.json"):
            with open(found / f"{name}.partial", "ab") as file:
                file.write(b"half a pie")
        with open(found / RUN_LOG, "ab") as file:
            file.write(b'{"name": "d", "fai')
    else:
        assert detect(found, stop=3, by=by)[0] == 130
        assert "the same command resumes from there" in capsys.readouterr().err
    assert detect(found) == (2, 1)
    assert "4 of 5 images are in" in capsys.readouterr().out
    right = files(tmp_path / "whole")
    assert files(found) == right and {"coco.json", "submit.csv", "rois/a.zip"} <= right.keys()

    assert detect(found) == (2, 0) and files(found) == right
    output = capsys.readouterr()
    assert "detect 5/5: all are in" in output.out and "2 images failed" in output.err
    assert detect(found, "--overwrite") == (2, 3) and files(found) == right
    (found / "labels" / "a.tif").unlink()
    assert detect(found) == (2, 3) and files(found) == right


def test_results_of_another_run_stay(detect, images, tmp_path, capsys):
    found = tmp_path / "found"
    detect(found, stop=3, by=KeyboardInterrupt)
    before = files(found)
    capsys.readouterr()

    def refused(*flags):
        assert detect(found, *flags) == (2, 0) and files(found) == before
        [line] = capsys.readouterr().err.splitlines()[-1:]
        return line

    assert "--diameter was None, is 20.0" in refused("--diameter", "20")
    assert "1 images gone, first: 'd'" in refused("--limit", "3")
    shutil.copy(images / "a.png", images / "z.png")
    assert "1 images new, first: 'z'" in refused()
    (images / "z.png").unlink()
    (images / "b.png").write_bytes((images / "a.png").read_bytes())
    assert "1 images changed, first: 'b'" in refused()
    (found / RUN_LOG).write_text('{"mrcnn results": 1}\n')
    before = files(found)
    assert f"{RUN_LOG}: is damaged" in refused()
    (found / RUN_LOG).unlink()
    before = files(found)
    assert "which one is not recorded" in refused()
    assert detect(found, "--overwrite")[1] == 3


def test_files_of_others_are_no_results(detect, tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "notes.txt").write_text("mine")
    assert detect(tmp_path / "found")[1] == 3


def test_the_lines_whose_files_are_there(tmp_path):
    log = RunLog(tmp_path, ABOUT)
    (tmp_path / "table.csv.partial").write_text("abcd")
    log.add("a", LENGTHS, memory=1)
    log.add("b", {"table.csv.partial": 5}, failed="is broken")
    again = RunLog(tmp_path, ABOUT)  # the table has 4 bytes: the second image is not in it
    assert [line["name"] for line in again.done] == ["a"] and again.lengths == LENGTHS
    (tmp_path / "table.csv.partial").unlink()
    assert RunLog(tmp_path, ABOUT).done == []
    with pytest.raises(UserError, match="different weights"):
        RunLog(tmp_path, ABOUT | {"weights": "others"})


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, "[]", "null", '{"name": 3}', '{"complete": true}', "\xff", "9" * 5000,
     '{"name": "a", "failed": null, "files": [], "lengths": {"x": -1}}'],
)  # fmt: skip
def test_damaged_logs_are_one_line(line, tmp_path):
    head = json.dumps({"mrcnn results": 1, **ABOUT})
    (tmp_path / RUN_LOG).write_bytes(f"{head}\n{line}\n".encode("latin-1"))
    with pytest.raises(UserError, match="jsonl: is damaged"):
        RunLog(tmp_path, ABOUT)


def test_a_folder_with_a_log_is_left_out_of_the_images(detect, images):
    inner = images / "found"
    detect(inner, stop=3, by=KeyboardInterrupt)
    (inner / "index.html").unlink()
    for path in inner.glob("*.partial"):
        path.unlink()
    left_out = []
    paths, _ = image_paths([images], None, left_out)
    assert {path.parent for path in paths} == {images}
    assert left_out == [(inner, "left out: results of this program")]
