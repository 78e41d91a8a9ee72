"""Benchmarks, samples and scripts are rarely run: what they use of the package exists."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("benchmarks", "samples", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    # benchmarks/.peer holds an environment.
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def imported(tree: ast.Module) -> dict:
    """{name: object} of what `from mrcnn... import name` imports, anywhere in a file."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mrcnn":
            for alias in node.names:
                try:
                    used = importlib.import_module(f"{node.module}.{alias.name}")
                except ModuleNotFoundError:
                    used = getattr(importlib.import_module(node.module), alias.name)
                found[alias.asname or alias.name] = used
    return found


@pytest.mark.parametrize("file", FILES)
def test_what_is_used_of_the_package_exists(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = imported(tree)
    modules = {name: used for name, used in names.items() if type(used).__name__ == "module"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), f"line {node.lineno}: {node.attr}"
