"""What the commands print: medians, Markdown tables, the machine."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT_DIR = Path(__file__).resolve().parents[1]
MIB = 2**20


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Timing:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table; every cell is `str` of its value."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine_facts(threads: int) -> list[tuple[str, str]]:
    """(name, value) of what a reader needs to know about the machine."""
    model, flags = _processor()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
    return [
        ("Processor", f"{model}, {os.cpu_count()} logical cores, {threads} threads used"),
        ("Instructions", ", ".join(f"{f} {'yes' if f in flags else 'no'}" for f in wanted)),
        ("Memory", f"{_memory() / 2**30:.0f} GiB" if _memory() else "unknown"),
        ("System", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("Revision", _revision()),
        ("Date", f"{datetime.datetime.now():%Y-%m-%d %H:%M}"),
    ]


def _processor() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    entries = dict(
        (part.strip() for part in line.split(":", 1)) for line in text.splitlines() if ":" in line
    )
    return entries.get("model name", platform.machine()), set(entries.get("flags", "").split())


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _revision() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT_DIR, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "mrcnn", "samples")
        return git("rev-parse", "--short", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
