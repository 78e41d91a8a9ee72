"""Which number type the convolutions compute in.

Boxes, anchors, losses and variables are always float32; convolutions may run in bfloat16, which
is about twice as fast where the hardware supports it.
"""

import platform
from functools import lru_cache
from pathlib import Path

import keras


def dtype_policy(precision: str) -> str:
    """Keras's dtype policy for `Config.PRECISION`: "float32", "bfloat16" or "auto"."""
    if precision == "auto":
        precision = "bfloat16" if bfloat16_is_fast() else "float32"
    return "mixed_bfloat16" if precision == "bfloat16" else "float32"


def explain(precision: str) -> str:
    """One line for the user: which number type it is, and why."""
    chosen = "float32" if dtype_policy(precision) == "float32" else "bfloat16"
    if precision != "auto":
        return f"Convolutions in {chosen}, as asked for"
    reason = "has instructions for it" if chosen == "bfloat16" else "is no faster in bfloat16"
    return f"Convolutions in {chosen}: this device {reason}"


@lru_cache
def bfloat16_is_fast() -> bool:
    """Whether the device has bfloat16 instructions: a GPU or TPU, or a processor with them."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if backend == "torch":
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU")) or _processor_has_bfloat16()


def _processor_has_bfloat16() -> bool:
    if platform.system() != "Linux":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
