#!/bin/sh
# Detects nuclei in synthetic microscope images and says where the results are:
#
#   sh scripts/demo.sh [options of samples/nucleus/demo.py]
#
# Makes its own virtual environment in .venv-demo.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

install() {
    pip_install "$1" --editable .
}

environment .venv-demo tensorflow install
exec .venv-demo/bin/python samples/nucleus/demo.py "$@"
