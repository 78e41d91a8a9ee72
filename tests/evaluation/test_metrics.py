"""Metrics against loops over pixels and pairs, and against cases worked out by hand."""

import numpy as np
import pytest

from mrcnn.evaluation import metrics
from mrcnn.evaluation.crowds import shares_in_crowds
from mrcnn.pixels.boxes import compute_overlaps


def random_labels(rng, size=24, count=6):
    """A label map of random rectangles, later ones over earlier ones."""
    labels = np.zeros((size, size), np.int32)
    for label in range(1, count + 1):
        y, x = rng.integers(0, size - 4, 2)
        h, w = rng.integers(2, 9, 2)
        labels[y : y + h, x : x + w] = label
    return labels


def stack(labels):
    """Label map -> bool [H, W, N], one mask a value that occurs."""
    values = [v for v in np.unique(labels) if v]
    return (
        np.stack([labels == v for v in values], -1)
        if values
        else np.zeros((*labels.shape, 0), bool)
    )


def naive_iou(truth, prediction):
    result = np.zeros((truth.shape[-1], prediction.shape[-1]))
    for g in range(truth.shape[-1]):
        for d in range(prediction.shape[-1]):
            union = (truth[..., g] | prediction[..., d]).sum()
            shared = (truth[..., g] & prediction[..., d]).sum()
            result[g, d] = shared / union if union else 0
    return result


def naive_kernel_score(iou):
    """The counting of the competition's public evaluation kernels."""
    scores = []
    for threshold in [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]:
        match = iou > threshold
        hits = (match.sum(1) == 1).sum()
        missed, false = (match.sum(1) == 0).sum(), (match.sum(0) == 0).sum()
        total = hits + missed + false
        scores.append(hits / total if total else 1.0)
    return np.mean(scores)


@pytest.mark.parametrize("seed", range(5))
def test_iou_of_label_maps_stacks_and_layers(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = random_labels(rng), random_labels(rng, count=4)
    expected = naive_iou(stack(truth), stack(prediction))
    np.testing.assert_allclose(metrics.iou_matrix(truth, prediction), expected)
    np.testing.assert_allclose(metrics.iou_matrix(stack(truth), prediction), expected)
    np.testing.assert_allclose(metrics.iou_matrix(stack(truth), stack(prediction)), expected)


def test_iou_of_overlapping_instances():
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((9, 8, 5)) < 0.4, rng.random((9, 8, 3)) < 0.5
    truth[..., 2] = False  # an empty mask stays an instance
    expected = naive_iou(truth, prediction)
    np.testing.assert_allclose(metrics.iou_matrix(truth, prediction), expected)
    layers = truth[..., [0, 1, 3, 4]] * np.array([1, 2, 3, 4])
    np.testing.assert_allclose(metrics.iou_matrix(layers, prediction), expected[[0, 1, 3, 4]])
    np.testing.assert_allclose(
        metrics.compute_overlaps_masks(truth, prediction), expected, rtol=1e-6
    )


def test_label_values_need_not_be_consecutive():
    labels = np.array([[0, 7, 7, 40]], np.int64)
    np.testing.assert_array_equal(metrics.iou_matrix(labels, labels), np.eye(2))


def test_instances_of_a_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="label map"):
        metrics.iou_matrix(np.zeros((4, 4)), np.zeros((4, 4), int))
    with pytest.raises(ValueError, match="differ"):
        metrics.iou_matrix(np.zeros((4, 4), int), np.zeros((4, 5), int))


@pytest.mark.parametrize("seed", range(8))
def test_competition_score_against_the_kernels(seed):
    rng = np.random.default_rng(seed)
    truth = random_labels(rng, 32, 8)
    prediction = np.where(rng.random(truth.shape) < 0.1, 0, truth)
    prediction[rng.integers(0, 32, 5)] = 0
    iou = metrics.iou_matrix(truth, prediction)
    assert metrics.competition_score(iou) == pytest.approx(naive_kernel_score(iou))


