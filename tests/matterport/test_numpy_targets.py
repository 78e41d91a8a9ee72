"""NumPy targets against naive loops: anchors, regions, and what the heads should learn."""

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.errors import UserError
from mrcnn.matterport.numpy_targets import (
    build_detection_targets,
    build_rpn_targets,
    generate_random_rois,
)
from mrcnn.pixels import masks
from mrcnn.pixels.boxes import apply_box_deltas, compute_overlaps


class TargetsConfig(Config):
    NUM_CLASSES = 4
    IMAGE_MIN_DIM = 128
    IMAGE_MAX_DIM = 128
    RPN_TRAIN_ANCHORS_PER_IMAGE = 64
    TRAIN_ROIS_PER_IMAGE = 40
    ROI_POSITIVE_RATIO = 0.25
    MASK_SHAPE = [28, 28]
    USE_MINI_MASK = False


SHAPE = (128, 128, 3)
BOXES = np.array([[10, 10, 50, 40], [60, 70, 100, 120], [5, 90, 35, 125]], np.int32)
CLASS_IDS = np.array([1, 3, 2], np.int32)


def grid_anchors():
    """Squares of three sizes on a grid, some reaching over the image's edges."""
    centres = np.stack(np.meshgrid(np.arange(0, 128, 8), np.arange(0, 128, 8)), -1).reshape(-1, 2)
    return np.concatenate(
        [np.concatenate([centres - s / 2, centres + s / 2], axis=1) for s in (16, 32, 48)]
    ).astype(np.float32)


def iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return height * width / (sum(areas) - height * width)


def match_oracle(anchors, boxes):
    """The rules of the RPN, one anchor at a time and before any thinning out."""
    table = [[iou(anchor, box) for box in boxes] for anchor in anchors]
    match = [-1 if max(row) < 0.3 else 0 for row in table]
    for j in range(len(boxes)):
        best = max(row[j] for row in table)
        match = [
            1 if abs(row[j] - best) < 1e-6 and best > 0 else m
            for row, m in zip(table, match, strict=True)
        ]
    return [1 if max(row) >= 0.7 else m for row, m in zip(table, match, strict=True)]


def test_anchors_match_as_in_the_naive_loop():
    class Everything(TargetsConfig):
        RPN_TRAIN_ANCHORS_PER_IMAGE = 4000  # no thinning out

    anchors = grid_anchors()
    match, deltas = build_rpn_targets(SHAPE, anchors, CLASS_IDS, BOXES, Everything())
    assert match.dtype == np.int32 and match.shape == (len(anchors),)
    assert match.tolist() == match_oracle(anchors, BOXES)
    assert deltas.shape == (4000, 4)


def test_anchor_deltas_lead_back_to_the_nearest_box(rng):
    config, anchors = TargetsConfig(), grid_anchors()
    match, deltas = build_rpn_targets(SHAPE, anchors, CLASS_IDS, BOXES, config, rng=rng)
    positive = anchors[match == 1]
    assert len(positive) >= 3
    moved = apply_box_deltas(positive, deltas[: len(positive)] * config.RPN_BBOX_STD_DEV)
    nearest = BOXES[compute_overlaps(positive, BOXES).argmax(axis=1)]
    np.testing.assert_allclose(moved, nearest, atol=1e-3)
    assert not deltas[len(positive) :].any()


def test_anchors_are_thinned_out_to_the_budget(rng):
    class Few(TargetsConfig):
        RPN_TRAIN_ANCHORS_PER_IMAGE = 4

    match, deltas = build_rpn_targets(SHAPE, grid_anchors(), CLASS_IDS, BOXES, Few(), rng=rng)
    assert (match == 1).sum() == 2 and (match == -1).sum() == 2
    assert deltas.shape == (4, 4)


def test_crowds_give_neither_objects_nor_background(rng):
    class Everything(TargetsConfig):
        RPN_TRAIN_ANCHORS_PER_IMAGE = 4000

    anchors = grid_anchors()
    class_ids = np.array([1, -1, 2])
    match, _ = build_rpn_targets(SHAPE, anchors, class_ids, BOXES, Everything(), rng=rng)
    expected = np.array(match_oracle(anchors, BOXES[[0, 2]]))
    touches = np.array([iou(anchor, BOXES[1]) >= 0.001 for anchor in anchors])
    expected[touches & (expected == -1)] = 0
    assert touches.any() and match.tolist() == expected.tolist()


@pytest.mark.parametrize("class_ids", [[], [-1]])
def test_without_objects_anchors_are_background(class_ids, rng):
    config = TargetsConfig()
    boxes = BOXES[: len(class_ids)]
    match, deltas = build_rpn_targets(
        SHAPE, grid_anchors(), np.array(class_ids, np.int32), boxes, config, rng=rng
    )
    assert (match == -1).sum() == config.RPN_TRAIN_ANCHORS_PER_IMAGE
    assert not (match == 1).any() and not deltas.any()


def test_an_object_that_no_anchor_touches_changes_nothing(rng):
    far = np.array([[1000, 1000, 1010, 1010]])
    match, _ = build_rpn_targets(
        SHAPE, grid_anchors(), np.array([1]), far, TargetsConfig(), rng=rng
    )
    assert not (match == 1).any()


