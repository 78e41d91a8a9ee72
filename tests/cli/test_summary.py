"""What a command has done, for people and for scripts."""

import json
from pathlib import Path

import numpy as np

from mrcnn.cli.summary import Summary, report_failures, timing

FOUND = Summary(
    "12 nuclei. Written to found",
    {"objects": 12, **timing(3.0, 0), "output": Path("größe"), "score": np.nan, "ranks": (3, 4)},
    {"Nuclei": "12"},
)


def test_a_table_for_people_a_line_where_it_is_quiet_and_a_document(capsys):
    assert FOUND.present("detect") == 0
    assert capsys.readouterr().out == "Nuclei  12\n"
    assert FOUND.present("detect", quiet=True) == 0
    assert capsys.readouterr().out == "12 nuclei. Written to found\n"
    assert FOUND.present("detect", quiet=True, as_json=True) == 0
    printed = capsys.readouterr().out
    assert printed.isascii() and printed.count("\n") == 1
    assert json.loads(printed) == {
        "command": "detect",
        "objects": 12,
        "seconds": 3.0,
        "seconds_per_image": None,
        "output": "größe",
        "score": None,
        "ranks": [3, 4],
    }


def test_failures_are_an_error(capsys):
    assert Summary("", {}, failed={"a.png": "is not an image"}).present("detect", as_json=True) == 2
    output = capsys.readouterr()
    assert json.loads(output.out) == {"command": "detect", "error": "1 image failed"}
    assert output.err == "1 image failed:\n  a.png: is not an image\n"


def test_failures_are_named_with_their_reasons(capsys):
    assert report_failures({}) == 0
    failed = {f"a{number}.png": "is broken" for number in range(6)}
    failed = {"/x/b.png": "/x/b.png: is\nno " + "image" * 99, **failed}
    assert report_failures(failed) == 2
    first, second, *others, last = capsys.readouterr().err.splitlines()
    assert first == "7 images failed:" and last == "  and 2 more"
    assert second.startswith("  /x/b.png: is\\nno image") and len(second) < 250
    assert others == [f"  a{number}.png: is broken" for number in range(4)]
