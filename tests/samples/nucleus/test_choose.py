"""Choosing settings of the post-processing by their scores."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.evaluation.bootstrap import paired_difference
from mrcnn.evaluation.evaluation import Evaluation
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS, Detections, PostProcessing, postprocess
from samples.nucleus import choose, nucleus
from samples.nucleus.choose import (
    GRID,
    Sample,
    Scorer,
    combine,
    leave_one_kind_out,
    left_out_table,
    one_at_a_time,
    run_choose,
    table,
)
from samples.nucleus.kinds import KINDS_OF_IMAGES
from samples.nucleus.synthesize import synthesize

PLAIN = PostProcessing.plain()


def sample(seed):
    """Five discs; masks that are right at .3, two false detections of score .6, one speck."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((40, 120, 1), np.int32)
    distance = np.hypot(*np.mgrid[-10:11, -10:11])
    patches = []
    for i in range(5):
        y, x = rng.integers(0, 19), 24 * i
        truth[y : y + 21, x : x + 21, 0][distance <= 8] = i + 1
        patches.append((y, x, np.clip(0.3 + (8 - distance) / 10, 0, 1).astype(np.float32)))
    false = np.ones((40, 3), np.float32)
    patches += [(0, 21, false), (0, 45, false), (39, 119, np.ones((1, 1), np.float32))]
    scores = np.array([*rng.uniform(0.8, 0.95, 5), 0.6, 0.6, 0.97])
    return Sample(str(seed), "bright field", truth, Detections(scores, patches))


@pytest.fixture(scope="module")
def scorer():
    return Scorer([sample(seed) for seed in range(6)])


def test_scores_are_those_of_an_evaluation(scorer):
    evaluation = Evaluation(KINDS_OF_IMAGES)
    for s in scorer.samples:
        labels, scores = postprocess(s.detections, s.truth.shape, DEFAULTS)
        image = np.full((*s.truth.shape[:2], 3), 250, np.uint8)
        evaluation.add(s.image_id, image, s.truth, labels, scores)
    np.testing.assert_array_equal(scorer(DEFAULTS), [row["score"] for row in evaluation.rows])
    assert 0 < scorer(DEFAULTS).mean() < 1


def test_every_value_of_the_grid_alone(scorer):
    steps = []
    trials = one_at_a_time(scorer, PLAIN, step=lambda: steps.append(1))
    assert len(trials) == len(steps) == sum(map(len, GRID.values()))
    by_name = {trial.setting: trial for trial in trials}
    assert len(by_name) == len(trials)
    trial = by_name["min_score=0.7"]
    assert trial.settings == replace(PLAIN, min_score=0.7)
    scores, start = scorer(trial.settings), scorer(PLAIN)
    assert trial[2:] == (scores.mean(), *paired_difference(scores, start))
    assert trial.difference > 0 and trial.interval.excludes_zero
    assert by_name["max_covered=off"].difference == 0
    lines = table(trials, PLAIN).splitlines()
    assert len(lines) == len(trials) + 1
    assert sum("(start)" in line for line in lines) == len(GRID)
    [line] = [line for line in lines if line.startswith("min_score=0.7 ")]
    assert line.endswith(" *") and f"{trial.score:.4f}" in line


def test_combined_settings_find_what_is_best_together(scorer):
    changes = combine(scorer, PLAIN)
    names = {change.setting.split("=")[0] for change in changes}
    assert len(changes) == 3 and names > {"min_score", "mask_threshold"}
    chosen = changes[-1].settings
    assert scorer(chosen).mean() == 1.0
    assert chosen.min_score > 0.6 and chosen.mask_threshold == 0.3
    scores = [c.score for c in changes]
    assert scores == sorted(scores) and changes[-1].difference == 1 - scorer(PLAIN).mean()
    assert combine(scorer, chosen) == []


def test_small_gains_are_left_alone(scorer, monkeypatch):
    monkeypatch.setattr(choose, "MIN_GAIN", 1.0)
    assert combine(scorer, PLAIN) == []