def test_scores_by_hand():
    """One pair of IoU 8 / 12, one missed, one false."""
    truth = np.zeros((10, 10), int)
    prediction = truth.copy()
    truth[0, :10], prediction[0, 2:10], prediction[1, 0:2] = 1, 1, 1
    truth[5, :4] = 2
    prediction[9, :4] = 9
    iou = metrics.iou_matrix(truth, prediction)
    np.testing.assert_allclose(iou, [[8 / 12, 0], [0, 0]])
    np.testing.assert_array_equal(
        metrics.count_matches(iou)[[0, 3, 4]], [[1, 1, 1], [1, 1, 1], [0, 2, 2]]
    )
    assert metrics.competition_score(iou) == pytest.approx(4 * (1 / 3) / 10)
    np.testing.assert_allclose(metrics.f1(iou), [0.5] * 4 + [0] * 6)
    assert metrics.panoptic_quality(iou) == pytest.approx((8 / 12) / (1 + 0.5 + 0.5))
    assert metrics.aggregated_jaccard_index(truth, prediction) == pytest.approx(8 / (12 + 4 + 4))


def test_an_iou_equal_to_the_threshold_does_not_count():
    truth, prediction = np.array([[1, 1]]), np.array([[1, 0]])
    assert metrics.threshold_scores(metrics.iou_matrix(truth, prediction))[0] == 0


def test_a_detection_counts_once_though_truths_overlap():
    truth = np.ones((4, 4, 2), bool)
    iou = metrics.iou_matrix(truth, np.ones((4, 4), int))
    np.testing.assert_array_equal(metrics.count_matches(iou, [0.5]), [[1, 0, 1]])


def test_aji_lets_two_truths_take_one_detection():
    truth = np.array([[1, 1, 2, 2]])
    prediction = np.array([[1, 1, 1, 1]])
    assert metrics.aggregated_jaccard_index(truth, prediction) == pytest.approx(4 / 8)


@pytest.mark.parametrize("seed", range(3))
def test_permutation_of_labels_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = random_labels(rng, 40, 9), random_labels(rng, 40, 9)
    prediction[:20] = truth[:20]
    relabel = np.concatenate([[0], 1 + rng.permutation(9)])
    one = metrics.iou_matrix(truth, prediction)
    other = metrics.iou_matrix(relabel[truth], relabel[prediction])
    np.testing.assert_allclose(metrics.threshold_scores(one), metrics.threshold_scores(other))
    assert metrics.panoptic_quality(one) == pytest.approx(metrics.panoptic_quality(other))
    assert metrics.aggregated_jaccard_index(truth, prediction) == pytest.approx(
        metrics.aggregated_jaccard_index(relabel[truth], relabel[prediction])
    )


def test_empty_images():
    nothing, one = np.zeros((5, 5), int), np.zeros((5, 5), int)
    one[1:3, 1:3] = 1
    no_masks = np.zeros((5, 5, 0), bool)
    for truth, prediction, value in [
        (nothing, nothing, 1.0),
        (one, nothing, 0.0),
        (nothing, one, 0.0),
        (one, one, 1.0),
        (no_masks, nothing, 1.0),
        (no_masks, one, 0.0),
    ]:
        iou = metrics.iou_matrix(truth, prediction)
        assert metrics.competition_score(iou) == value
        np.testing.assert_array_equal(metrics.f1(iou), value)
        assert metrics.panoptic_quality(iou) == value
        assert metrics.aggregated_jaccard_index(truth, prediction) == value


def naive_coco(ious, scores, threshold):
    """COCO's evaluation for one class and one area range, as nested loops."""
    found = []
    for iou, score in zip(ious, scores, strict=True):
        free = set(range(iou.shape[0]))
        for d in sorted(range(iou.shape[1]), key=lambda d: -score[d]):
            best = max(free, key=lambda g: iou[g, d], default=None)
            hit = best is not None and iou[best, d] >= threshold
            if hit:
                free.discard(best)
            found.append((score[d], hit))
    found.sort(key=lambda f: -f[0])
    truths, hits, curve = sum(i.shape[0] for i in ious), 0, []
    for n, (_, hit) in enumerate(found, 1):
        hits += hit
        curve.append((hits / truths, hits / n))
    points = [
        max((p for r, p in curve if r >= point), default=0.0) for point in np.linspace(0, 1, 101)
    ]
    return np.mean(points)


