import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.matterport import compat
from mrcnn.network import anchors, targets
from mrcnn.network.boxes import norm_boxes_graph
from tests.support import reference

pytestmark = pytest.mark.backend


def array(tensor):
    return ops.convert_to_numpy(tensor)


def ground_truth(config, images):
    """Pad lists of (class id, box in pixels) to [B, G] and [B, G, 4]."""
    ids = np.zeros((len(images), config.MAX_GT_INSTANCES), "int32")
    boxes = np.zeros((len(images), config.MAX_GT_INSTANCES, 4), "float32")
    for i, instances in enumerate(images):
        for j, (class_id, box) in enumerate(instances):
            ids[i, j], boxes[i, j] = class_id, box
    return ids, boxes


SCENE = [
    [(1, [4, 4, 20, 20]), (2, [30, 8, 38, 40]), (1, [40, 40, 44, 43])],
    [],
    [(2, [8, 8, 16, 16]), (-1, [32, 32, 64, 64])],
]


def test_positives_first(rng):
    kind = rng.choice([-1, 0, 1], (5, 50))
    kind[0], kind[1], kind[2] = 0, 1, -1
    kind[3, 2:] = 0
    priority = rng.uniform(size=(5, 50)).astype("float32")
    index, positive, used = map(
        array, targets.positives_first(kind == 1, kind == -1, 8, 20, priority)
    )
    for i in range(5):
        positives = min(8, (kind[i] == 1).sum())
        count = min(20, positives + (kind[i] == -1).sum())
        assert positive[i].tolist() == [t < positives for t in range(20)]
        assert used[i].tolist() == [t < count for t in range(20)]
        chosen = index[i, :count]
        assert len(set(chosen)) == count
        assert (kind[i, chosen] == np.where(positive[i, :count], 1, -1)).all()


def test_more_places_than_candidates(rng):
    positive = np.array([[True, False, False]])
    index, is_positive, used = map(
        array,
        targets.positives_first(
            positive, ~positive, 4, 8, rng.uniform(size=(1, 3)).astype("float32")
        ),
    )
    assert sorted(index[0, :3]) == [0, 1, 2] and used[0].sum() == 3 and is_positive[0].sum() == 1


def test_matched_anchors_against_oracle(tiny_config):
    ids, boxes = ground_truth(tiny_config, SCENE)
    all_anchors = anchors.image_anchors(tiny_config, (64, 64, 3))
    positive, negative, instance = map(array, targets.match_anchors(all_anchors, ids, boxes))
    for i, instances in enumerate(SCENE):
        real = [k for k, (class_id, _) in enumerate(instances) if class_id > 0]
        crowd = [box for class_id, box in instances if class_id < 0]
        overlaps = reference.iou_matrix(all_anchors, [instances[k][1] for k in real])
        if not real:
            assert not positive[i].any() and negative[i].all()
            continue
        best = overlaps.max(axis=1)
        is_best = np.abs(overlaps - overlaps.max(axis=0)) < targets.TIE
        expected = (best >= 0.7) | is_best.any(axis=1)
        np.testing.assert_array_equal(positive[i], expected)
        touches = reference.iou_matrix(all_anchors, crowd).max(axis=1) > 0.001 if crowd else False
        np.testing.assert_array_equal(negative[i], (best < 0.3) & ~expected & ~touches)
        np.testing.assert_array_equal(instance[i][expected], overlaps.argmax(axis=1)[expected])
        # Every instance has an anchor, however odd its size.
        assert set(instance[i][expected]) == set(range(len(real)))


def test_instances_in_several_groups(tiny_config, rng):
    # The same instances anywhere among many rows, holes between them: the same anchors.
    count = 3 * targets.INSTANCES_AT_ONCE + 1
    rows = np.sort(rng.choice(count, 20, replace=False))
    few_ids = rng.choice([1, 2, -1], (2, 20)).astype("int32")
    few_boxes = (64 * np.stack([reference.random_boxes(rng, 20) for _ in range(2)])).astype(
        "float32"
    )
    ids, boxes = np.zeros((2, count), "int32"), np.zeros((2, count, 4), "float32")
    ids[:, rows], boxes[:, rows] = few_ids, few_boxes
    all_anchors = anchors.image_anchors(tiny_config, (64, 64, 3))
    positive, negative, instance = map(array, targets.match_anchors(all_anchors, ids, boxes))
    for i in range(2):
        overlaps = reference.iou_matrix(all_anchors, boxes[i])
        touches = overlaps[:, ids[i] < 0].max(axis=1) > targets.CROWD_IOU
        overlaps[:, ids[i] <= 0] = 0
        best = overlaps.max(axis=1)
        highest = overlaps.max(axis=0)
        is_best = (np.abs(overlaps - highest) < targets.TIE) & (highest > 0)
        expected = (best >= 0.7) | is_best.any(axis=1)
        np.testing.assert_array_equal(positive[i], expected)
        np.testing.assert_array_equal(negative[i], (best < 0.3) & ~expected & ~touches)
        np.testing.assert_array_equal(instance[i][expected], overlaps.argmax(axis=1)[expected])


