"""How Sphinx makes a site of this folder; `sh scripts/docs.sh` runs it.

Nothing of the package is imported: the reference is read from its source (sphinx-autoapi), so that
neither Keras nor a backend need be installed.
"""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

_setup = configparser.ConfigParser(interpolation=None)
_setup.read(ROOT / "setup.cfg")
project = "mrcnn"
author = _setup["metadata"]["author"]
release = version = _setup["metadata"]["version"]

extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension"]
exclude_patterns = ["_build"]
suppress_warnings = [
    "myst.header",  # pages that are a section of another file
    "autoapi.python_import_resolution",  # of names that the reference does not show
]

# ---- Pages: Markdown that other sites show as well -----------------------------------------------
myst_heading_anchors = 4  # links to headings are checked
myst_enable_extensions = ["colon_fence"]

# ---- Reference ----------------------------------------------------------------------------------
autoapi_dirs = [str(ROOT / "mrcnn")]
autoapi_generate_api_docs = False  # the pages in reference/ name what is public
autoapi_add_toctree_entry = False
autoapi_options = ["members"]
autoapi_python_class_content = "both"
autoapi_member_order = "bysource"
autoapi_keep_files = False
default_role = "code"  # docstrings have `names` between single backticks
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
maximum_signature_line_length = 80
highlight_language = "none"  # of blocks that name no language
python_use_unqualified_type_names = True

# ---- Looks --------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"mrcnn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False

# ---- Pages that stand elsewhere -----------------------------------------------------------------
# Page of the site -> file of the repository, and the one section of it that is meant, if any. The
# file in docs/ is a pointer for people who read it there, and has the page's title; on the site its
# text is the other file's.
ELSEWHERE = {
    "benchmarks": ("benchmarks/README.md", None),
    "changelog": ("CHANGELOG.md", None),
    "contributing": ("CONTRIBUTING.md", None),
    "docker": ("README.md", "Docker"),
    "library": ("README.md", "Use it as a library"),
    "measured": ("README.md", "Status"),
    "nucleus": ("samples/nucleus/README.md", None),
    "security": ("SECURITY.md", None),
    "weights": ("weights/README.md", None),
}
PAGE_OF = {file: page for page, (file, section) in ELSEWHERE.items() if section is None}
PAGE_OF["README.md"] = "index"
LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^():#\s]+)(#[^)\s]*)?\)")  # [text](path#anchor)


def section_of(text: str, title: str) -> str:
    """A section (level two) of a Markdown text, its headings one level higher."""
    part = re.split(rf"^## {re.escape(title)}$", text, flags=re.MULTILINE)[1]
    part = re.split(r"^##? ", part, flags=re.MULTILINE)[0]
    return f"# {title}\n" + re.sub(r"^#(#+ )", r"\1", part, flags=re.MULTILINE)


def linked(text: str, folder: str) -> str:
    """A text of a folder of the repository, its links as a page of docs/ needs them.

    Links to files that are no pages become their names: they are in the repository only.
    """

    def page(link: re.Match) -> str:
        image, words, path, anchor = link.groups(default="")
        path = PurePosixPath(os.path.normpath(PurePosixPath(folder, path)))
        if path.is_relative_to("docs"):
            target = str(path.relative_to("docs"))
        elif str(path) in PAGE_OF:
            target = f"{PAGE_OF[str(path)]}.md"
        elif (ROOT / path).exists():
            return f"{words} (`{path}`)" if words != str(path) else f"`{path}`"
        else:
            target = str(path)  # a warning, as of every broken link
        return f"{image}[{words}]({target}{anchor})"

    return LINK.sub(page, text)


def read_page(app, page: str, source: list[str]) -> None:
    """Sphinx's event source-read: pages that stand elsewhere, and links that leave docs/."""
    if page in ELSEWHERE:
        file, section = ELSEWHERE[page]
        text = (ROOT / file).read_text(encoding="utf-8")
        app.env.note_dependency(str(ROOT / file))
        text = section_of(text, section) if section else text
        title = source[0].partition("\n")[0]
        text = re.sub(r"^# .*", lambda _: title, text, count=1, flags=re.MULTILINE)
        source[0] = linked(text, str(PurePosixPath(file).parent))
    elif "/" not in page:
        source[0] = linked(source[0], "docs")


def setup(app) -> None:
    app.connect("source-read", read_page)
