"""What a command has done: a table for people, a line with --quiet, a document with --json."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from mrcnn.console import print_table
from mrcnn.errors import one_line

MOST_REASONS = 5


@dataclass(frozen=True)
class Summary:
    """What a command has done.

    Attributes:
        result: in a line or two: what came out, and where it is.
        facts: by name, for JSON.
        table: the same for people, names and values; without one, `result` is printed.
        failed: images that have no result, with the reasons: the exit code is then 2.
    """

    result: str
    facts: Mapping[str, Any]
    table: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    def present(self, command: str, quiet: bool = False, as_json: bool = False) -> int:
        """Print it. Returns the exit code."""
        if as_json:
            said = {"error": failures(self.failed)} if self.failed else {}
            print_json({**said, "command": command, **self.facts})
        elif self.table and not quiet:
            print_table(self.table)
        else:
            print(self.result)
        return report_failures(self.failed)


def timing(seconds: float, images: int) -> dict[str, float | None]:
    """Facts about a duration. images: how many were processed in it."""
    each = round(seconds / images, 3) if images else None
    return {"seconds": round(seconds, 3), "seconds_per_image": each}


def timing_text(seconds: float, images: int) -> str:
    """`12.3 (2.05 per image)`"""
    return f"{seconds:.1f}" + (f" ({seconds / images:.2f} per image)" if images else "")


def failures(failed: Collection[str]) -> str:
    """`1 image failed`, `2 images failed`."""
    return f"{len(failed)} image{'s' * (len(failed) != 1)} failed"


def report_failures(failed: Mapping[str, str]) -> int:
    """The exit code, after lines that say what failed and why."""
    if not failed:
        return 0
    print(f"{failures(failed)}:", file=sys.stderr)
    for name, reason in list(failed.items())[:MOST_REASONS]:
        reason = reason.removeprefix(f"{name}: ")
        print(f"  {one_line(name)}: {one_line(reason, 200)}", file=sys.stderr)
    if len(failed) > MOST_REASONS:
        print(f"  and {len(failed) - MOST_REASONS} more", file=sys.stderr)
    return 2


def print_json(document: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """A document of one line, in ASCII, on standard output by default."""
    print(json.dumps(_plain(document), allow_nan=False), file=stream, flush=True)


def _plain(value: Any) -> Any:
    """As JSON allows it: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
