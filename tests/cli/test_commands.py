"""What all commands have in common: one run has a folder."""

import numpy as np
import pytest

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
