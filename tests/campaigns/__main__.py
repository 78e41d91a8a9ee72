"""All campaigns, one after the other: `python -m tests.campaigns [--short] [--only NAME,...]`."""

from __future__ import annotations

import argparse
import importlib
import sys

from tests.campaigns.common import import_commands

# What continuous integration has time for: some seconds each.
SHORT = {
    "damage": "--count 15",
    "fuzz": "--count 30",
    "kill": "--count 1 --eager",
    "disk": "--count 1 --only compression,synthesis",
    "load": "--count 1 --only threads,detections",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    parser.add_argument("--short", action="store_true", help="few cases of each")
    parser.add_argument("--only", metavar="NAME,...", default=",".join(SHORT))
    parser.add_argument("--seed", default="1")
    options = parser.parse_args(arguments)

    import_commands()

    code = 0
    for name in options.only.split(","):
        print(f"== {name} ==", flush=True)
        campaign = importlib.import_module(f"tests.campaigns.{name}")
        how = SHORT[name].split() if options.short else []
        code |= campaign.main([*how, "--seed", options.seed])
    return code


if __name__ == "__main__":
    sys.exit(main())
