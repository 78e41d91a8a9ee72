"""The site that docs/conf.py makes; `sh scripts/docs.sh` builds it, which takes a package more."""

import inspect
import re
import runpy
from pathlib import Path
from pkgutil import resolve_name
from urllib.parse import unquote

import pytest

from mrcnn import utils, visualize

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def conf():
    return runpy.run_path(str(DOCS / "conf.py"))


def test_a_section_becomes_a_page(conf):
    text = "# Title\n\n## One\n\na\n\n### Part\n\nb\n\n## Two\n\nc\n"
    assert conf["section_of"](text, "One") == "# One\n\n\na\n\n## Part\n\nb\n\n"
    assert conf["section_of"](text, "Two") == "# Two\n\n\nc\n"


def test_links_lead_to_pages_of_the_site(conf):
    def linked(text, folder="."):
        return conf["linked"](text, folder)

    assert linked("[a](docs/peers.md#b)") == "[a](peers.md#b)"
    assert linked("[a](../SECURITY.md)", "docs") == "[a](security.md)"
    assert linked("![a](docs/images/detection.png)") == "![a](images/detection.png)"
    assert linked("[the keys](mrcnn/config.py)") == "the keys (`mrcnn/config.py`)"
    assert linked("[absent](absent.md)") == "[absent](absent.md)"  # Sphinx says so
    assert linked("[a](https://example.org/)") == "[a](https://example.org/)"


def test_pages_that_stand_elsewhere_are_there(conf):
    for page, (file, section) in conf["ELSEWHERE"].items():
        pointer = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        assert f"](../{file}" in pointer, page
        text = (ROOT / file).read_text(encoding="utf-8")
        assert section is None or re.search(rf"^## {section}$", text, re.MULTILINE), page


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*/*.md")], ids=str
)
def test_links_to_files_are_not_broken(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / unquote(target)).exists(), target


@pytest.mark.parametrize("module", [utils, visualize])
def test_the_reference_has_every_name(module):
    page = (DOCS / "reference" / f"{module.__name__.rpartition('.')[2]}.md").read_text()
    named = set(re.findall(r"autoapi\w+:: [\w.]+\.(\w+)$", page, re.MULTILINE))
    assert set(module.__all__) - named <= {"Dataset", "COCO_MODEL_URL"}


# ---- The reference ------------------------------------------------------------------------------

DIRECTIVE = re.compile(r"\.\. autoapi(class|function):: ([\w.]+)(?:\n   :members: (.+))?")


def documented() -> list[str]:
    """The names that the reference shows."""
    names = []
    for page in (DOCS / "reference").glob("*.md"):
        for kind, name, members in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            names += [name, *(f"{name}.{member}" for member in members.split(", ") if member)]
            names += [f"{name}.__init__"] if kind == "class" else []
    return names


def items_of(section: str, text: str) -> list[str]:
    """The first lines of the items of a docstring's section, such as Args."""
    found = re.search(rf"^{section}:\n((?:[ ]{{4}}.*\n|\n)+)", f"{text}\n", re.MULTILINE)
    return re.findall(r"^    (\S.*)$", found[1], re.MULTILINE) if found else []


def test_parameters_of_the_reference_exist():
    """An item that is no `names: words` comes out as a parameter called after its words."""
    checked = 0
    for name in documented():
        value = resolve_name(name)
        for item in items_of("Args", inspect.getdoc(value) or ""):
            names = re.match(r"([\w, *]+):(?: |$)", item)
            assert names, f"{name}: {item}"
            parameters = inspect.signature(value).parameters
            assert {one.strip(" *") for one in names[1].split(",")} <= set(parameters), name
            checked += 1
    assert checked > 100


def test_the_reference_describes_all_that_it_shows():
    for name in documented():
        assert name.endswith("__init__") or (resolve_name(name).__doc__ or "").strip(), name


def test_sections_of_the_reference_are_taken_apart_rightly():
    """Of what is returned, words before a colon would be a type; attributes are named singly."""
    for name in documented():
        text = inspect.getdoc(resolve_name(name)) or ""
        assert not [item for item in items_of("Returns", text) if ": " in item], name
        for section in ("Attributes", "Raises"):
            for item in items_of(section, text):
                assert re.match(r"\w+: ", item), f"{name}: {item}"
