"""What all commands have in common: one run has a folder."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mrcnn.atomic import locked
from samples.nucleus.nucleus import main
from samples.nucleus.submission import SubmissionWriter
from samples.nucleus.synthesize import synthesize


@pytest.mark.parametrize("command", ["detect", "evaluate", "choose", "generalise", "synthesize"])
def test_a_folder_in_use_is_one_line(command, tmp_path, capsys):
    [name] = synthesize(tmp_path, 1, 64)
    data = ["--dataset", str(tmp_path), "--subset", "stage1_train"]
    if command == "evaluate":
        writer = SubmissionWriter(tmp_path / "submit.csv")
        writer.add(name, np.zeros((64, 64), int))
        writer.close()
        data += ["--submission", str(tmp_path / "submit.csv")]
    flags = {"synthesize": [], "generalise": [*data, "--weights", "w"]}.get(command, data)
    with locked(tmp_path / "out"):
        assert main([command, *flags, "--output", str(tmp_path / "out")]) == 2
        assert "out is in use by another run: wait until" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".mrcnn-lock"]


def test_list_says_what_is_in_files_without_keras(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.tif").write_text("no image")
    script = (
        "import sys; from mrcnn.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'keras', 'tensorflow'} & set(sys.modules); sys.exit(code)"
    )

    def listed(*files):
        command = [sys.executable, "-c", script, "detect", "--list", *map(str, files)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = listed(tmp_path / "a.png", tmp_path / "b.tif")
    assert done.returncode == 2 and "b.tif: is not an image" in done.stderr
    assert "  20 x 30 pixels of uint8, grey, pixel size unknown" in done.stdout
    assert listed(tmp_path / "a.png").returncode == 0
