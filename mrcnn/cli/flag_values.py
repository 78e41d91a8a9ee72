"""argparse types for the values of flags."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection

from mrcnn.errors import quoted


def positive(text: str) -> int:
    """argparse type: a whole number above zero."""
    value = int(text) if text.isdecimal() and len(text) < 20 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number above 0")
    return value


def whole(text: str) -> int:
    """argparse type: a whole number from zero to 2**32 - 1 (what random generators take)."""
    value = int(text) if text.isdecimal() and len(text) < 20 else 2**32
    if value >= 2**32:
        message = f"{quoted(text)} is not a whole number from 0 to 2**32 - 1"
        raise argparse.ArgumentTypeError(message)
    return value


def above_zero(text: str) -> float:
    """argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number above 0")
    return value


def default_workers() -> int:
    """Half the cores: the other half computes. More than a few threads wait for each other."""
    return min(8, max(1, (os.cpu_count() or 1) // 2))


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number from 0 to 1")
    return value


def names_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """argparse type: names from `known`, separated by commas."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        unknown = [name for name in found if name not in known]
        if unknown:
            message = f"{quoted(unknown[0])} is not one of {', '.join(known)}"
            raise argparse.ArgumentTypeError(message)
        return found

    return names
