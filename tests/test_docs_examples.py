"""What a reader copies from README and docs/ works: commands, flags, files, extras, Python."""

import ast
import configparser
import dataclasses
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest

from mrcnn.cli.main import WrongFlags, build_parser
from mrcnn.cli.settings import Settings
from mrcnn.config import Config
from mrcnn.config_rules import RULES
from mrcnn.data.labelled import LabelledImages
from mrcnn.data.micrographs import MICROGRAPHS
from mrcnn.evaluation.evaluation import Evaluation
from mrcnn.images.image_files import LazyImage
from mrcnn.inference.postprocess import DEFAULTS
from mrcnn.model import MaskRCNN
from mrcnn.presets import MicrographConfig
from mrcnn.results.result import Result
from mrcnn.segmenter import Segmenter
from samples.nucleus import nucleus

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for folder in (".", "docs", "docs/reference", "samples/*", "benchmarks", "weights", "logs")
    for path in ROOT.glob(f"{folder}/*.md")
    if path.name != "CHANGELOG.md"
)
BLOCK = re.compile(
    r"^```([^\n]*)\n(.*?)^```$|((?:^    [^\n]+\n|^\n(?=    ))+)", re.MULTILINE | re.DOTALL
)
PARSERS = {"mrcnn": build_parser(), "nucleus.py": nucleus.build_parser()}
# What the variables of the examples are.
KINDS = {
    "nuclei": Segmenter,
    "cells": Segmenter,
    "result": Result,
    "model": MaskRCNN,
    "data": LabelledImages,
    "scores": Evaluation,
    "lazy": LazyImage,
}


def text_of(page) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page) -> list[tuple[str, str]]:
    """(language, text) of the code blocks, fenced or indented."""
    found = BLOCK.findall(text_of(page))
    return [
        (language, inspect.cleandoc(fenced or indented)) for language, fenced, indented in found
    ]


def lines(page) -> list[str]:
    """The command lines in code blocks, each as one line."""
    text = "\n".join(text for language, text in blocks(page) if language in ("", "sh", "console"))
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def spans(page) -> list[str]:
    """What stands between single backticks in running text."""
    return [
        " ".join(text.split()) for text in re.findall(r"`([^`]+)`", BLOCK.sub("", text_of(page)))
    ]


def call(line: str) -> tuple[str, list[str]] | None:
    """(program, arguments) of a line that calls one of PARSERS with a command."""
    match = re.search(r"(?:^|(?<!from)[\s/])(mrcnn|nucleus\.py) +(?=[a-z])([^#|>;&]+)", line)
    if match is None or line.startswith(("pip ", "docker build")):
        return None
    # In the image that the Dockerfile makes, what follows its name goes to nucleus.py.
    program = "nucleus.py" if line.startswith("docker run") else match[1]
    return program, shlex.split(match[2])


def parser_of(program: str, command: str):
    """The parser of a command; None where there is no such command."""
    parser = build_parser([command]) if program == "mrcnn" else PARSERS[program]
    [commands] = [
        a for a in parser._actions if hasattr(a, "choices") and isinstance(a.choices, dict)
    ]
    return commands.choices.get(command)


def check_values(options) -> None:
    """Raise UserError for settings that are checked later than by the parser."""
    given = {
        name: [text for text in getattr(options, name, ()) if not text.endswith("=VALUE")]
        for name in ("set", "config", "augment")
    }
    DEFAULTS.changed(given["set"])
    settings = Settings(config=tuple(given["config"]), augment=tuple(given["augment"]))
    settings.applied_to(MicrographConfig)
    settings.augmentation(MICROGRAPHS)


def test_there_are_pages():
    assert len(PAGES) > 20
    assert sum(call(line) is not None for page in PAGES for line in lines(page)) > 30


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_understood(page):
    for line in lines(page):
        if found := call(line):
            program, arguments = found
            parser = build_parser(arguments) if program == "mrcnn" else PARSERS[program]
            try:
                options = parser.parse_args(arguments)
            except (SystemExit, WrongFlags):
                pytest.fail(f"{page}: {line}")
            if hasattr(options, "config"):
                check_values(options)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_flags_in_the_text_exist(page):
    for span in spans(page):
        if found := call(span):
            program, (command, *arguments) = found
            parser = parser_of(program, command)
            assert parser is not None, f"{page}: {span}"
            flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
            assert flags <= set(parser._option_string_actions) | {"--dataset", "--subset"}, span


