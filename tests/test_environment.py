"""What Keras is told to run on, and forks: one line in place of tracebacks and hangs."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from mrcnn import environment
from mrcnn.errors import UserError


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """The folder of Keras's settings, in a process that has not imported Keras."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"backend": "theano"}, "backend in .*keras.json is theano: set it to one of tensorflow"),
        ({"floatx": "float31"}, "floatx in .*keras.json is float31: set it to one of float32"),
        ({"image_data_format": "th"}, "image_data_format in .*keras.json is th: set it to one of"),
        ({"epsilon": 1}, "epsilon in .*keras.json is 1"),
        ([], "keras.json holds no Keras settings"),
    ],
)
def test_wrong_settings_of_keras_are_named(keras_home, settings, message):
    (keras_home / "keras.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message) as error:
        environment.check_keras()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tensorlow", "TensorFlow", "numpy", "x\n" * 1000])
def test_a_misspelt_backend_is_named(keras_home, monkeypatch, name):
    monkeypatch.setenv("KERAS_BACKEND", name)
    with pytest.raises(UserError, match="variable KERAS_BACKEND is .*one of tensor") as error:
        environment.check_keras()
    assert name[:1] in str(error.value) and len(str(error.value)) < 250


def test_a_backend_that_is_not_installed(keras_home, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tensorflow is not installed: pip install tensorflow"):
        environment.check_keras()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UserError, match="KERAS_BACKEND.*jax is not installed: pip install jax"):
        environment.check_keras()


def test_settings_that_keras_takes(keras_home, monkeypatch):
    environment.check_keras()
    other = {"image_data_format": "channels_first", "floatx": "float64", "epsilon": 1e-8}
    for text in (json.dumps(other), "{", "[" * 100_000):  # Keras ignores what is no JSON
        (keras_home / "keras.json").write_text(text)
        environment.check_keras()


def test_the_command_line_says_so_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mrcnn", "detect", str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": "tensorlow"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("mrcnn: the environment variable KERAS_BACKEND is tensorlow")


@pytest.mark.parametrize("level, end", [("3", "pass"), ("3", "os.abort()"), ("0", "pass")])
def test_notes_of_libraries_are_left_out_and_errors_are_not(level, end):
    notes = (
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        "I0000 00:00:1795948468.509069   28071 cudart_stub.cc:31] Could not find cuda drivers\n"
        "E0000 00:00:1764.5 1 cuda_dnn.cc:8579] Unable to register cuDNN factory: again\n"
    )
    errors = "E0000 00:00:1764.5 1 a.cc:8] no memory\nF0000 no AVX\nTraceback: W0000\n"
    code = (
        "import os\n"
        "from mrcnn.environment import without_start_up_notes\n"
        "with without_start_up_notes():\n"
        f"    os.write(2, {(notes + errors).encode()!r})\n"
        f"    {end}\n"
        "os.write(2, b'I0000 00:00:1764.5 1 a.cc:8] after\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": level},
        capture_output=True,
        text=True,
    )
    after = "I0000 00:00:1764.5 1 a.cc:8] after\n" if end == "pass" else ""
    assert done.stderr == (notes if level == "0" else "") + errors + after


def test_a_process_that_was_forked_from_one_with_a_network(monkeypatch):
    monkeypatch.setattr(environment, "_process", None)
    environment.check_process()
    environment.claim_process()
    environment.check_process()
    monkeypatch.setattr(environment, "_process", os.getpid() + 1)
    for check in (environment.check_process, environment.claim_process):
        with pytest.raises(UserError, match='forked after .* start method "spawn"'):
            check()


def test_commands_import_keras_without_matplotlib_and_may_use_it_later():
    program = (
        "import sys; from mrcnn.environment import import_keras; import_keras();"
        "assert 'keras' in sys.modules and 'matplotlib' not in sys.modules;"
        "import matplotlib.figure; import_keras()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
