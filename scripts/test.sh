#!/bin/sh
# Runs the tests and the code checks:
#
#   sh scripts/test.sh                  ruff, and the whole suite on TensorFlow
#   sh scripts/test.sh --backends       then also the tests marked `backend` on JAX and on Torch
#   sh scripts/test.sh -k masks -x      other arguments go to pytest
#
# Makes its own virtual environments in .venv-test, .venv-test-jax and .venv-test-torch.
# TORCH names the Torch to install, e.g. TORCH=torch (from PyPI on Linux: gigabytes, with CUDA).
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
torch=${TORCH:-torch==2.13.0}
# Two at a time, each file in one of them: much of a test is building graphs, on one core.
# Files start in the order of tests/conftest.py: the long ones first.
workers="-n 2 --dist loadfile --no-loadscope-reorder"
# pip need not compile what is never imported: that takes half of the installation time.
export PIP_COMPILE=0

backends=no
if [ "${1:-}" = --backends ]; then
    backends=yes
    shift
fi

install_tensorflow() {
    pip_install "$1" --editable ".[dev]"
}

# JAX and Torch come without TensorFlow: the package must not need it.
install_jax() {
    "$1/bin/python" scripts/requirements.py jax test > "$1/requirements.txt" &&
        pip_install "$1" --requirement "$1/requirements.txt" &&
        pip_install "$1" --no-deps --editable .
}

install_torch() {
    "$1/bin/python" scripts/requirements.py test > "$1/requirements.txt" &&
        pip_install "$1" "$torch" --requirement "$1/requirements.txt" &&
        pip_install "$1" --no-deps --editable .
}

# Both, one after the other, in the background: what they print is shown if one fails.
log=.venv-test/backends.log
install_backends() {
    (
        environment .venv-test-jax jax install_jax
        environment .venv-test-torch "$torch" install_torch
    ) > "$log" 2>&1 &
    installation=$!
    trap 'kill "$installation" 2>/dev/null || true' EXIT
    trap 'exit 130' INT TERM
}

wait_for_backends() {
    if wait "$installation"; then
        trap - EXIT
    else
        cat "$log" >&2
        fail "JAX or Torch could not be installed"
    fi
}

on_backend() {
    backend=$1
    shift
    echo "== Tests marked 'backend' on $backend =="
    KERAS_BACKEND=$backend ".venv-test-$backend/bin/python" -m pytest $workers -m backend "$@"
}

environment .venv-test "tensorflow dev" install_tensorflow
if [ "$backends" = yes ]; then
    install_backends
fi
echo "== Code checks =="
.venv-test/bin/ruff check .
.venv-test/bin/ruff format --check .
echo "== All tests on TensorFlow =="
KERAS_BACKEND=tensorflow .venv-test/bin/python -m pytest $workers "$@"

if [ "$backends" = yes ]; then
    wait_for_backends
    on_backend jax "$@"
    on_backend torch "$@"
fi