def test_flags_of_the_guide_exist():
    """A flag that stands alone belongs to some command."""
    known = {"--user", "--gpus", "--volume", "--no-deps", "--backends"}  # of other programs
    for program in PARSERS:
        for command in ("detect", "train", "evaluate", "compress", "export", "choose"):
            if parser := parser_of(program, command):
                known |= set(parser._option_string_actions)
    for page in PAGES:
        if page.parent == Path("docs") and page.name not in ("peers.md", "paper.md"):
            for span in spans(page):
                if match := re.match(r"(--[a-z-]+)", span):
                    assert match[1] in known, f"{page}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_scripts_and_extras_exist(page):
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    for line in [*lines(page), *spans(page)]:
        for script in re.findall(
            r"(?:python|sh) ((?:samples|scripts|benchmarks)/[\w/]+\.\w+)", line
        ):
            assert (ROOT / script).is_file(), f"{page}: {line}"
        for module in re.findall(r"python -m ((?:benchmarks|tests|samples)[\w.]*)", line):
            assert importlib.util.find_spec(module), f"{page}: {line}"
        for names in re.findall(r"pip install .*\[([\w,-]+)\]", line):
            assert set(names.split(",")) <= set(extras), f"{page}: {line}"


def test_the_start_lists_every_extra():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    rows = re.findall(r"^\| (`.+`) \|", text_of("docs/start.md"), re.MULTILINE)
    listed = set(re.findall(r"`([\w-]+)`", " ".join(rows)))
    assert set(setup["options.extras_require"]) - {"dev", "docs", "test"} <= listed


# ---- Python -------------------------------------------------------------------------------------


def names_of(kind: type) -> set[str]:
    """The attributes of a class, those of its instances by its docstring."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    described = re.findall(r"\w+", kind.__doc__ or "")
    return {*dir(kind), *described, *(field.name for field in fields)}


# What starts a cluster, for one example each.
CLUSTERS = {"dask_jobqueue", "dask_kubernetes", "dask_cuda"}


class Checker(ast.NodeVisitor):
    """Finds names that do not exist in the package, in the order of a page's code."""

    def __init__(self):
        self.known = {"mrcnn": importlib.import_module("mrcnn")}

    def visit_Import(self, node):
        for one in node.names:
            module = importlib.import_module(one.name)
            name = one.asname or one.name.partition(".")[0]
            self.known[name] = module if one.asname else importlib.import_module(name)

    def visit_ImportFrom(self, node):
        package = node.module.partition(".")[0]
        if package in CLUSTERS and importlib.util.find_spec(package) is None:
            return  # its names are not known then, and not checked
        module = importlib.import_module(node.module)
        for one in node.names:
            if not hasattr(module, one.name):
                importlib.import_module(f"{node.module}.{one.name}")
            self.known[one.asname or one.name] = getattr(module, one.name)

    def visit_ClassDef(self, node):
        for base in map(self.value, node.bases):
            if isinstance(base, type) and issubclass(base, Config):
                for line in node.body:
                    for target in getattr(line, "targets", ()):
                        assert target.id in RULES, target.id
        self.generic_visit(node)

    def visit_Attribute(self, node):
        self.value(node)
        self.generic_visit(node)

    def visit_Call(self, node):
        function = self.value(node.func)
        if callable(function):
            taken = inspect.signature(function).parameters.values()
            if all(one.kind is not one.VAR_KEYWORD for one in taken):
                for keyword in node.keywords:
                    assert keyword.arg in {one.name for one in taken}, ast.unparse(node)
        self.generic_visit(node)

    def value(self, node):
        """The object that an expression of names and dots means, None where that is not known."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        kind = KINDS.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if kind is not None:
            assert node.attr in names_of(kind), ast.unparse(node)
            return getattr(kind, node.attr, None)
        owner = self.value(node.value)
        return None if owner is None else getattr(owner, node.attr)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_names_what_exists(page):
    checker = Checker()
    for language, text in blocks(page):
        if language == "python":
            checker.visit(ast.parse(text, filename=str(page)))
