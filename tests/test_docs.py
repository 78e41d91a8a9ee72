"""What the documentation names exists."""

import re
from pathlib import Path

import pytest

from mrcnn.config_rules import RULES
from mrcnn.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "docs", "mrcnn", "samples", "scripts", "tests")
PAPER = (ROOT / "docs" / "paper.md").read_text()
CODE: dict[str, str] = {}  # by module; where two rooms have one of a name, both texts
for folder in ("mrcnn", "samples/nucleus"):
    for path in (ROOT / folder).rglob("*.py"):
        CODE[path.stem] = CODE.get(path.stem, "") + path.read_text()
TESTS = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}


def quoted():
    """Everything between backticks."""
    return re.findall(r"`([^`]+)`", PAPER)


def test_tests_exist():
    for name in set(re.findall(r"\btest_\w+", PAPER)):
        if f"{name}.py" not in TESTS:
            assert any(f"def {name}(" in text for text in TESTS.values()), name


def test_functions_exist():
    """`module.name`, and names that stand alone behind one."""
    seen = 0
    for text in quoted():
        match = re.match(r"(\w+)\.(\w+)(?:\.(\w+))?", text)
        if match and match[1] in CODE and match[2] not in ("py", "md"):
            seen += 1
            for name in filter(None, match.groups()[1:]):
                assert re.search(rf"(def|class) {name}\b", CODE[match[1]]), text
        elif re.fullmatch(r"(?!test_)[a-z0-9]+_[a-z_0-9]+", text) and text not in CODE:
            assert any(re.search(rf"(def|class) {text}\b", code) for code in CODE.values()), text
    assert seen >= 29


def test_configuration_keys_exist():
    keys = {match for text in quoted() for match in re.findall(r"\b[A-Z][A-Z0-9_]{4,}\b", text)}
    assert len(keys) > 20
    assert keys - {"DSB2018"} <= set(RULES), keys - set(RULES)


def test_the_architecture_names_modules_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = re.findall(r"`([\w/]+\.py)`", text)
    for name in names:
        assert list(ROOT.glob(name)) or list(ROOT.glob(f"mrcnn/**/{name}")), name
    assert len(names) > 40
    for levels in re.findall(r"^    ([a-z_, ]+)$", text, re.MULTILINE):
        for name in levels.split(", "):
            assert any(
                (ROOT / place).exists() for place in (f"mrcnn/{name}", f"mrcnn/{name}.py", name)
            ), name


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_described(name):
    assert f"--preset {name}" in PAPER


def test_files_exist():
    for text in quoted():
        if re.fullmatch(r"[\w/]+\.(py|md)", text):
            assert list(ROOT.glob(text)) or any(
                list((ROOT / folder).rglob(text)) for folder in FOLDERS
            ), text


def test_readme_lists_every_room():
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("## The package")[1].split("## Status")[0]
    rooms = {path.parent.name for path in (ROOT / "mrcnn").glob("*/__init__.py")}
    assert set(re.findall(r"^      (\w+)/", tree, re.MULTILINE)) == rooms
    files = {path.name for path in (ROOT / "mrcnn").glob("*.py")} - {"__init__.py"}
    assert files == set(re.findall(r"\b\w+\.py\b", tree)) - {"__init__.py"}