def test_sampled_anchors(tiny_config):
    ids, boxes = ground_truth(tiny_config, SCENE)
    all_anchors = anchors.image_anchors(tiny_config, (64, 64, 3))
    layer = targets.RpnTargetLayer(all_anchors, tiny_config)
    index, match, deltas = map(array, layer([ids, boxes]))
    positive, negative, _ = map(array, targets.match_anchors(all_anchors, ids, boxes))
    total = tiny_config.RPN_TRAIN_ANCHORS_PER_IMAGE
    assert index.shape == match.shape == (3, total) and deltas.shape == (3, total, 4)
    assert (match != 0).all() and (match == 1).sum(axis=1)[1] == 0
    assert ((match == 1).sum(axis=1) <= total // 2).all()
    for i in range(3):
        assert len(set(index[i])) == total
        assert positive[i, index[i][match[i] == 1]].all()
        assert negative[i, index[i][match[i] == -1]].all()
    for i, s in zip(*np.nonzero(match == 1), strict=True):
        anchor = all_anchors[index[i, s]]
        overlaps = [
            reference.iou(anchor, b) if c > 0 else 0 for c, b in zip(ids[i], boxes[i], strict=True)
        ]
        expected = reference.refinement(anchor, boxes[i, np.argmax(overlaps)])
        np.testing.assert_allclose(deltas[i, s] * tiny_config.RPN_BBOX_STD_DEV, expected, atol=1e-4)
    assert (deltas[match != 1] == 0).all()
    again = array(layer([ids, boxes])[0])
    assert (again != index).any()  # a new draw
    same = array(targets.RpnTargetLayer(all_anchors, tiny_config)([ids, boxes])[0])
    np.testing.assert_array_equal(same, index)  # the same seed


def proposals_around(rng, boxes, count):
    """Some proposals near the boxes, some anywhere, and padding rows."""
    out = []
    for image in boxes:
        real = [b for b in image if b.any()]
        near = [b + rng.normal(scale=0.02, size=4) for b in real for _ in range(4)]
        anywhere = reference.random_boxes(rng, count)
        rows = np.concatenate([np.reshape(near, (-1, 4)), anywhere])[: count - 3]
        out.append(np.concatenate([rows, np.zeros((3, 4))]))
    return np.asarray(out, "float32")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("mini, scale", [(False, 1.0), (True, 1.0), (True, 1.25)])
def test_regions_against_oracle(tiny_config, exact, mini, scale, rng):
    config = tiny_config
    config.MASK_ROI_SCALE = scale
    config.PIXEL_CONVENTION = "exact" if exact else "matterport"
    config.USE_MINI_MASK = mini
    ids, pixel_boxes = ground_truth(config, SCENE)
    boxes = array(norm_boxes_graph(pixel_boxes, (64, 64), exact=exact))
    boxes[ids == 0] = 0
    shape = config.MINI_MASK_SHAPE if mini else (64, 64)
    masks = (rng.uniform(size=(3, 6, *shape)) < 0.5).astype("uint8")
    proposals = proposals_around(rng, boxes * (ids > 0)[..., None], 40)
    layer = targets.RoiTargetLayer(config)
    rois, class_ids, deltas, mask = map(array, layer([proposals, ids, boxes, masks]))
    total, limit = config.TRAIN_ROIS_PER_IMAGE, int(16 * config.ROI_POSITIVE_RATIO)
    assert rois.shape == (3, total, 4) and mask.shape == (3, limit, 28, 28)
    for i in range(3):
        positives = int((class_ids[i] > 0).sum())
        assert positives <= limit and (class_ids[i, positives:] == 0).all()
        # Background fills the rest, where the crowd leaves enough of it.
        assert i == 2 or rois[i].any(axis=1).all()
        for t in np.flatnonzero(rois[i].any(axis=1)):
            assert (np.abs(proposals[i] - rois[i, t]).max(axis=1) < 1e-6).any()
            overlaps = [
                reference.iou(rois[i, t], b) if c > 0 else 0
                for c, b in zip(ids[i], boxes[i], strict=True)
            ]
            k = int(np.argmax(overlaps))
            if t >= positives:
                assert max(overlaps) < 0.5
                continue
            assert overlaps[k] >= 0.5 and class_ids[i, t] == ids[i, k]
            expected = reference.refinement(rois[i, t], boxes[i, k]) / config.BBOX_STD_DEV
            np.testing.assert_allclose(deltas[i, t], expected, atol=2e-3)
            roi = reference.scale_box(rois[i, t].astype("float64"), scale)
            if mini:
                size = np.tile(boxes[i, k, 2:] - boxes[i, k, :2], 2)
                roi = (roi - np.tile(boxes[i, k, :2], 2)) / size
            if exact:
                shares = reference.covered_shares(masks[i, k], roi, (28, 28))
                np.testing.assert_allclose(mask[i, t], shares, atol=1e-3)
            else:
                seen = reference.crop_and_resize(masks[i, k].astype(float), roi, (28, 28), False)
                clear = np.abs(seen - 0.5) > 1e-3  # float32 may be on the other side
                np.testing.assert_array_equal(mask[i, t][clear], np.round(seen)[clear])
    assert (class_ids[0] > 0).any() and (class_ids[1] == 0).all()


def test_coverage_adds_up(rng):
    """Bins that span the grid see every cell once; outside the grid there is nothing."""
    start, end = np.array([0, -0.2, 0.3, 2], "float32"), np.array([1, 1.1, 0.31, 3], "float32")
    weights = array(targets.coverage_weights(*map(ops.convert_to_tensor, (start, end)), 7, 20))
    filled = weights.sum(axis=1) * ((end - start) * 20 / 7)[:, None]  # of every cell
    np.testing.assert_allclose(filled[:2], 1, atol=1e-5)
    np.testing.assert_allclose(filled[2], np.eye(20)[6] * 0.2, atol=1e-5)
    assert not weights[3].any()


@pytest.mark.parametrize("exact", [False, True])
def test_ties_of_mask_targets(tiny_config, exact):
    """Half-covered cells: exact targets say one half, matterport's `tf.round` says 0."""
    tiny_config.PIXEL_CONVENTION = "exact" if exact else "matterport"
    tiny_config.USE_MINI_MASK, tiny_config.MASK_SHAPE = False, [2, 2]
    masks = np.zeros((1, 1, 3 - exact, 3 - exact), "uint8")
    masks[..., 0] = 1
    # Left of the middle column is the mask's edge: in the middle of the second column of samples.
    box = np.array([[[0, 0, 1, 0.25 if not exact else 2 / 3]]], "float32")
    instance = np.zeros((1, 1), "int32")
    mask = array(targets.mask_targets(box, instance, box, masks, tiny_config))[0, 0]
    np.testing.assert_allclose(mask, [[1, 0.5 if exact else 0]] * 2, atol=1e-6)


def test_true_boxes_can_be_regions(tiny_config, rng):
    tiny_config.TRAIN_GT_AS_ROIS = True
    ids, pixel_boxes = ground_truth(tiny_config, SCENE)
    boxes = array(norm_boxes_graph(pixel_boxes, (64, 64)))
    boxes[ids == 0] = 0
    masks = np.ones((3, 6, 28, 28), "uint8")
    nothing = np.zeros((3, 5, 4), "float32")
    rois, class_ids, deltas, mask = map(
        array, targets.RoiTargetLayer(tiny_config)([nothing, ids, boxes, masks])
    )
    assert (class_ids > 0).sum(axis=1).tolist() == [3, 0, 1]
    np.testing.assert_allclose(deltas, 0, atol=1e-4)
    assert (mask.mean(axis=(2, 3)) > 0.99).sum() == 4


def test_matterport_layout(tiny_config, rng):
    ids, pixel_boxes = ground_truth(tiny_config, SCENE)
    boxes = array(norm_boxes_graph(pixel_boxes, (64, 64)))
    masks = (rng.uniform(size=(3, 6, 28, 28)) < 0.5).astype("uint8")
    proposals = proposals_around(rng, boxes * (ids > 0)[..., None], 40)
    ours = targets.RoiTargetLayer(tiny_config)([proposals, ids, boxes, masks])
    theirs = compat.DetectionTargetLayer(tiny_config)(
        [proposals, ids, boxes, masks.transpose(0, 2, 3, 1)]
    )
    for a, b in zip(map(array, ours), map(array, theirs), strict=True):
        np.testing.assert_array_equal(a, b[:, : a.shape[1]])
        assert b.shape[1] == tiny_config.TRAIN_ROIS_PER_IMAGE
    one = compat.detection_targets_graph(
        proposals[0], ids[0], boxes[0], masks[0].transpose(1, 2, 0), tiny_config
    )
    assert [tuple(o.shape) for o in one] == [(16, 4), (16,), (16, 4), (16, 28, 28)]
    assert isinstance(compat.DetectionTargetLayer(tiny_config), keras.layers.Layer)


def test_background_of_an_overlap(rng):
    # Paper section 3.8.1: background regions overlap an object by .1 at least and less than .5.
    overlaps = np.array([[[0.0], [0.05], [0.1], [0.3], [0.49], [0.5], [0.9]]], "float32")
    crowd, real = np.zeros((1, 7), bool), np.ones((1, 7), bool)
    priority = rng.random((1, 7)).astype("float32")
    for low, high, expected in [
        (0.0, 0.5, {0, 1, 2, 3, 4}),
        (0.1, 0.5, {2, 3, 4}),
        (0.1, 0.3, {2}),
    ]:
        index, positive, used = map(
            ops.convert_to_numpy,
            targets.sample_rois(
                *map(ops.convert_to_tensor, (overlaps, crowd, real)),
                7,
                2,
                ops.convert_to_tensor(priority),
                (low, high),
            ),
        )
        chosen = index[0][used[0] & ~positive[0]]
        assert set(chosen) == expected and len(chosen) == len(expected)
        assert set(index[0][positive[0]]) == {5, 6}