def scene(rng, size=40):
    """Instances that may overlap, crowds among them, and detections, many of them a bit off.

    Returns boxes (y1, x1, y2, x2) of the truth and whether each is a crowd, and of the
    detections, with scores, some of them alike.
    """
    corners = rng.integers(0, size - 12, (rng.integers(0, 7), 2))
    truth = np.concatenate([corners, corners + rng.integers(4, 12, corners.shape)], axis=1)
    crowd = rng.random(len(truth)) < 0.3
    near = truth[rng.integers(0, max(len(truth), 1), 9 if len(truth) else 0)]
    near = near + rng.integers(-1, 2, near.shape)
    far = rng.integers(0, size - 8, (3, 2))
    found = np.concatenate([near, np.concatenate([far, far + 8], axis=1)]).clip(0, size)
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    scores = rng.integers(0, 40, len(found)) / 40 + (np.arange(len(found)) < len(near))
    return truth, crowd, found, scores / 2


def filled(boxes, size=40):
    masks = np.zeros((size, size, len(boxes)), bool)
    for n, (y1, x1, y2, x2) in enumerate(boxes):
        masks[y1:y2, x1:x2, n] = True
        masks[y1, x1, n] &= (y2 - y1) * (x2 - x1) == 1  # not quite the box
    return masks


def pycocotools_ap(scenes, kind):
    """The AP at each threshold, as COCO's own program has it; kind: "bbox" or "segm"."""
    from pycocotools import mask as run_lengths
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = [], []
    for image_id, (boxes, crowd, found_boxes, scores) in enumerate(scenes, 1):
        for instances, target, values in (
            (boxes, truth, [{"iscrowd": int(c)} for c in crowd]),
            (found_boxes, found, [{"score": float(s)} for s in scores]),
        ):
            masks = run_lengths.encode(np.asfortranarray(filled(instances).astype(np.uint8)))
            for (y1, x1, y2, x2), mask, value in zip(
                instances.tolist(), masks, values, strict=True
            ):
                target.append({
                    "id": len(target) + 1, "image_id": image_id, "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": mask,
                    "area": float((y2 - y1) * (x2 - x1)), **value,
                })  # fmt: skip
    coco = COCO()
    images = [{"id": number, "height": 40, "width": 40} for number in range(1, len(scenes) + 1)]
    coco.dataset = {"images": images, "annotations": truth, "categories": [{"id": 1}]}
    coco.createIndex()
    results = COCO()
    results.dataset = {**coco.dataset, "annotations": found}
    results.createIndex()
    evaluation = COCOeval(coco, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, -1].mean(axis=1)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_coco_ap_is_that_of_pycocotools_for_boxes_and_masks_with_crowds(kind, seed):
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(seed)
    scenes = [scene(rng) for _ in range(30)]
    assert sum(crowd.sum() for _, crowd, _, _ in scenes) > 10
    ious, crowds = [], []
    for truth, crowd, found, _ in scenes:
        if kind == "bbox":
            ious.append(compute_overlaps(truth[~crowd], found))
            sizes = np.prod(found[:, 2:] - found[:, :2], axis=1)
            low = np.maximum(truth[crowd, None, :2], found[:, :2])
            high = np.minimum(truth[crowd, None, 2:], found[:, 2:])
            crowds.append(np.prod((high - low).clip(0), axis=-1) / sizes)
        else:
            masks, found_masks = filled(truth), filled(found)
            ious.append(metrics.iou_matrix(masks[..., ~crowd], found_masks))
            crowds.append(shares_in_crowds(masks[..., crowd], found_masks))
    ap = metrics.coco_ap(ious, [scores for *_, scores in scenes], crowds=crowds)
    np.testing.assert_allclose(ap, pycocotools_ap(scenes, kind), rtol=1e-9)
    assert 0.2 < ap.mean() < 0.8


