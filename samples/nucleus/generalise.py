"""How well a recipe works on kinds of images that it was never shown: leave one kind out.

For every fold a network is trained on the images of `fit` without one kind, from the given weights,
and scored on exactly that kind's images of `tune` and `val`. The mean over the folds is the figure
to choose augmentation by: `tune` alone holds the same slides as `fit`, and rewards memorising them.
The fold "nothing" leaves nothing out and is scored on `tune`.

Every fold has a folder of its own below the output folder, with its checkpoints and scores. A fold
that has scores is not run again; one that was interrupted resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mrcnn.atomic import atomic_path, locked
from mrcnn.cli import flag_values, flags
from mrcnn.cli.application import Application, need
from mrcnn.cli.score_images import predictions_of, run_evaluate, ways_of
from mrcnn.cli.settings import Settings
from mrcnn.cli.summary import Summary
from mrcnn.data.micrographs import MICROGRAPHS
from mrcnn.errors import UserError, one_line, quoted
from mrcnn.evaluation.bootstrap import bootstrap_interval, paired_difference
from mrcnn.files import read_bytes
from samples.nucleus.dsb2018 import load_dataset
from samples.nucleus.kinds import LEFT_OUT

NOTHING = "nothing"
# Enough to choose by: they differ most from the rest.
DEFAULT_FOLDS = ("tissue", "large")
STEPS = 500
STEPS_PER_CHECKPOINT = 100
SCORES = "scores.csv"


def run_folds(
    options: argparse.Namespace, app: Application, folds: Sequence[str]
) -> dict[str, str]:
    """Train and score the folds that are not done already, below options.output.

    options: of the command line. Returns what `run_fold` does, for all folds.
    """
    failed: dict[str, str] = {}
    output = Path(options.output)
    settings = Settings(options.preset, tuple(options.config), None, tuple(options.augment))
    check_same_run(
        output,
        {
            "weights": options.weights,
            "steps": options.steps,
            "seed": options.seed,
            "also": [list(pair) for pair in options.also],
            "augmentation": dataclasses.asdict(settings.augmentation(MICROGRAPHS)),
            "configuration": settings.applied_to(app.recipe)().to_dict(),
        },
    )
    for fold in folds:
        if not (output / fold / SCORES).is_file():
            failed |= run_fold(options, app, fold, output / fold)
    return failed


def run_fold(
    options: argparse.Namespace, app: Application, fold: str, folder: Path
) -> dict[str, str]:
    """Train and score one fold in its folder.

    Returns the names of the images that could not be scored, with the reasons. A fold with any has
    no scores, since its mean would be over fewer images: it is scored again next time.
    """
    from mrcnn.cli import train

    print(f"Left out: {fold}")
    left_out = None if fold == NOTHING else fold
    started = any(folder.glob("*/mask_rcnn_*.h5"))
    chosen = {
        "command": "train",
        "logs": str(folder),
        "weights": "last" if started else options.weights,
        "subset": "fit",
        "leave_out": left_out,
        "images": None,
        "labels": None,
        "channel": None,
        "split": None,
        "epochs": max(1, round(options.steps / STEPS_PER_CHECKPOINT)),
        "time_budget": None,
        "steps": min(options.steps, STEPS_PER_CHECKPOINT),
        "schedule": None,
        "batch_size": None,
        "devices": 1,
        "cache": None,
        "val_share": 0.0,
        "validate": False,
        "fine_tune": False,
        "rehearse": None,
    }
    train.train(argparse.Namespace(**{**vars(options), **chosen}), app)
    failed, rows = score_fold(options, app, left_out, folder)
    if failed:
        print(f"{fold}: no scores, since {len(failed)} of its images have none: fix them, and run "
              "the same command again", file=sys.stderr)  # fmt: skip
    else:
        write_rows(folder / SCORES, rows)
    return failed


def score_fold(
    options: argparse.Namespace, app: Application, left_out: str | None, folder: Path
) -> tuple[dict[str, str], list[dict]]:
    """Score the last network in a fold's folder. left_out: the kind that it was not trained on.

    Returns the images that could not be scored, with the reasons, and the rows of the others.
    """
    from mrcnn.cli import detectors

    chosen = {
        "weights": "last",
        "logs": str(folder),
        "preset": None,
        "config": [],
        "plain": False,
        "set": [],
        "tta": None,
    }
    detector = detectors.segmenter(argparse.Namespace(**{**vars(options), **chosen}), app)
    rows: list[dict] = []
    failed: dict[str, str] = {}
    for subset in ("tune", "val") if left_out else ("tune",):
        kinds = LEFT_OUT[left_out] if left_out else None
        dataset = load_dataset(options.dataset, subset, True, kinds)
        scored = run_evaluate(
            dataset,
            folder / subset,
            predictions_of(detector),
            nouns=detector.nouns,
            kinds=app.kinds,
            pictures=False,
            ways=ways_of(detector, str(folder)),
        )
        print(scored.result)
        failed |= scored.failed
        rows += read_rows(folder / subset / "metrics.csv")
    return failed, rows


def read_rows(path: Path) -> list[dict]:
    """The rows of a CSV file of `evaluate`, one per image. Raises UserError if it is damaged."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_bytes(path).decode(), newline="")))
        for row in rows:
            if not row["image_id"] or not 0 <= float(row["score"]) <= 1:
                raise ValueError("an image without a score from 0 to 1")
        if not rows:
            raise ValueError("no images")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is damaged ({one_line(error)}): delete it, and the same command scores the "
            "fold again"
        ) from None
    return rows