def test_a_part_of_the_samples_is_scored_as_if_it_were_all(scorer):
    part = scorer.of(np.arange(6) < 2)
    alone = Scorer(scorer.samples[:2])
    np.testing.assert_array_equal(part(DEFAULTS), alone(DEFAULTS))
    assert combine(part, PLAIN) == combine(alone, PLAIN)
    assert len(scorer(DEFAULTS)) == 6


def test_a_kind_left_out_has_no_part_in_what_is_chosen_for_it():
    kinds = ["bright field"] * 2 + ["tissue, purple on white"] * 3
    samples = [replace(sample(seed), kind=kind) for seed, kind in enumerate(kinds)]
    scorer = Scorer(samples)
    steps = []
    rows, honest = leave_one_kind_out(scorer, PLAIN, step=lambda: steps.append(1))
    assert [row.kind for row in rows] == ["tissue, purple on white", "bright field"]
    assert len(steps) == 2
    scores = np.zeros(5)
    for row, own, others in zip(
        rows, (slice(2, 5), slice(0, 2)), (slice(0, 2), slice(2, 5)), strict=True
    ):
        chosen = combine(Scorer(samples[others]), PLAIN)[-1].settings
        assert row.settings == chosen
        of_kind = Scorer(samples[own])
        assert row[2:] == (of_kind(PLAIN).mean(), of_kind(chosen).mean())
        scores[own] = of_kind(chosen)
    assert honest[2:] == (scores.mean(), *paired_difference(scores, scorer(PLAIN)))
    lines = left_out_table(rows, honest, PLAIN).splitlines()
    assert len(lines) == 4 and f"{honest.difference:+.4f}" in lines[-1]
    assert rows[0].settings.text("mask_threshold") in lines[1]


def test_one_kind_cannot_be_left_out(scorer):
    rows, honest = leave_one_kind_out(scorer, PLAIN)
    assert rows == [] and honest is None
    assert "none can be left out" in left_out_table(rows, honest, PLAIN)


class BrightPixels:
    """Finds one thing an image: everything brighter than the mean, surer the brighter."""

    def detect_patches(self, images, probabilities=False, scales=None):
        return [
            {
                "scores": np.array([0.9]),
                "patches": [
                    (
                        0,
                        0,
                        (np.clip(0.5 + (image.mean(axis=-1) - image.mean()) / 100, 0, 1)).astype(
                            np.float32
                        ),
                    )
                ],
            }
            for image in images
        ]


def test_on_a_data_set(tmp_path, capsys):
    first = synthesize(tmp_path, 3, 64, 0, "good")[0]
    shutil.copytree(tmp_path / "good", tmp_path / "broken")
    (tmp_path / "broken" / first / "images" / f"{first}.png").write_bytes(b"rubbish")
    dataset = nucleus.load_dataset(str(tmp_path), "good", labelled=True)
    assert run_choose(BrightPixels(), dataset, tmp_path / "out", start=PLAIN).failed == {}
    output = capsys.readouterr()
    assert any(s.startswith("combine ") and "took" in s for s in output.err.splitlines())
    evaluation = Evaluation(KINDS_OF_IMAGES)
    for i in dataset.image_ids:
        image = dataset.load_image(i)
        evaluation.add(
            "",
            image,
            dataset.load_layers(i)[0],
            *postprocess(tta.detect(BrightPixels(), image), image.shape, PLAIN),
        )
    assert f"3 images, start from: {PLAIN}\nscore {evaluation.mean('score'):.4f}" in output.out
    for kind, values in evaluation.by_kind().items():
        assert f"{kind:<30}{values['images']:7d}{values['score']:8.4f}" in output.out
    with open(tmp_path / "out" / "choose.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(set(row) >= {"stage", "setting", "score", "low", "high", *GRID} for row in rows)

    broken = nucleus.load_dataset(str(tmp_path), "broken", labelled=True)
    chosen = run_choose(BrightPixels(), broken, tmp_path / "again", start=PLAIN)
    assert list(chosen.failed) == [first] and chosen.facts["images"] == 2
    assert "2 images" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of the 1 images"):
        run_choose(
            BrightPixels(),
            broken,
            tmp_path / "never",
            limit=1 + sorted(p.name for p in (tmp_path / "broken").iterdir()).index(first),
        )
