"""Crowds in the truth count neither for nor against detections."""

import numpy as np

from mrcnn.evaluation.crowds import outside_crowds, split_crowds
from mrcnn.evaluation.evaluation import Evaluation


def test_crowds_change_no_score():
    truth = np.zeros((20, 30, 2), np.int32)
    truth[2:8, 2:8, 0], truth[2:18, 12:28, 1] = 2, 1
    labels = np.zeros((20, 30), np.int32)
    labels[2:8, 2:8], labels[4:9, 14:20], labels[10:15, 9:13] = 3, 5, 6
    objects, crowd = split_crowds(truth, np.array([-1, 1]))
    assert np.unique(objects).tolist() == [0, 2] and crowd.sum() == 16 * 16
    left, scores = outside_crowds(labels, np.array([0.9, 0.8, 0.7]), crowd)
    assert np.unique(left).tolist() == [0, 3, 6] and scores.tolist() == [0.9, 0.7]
    row = Evaluation().add("a", np.zeros((20, 30, 3), np.uint8), objects, left, scores)
    assert (row["true"], row["detected"], row["ap_50"]) == (1, 2, 0.5)
    assert outside_crowds(labels, None, np.zeros((20, 30), bool))[1] is None
