"""The package as its users get it: metadata, dependencies, scripts, the Dockerfile, the README."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "mrcnn").rglob("*.py")
    if path.stem != "__init__"
)

# Names of distributions that are imported by another name.
IMPORT_NAMES = {"scikit-image": "skimage", "pillow": "PIL"}
# Comes with a declared dependency, pooch, and raises its errors.
INDIRECT = {"requests"}
# Used where they are the backend, or where they happen to be there (notebooks).
OPTIONAL = {
    "jax",
    "torch",
    "IPython",
    "roifile",
    "zarr",
    "czifile",
    "imagecodecs",
    "liffile",
    "nd2",
    "argcomplete",
    "dask",
    "distributed",
    "cloudpickle",
    "napari",
    "qtpy",
    "magicgui",
    "superqt",
    "onnx",
    "tf2onnx",
    "imgaug",
    "tensorboard",
}


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def _names(lines: str) -> set[str]:
    return {re.match(r"[\w.-]+", line.strip())[0] for line in lines.split("\n") if line.strip()}


def _imports(path: Path, top_level_only: bool) -> set[str]:
    """First parts of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_every_room_is_installed(setup):
    rooms = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "mrcnn").rglob("__init__.py")
    }
    assert rooms | {"mrcnn.pretrained"} == _names(setup["options"]["packages"])


def test_every_import_is_declared(setup):
    declared = _names(setup["options"]["install_requires"])
    allowed = {IMPORT_NAMES.get(name, name) for name in declared} | INDIRECT | OPTIONAL
    allowed |= set(sys.stdlib_module_names) | {"mrcnn", "samples"}
    for path in [*(ROOT / "mrcnn").rglob("*.py"), *(ROOT / "samples").rglob("*.py")]:
        assert _imports(path, top_level_only=False) <= allowed, path


def test_tensorflow_and_imgaug_are_never_needed_to_import():
    for path in [*(ROOT / "mrcnn").rglob("*.py"), *(ROOT / "samples").rglob("*.py")]:
        at_import = _imports(path, top_level_only=True)
        assert not at_import & {"tensorflow", "jax", "torch", "imgaug", "cv2", "IPython"}, path


@pytest.mark.backend
@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_on_every_backend(module):
    if module.startswith("mrcnn.distributed."):
        pytest.importorskip("distributed")
    importlib.import_module(module)


def test_modules_that_need_only_numpy_do_not_import_keras():
    rooms = ("mrcnn.pixels.", "mrcnn.images.", "mrcnn.evaluation.")
    names = [name for name in MODULES if name.startswith(rooms)]
    names += ["mrcnn.config", "mrcnn.data.dataset", "mrcnn.utils", "samples.nucleus.synthesize"]
    code = f"import sys, {', '.join(names)}; print({{'keras', 'tensorflow'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_other_backends_get_everything_but_tensorflow(setup):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "requirements.py", "jax", "test"],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = _names(setup["options"]["install_requires"]) - {"tensorflow"}
    assert _names(done.stdout) == expected | {"jax", "pytest", "pytest-timeout", "pytest-xdist"}


def test_a_bare_installation_has_no_opencv_and_messages_name_extras_that_exist(setup):
    assert "imaug" not in _names(setup["options"]["install_requires"])
    extras = setup["options.extras_require"]
    for path in (ROOT / "mrcnn").rglob("*.py"):
        assert set(re.findall(r"mrcnn-keras\[(\w+)\]", path.read_text())) <= set(extras), path
    assert {"imgaug"} <= set(extras)


@pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell")
@pytest.mark.parametrize("script", ["scripts/demo.sh", "scripts/test.sh", ".ci/run"])
def test_without_a_usable_python_a_script_says_so_in_one_line(script, tmp_path):
    done = subprocess.run(
        ["sh", ROOT / script],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": "/nowhere/python9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: no Python 3\.11.*/nowhere/python9.*\n", done.stderr)


def test_version_has_an_entry_in_the_changelog(setup):
    version = setup["metadata"]["version"]
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()


def test_dockerfile_copies_files_that_exist_and_starts_the_app():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source not in ignored
    entry = re.search(r'^ENTRYPOINT \["python", "/app/(.*)"\]$', text, re.MULTILINE)
    assert (ROOT / entry[1]).is_file()


def test_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for script in re.findall(r"\b(?:sh|python) ((?:scripts|samples)/[\w./]+)", text):
        assert (ROOT / script).is_file(), script
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        ast.parse(block)
