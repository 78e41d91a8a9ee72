import numpy as np
import pytest
from keras import ops

from mrcnn.network import losses
from tests.support import reference

pytestmark = pytest.mark.backend


def value(tensor):
    return float(ops.convert_to_numpy(tensor))


def test_smooth_l1():
    got = losses.smooth_l1_loss(np.zeros(5, "float32"), np.array([-3, -1, 0, 0.5, 2], "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(got), [2.5, 0.5, 0, 0.125, 1.5])


def test_rpn_losses_against_oracle(rng):
    match = rng.integers(-1, 2, (2, 30))
    logits = rng.normal(size=(2, 30, 2)).astype("float32")
    deltas = rng.normal(size=(2, 30, 4)).astype("float32")
    targets = rng.normal(size=(2, 30, 4)).astype("float32")
    probabilities = reference.softmax(logits)
    terms = [
        -np.log(probabilities[b, a, int(match[b, a] == 1)])
        for b in range(2)
        for a in range(30)
        if match[b, a] != 0
    ]
    assert value(losses.rpn_class_loss_graph(match[..., None], logits)) == pytest.approx(
        np.mean(terms), rel=1e-4
    )
    boxes = reference.smooth_l1(targets - deltas)[match == 1].mean()
    assert value(losses.rpn_anchor_box_loss(targets, match, deltas)) == pytest.approx(
        boxes, rel=1e-4
    )
    # matterport's layout: the targets of the positive anchors packed to the front.
    packed = np.zeros((2, 30, 4), "float32")
    for b in range(2):
        rows = targets[b][match[b] == 1]
        packed[b, : len(rows)] = rows
    assert value(losses.rpn_bbox_loss_graph(None, packed, match, deltas)) == pytest.approx(
        boxes, rel=1e-4
    )


def test_class_loss_sees_active_classes_of_each_image(rng):
    target = np.array([[0, 1, 2, 0], [3, 0, 1, 0]])
    logits = rng.normal(size=(2, 4, 4)).astype("float32")
    active = np.array([[1, 1, 1, 0], [1, 0, 0, 1]])
    used = np.array([[True, True, True, False], [True, True, True, True]])
    terms = []
    for b in range(2):
        for t in range(4):
            if used[b, t] and active[b, logits[b, t].argmax()]:
                terms.append(-np.log(reference.softmax(logits[b, t])[target[b, t]]))
    got = value(losses.mrcnn_class_loss_graph(target, logits, active, used))
    assert got == pytest.approx(np.mean(terms), rel=1e-4)


def test_box_and_mask_losses_look_at_the_true_class_of_positives(rng):
    ids = np.array([[1, 2, 0], [0, 0, 2]])
    target = rng.normal(size=(2, 3, 4)).astype("float32")
    predicted = rng.normal(size=(2, 3, 3, 4)).astype("float32")
    pairs = [(0, 0), (0, 1), (1, 2)]
    expected = np.mean(
        [reference.smooth_l1(target[p] - predicted[p][ids[p]]).mean() for p in pairs]
    )
    assert value(losses.mrcnn_bbox_loss_graph(target, ids, predicted)) == pytest.approx(
        expected, rel=1e-4
    )
    masks = rng.choice([0, 1, 0.25, 0.5], (2, 3, 5, 5)).astype("float32")
    logits = rng.normal(size=(2, 3, 5, 5, 3)).astype("float32")
    p = 1 / (1 + np.exp(-logits))
    terms = []
    for pair in pairs:
        q, t = p[pair][..., ids[pair]], masks[pair]
        terms.append(-(t * np.log(q) + (1 - t) * np.log(1 - q)).mean())
    for given, flag in ((logits, True), (p, False)):
        got = value(losses.mrcnn_mask_loss_graph(masks, ids, given, from_logits=flag))
        assert got == pytest.approx(np.mean(terms), rel=1e-4)


def test_nothing_to_see_is_zero_and_large_logits_are_finite():
    none = np.zeros((1, 2), "int32")
    assert value(losses.rpn_class_loss_graph(none, np.ones((1, 2, 2), "float32"))) == 0
    assert (
        value(
            losses.mrcnn_bbox_loss_graph(
                np.ones((1, 2, 4), "float32"), none, np.ones((1, 2, 3, 4), "float32")
            )
        )
        == 0
    )
    masks = np.ones((1, 2, 3, 3), "float32")
    logits = np.full((1, 2, 3, 3, 2), -500.0, "float32")
    got = losses.mrcnn_mask_loss_graph(masks, np.ones((1, 2), "int32"), logits, from_logits=True)
    assert value(got) == pytest.approx(500)


def test_box_losses_with_the_divisors_of_the_paper(rng):
    # Equation 16: sums over anchors and coordinates, divided by the places of anchors.
    match = rng.integers(-1, 2, (2, 30))
    deltas, targets = rng.normal(size=(2, 2, 30, 4)).astype("float32")
    total = sum(
        reference.smooth_l1(targets[b, a] - deltas[b, a]).sum()
        for b in range(2)
        for a in range(30)
        if match[b, a] == 1
    )
    got = value(losses.rpn_anchor_box_loss(targets, match, deltas, places=7))
    assert got == pytest.approx(total / 2 / 7, rel=1e-4)

    # Equation 12: summed over coordinates, divided by all used regions.
    ids = np.array([[1, 2, 0, 0, 0], [2, 0, 0, 0, 0]])
    used = np.array([[True] * 4 + [False], [True] * 5])
    target = rng.normal(size=(2, 5, 4)).astype("float32")
    predicted = rng.normal(size=(2, 5, 3, 4)).astype("float32")
    total = sum(
        reference.smooth_l1(target[b, t] - predicted[b, t, ids[b, t]]).sum()
        for b in range(2)
        for t in range(5)
        if ids[b, t] > 0
    )
    got = value(losses.mrcnn_bbox_loss_graph(target, ids, predicted, used))
    assert got == pytest.approx(total / 9, rel=1e-4)


def test_box_losses_without_positives_are_zero(rng):
    zeros = np.zeros((1, 6), "int32")
    deltas = rng.normal(size=(1, 6, 4)).astype("float32")
    assert value(losses.rpn_anchor_box_loss(deltas, zeros - 1, 0 * deltas, places=4)) == 0
    predicted = rng.normal(size=(1, 6, 2, 4)).astype("float32")
    assert value(losses.mrcnn_bbox_loss_graph(deltas, zeros, predicted, zeros == 0)) == 0
