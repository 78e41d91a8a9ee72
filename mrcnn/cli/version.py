"""`mrcnn --version`: what is installed, and which device networks run on here."""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata

from mrcnn.cli.summary import Summary
from mrcnn.environment import backend, without_start_up_notes
from mrcnn.errors import UserError, one_line

PACKAGE = "mrcnn-keras"


def version() -> Summary:
    """Versions of the package, Keras and its backend, and the device; or why the backend cannot
    be imported."""
    known = {
        "version": installed(PACKAGE) or "run from its folder, not installed",
        "keras": installed("keras") or "not installed: pip install keras",
        "backend": None,
        "backend_version": None,
        "device": None,
        "python": platform.python_version(),
        "problem": None,
    }
    try:
        known["backend"] = backend()
        with without_start_up_notes():
            module = importlib.import_module(known["backend"])
            known["backend_version"] = module.__version__
            known["device"] = DEVICES[known["backend"]](module)
    except UserError as error:
        known["problem"] = str(error)
    except Exception as error:  # whatever a broken installation raises
        known["problem"] = f"{known['backend']} cannot be imported: {one_line(error, 200)}"
    runs_on = " ".join(filter(None, (known["backend"], known["backend_version"])))
    table = {
        PACKAGE: known["version"],
        "Keras": known["keras"],
        "Backend": known["problem"] or runs_on,
        "Device": known["device"] or "not known",
        "Python": known["python"],
    }
    return Summary("\n".join(f"{name} {text}" for name, text in table.items()), known, table)


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tensorflow_device(tensorflow) -> str:
    devices = tensorflow.config.list_physical_devices("GPU")
    details = map(tensorflow.config.experimental.get_device_details, devices)
    return _named([one.get("device_name", "of unknown name") for one in details])


def _jax_device(jax) -> str:
    return _named([one.device_kind for one in jax.devices() if one.platform != "cpu"])


def _torch_device(torch) -> str:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _named(names or ["Apple"] * torch.backends.mps.is_available())


def _named(accelerators: list[str]) -> str:
    """`GPU (NVIDIA H200)`, `CPU (8 cores)`."""
    if accelerators:
        return f"GPU ({', '.join(accelerators)})"
    return f"CPU ({os.cpu_count()} cores)"


DEVICES = {"tensorflow": _tensorflow_device, "jax": _jax_device, "torch": _torch_device}
