"""The rooms of the package import only what lies below them, and nothing in a circle."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up. A module or room imports from its own line's entry and from the lines below.
LEVELS = [
    ["errors"],
    ["atomic", "console", "environment", "files"],
    ["config_rules"],
    ["config"],
    ["presets", "images", "pixels", "weights"],
    ["data", "network", "results"],
    ["distributed"],
    ["evaluation", "inference", "matterport", "parallel_model", "training", "utils"],
    ["model", "visualize"],
    ["segmenter"],
    ["fine_tuning"],
    ["__init__", "compression", "export"],
    ["napari", "cli"],
    ["__main__"],
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted((ROOT / "mrcnn").rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "mrcnn").with_suffix("").parts)


MODULES = {module_name(path): path for path in FILES}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, those inside functions and of types included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} is a relative import"
            if node.module == "mrcnn":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("mrcnn."):
                name = node.module.removeprefix("mrcnn.")
                parts = {f"{name}.{alias.name}" for alias in node.names} & MODULES.keys()
                found |= parts or {name}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("mrcnn.")
                for alias in node.names
                if alias.name.startswith("mrcnn.")
            }
            found |= {"__init__" for alias in node.names if alias.name == "mrcnn"}
    return found


def room(name: str) -> str:
    return name.split(".")[0]


def test_every_room_has_a_level():
    assert {room(name) for name in MODULES} == set(LEVEL_OF)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    for other in imports_of(MODULES[name]):
        same = room(other) == room(name)
        assert same or LEVEL_OF[room(other)] < LEVEL_OF[room(name)], f"{name} imports {other}"


def test_nothing_is_imported_in_a_circle():
    graph = {name: imports_of(path) - {name} for name, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_package_knows_no_application():
    for name, path in MODULES.items():
        assert not re.search(r"^\s*(from|import) samples", path.read_text(), re.MULTILINE), name
