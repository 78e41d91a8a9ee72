"""Choose the settings of the post-processing by scoring a grid of them on labelled images.

The network runs once; every setting is then scored on the same detections. First each setting of
GRID alone, then combined: one setting after another takes its best value, given all others, until
nothing improves any more. Then the same, leaving out one kind of microscopy at a time: what is
chosen is scored on that kind, since settings that were chosen and scored on the same images look
better than they are. Differences come with a paired bootstrap interval over the images; one whose
interval includes zero is not significant.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrcnn.atomic import atomic_path, locked
from mrcnn.cli.application import Application, need
from mrcnn.cli.pipeline import Outcome, each_image
from mrcnn.cli.summary import Summary
from mrcnn.console import Progress
from mrcnn.errors import UserError
from mrcnn.evaluation import metrics
from mrcnn.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS, OVERLAPS, Detections, PostProcessing, postprocess
from mrcnn.pixels.overlaps import iou_matrix
from samples.nucleus.dsb2018 import load_dataset
from samples.nucleus.kinds import KINDS, kind_of

GRID: dict[str, tuple] = {
    # With two classes the network's scores begin at .5; those of merged variants may be lower.
    "min_score": (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    "mask_threshold": (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6),
    "max_covered": (None, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "overlaps": OVERLAPS,
    "largest_piece": (False, True),
    "min_typical_area": (None, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    "min_area": (None, 5, 10, 15, 20, 30),
    "fill_holes": (False, True),
}
# A combination is changed only for a gain above this: smaller ones vary with the images.
MIN_GAIN = 0.001
MAX_ROUNDS = 3


@dataclass(frozen=True)
class Sample:
    """One image: what was found and what is true."""

    image_id: str
    kind: str
    truth: np.ndarray  # int32 [H, W, L] label layers
    detections: Detections


class Trial(NamedTuple):
    """A setting's score, compared with that of the starting settings."""

    setting: str
    settings: PostProcessing
    score: float
    difference: float
    interval: Interval  # of the difference


class Scorer:
    """Competition scores of the samples under any settings; each setting is computed once.

    Attributes:
        kinds: of the samples.
        used: bool [images], the samples that it returns scores of.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.samples = list(samples)
        self.kinds = np.array([sample.kind for sample in samples])
        self.used = np.ones(len(samples), bool)
        self._known: dict[PostProcessing, np.ndarray] = {}

    def of(self, used: np.ndarray) -> Scorer:
        """The same for a part of the samples, bool [images]; both share what is computed."""
        part = copy.copy(self)
        part.used = used
        return part

    def __call__(self, settings: PostProcessing) -> np.ndarray:
        """float64 [used images]."""
        if settings not in self._known:
            self._known[settings] = np.array([self._score(s, settings) for s in self.samples])
        return self._known[settings][self.used]

    def compare(self, setting: str, settings: PostProcessing, start: PostProcessing) -> Trial:
        """The trial of `settings` against `start`."""
        scores = self(settings)
        return Trial(
            setting, settings, float(scores.mean()), *paired_difference(scores, self(start))
        )

    @staticmethod
    def _score(sample: Sample, settings: PostProcessing) -> float:
        labels, _ = postprocess(sample.detections, sample.truth.shape, settings)
        return metrics.competition_score(iou_matrix(sample.truth, labels))


def one_at_a_time(
    scorer: Scorer,
    start: PostProcessing,
    grid: dict[str, tuple] = GRID,
    step: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Every value of the grid alone, all else as in `start`. `step` is called after each."""
    trials = []
    for name, values in grid.items():
        for value in values:
            changed = replace(start, **{name: value})
            trials.append(scorer.compare(changed.text(name), changed, start))
            step()
    return trials


