#!/bin/sh
# Builds the documentation as a site in docs/_build/html; whatever is wrong with it, a broken link
# included, is an error:
#
#   sh scripts/docs.sh
#
# Makes its own virtual environment in .venv-docs, with only the extra `docs` of setup.cfg: neither
# the package nor Keras is needed. Once it exists, no network connection is needed.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

install_docs() {
    "$1/bin/python" - > "$1/requirements.txt" <<'END'
import configparser

setup = configparser.ConfigParser(interpolation=None)
setup.read("setup.cfg")
print(setup["options.extras_require"]["docs"])
END
    pip_install "$1" --requirement "$1/requirements.txt"
}

environment .venv-docs docs install_docs
.venv-docs/bin/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --write-all \
    --builder html --doctree-dir docs/_build/doctrees docs docs/_build/html
echo "Documentation: docs/_build/html/index.html"