@pytest.mark.parametrize("seed", range(6))
def test_coco_ap_against_loops(seed):
    rng = np.random.default_rng(seed)
    ious = [rng.random((g, d)) for g, d in ((4, 6), (0, 3), (5, 0), (3, 3))]
    scores = [rng.permutation(100)[: i.shape[1]] / 100 + n * 1e-4 for n, i in enumerate(ious)]
    expected = [naive_coco(ious, scores, t) for t in metrics.IOU_THRESHOLDS]
    np.testing.assert_allclose(metrics.coco_ap(ious, scores), expected)


def test_coco_ap_by_hand():
    perfect = [np.eye(3), np.eye(2)]
    np.testing.assert_array_equal(metrics.coco_ap(perfect, [np.ones(3), np.ones(2)]), 1.0)
    # best detection right, second wrong: recall .5 at precision 1 -> 51 of the 101 points
    iou = np.array([[1.0, 0.0], [0.0, 0.2]])
    ap = metrics.coco_ap([iou], [np.array([0.9, 0.8])])
    np.testing.assert_allclose(ap, 51 / 101)
    assert np.isnan(metrics.coco_ap([np.zeros((0, 2))], [np.ones(2)])).all()


def test_pixel_scores_by_hand():
    truth = np.array([[0, 0, 0, 1], [0, 0, 1, 1]])
    prediction = np.array([[0, 0, 1, 1], [0, 0, 0, 1]], bool)
    confusion = metrics.pixel_confusion(truth, prediction)
    np.testing.assert_array_equal(confusion, [[4, 1], [1, 2]])
    assert metrics.pixel_accuracy(confusion) == pytest.approx(6 / 8)
    assert metrics.mean_accuracy(confusion) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert metrics.mean_iu(confusion) == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert metrics.frequency_weighted_iu(confusion) == pytest.approx((5 * 4 / 6 + 3 * 2 / 4) / 8)


@pytest.mark.parametrize("seed", range(3))
def test_pixel_scores_against_loops(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 3, (2, 7, 9))
    n = np.array([[((truth == i) & (prediction == j)).sum() for j in range(3)] for i in range(3)])
    confusion = metrics.pixel_confusion(truth, prediction, classes=3)
    np.testing.assert_array_equal(confusion, n)
    iu = [
        ((truth == i) & (prediction == i)).sum() / ((truth == i) | (prediction == i)).sum()
        for i in range(3)
    ]
    assert metrics.pixel_accuracy(n) == pytest.approx((truth == prediction).mean())
    assert metrics.mean_iu(n) == pytest.approx(np.mean(iu))
    share = [(truth == i).mean() for i in range(3)]
    assert metrics.frequency_weighted_iu(n) == pytest.approx(np.dot(share, iu))
    recall = [(prediction[truth == i] == i).mean() for i in range(3)]
    assert metrics.mean_accuracy(n) == pytest.approx(np.mean(recall))


def test_pixel_scores_skip_classes_that_do_not_occur():
    confusion = metrics.pixel_confusion(np.zeros((3, 3), int), np.zeros((3, 3), int))
    for score in (
        metrics.pixel_accuracy,
        metrics.mean_accuracy,
        metrics.mean_iu,
        metrics.frequency_weighted_iu,
    ):
        assert score(confusion) == 1.0


# --- matterport's functions ---------------------------------------------------------------


def squares(corners, size=20, side=6):
    boxes = np.array([[y, x, y + side, x + side] for y, x in corners]).reshape(-1, 4)
    masks = np.zeros((size, size, len(corners)), bool)
    for n, (y, x) in enumerate(corners):
        masks[y : y + side, x : x + side, n] = True
    return boxes, masks


def test_trim_zeros():
    np.testing.assert_array_equal(metrics.trim_zeros(np.array([[0, 0], [0, 1], [0, 0]])), [[0, 1]])


