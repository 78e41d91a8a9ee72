"""Box arithmetic against plain loops, round trips, and empty inputs."""

import numpy as np
import pytest

from mrcnn.pixels import boxes as nb

EMPTY = np.zeros((0, 4), np.float32)


def random_boxes(rng, count, size=100):
    corners = np.sort(rng.uniform(0, size, (count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)


def iou_by_counting(first, second):
    """IoU of two boxes of whole pixels by counting pixels."""
    planes = np.zeros((2, 12, 12), bool)
    for plane, (y1, x1, y2, x2) in zip(planes, (first, second), strict=True):
        plane[y1:y2, x1:x2] = True
    union = (planes[0] | planes[1]).sum()
    return (planes[0] & planes[1]).sum() / union if union else 0.0


def test_extract_bboxes_has_exclusive_ends():
    masks = np.zeros((6, 8, 3), np.uint8)
    masks[2:5, 3:8, 0] = 1
    masks[0, 0, 1] = 1
    boxes = nb.extract_bboxes(masks)
    assert boxes.dtype == np.int32
    assert boxes.tolist() == [[2, 3, 5, 8], [0, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(0, 0, 0), (5, 5, 0), (0, 5, 2)])
def test_extract_bboxes_of_nothing(shape):
    assert nb.extract_bboxes(np.zeros(shape, bool)).tolist() == [[0, 0, 0, 0]] * shape[2]


def test_overlaps_equal_counted_pixels():
    rng = np.random.default_rng(0)
    first, second = (
        np.sort(rng.integers(0, 13, (n, 2, 2)), axis=1).reshape(n, 4) for n in (20, 15)
    )
    expected = [[iou_by_counting(a, b) for b in second] for a in first]
    np.testing.assert_allclose(nb.compute_overlaps(first, second), expected, atol=1e-12)


def test_overlaps_of_nothing_and_of_boxes_without_area():
    assert nb.compute_overlaps(EMPTY, np.ones((3, 4))).shape == (0, 3)
    assert nb.compute_overlaps(np.ones((3, 4)), EMPTY).shape == (3, 0)
    assert nb.compute_overlaps(np.ones((2, 4)), np.ones((1, 4))).tolist() == [[0.0], [0.0]]


def test_compute_iou_takes_the_areas():
    boxes = np.array([[0, 0, 2, 2], [0, 1, 2, 3], [5, 5, 6, 6]])
    iou = nb.compute_iou(boxes[0], boxes, 4, nb.box_areas(boxes))
    np.testing.assert_allclose(iou, [1, 1 / 3, 0])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_non_max_suppression_keeps_what_its_definition_says(threshold):
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, 60), rng.random(60)
    kept = nb.non_max_suppression(boxes, scores, threshold)
    assert kept.dtype == np.int32
    assert (np.diff(scores[kept]) <= 0).all()
    overlaps = nb.compute_overlaps(boxes, boxes)
    expected = []
    for i in np.argsort(-scores):
        if all(overlaps[i, j] <= threshold for j in expected):
            expected.append(i)
    assert kept.tolist() == expected


def test_non_max_suppression_of_nothing():
    assert nb.non_max_suppression(EMPTY, np.zeros(0), 0.5).shape == (0,)


def test_deltas_by_hand():
    box = np.array([[10, 20, 30, 60]])
    moved = nb.apply_box_deltas(box, np.array([[0.5, -0.25, np.log(2), 0]]))
    np.testing.assert_allclose(moved, [[10, 10, 50, 50]], rtol=1e-6)


def test_refinement_and_deltas_are_inverse():
    rng = np.random.default_rng(2)
    boxes, targets = random_boxes(rng, 50), random_boxes(rng, 50)
    targets[:, 2:] += 1
    boxes[:, 2:] += 1
    moved = nb.apply_box_deltas(boxes, nb.box_refinement(boxes, targets))
    np.testing.assert_allclose(moved, targets, atol=1e-3)
    assert moved.dtype == np.float32


def test_refinement_of_nothing():
    assert nb.box_refinement(EMPTY, EMPTY).shape == (0, 4)
    assert nb.apply_box_deltas(EMPTY, EMPTY).shape == (0, 4)


def test_normalised_boxes_by_hand():
    whole = np.array([[0, 0, 100, 200], [10, 20, 11, 21]])
    matterport = nb.norm_boxes(whole, (100, 200, 3))
    np.testing.assert_allclose(
        matterport, [[0, 0, 1, 1], [10 / 99, 20 / 199, 10 / 99, 20 / 199]], rtol=1e-6
    )
    exact = nb.norm_boxes(whole, (100, 200), exact=True)
    np.testing.assert_allclose(exact, [[0, 0, 1, 1], [0.1, 0.1, 0.11, 0.105]], rtol=1e-6)
    assert matterport.dtype == exact.dtype == np.float32


@pytest.mark.parametrize("exact", [False, True])
def test_normalising_round_trip(exact):
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 40, size=500)
    whole = np.rint(boxes).astype(np.int32)
    back = nb.denorm_boxes(nb.norm_boxes(whole, (512, 640), exact=exact), (512, 640), exact=exact)
    np.testing.assert_allclose(back, whole, atol=1e-3)
    assert back.dtype == (np.float32 if exact else np.int32)
    if exact:
        normalised = nb.norm_boxes(boxes, (512, 640), exact=True)
        np.testing.assert_allclose(
            nb.denorm_boxes(normalised, (512, 640), exact=True), boxes, atol=1e-3
        )


@pytest.mark.parametrize("exact", [False, True])
def test_normalising_one_box_and_none(exact):
    assert nb.norm_boxes((0, 0, 10, 10), (10, 10), exact=exact).tolist() == [0, 0, 1, 1]
    assert nb.norm_boxes(EMPTY, (10, 10), exact=exact).shape == (0, 4)
    assert nb.denorm_boxes(EMPTY, (10, 10), exact=exact).shape == (0, 4)
