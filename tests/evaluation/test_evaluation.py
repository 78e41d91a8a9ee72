"""Scores of a set of images, broken down (`evaluation`)."""

import math

import numpy as np
import pytest

from mrcnn.evaluation.evaluation import SIZES, Evaluation
from mrcnn.evaluation.metrics import match_instances
from mrcnn.pixels.overlaps import iou_matrix


def squares(sides, size=200):
    """Label layers [H, W, 1] with a square of each side, from the left to the right."""
    truth = np.zeros((size, size, 1), np.int32)
    left = 1
    for number, side in enumerate(sides, 1):
        truth[5 : 5 + side, left : left + side, 0] = number
        left += side + 2
    return truth


def test_true_objects_are_counted_by_their_size_whether_found_or_missed():
    rng = np.random.default_rng(0)
    evaluation, counts = Evaluation(), {}
    for number in range(4):
        sides = rng.integers(3, 50, 5)
        truth = squares(sides, 260)
        # Found with a part cut off, found whole, missed.
        labels = truth[..., 0].copy()
        for label, fate in enumerate(rng.integers(0, 3, 5), 1):
            rows, columns = np.nonzero(labels == label)
            if fate == 0:
                cut = rows < rows.min() + 0.35 * (np.ptp(rows) + 1)
                labels[rows[cut], columns[cut]] = 0
            elif fate == 1:
                labels[rows, columns] = 0
        image = np.zeros((*labels.shape, 3), np.uint8)
        evaluation.add(str(number), image, truth, labels)
        iou = iou_matrix(truth, labels)
        for i, side in enumerate(sides):
            diameter = 2 * math.sqrt(side * side / math.pi)
            place = sum(diameter > limit for limit in SIZES)
            one = iou[i : i + 1]
            found = [len(match_instances(one, t)) for t in (0.5, 0.75)]
            counts.setdefault(place, []).append(found)
    rows = evaluation.by_size()
    limits = (None, *SIZES, None)
    assert [(r["above"], r["up_to"]) for r in rows] == [
        (limits[place], limits[place + 1]) for place in sorted(counts)
    ]
    for row, place in zip(rows, sorted(counts), strict=True):
        assert row["objects"] == len(counts[place])
        shares = [row["found_50"], row["found_75"]]
        assert shares == pytest.approx(np.mean(counts[place], axis=0))
    assert 0 < np.mean([row["found_75"] for row in rows]) < np.mean([r["found_50"] for r in rows])
    text = evaluation.table()
    assert "found at .50" in text and str(rows[0]["objects"]) in text
    assert evaluation.summary()["by_size"] == rows


def test_no_objects_no_sizes():
    evaluation = Evaluation()
    assert evaluation.by_size() == []
    empty = np.zeros((8, 8), np.int32)
    evaluation.add("a", np.zeros((8, 8, 3), np.uint8), empty[..., None], empty)
    assert evaluation.by_size() == [] and "Size of object" not in evaluation.table()
    found = empty.copy()
    found[2:4, 2:4] = 1
    evaluation.add("b", np.zeros((8, 8, 3), np.uint8), empty[..., None], found)
    evaluation.add("c", np.zeros((8, 8, 3), np.uint8), found[..., None], empty)
    [row] = evaluation.by_size()
    assert row == {"above": None, "up_to": 10, "objects": 1, "found_50": 0, "found_75": 0}