def box_masks():
    stack = np.zeros((128, 128, 3), bool)
    for i, (y1, x1, y2, x2) in enumerate(BOXES):
        stack[y1:y2, x1 : (x1 + x2) // 2, i] = True  # the left half of its box
        stack[y1, x1:x2, i] = stack[y2 - 1, x1:x2, i] = True
    return stack


def some_rois(rng):
    """The boxes themselves, shifted copies of them, and boxes elsewhere."""
    near = BOXES[rng.integers(0, 3, 40)] + rng.integers(-6, 7, (40, 4))
    far = generate_random_rois(SHAPE, 60, np.zeros(0), np.zeros((0, 4)), rng=rng)
    return np.clip(np.concatenate([BOXES, near, far]), 0, 128).astype(np.int32)


def test_regions_classes_and_deltas(rng):
    config, rois = TargetsConfig(), some_rois(rng)
    kept, class_ids, deltas, targets = build_detection_targets(
        rois, CLASS_IDS, BOXES, box_masks(), config, rng=rng
    )
    assert kept.shape == (40, 4) and class_ids.shape == (40,) and class_ids.dtype == np.int32
    assert deltas.shape == (40, 4, 4) and targets.shape == (40, 28, 28, 4)
    assert 0 < (class_ids > 0).sum() <= 10
    for roi, class_id, delta, target in zip(kept, class_ids, deltas, targets, strict=True):
        overlaps = [iou(roi, box) for box in BOXES]
        best = int(np.argmax(overlaps))
        assert class_id == (CLASS_IDS[best] if overlaps[best] >= 0.5 else 0)
        others = np.arange(4) != class_id
        assert not delta[others].any() and not target[..., others].any()
        if class_id:
            moved = apply_box_deltas(roi[None], delta[class_id][None] * config.BBOX_STD_DEV)
            np.testing.assert_allclose(moved[0], BOXES[best], atol=1e-3)
            assert set(np.unique(target[..., class_id])) == {0, 1}
        else:
            assert not delta.any() and not target.any()


@pytest.mark.parametrize("mini", [False, True])
def test_mask_of_a_region_on_its_object(mini, rng):
    class Masks(TargetsConfig):
        USE_MINI_MASK = mini
        MINI_MASK_SHAPE = (56, 56)
        ROI_POSITIVE_RATIO = 1.0

    config, stack = Masks(), box_masks()
    gt_masks = masks.minimize_mask(BOXES, stack, (56, 56)) if mini else stack
    _, class_ids, _, targets = build_detection_targets(
        BOXES, CLASS_IDS, BOXES, gt_masks, config, rng=rng
    )
    assert (class_ids > 0).all()  # all regions are on objects, and repeat
    for class_id, target in zip(class_ids, targets, strict=True):
        # The left half of the box; its first and last row, thinner than a cell, may be lost.
        assert target[2:-2, :13, class_id].all() and not target[2:-2, 15:, class_id].any()


@pytest.mark.parametrize("class_ids", [np.zeros(0, np.int32), np.array([-1], np.int32)])
def test_regions_of_an_image_without_objects_are_background(class_ids, rng):
    count = len(class_ids)
    kept, ids, deltas, targets = build_detection_targets(
        some_rois(rng), class_ids, BOXES[:count], box_masks()[..., :count], TargetsConfig(), rng=rng
    )
    assert kept.shape == (40, 4) and not ids.any() and not deltas.any() and not targets.any()


def test_few_regions_are_repeated(rng):
    rois = np.array([[0, 0, 20, 20], [100, 0, 128, 30]], np.int32)
    kept, ids, _, _ = build_detection_targets(
        rois, CLASS_IDS, BOXES, box_masks(), TargetsConfig(), rng=rng
    )
    assert kept.shape == (40, 4) and not ids.any()
    assert {tuple(roi) for roi in kept.tolist()} == {tuple(roi) for roi in rois.tolist()}


def test_without_regions_there_is_nothing_to_sample(rng):
    with pytest.raises(UserError, match="rpn_rois is empty"):
        build_detection_targets(
            np.zeros((0, 4)), CLASS_IDS, BOXES, box_masks(), TargetsConfig(), rng=rng
        )


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
@pytest.mark.parametrize("objects", [0, 1, 3])
def test_random_regions_are_valid(count, objects, rng):
    rois = generate_random_rois(SHAPE, count, CLASS_IDS[:objects], BOXES[:objects], rng=rng)
    assert rois.shape == (count, 4) and rois.dtype == np.int32
    assert (rois[:, 2:] > rois[:, :2]).all() and rois.min() >= 0 and rois.max() < 128


def test_nine_tenths_of_the_random_regions_lie_near_objects(rng):
    rois = generate_random_rois((500, 500, 3), 100, CLASS_IDS[:1], BOXES[:1], rng=rng)
    y1, x1, y2, x2 = 0, 0, 90, 70  # three times the box, within the image
    near = (rois[:, 0] >= y1) & (rois[:, 1] >= x1) & (rois[:, 2] <= y2) & (rois[:, 3] <= x2)
    assert near[:90].all() and not near[90:].all()


def test_objects_at_the_border_get_regions_too(rng):
    boxes = np.array([[0, 0, 1, 1], [127, 127, 128, 128], [0, 0, 128, 128]])
    rois = generate_random_rois(SHAPE, 60, np.ones(3), boxes, rng=rng)
    assert (rois[:, 2:] > rois[:, :2]).all() and rois.min() >= 0 and rois.max() <= 128


def test_more_objects_than_regions(rng):
    rois = generate_random_rois(SHAPE, 20, np.ones(30), np.repeat(BOXES, 10, axis=0), rng=rng)
    assert rois.shape == (20, 4) and (rois[:, 2:] > rois[:, :2]).all()


def test_the_global_seed_counts_where_no_generator_is_given():
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        results.append(generate_random_rois(SHAPE, 50, CLASS_IDS, BOXES))
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
