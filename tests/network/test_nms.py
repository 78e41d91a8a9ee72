import numpy as np
import pytest
from keras import ops

from mrcnn.network import nms
from tests.support import reference

pytestmark = pytest.mark.backend

IMPLEMENTATIONS = [nms.non_max_suppression_graph, nms._nms_any_backend]


def run(function, boxes, scores, limit, threshold):
    indices, valid = function(
        ops.convert_to_tensor(boxes), ops.convert_to_tensor(scores), limit, threshold
    )
    indices, valid = ops.convert_to_numpy(indices), ops.convert_to_numpy(valid)
    assert indices.shape == valid.shape == (len(boxes), limit)
    return [list(i[v]) for i, v in zip(indices, valid, strict=True)]


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_against_greedy_oracle(function, threshold, rng):
    boxes = np.stack([reference.random_boxes(rng, 60) for _ in range(3)])
    scores = rng.uniform(size=(3, 60)).astype("float32")
    scores[1, ::3] = nms.NO_SCORE
    expected = [
        reference.greedy_nms(b, s, threshold, 25) for b, s in zip(boxes, scores, strict=True)
    ]
    assert run(function, boxes, scores, 25, threshold) == expected


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_long_chain_of_suppressions(function):
    # Each box overlaps its neighbours only: every second one stays.
    start = np.arange(30, dtype="float32") * 0.4
    boxes = np.stack([0 * start, start, 0 * start + 1, start + 1], axis=1)[None]
    scores = np.linspace(1, 0.5, 30, dtype="float32")[None]
    assert run(function, boxes, scores, 30, 0.3) == [list(range(0, 30, 2))]


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_no_candidates_and_more_outputs_than_boxes(function, rng):
    boxes = reference.random_boxes(rng, 4)[None]
    assert run(function, boxes, np.full((1, 4), nms.NO_SCORE, "float32"), 3, 0.5) == [[]]
    scores = np.array([[0.1, 0.4, 0.2, 0.3]], "float32")
    assert run(function, boxes, scores, 9, 1.0) == [[1, 3, 2, 0]]


def test_order_of_boxes_does_not_matter(rng):
    boxes = reference.random_boxes(rng, 40)
    scores = rng.permutation(40).astype("float32")
    order = rng.permutation(40)
    [kept] = run(nms.non_max_suppression_graph, boxes[None], scores[None], 40, 0.4)
    [other] = run(nms.non_max_suppression_graph, boxes[order][None], scores[order][None], 40, 0.4)
    assert kept == [order[i] for i in other]
