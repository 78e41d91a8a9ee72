"""Time and peak memory against image size, number of detections and batch size.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --what sides batches --precision float32 bfloat16
    python benchmarks/scaling.py --widths comparison        (after benchmarks/compare.py --prepare)

Every point runs in a process of its own, since peak memory is a property of a process; it includes
Python, TensorFlow and the weights. Detection enlarges images as the configuration says (the
nucleus application: twice, or --scale). Writes scaling.md and scaling.png into results/benchmarks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)

from benchmarks import ours, report, scenes, workers  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.report import MIB, Timing  # noqa: E402
from mrcnn.errors import UserError  # noqa: E402

SIDES = (256, 512, 768, 1024, 1536, 2048)
DETECTIONS = (10, 50, 100, 200, 300, 400)
BATCHES = (1, 2, 4, 8)
# Images of the detection series, and the small ones that the others have in common.
IMAGE_SIDE, TRAINING_SIDE = 512, 256
OBJECTS = 20

TITLES = {
    "sides": ("Detection by image side", "side, pixels"),
    "detections": ("Detection by number of objects", "objects"),
    "batches": ("Training step by batch size", "images"),
}
COLUMNS = ["widths", "precision", "found", "seconds (quartiles)", "peak memory, MiB"]


def points(what: str, setup) -> list[tuple[int, scenes.Scene]]:
    """(position on the axis, scene) of every point of a series."""
    if what == "sides":
        return [(s, scenes.Scene(s, OBJECTS, (5.0, 9.0), 4)) for s in setup.sides]
    if what == "detections":
        return [(n, scenes.Scene(IMAGE_SIDE, n, (4.0, 7.0), 5)) for n in setup.detections]
    return [(n, scenes.Scene(TRAINING_SIDE, OBJECTS, (5.0, 9.0), 6)) for n in setup.batches]


def measure_point(
    what: str, value: int, scene: scenes.Scene, widths: str, precision: str, setup
) -> dict:
    """One point in a fresh process: {"value", "widths", "precision", "found", "timing", "peak"}."""
    command = [sys.executable, str(Path(ours.__file__).resolve())]
    name = f"{what} {value}, {widths} {precision}"
    task = {"widths": widths, "weights": str(ours.weights_of(widths)), "PRECISION": precision}
    with workers.Worker(name, command, setup.threads) as process:
        if what == "batches":
            process.ask("load_trainer", scene=scene.to_json(), batch=value, **task)
            do, arguments = "step", {}
        else:
            scale = {} if setup.scale is None else {"IMAGE_MIN_SCALE": setup.scale}
            process.ask("load_detector", **task, **scale)
            do, arguments = "detect", {"scene": scene.to_json()}
        answers = [process.ask(do, **arguments) for _ in range(1 + setup.repeat)][1:]
        timing = Timing.of([answer["seconds"] for answer in answers])
        peak = process.ask("memory")["peak"]
    found = answers[-1].get("detections", "")
    print(f"{name}: {timing} s, {peak // MIB} MiB", file=sys.stderr, flush=True)
    return {
        "value": value,
        "widths": widths,
        "precision": precision,
        "found": found,
        "timing": timing,
        "peak": peak,
    }


def measure(setup) -> dict[str, list[dict]]:
    """Every series that was asked for. A point that fails (memory) is reported and left out."""
    results: dict[str, list[dict]] = {}
    for what in setup.what:
        results[what] = []
        for widths in setup.widths:
            for precision in setup.precision:
                for value, scene in points(what, setup):
                    try:
                        point = measure_point(what, value, scene, widths, precision, setup)
                    except workers.WorkerError as error:
                        print(f"left out: {error}", file=sys.stderr, flush=True)
                        continue
                    results[what].append(point)
    if not any(results.values()):
        raise UserError("nothing could be measured")
    return results


def write_report(setup, results: dict[str, list[dict]]) -> str:
    """All series as Markdown."""
    lines = [
        "# Scaling",
        "",
        "Made by `python benchmarks/scaling.py`.",
        "",
        report.markdown_table(["", ""], report.machine_facts(setup.threads)),
        "",
    ]
    for what, series in results.items():
        title, axis = TITLES[what]
        rows = [
            (p["value"], p["widths"], p["precision"], p["found"], p["timing"], p["peak"] // MIB)
            for p in series
        ]
        lines += [f"## {title}", "", report.markdown_table([axis, *COLUMNS], rows), ""]
    return "\n".join(lines)


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """Time above, memory below, a column per series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(results), figsize=(4 * len(results), 6), squeeze=False, layout="constrained"
    )
    for column, (what, series) in enumerate(results.items()):
        title, axis = TITLES[what]
        for key in dict.fromkeys((p["widths"], p["precision"]) for p in series):
            line = [p for p in series if (p["widths"], p["precision"]) == key]
            values = [p["value"] for p in line]
            axes[0, column].plot(
                values, [p["timing"].median for p in line], "o-", label=" ".join(key)
            )
            axes[1, column].plot(values, [p["peak"] / MIB for p in line], "o-")
        axes[0, column].set(title=title, ylabel="seconds", ylim=(0, None))
        axes[0, column].legend()
        axes[1, column].set(xlabel=axis, ylabel="peak memory, MiB", ylim=(0, None))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--what", nargs="+", default=list(TITLES), choices=list(TITLES))
    add(
        "--widths",
        nargs="+",
        default=["nucleus"],
        choices=["nucleus", "comparison"],
        help="nucleus: the application's; comparison: those of compare.py",
    )
    add("--precision", nargs="+", default=["bfloat16"], choices=["float32", "bfloat16"])
    add("--sides", nargs="+", type=int, default=list(SIDES), help="pixels")
    add("--detections", nargs="+", type=int, default=list(DETECTIONS), help="objects")
    add("--batches", nargs="+", type=int, default=list(BATCHES), help="images per step")
    add("--scale", type=float, help="enlargement in detection, instead of the configuration's")
    add("--repeat", type=int, default=5, help="timed runs of a point")
    add("--threads", type=int, default=workers.default_threads())
    add("--output", type=Path, default=Path(ROOT_DIR, "results", "benchmarks"), help="folder")
    chosen = parser.parse_args(arguments)
    numbers = [chosen.repeat, chosen.threads, *chosen.sides, *chosen.detections, *chosen.batches]
    if min(numbers) < 1:
        parser.error("all numbers must be at least 1")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    setup = parse(arguments)
    return exit_code("scaling.py", lambda: scale(setup))


def scale(setup: argparse.Namespace) -> None:
    results = measure(setup)
    text = write_report(setup, results)
    setup.output.mkdir(parents=True, exist_ok=True)
    (setup.output / "scaling.md").write_text(text, encoding="utf-8")
    plot(results, setup.output / "scaling.png")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
