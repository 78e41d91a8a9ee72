"""Crowds in the truth count neither for nor against detections."""

import numpy as np

from mrcnn.evaluation.crowds import only, split_crowds
from mrcnn.evaluation.evaluation import Evaluation


def test_what_is_found_in_crowds_changes_no_score():
    truth = np.zeros((20, 30, 2), np.int32)
    truth[2:8, 2:8, 0], truth[2:18, 12:28, 1], truth[12:16, 20:26, 0] = 2, 1, 3
    labels = np.zeros((20, 30), np.int32)
    labels[2:8, 2:8], labels[4:9, 14:20], labels[10:15, 9:13] = 3, 5, 6
    labels[12:16, 20:26] = 8  # an object in the crowd, which is found
    objects, crowds = split_crowds(truth, np.array([-1, 1, 1]))
    assert np.unique(objects).tolist() == [0, 2, 3] and np.unique(crowds).tolist() == [0, 1]
    evaluation, image = Evaluation(), np.zeros((20, 30, 3), np.uint8)
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    row = evaluation.add("a", image, objects, labels, scores, crowds=crowds)
    assert (row["true"], row["detected"], row["ap_50"]) == (2, 3, 2 / 3)
    without = Evaluation()
    kept = np.array([True, False, True, True])
    same = without.add("a", image, objects, only(labels, kept), scores[kept])
    assert row == same and evaluation.summary() == without.summary()


def test_only_keeps_labels_as_they_are():
    labels = np.array([[0, 7, 7, 40]])
    np.testing.assert_array_equal(only(labels, np.array([False, True])), [[0, 0, 0, 40]])
