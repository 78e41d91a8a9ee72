"""Progress on a terminal and elsewhere, tables, and streams whose reader has gone."""

import io
import os
import re

import pytest

from mrcnn import console
from mrcnn.console import Progress, print_table
from tests.support.terminal import on_terminal

LOOP = """
import sys, time
from mrcnn.cli.main import run
from mrcnn.cli.summary import Summary
from mrcnn.console import Progress

def command():
    with Progress(4, "detect") as progress:
        for number in range(4):
            progress.within(1, 2)
            time.sleep({pause})
            progress.message(f"größe_{{number}}.png: " + "x" * 90)
            print("a note", number)
            print("a warning", number, file=sys.stderr)
            progress.step(f"{{number}} nuclei")
            if number == 2 and {stops}:
                print("now", flush=True)
                time.sleep(60)
    return Summary("", {{}}, {{"Images": "4", "Report": "found/" + "y" * 90}})

sys.exit(run(command, "mrcnn"))
"""
ENCODINGS = {"utf-8": ("größe", "━"), "ascii": ("gr\\xf6\\xdfe", "-")}


def printed(number, name, columns):
    """The lines that a step leaves above the bar."""
    text = f"{name}_{number}.png: " + "x" * 90
    cut = [text[start : start + columns] for start in range(0, len(text), columns)]
    return [*cut, f"a note {number}", f"a warning {number}"]


@pytest.mark.parametrize("columns, encoding", [(80, "utf-8"), (50, "utf-8"), (50, "ascii")])
def test_what_is_printed_goes_above_the_bar(columns, encoding):
    program = LOOP.format(pause=0.3, stops=False)
    shown = on_terminal(program, columns, encoding=encoding)
    name, stroke = ENCODINGS[encoding]
    above = [line for number in range(4) for line in printed(number, name, columns)]
    assert shown.lines[: len(above)] == above
    bar, *table = shown.lines[len(above) :]
    assert re.fullmatch(rf"detect {stroke}{{6,}} 4/4 took 00:00:0\d 3 nuclei", bar)
    assert len(bar) <= columns and "Images" in table[1]
    assert sum(line.count("y") for line in table) == 90 and max(map(len, table)) <= columns
    assert b"2/4" in shown.written and b"ETA 00:00:0" in shown.written
    assert shown.code == 0


def test_ctrl_c_leaves_whole_lines():
    shown = on_terminal(LOOP.format(pause=0.1, stops=True), stop_at=b"now")
    above = [line for number in range(3) for line in printed(number, "größe", 80)]
    assert shown.lines[:-2] == [*above, "now"]
    bar, last = shown.lines[-2:]
    assert re.fullmatch(r"detect [━╺╸]+ 3/4 ETA \S+ 2 nuclei", bar) and last == "mrcnn: interrupted"
    assert shown.code == 130
    assert b"\x1b[?25l" not in shown.written  # which hides the cursor: a killed run leaves it so


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress(3, "detect", stream, interval=3600) as progress:
        progress.step("one")
        progress.message("a.png: inverted")
        progress.step()
        progress.step()
    first, message, last = stream.getvalue().splitlines()
    assert re.fullmatch(r"detect 1/3 ETA \d\d:\d\d:\d\d one", first)
    assert message == "a.png: inverted" and re.fullmatch(r"detect 3/3 took 00:00:0\d", last)


def test_fewer_steps_than_announced():
    stream = io.StringIO()
    with Progress(8, "combine", stream) as progress:
        for _ in range(3):
            progress.step()
        progress.finish()
    assert re.fullmatch(r"combine 3/3 took 00:00:0\d", stream.getvalue().splitlines()[-1])


def test_nothing_but_warnings_where_it_is_quiet(capsys):
    with console.quiet(), Progress(1, "detect") as progress:
        progress.message("a.png: inverted")
        progress.step()
        print("a note about \udc80.png")
    output = capsys.readouterr()
    assert output.out == output.err == ""
    print("again")
    assert capsys.readouterr().out == "again\n"


def test_a_table_in_a_file_has_whole_paths(capsys):
    print_table({"Images": "6", "Report": "x" * 200})
    assert capsys.readouterr().out == f"Images  6\nReport  {'x' * 200}\n"


def test_a_terminal_that_was_closed():
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        stream = console.LastingStream(terminal)
        os.close(master)
        print("a line", file=stream, flush=True)
        print("another", file=stream, flush=True)
