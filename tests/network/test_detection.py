import numpy as np
import pytest
from keras import ops

from mrcnn.matterport import compat
from mrcnn.network import detection
from mrcnn.pixels.image_meta import compose_image_meta
from tests.support import reference

pytestmark = pytest.mark.backend


def naive(rois, probs, deltas, window, config):
    """Matterport's steps with loops: refine, clip, filter, suppress per class, keep the best."""
    rows = []
    for roi, p, d in zip(rois, probs, deltas, strict=True):
        k = 1 + int(p[1:].argmax()) if config.exact_pixels else int(p.argmax())
        box = reference.apply_deltas(roi, d[k] * config.BBOX_STD_DEV)
        box = np.clip(box, np.tile(window[:2], 2), np.tile(window[2:], 2))
        area = (box[2] - box[0]) * (box[3] - box[1])
        if k > 0 and p[k] >= config.DETECTION_MIN_CONFIDENCE and area > 0:
            rows.append([*box, k, p[k]])
    rows = np.array(rows).reshape(-1, 6)
    kept = []
    for k in set(rows[:, 4]):
        mine = rows[rows[:, 4] == k]
        kept += [
            mine[i]
            for i in reference.greedy_nms(
                mine[:, :4], mine[:, 5], config.DETECTION_NMS_THRESHOLD, len(mine)
            )
        ]
    kept = sorted(kept, key=lambda row: -row[5])[: config.DETECTION_MAX_INSTANCES]
    out = np.zeros((config.DETECTION_MAX_INSTANCES, 6))
    out[: len(kept)] = np.reshape(kept, (-1, 6))
    return out


@pytest.fixture
def heads(rng):
    rois = np.stack([reference.random_boxes(rng, 60) for _ in range(2)])
    rois[1, 50:] = 0  # padding
    probs = reference.softmax(rng.normal(size=(2, 60, 3)) * 2).astype("float32")
    deltas = rng.normal(scale=0.5, size=(2, 60, 3, 4)).astype("float32")
    return rois, probs, deltas


@pytest.mark.parametrize("convention", ["matterport", "exact"])
@pytest.mark.parametrize("confidence", [0, 0.2, 0.6])
@pytest.mark.parametrize("limit", [10, 100])
def test_against_oracle(tiny_config, heads, confidence, limit, convention):
    tiny_config.PIXEL_CONVENTION = convention
    tiny_config.DETECTION_MIN_CONFIDENCE = confidence
    tiny_config.DETECTION_MAX_INSTANCES = limit
    window = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.9, 0.8]], "float32")
    got = ops.convert_to_numpy(
        detection.refine_detections_graph(*map(ops.convert_to_tensor, heads), window, tiny_config)
    )
    for i in range(2):
        expected = naive(heads[0][i], heads[1][i], heads[2][i], window[i], tiny_config)
        np.testing.assert_allclose(got[i], expected, atol=1e-4)
    assert (got[0, :, 4] > 0).any()


def test_a_threshold_below_one_half_finds_more_in_the_exact_convention(tiny_config):
    rois = np.array([[[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.8, 0.8], [0.1, 0.6, 0.3, 0.9]]], "float32")
    foreground = np.array([0.9, 0.4, 0.2], "float32")
    probs = np.stack([1 - foreground, foreground], axis=-1)[None]
    deltas, window = np.zeros((1, 3, 2, 4), "float32"), np.array([[0, 0, 1, 1]], "float32")

    def count(convention, confidence):
        tiny_config.PIXEL_CONVENTION = convention
        tiny_config.DETECTION_MIN_CONFIDENCE = confidence
        found = detection.refine_detections_graph(rois, probs, deltas, window, tiny_config)
        return int((ops.convert_to_numpy(found)[..., 4] > 0).sum())

    assert [count("exact", c) for c in (0.5, 0.3, 0.1, None)] == [1, 2, 3, 3]
    assert [count("matterport", c) for c in (0.5, 0.3, 0.1, None)] == [1, 1, 1, 1]


def test_nothing_but_background(tiny_config, heads):
    rois, probs, deltas = heads
    probs = np.tile(np.array([0.9, 0.05, 0.05], "float32"), (2, 60, 1))
    window = np.tile(np.array([0, 0, 1, 1], "float32"), (2, 1))
    got = detection.refine_detections_graph(rois, probs, deltas, window, tiny_config)
    assert not ops.convert_to_numpy(got).any()


def test_layer_takes_the_window_from_the_meta_data(tiny_config, heads):
    shape, window = (64, 64, 3), (8, 0, 56, 64)
    meta = compose_image_meta(0, (96, 128, 3), shape, window, 0.5, np.ones(3, "int32"))
    metas = np.tile(np.asarray(meta, "float32"), (2, 1))
    got = ops.convert_to_numpy(detection.DetectionLayer(tiny_config)([*heads, metas]))
    real = got[got[..., 4] > 0]
    assert real[:, 0].min() >= 8 / 63 - 1e-6 and real[:, 2].max() <= 55 / 63 + 1e-6


def test_one_image_without_batch_axis(tiny_config, heads):
    window = np.array([0, 0, 1, 1], "float32")
    one = compat.refine_detections_graph(*(a[0] for a in heads), window, tiny_config)
    both = detection.refine_detections_graph(*heads, np.stack([window] * 2), tiny_config)
    np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(both)[0], atol=1e-6)
