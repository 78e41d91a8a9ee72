"""The paper's variants of the network, side by side on real images after the same number of steps.

    python benchmarks/paper.py --dataset DIR --steps 400 --output FOLDER

Trains every variant on the subset `fit` from the same weights, those of nuclei unless `--weights`
says otherwise, scores it on `val`, and writes FOLDER/paper.md: competition score with its interval,
the paired difference to the first row, seconds per step and per image. The compressed rows are the
first one's weights with thinner fully connected layers. What has been done is kept: the same
command resumes after an interruption. Seconds are meaningful only if nothing else runs meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.command import exit_code  # noqa: E402
from mrcnn.atomic import atomic_path  # noqa: E402
from mrcnn.cli.flag_values import positive  # noqa: E402
from mrcnn.errors import UserError  # noqa: E402
from mrcnn.evaluation.bootstrap import paired_difference  # noqa: E402

EPOCH = 50  # steps, after which a checkpoint is written: every minute or so


class Variant(NamedTuple):
    """A row of the table that is trained; the first one, BASE, is what the others differ from."""

    title: str
    config: tuple[str, ...] = ()
    schedule: str = "joint"


VARIANTS = {
    "fpn": Variant("FPN, RoIAlign, joint training"),
    "c4": Variant("C4", ("ARCHITECTURE=c4",)),
    "pool": Variant("RoIPool", ("ROI_POOLING=pool",)),
    "samples": Variant(
        "RoIAlign, the largest of 4 samples", ("ROI_SAMPLES=4", "ROI_SAMPLES_JOIN=max")
    ),
    "transformer": Variant("spatial transformer", ("ROI_SPATIAL_TRANSFORMER=True",)),
    "alternating": Variant("alternating training", schedule="alternating"),
}
BASE = "fpn"
RANKS = (64, 16)
# Few steps: the weight average must keep up. Few regions: all of "c4"'s pass the fifth stage.
COMMON = ("WEIGHT_AVERAGING=0.98", "POST_NMS_ROIS_INFERENCE=300")
# Its layers differ: it can start from ImageNet weights only, and then needs many more steps.
ON_REQUEST = ("c4",)


def run_nucleus(arguments: list[str]) -> None:
    """A command of the nucleus application, in this process.

    Raises:
        UserError: it failed; its own message is printed already.
    """
    from samples.nucleus.nucleus import main

    code = main(arguments)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"nucleus.py {arguments[0]} ended with exit code {code}")


def train(name: str, options: argparse.Namespace, run: Callable[[list[str]], None]) -> None:
    """Train a variant to its last step, or resume its training."""
    variant, logs = VARIANTS[name], options.output / name
    begun = any(logs.glob("*/mask_rcnn_*.h5"))
    changes = [
        f for setting in (*COMMON, *options.config, *variant.config) for f in ("--config", setting)
    ]
    run(
        [
            "train",
            "--dataset",
            options.dataset,
            "--subset",
            "fit",
            "--logs",
            str(logs),
            "--weights",
            "last" if begun else options.weights,
            "--schedule",
            variant.schedule,
            "--epochs",
            str(options.steps // EPOCH),
            "--steps",
            str(EPOCH),
            "--batch-size",
            str(options.batch_size),
            *changes,
        ]
    )


def is_scored(folder: Path) -> bool:
    """Whether an evaluation is there and has all its images."""
    path = folder / "metrics.json"
    if not path.is_file():
        return False
    summary = json.loads(path.read_text())
    return summary["complete"] and not summary["failed"]


def evaluate(weights: list[str], folder: Path, options, run: Callable[[list[str]], None]) -> None:
    limit = ["--limit", str(options.limit)] if options.limit else []
    run(
        [
            "evaluate",
            "--dataset",
            options.dataset,
            "--subset",
            options.subset,
            *weights,
            "--no-pictures",
            "--output",
            str(folder),
            *limit,
        ]
    )


def measure(options: argparse.Namespace, run: Callable[[list[str]], None] = run_nucleus) -> str:
    """Do everything that is not done yet; returns the table."""
    rows = []
    for name in [BASE, *(name for name in options.variants if name != BASE)]:
        folder = options.output / f"{name}_scores"
        if not is_scored(folder):
            train(name, options, run)
            weights = ["--weights", "last", "--logs", str(options.output / name)]
            evaluate(weights, folder, options, run)
        rows.append((VARIANTS[name].title, folder, step_seconds(options.output / name)))
    for rank in RANKS:
        folder, file = options.output / f"rank{rank}_scores", options.output / f"rank{rank}.h5"
        if not is_scored(folder):
            run(
                [
                    "compress",
                    "--weights",
                    "last",
                    "--logs",
                    str(options.output / BASE),
                    "--rank",
                    str(rank),
                    "--output",
                    str(file),
                ]
            )
            evaluate(["--weights", str(file)], folder, options, run)
        rows.append((f"the first row at rank {rank}", folder, None))
    return table(rows, options)


def step_seconds(logs: Path) -> float | None:
    """Seconds per step according to the newest run's log; None if there is none."""
    found = sorted(logs.glob("*/training.csv"))
    if not found:
        return None
    with open(found[-1], newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return sum(seconds) / len(seconds) / EPOCH


def scores_of(folder: Path) -> tuple[dict, dict[str, float]]:
    """metrics.json and the score of every image by its id."""
    with open(folder / "metrics.csv", newline="") as file:
        scores = {row["image_id"]: float(row["score"]) for row in csv.DictReader(file)}
    return json.loads((folder / "metrics.json").read_text()), scores


def table(rows: list[tuple[str, Path, float | None]], options: argparse.Namespace) -> str:
    """The table in Markdown."""
    _, base = scores_of(rows[0][1])
    lines = [
        f"{options.steps} steps of {options.batch_size} crops of `fit` each, scored on the "
        f"{len(base)} images of `{options.subset}`, 300 proposals.",
        "",
        "| variant | score (95 %) | difference to the first row (95 %) | at IoU .5 "
        "| s per step | s per image |",
        "|---|---|---|---|---|---|",
    ]
    for number, (title, folder, seconds) in enumerate(rows):
        summary, scores = scores_of(folder)
        if scores.keys() != base.keys():
            raise UserError(f"{folder} was scored on other images than {rows[0][1]}: delete both")
        low, high = summary["score_interval"]
        of_images = [[values[i] for i in base] for values in (scores, base)]
        seconds_text = "" if seconds is None else f"{seconds:.2f}"
        difference = "" if number == 0 else difference_text(*of_images)
        lines.append(
            f"| {title} | {summary['score']:.3f} ({low:.3f} to {high:.3f}) | {difference} "
            f"| {summary['tp_over_tp_fp_fn'][0]:.3f} | {seconds_text} "
            f"| {summary['seconds_per_image']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def difference_text(scores: list[float], base: list[float]) -> str:
    """Mean of the paired differences, with its interval; bold if that excludes zero."""
    mean, interval = paired_difference(scores, base)
    text = f"**{mean:+.3f}**" if interval.excludes_zero else f"{mean:+.3f}"
    return f"{text} ({interval.low:+.3f} to {interval.high:+.3f})"


def whole_epochs(text: str) -> int:
    """The value of a flag: a number of steps that epochs divide."""
    steps = positive(text)
    if steps % EPOCH:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of {EPOCH}")
    return steps


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, metavar="DIR")
    parser.add_argument(
        "--weights", default="nucleus", metavar="W", help="to start from (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=whole_epochs,
        default=400,
        metavar="N",
        help=f"training steps per variant, a multiple of {EPOCH} (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=2,
        metavar="N",
        help="crops per step (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the configuration that all variants are trained with, may be repeated",
    )
    parser.add_argument(
        "--subset", default="val", metavar="NAME", help="to score on (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--limit", type=positive, metavar="N", help="score the first N images only")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=tuple(VARIANTS),
        default=tuple(name for name in VARIANTS if name not in ON_REQUEST),
        metavar="NAME",
        help=f"some of {', '.join(VARIANTS)}; {BASE} is always included (default: all that can "
        f"start from trained weights, which {', '.join(ON_REQUEST)} cannot)",
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        text = measure(options)
        with atomic_path(options.output / "paper.md") as temporary:
            temporary.write_text(text)
        print(f"{text}\nWritten to {options.output / 'paper.md'}")

    return exit_code("paper.py", work)


if __name__ == "__main__":
    sys.exit(main())