def combine(
    scorer: Scorer,
    start: PostProcessing,
    grid: dict[str, tuple] = GRID,
    step: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Coordinate ascent from `start`: each name in turn takes its best value, given the others.

    The names that gained most alone come first. Ends when a round changes nothing, after
    MAX_ROUNDS at the latest. Returns the changes in their order, each compared with `start`.
    """

    def best(name: str, current: PostProcessing) -> PostProcessing:
        return max(
            (replace(current, **{name: value}) for value in grid[name]),
            key=lambda settings: scorer(settings).mean(),
        )

    names = sorted(grid, key=lambda name: -scorer(best(name, start)).mean())
    current, changes = start, []
    for _ in range(MAX_ROUNDS):
        before = current
        for name in names:
            candidate = best(name, current)
            if scorer(candidate).mean() - scorer(current).mean() > MIN_GAIN:
                current = candidate
                changes.append(scorer.compare(current.text(name), current, start))
            step()
        if current == before:
            break
    return changes


class LeftOut(NamedTuple):
    """What was chosen without a kind of images, and the mean scores on that kind."""

    kind: str
    settings: PostProcessing
    before: float  # with the starting settings
    score: float


def leave_one_kind_out(
    scorer: Scorer,
    start: PostProcessing,
    grid: dict[str, tuple] = GRID,
    step: Callable[[], None] = lambda: None,
) -> tuple[list[LeftOut], Trial | None]:
    """`combine` without one kind at a time, scored on that kind.

    `step` is called after each kind. Returns the kinds, and the trial of all images, each with
    the settings chosen without its kind; None if there are fewer than two kinds.
    """
    kinds = [kind for kind in KINDS if (scorer.kinds == kind).any()]
    if len(kinds) < 2:
        return [], None
    rows, scores = [], np.zeros(len(scorer.samples))
    for kind in kinds:
        of_kind = scorer.kinds == kind
        changes = combine(scorer.of(~of_kind), start, grid)
        chosen = changes[-1].settings if changes else start
        part = scorer.of(of_kind)
        scores[of_kind] = part(chosen)
        rows.append(LeftOut(kind, chosen, float(part(start).mean()), float(part(chosen).mean())))
        step()
    difference = paired_difference(scores, scorer(start))
    return rows, Trial("without its own kind", start, float(scores.mean()), *difference)


def run_choose(
    model,
    dataset,
    output: Path,
    limit: int | None = None,
    start: PostProcessing = DEFAULTS,
    variants: Sequence[tta.Variant] = tta.NONE,
) -> Summary:
    """Detect on a labelled data set, score the grid, print tables, write output/choose.csv.

    start: the settings that all others are compared with. variants: see `tta`.
    Returns what was chosen; images that failed are not used.
    """
    samples, failed = _detect_all(model, dataset, limit, variants)
    if not samples:
        raise UserError(f"none of the {len(failed)} images could be scored")
    scorer = Scorer(samples)
    print(
        f"{len(samples)} images, start from: {start}\nscore {scorer(start).mean():.4f} "
        f"(95 % interval {bootstrap_interval(scorer(start))})\n"
    )

    with Progress(sum(map(len, GRID.values())), "one at a time") as line:
        alone = one_at_a_time(scorer, start, step=line.step)
    print(table(alone, start) + "\n")
    with Progress(MAX_ROUNDS * len(GRID), "combine") as line:
        combined = combine(scorer, start, step=line.step)
        line.finish()
    chosen = combined[-1].settings if combined else start
    print("Combined, one change after another:")
    print(table(combined, start) if combined else "  nothing improves on the start")
    print("\n" + _by_kind(scorer, start, chosen) + "\n")
    with Progress(len(set(scorer.kinds)), "leave one kind out") as line:
        rows, honest = leave_one_kind_out(scorer, start, step=line.step)
        line.finish()
    print(left_out_table(rows, honest, start) + "\n")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "choose.csv"
    _write(path, alone, combined)
    facts = {
        "images": len(samples),
        "score": float(scorer(chosen).mean()),
        "score_before": float(scorer(start).mean()),
        "settings": chosen.to_dict(),
        "left_out": [row._replace(settings=row.settings.to_dict())._asdict() for row in rows],
        "skipped": failed,
        "output": path,
    }
    return Summary(f"Chosen: {chosen}\nWritten to {path}", facts, failed=failed)


def _detect_all(
    model, dataset, limit: int | None, variants: Sequence[tta.Variant]
) -> tuple[list[Sample], dict[str, str]]:
    """The samples of a data set, and the ids of the images that failed with the reasons."""
    samples: list[Sample] = []
    failed: dict[str, str] = {}
    names = [dataset.image_reference(i) for i in list(dataset.image_ids)[:limit]]

    def read(number: int) -> tuple:
        return dataset.load_image(number), dataset.load_layers(number)[0]

    def work(number: int, pair: tuple, progress: Progress) -> Sample:
        image, truth = pair
        areas = np.bincount(truth[truth > 0])
        kind = kind_of(image, areas[areas > 0])
        return Sample(names[number], kind, truth, tta.detect(model, image, variants))

    def keep(number: int, outcome: Outcome) -> str:
        if outcome.error is not None:
            return ""
        samples.append(outcome.result)
        return f"{len(outcome.result.detections.scores)} detections"

    each_image(names, "detect", failed, read, work, keep)
    return samples, failed


def table(trials: Sequence[Trial], start: PostProcessing) -> str:
    """The trials for people; `*` marks a difference whose interval excludes zero."""
    lines = [f"{'setting':<26}{'score':>8}{'difference':>12}   95 % interval"]
    for trial in trials:
        if trial.settings == start:
            lines.append(f"{trial.setting:<26}{trial.score:8.4f}{'(start)':>12}")
            continue
        low, high = trial.interval
        lines.append(
            f"{trial.setting:<26}{trial.score:8.4f}{trial.difference:+12.4f}"
            f"   {low:+.4f} to {high:+.4f}{' *' * trial.interval.excludes_zero}"
        )
    return "\n".join(lines)


def left_out_table(rows: Sequence[LeftOut], honest: Trial | None, start: PostProcessing) -> str:
    """What `leave_one_kind_out` gives, for people."""
    if honest is None:
        return "Leave one kind out: all images are of one kind, so none can be left out"
    lines = [f"{'Kind left out':<30}{'start':>8}{'chosen':>8}   without it"]
    for row in rows:
        changed = [
            row.settings.text(name)
            for name, value in row.settings.to_dict().items()
            if value != start.to_dict()[name]
        ]
        text = ", ".join(changed) or "nothing"
        lines.append(f"{row.kind:<30}{row.before:8.4f}{row.score:8.4f}   {text}")
    low, high = honest.interval
    verdict = "" if honest.interval.excludes_zero else ", not significant"
    lines.append(
        f"All images, each with what was chosen without its kind: {honest.score:.4f}, "
        f"{honest.difference:+.4f} ({low:+.4f} to {high:+.4f}){verdict}"
    )
    return "\n".join(lines)


def _by_kind(scorer: Scorer, start: PostProcessing, chosen: PostProcessing) -> str:
    """The scores at the start and as chosen, kind by kind."""
    kinds = scorer.kinds
    lines = [f"{'Kind of image':<30}{'images':>7}{'start':>8}{'chosen':>8}"]
    for kind in (k for k in KINDS if (kinds == k).any()):
        of_kind = kinds == kind
        lines.append(
            f"{kind:<30}{of_kind.sum():7d}{scorer(start)[of_kind].mean():8.4f}"
            f"{scorer(chosen)[of_kind].mean():8.4f}"
        )
    return "\n".join(lines)


def _write(path: Path, alone: Sequence[Trial], combined: Sequence[Trial]) -> None:
    """One row per trial: its stage, all settings, score, difference and its interval."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["stage", "setting", *asdict(DEFAULTS), "score", "difference", "low", "high"])
        for stage, trials in (("alone", alone), ("combined", combined)):
            for t in trials:
                rows.writerow(
                    [
                        stage,
                        t.setting,
                        *asdict(t.settings).values(),
                        t.score,
                        t.difference,
                        *t.interval,
                    ]
                )


def run(options: argparse.Namespace, app: Application) -> Summary:
    """The command `choose`."""
    from mrcnn.cli import detectors

    need(options, "dataset", "subset")
    start = detectors.postprocessing(
        options, app.description(app.weight_file(options, "inference"))
    )
    dataset = load_dataset(options.dataset, options.subset, labelled=True)
    output = Path(options.output or app.results_folder("choose"))
    with locked(output):
        model = detectors.inference_model(options, app, start)
        variants = tta.variants_of(options.tta)
        return run_choose(model, dataset, output, options.limit, start, variants)
