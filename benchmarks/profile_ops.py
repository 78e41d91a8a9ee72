"""Where the time of one detection or training step goes, by operation (TensorFlow's profiler).

    python benchmarks/profile_ops.py detect
    python benchmarks/profile_ops.py all --widths nucleus --precision float32 --top 20

Prints the kinds of operations by their total time, then the largest single operations.
Operations run in parallel, so the totals add up to more than the wall time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import ours, report, scenes, workers  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402

NAME_WIDTH = 110
# Kinds that only contain other operations, which are counted themselves.
CONTAINERS = {"PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile", "If",
              "StatelessIf", "Case"}  # fmt: skip


def record(work: Callable[[], object]) -> list[tuple[str, float]]:
    """(operation, milliseconds) of everything that TensorFlow ran during a call; names are
    "scope/name:Kind"."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        work()
        tf.profiler.experimental.stop()
        path = next(Path(folder).rglob("*.xplane.pb"))
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    events = []
    for plane in space.planes:
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                name = names[event.metadata_id]
                if is_operation(name):
                    events.append((name, event.duration_ps / 1e9))
    return events


def is_operation(name: str) -> bool:
    """Whether a profiler event is one operation ("scope/name:Kind"), not a call around others."""
    scope, _, kind = name.rpartition(":")
    return bool(scope) and kind.isidentifier() and kind not in CONTAINERS and "::" not in name


def by_kind(events: list[tuple[str, float]]) -> list[tuple[str, int, float]]:
    """(kind, calls, total milliseconds), the largest total first."""
    sums: dict[str, list] = defaultdict(lambda: [0, 0.0])
    for name, milliseconds in events:
        entry = sums[name.rpartition(":")[2]]
        entry[0] += 1
        entry[1] += milliseconds
    return sorted(((kind, *entry) for kind, entry in sums.items()), key=lambda row: -row[2])


def make_work(what: str, widths: str, precision: str, side: int, count: int) -> Callable:
    """The call that is profiled."""
    scene = scenes.Scene(side, count, scenes.SPARSE.radii, scenes.SPARSE.seed)
    if what == "detect":
        config = ours.configuration(widths, PRECISION=precision)
        weights = ours.weights_of(widths)
        model, image = ours.make_detector(config, weights), scenes.draw(scene)[0]
        return lambda: model.detect([image])
    overrides = ours.training_overrides(batch=2, side=side)
    config = ours.configuration(widths, PRECISION=precision, **overrides)
    model = ours.make_trainer(config, what, weights=ours.weights_of(widths))
    batch = ours.make_batch(config, [scene])
    return lambda: model.keras_model.train_on_batch(batch)


def show(events: list[tuple[str, float]], top: int) -> str:
    """Both tables as text."""
    total = sum(milliseconds for _, milliseconds in events) or 1.0
    lines = [f"{'kind':<40}{'calls':>8}{'ms':>10}{'share':>8}"]
    for kind, calls, milliseconds in by_kind(events)[:top]:
        lines.append(f"{kind:<40}{calls:8d}{milliseconds:10.1f}{milliseconds / total:8.1%}")
    lines += ["", f"{'ms':>10}  operation"]
    for name, milliseconds in sorted(events, key=lambda event: -event[1])[:top]:
        lines.append(f"{milliseconds:10.1f}  {name[-NAME_WIDTH:]}")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=["detect", "all", "heads"], help="or a step that trains these layers")
    add("--widths", default="comparison", choices=["comparison", "nucleus"])
    add("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    add("--side", type=int, default=512, help="pixels of the image, a multiple of 64")
    add("--objects", type=int, default=50)
    add("--repeat", type=int, default=3, help="timed runs before the profiled one")
    add("--top", type=int, default=25, help="rows of each table")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    setup = parse(arguments)
    return exit_code("profile_ops.py", lambda: profile(setup), ValueError)


def profile(setup: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    work = make_work(setup.what, setup.widths, setup.precision, setup.side, setup.objects)
    for _ in range(2):  # compile, and whatever else is done only once
        work()
    times = [workers.timed(work)[0] for _ in range(max(1, setup.repeat))]
    start = time.perf_counter()
    events = record(work)
    profiled = time.perf_counter() - start
    print(
        f"{setup.what}, {setup.widths} {setup.precision}, {setup.side} x {setup.side} pixels: "
        f"{report.Timing.of(times)} s, {profiled:.3f} s while profiled\n"
    )
    print(show(events, setup.top))


if __name__ == "__main__":
    sys.exit(main())