def write_rows(path: Path, rows: Sequence[Mapping]) -> None:
    """Write rows whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def scores_of(output: Path) -> dict[str, dict[str, float]]:
    """{fold: {image id: score}} of the folds in an output folder that are done."""
    found = {}
    for fold in (*LEFT_OUT, NOTHING):
        path = output / fold / SCORES
        if path.is_file():
            found[fold] = {row["image_id"]: float(row["score"]) for row in read_rows(path)}
    return found


def table(output: Path, against: Path | None = None) -> str:
    """The scores of the folds that are done, and their differences to another output folder.

    The last line is the mean over the folds that leave a kind out, each fold counting the same
    whatever its number of images.
    """
    ours = scores_of(output)
    theirs = scores_of(against) if against else {}
    lines = [f"{'left out':<14}{'images':>7}{'score':>8}   95 % interval"]
    means, differences = [], []
    for fold, scores in ours.items():
        values = list(scores.values())
        mean = float(np.mean(values))
        line = f"{fold:<14}{len(values):7d}{mean:8.4f}   {bootstrap_interval(values)}"
        base = theirs.get(fold)
        if base is not None and base.keys() == scores.keys():
            difference, interval = paired_difference(values, [base[i] for i in scores])
            line += f"   difference {difference:+.4f} ({interval.low:+.3f} to {interval.high:+.3f})"
            if fold != NOTHING:
                differences.append(np.array(values) - np.array([base[i] for i in scores]))
        if fold != NOTHING:
            means.append(mean)
        lines.append(line)
    if means:
        line = f"{'mean of kinds':<14}{'':>7}{np.mean(means):8.4f}"
        if differences and len(differences) == len(means):
            low, high = _interval_of_mean(differences)
            difference = np.mean([d.mean() for d in differences])
            line += f"   difference {difference:+.4f} ({low:+.3f} to {high:+.3f})"
        lines.append(line)
    return "\n".join(lines)


def _interval_of_mean(differences: Sequence[np.ndarray], resamples: int = 10_000) -> tuple:
    """95 % interval of the mean over folds of their means, the images of each resampled."""
    rng = np.random.default_rng(0)
    means = [d[rng.integers(len(d), size=(resamples, len(d)))].mean(axis=1) for d in differences]
    return tuple(np.quantile(np.mean(means, axis=0), [0.025, 0.975]))


def check_same_run(output: Path, facts: Mapping) -> None:
    """Raise UserError if the output folder holds folds of other settings; record ours."""
    path = output / "settings.json"
    if path.exists():
        try:
            written = json.loads(read_bytes(path))
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} is damaged: delete it if the folds there have these settings, or choose "
                "another --output"
            ) from None
        if written != json.loads(json.dumps(facts)):
            raise UserError(
                f"{output} holds folds of other settings ({path}): choose another --output"
            )
        return
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def data_share(text: str) -> tuple[str, float]:
    """argparse type: a folder and a share, DIR=0.2."""
    folder, equals, number = text.rpartition("=")
    if not equals or not folder:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not DIR=SHARE, such as synthetic=0.2")
    value = flag_values.share(number)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{quoted(number)} is not a share between 0 and 1")
    return folder, value


def add_also_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--also",
        type=data_share,
        metavar="DIR=SHARE",
        action="append",
        default=[],
        help="other labelled images and their share of training, may be repeated: a folder "
        "with images/ and labels/ (label images, ROIs), or one in Kaggle's layout: --also "
        "synthetic/stage1_train=.2",
    )


def add_mixture_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `train` that say which images are shown."""
    add_also_flag(parser)
    parser.add_argument(
        "--leave-out",
        choices=tuple(LEFT_OUT),
        help="do not train on images of this kind (see generalise)",
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command `generalise`."""
    add = parser.add_argument
    flags.add_augmentation_flags(parser)
    add_also_flag(parser)
    add(
        "--leave-out",
        choices=(*LEFT_OUT, NOTHING),
        action="append",
        help="a kind, may be repeated; nothing: train on all, score on tune (default: "
        f"{' and '.join(DEFAULT_FOLDS)})",
    )
    add(
        "--steps",
        type=flag_values.positive,
        default=STEPS,
        metavar="N",
        help="training steps per kind (default: %(default)s)",
    )
    add(
        "--workers",
        type=flag_values.positive,
        default=flag_values.default_workers(),
        metavar="N",
        help="threads that prepare batches (default: %(default)s)",
    )
    add("--seed", type=flag_values.whole, default=0, metavar="N", help="(default: %(default)s)")
    add(
        "--output",
        metavar="DIR",
        help="for checkpoints and scores; a run that was interrupted resumes there",
    )
    add("--against", metavar="DIR", help="output folder of other settings to compare with")


def run(options: argparse.Namespace, app: Application) -> Summary:
    """The command `generalise`."""
    need(options, "dataset", "weights", "output")
    output, against = Path(options.output), options.against and Path(options.against)
    with locked(output):
        failed = run_folds(options, app, options.leave_out or DEFAULT_FOLDS)
        found = scores_of(output)
        facts = {
            "scores": {fold: float(np.mean(list(found[fold].values()))) for fold in found},
            "skipped": failed,
            "output": output,
        }
        return Summary(table(output, against), facts, failed=failed)