def test_compute_matches_and_ap():
    gt_boxes, gt_masks = squares([(1, 1), (10, 10)])
    boxes, masks = squares([(10, 9), (1, 1), (1, 2)])
    ids, scores = np.array([1, 1, 1]), np.array([0.5, 0.9, 0.8])
    gt_match, pred_match, overlaps = metrics.compute_matches(
        gt_boxes, np.array([1, 1]), gt_masks, boxes, ids, scores, masks
    )
    np.testing.assert_array_equal(gt_match, [0, 2])
    np.testing.assert_array_equal(pred_match, [0, -1, 1])  # the first truth is not taken twice
    assert overlaps.shape == (3, 2) and overlaps[0, 0] == 1
    ap, precisions, recalls, _ = metrics.compute_ap(
        gt_boxes, np.array([1, 1]), gt_masks, boxes, ids, scores, masks
    )
    np.testing.assert_allclose(precisions, [1, 1, 2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(recalls, [0, 0.5, 0.5, 1, 1])
    assert ap == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_compute_matches_respects_classes_and_padding():
    gt_boxes, gt_masks = squares([(1, 1)])
    padded = np.concatenate([gt_boxes, np.zeros((3, 4), int)])
    masks = np.concatenate([gt_masks, np.zeros((20, 20, 3), bool)], -1)
    arguments = (gt_boxes, np.array([1]), gt_masks, np.array([0.9]))
    gt_match, pred_match, _ = metrics.compute_matches(
        padded, np.array([2, 0, 0, 0]), masks, *arguments[:2], arguments[3], arguments[2]
    )
    assert gt_match.tolist() == [-1] and pred_match.tolist() == [-1]


def test_crowds_are_neither_missed_nor_wrong_to_be_found():
    gt_boxes, gt_masks = squares([(1, 1), (10, 10)])
    boxes, masks = squares([(10, 11), (1, 1), (1, 12)])
    ids, scores = np.array([1, 1, 1]), np.array([0.9, 0.8, 0.7])
    found = (boxes, ids, scores, masks)
    ap, precisions, recalls, overlaps = metrics.compute_ap(
        gt_boxes, np.array([1, -1]), gt_masks, *found
    )
    assert ap == 1 and overlaps.shape == (3, 2)
    np.testing.assert_allclose(precisions, [1, 1, 0.5, 0])
    np.testing.assert_allclose(recalls, [0, 1, 1, 1])
    # A crowd of another class excuses nothing.
    ap = metrics.compute_ap(gt_boxes, np.array([1, -2]), gt_masks, *found)[0]
    assert ap == pytest.approx(0.5)


def test_ap_range_is_the_mean(capsys):
    gt_boxes, gt_masks = squares([(1, 1)])
    boxes, masks = squares([(1, 2)])  # IoU 30 / 42 = .714: right up to .70
    arguments = (gt_boxes, np.array([1]), gt_masks, boxes, np.array([1]), np.array([0.9]), masks)
    assert metrics.compute_ap_range(*arguments) == pytest.approx(0.5)
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert metrics.compute_ap_range(*arguments, iou_thresholds=[0.5], verbose=0) == 1.0
    assert capsys.readouterr().out == ""


def test_ap_without_objects():
    boxes, masks = squares([(1, 1)])
    none, no_masks = squares([])
    empty = np.zeros(0, int)
    one = np.array([1])
    assert metrics.compute_ap(none, empty, no_masks, boxes, one, one / 2, masks)[0] == 0
    assert metrics.compute_ap(boxes, one, masks, none, empty, empty / 1, no_masks)[0] == 0


def test_compute_recall():
    gt_boxes, _ = squares([(1, 1), (10, 10), (0, 12)])
    boxes, _ = squares([(1, 1), (1, 2), (10, 12)])
    recall, positive = metrics.compute_recall(boxes, gt_boxes, 0.7)
    assert recall == pytest.approx(1 / 3) and positive.tolist() == [0, 1]
    assert metrics.compute_recall(np.zeros((0, 4)), gt_boxes, 0.5)[0] == 0
    assert metrics.compute_recall(boxes, np.zeros((0, 4)), 0.5)[0] == 1
