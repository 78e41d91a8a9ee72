import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.network import roi_align
from mrcnn.pixels.image_meta import compose_image_meta
from tests.support import reference

pytestmark = pytest.mark.backend


def pyramid(rng, side=128, channels=3, batch=2):
    return [
        rng.normal(size=(batch, side // s, side // s, channels)).astype("float32")
        for s in (4, 8, 16, 32)
    ]


def metas(side=128, batch=2):
    shape = (side, side, 3)
    row = compose_image_meta(0, shape, shape, (0, 0, side, side), 1.0, np.ones(2, "int32"))
    return np.tile(np.asarray(row, "float32"), (batch, 1))


def test_levels_follow_the_size():
    # 224 pixels belong to P4 (index 2); every octave is a level.
    sides = np.array([28.0, 112.0, 224.0, 448.0, 2000.0, 0.0], "float32") / 1000
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)[None]
    levels = roi_align.roi_levels(boxes, np.array([[1e6]], "float32"), 4)
    assert ops.convert_to_numpy(levels).tolist() == [[0, 1, 2, 3, 3, 0]]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("pool", [(7, 7), (4, 5), (1, 1)])
def test_against_oracle_on_all_levels(exact, pool, rng):
    features = pyramid(rng, side=512)
    boxes = np.stack([reference.random_boxes(rng, 12, smallest=0.02) for _ in range(2)])
    boxes[0, 0] = [0, 0, 1, 1]
    boxes[0, 1] = [0.9, 0.95, 1.1, 1.2]  # reaches out of the image
    boxes[1, 0] = 0
    layer = roi_align.PyramidROIAlign(pool, exact=exact)
    got = ops.convert_to_numpy(layer([boxes, metas(512), *features]))
    levels = ops.convert_to_numpy(
        roi_align.roi_levels(boxes, np.full((2, 1), 512.0**2, "float32"), 4)
    )
    assert len(set(levels.ravel())) >= 3
    for image in range(2):
        for region in range(12):
            source = features[levels[image, region]][image].astype("float64")
            expected = reference.crop_and_resize(source, boxes[image, region], pool, exact)
            np.testing.assert_allclose(got[image, region], expected, atol=2e-4)


def test_exact_sampling_has_no_offset():
    # A ramp reads as itself: the mean over a box is the value at its centre.
    side, stride = 128, 4
    centres = (np.arange(side // stride) + 0.5) * stride
    ramp = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)[None].astype("float32")
    features = [ramp, *(np.zeros((1, n, n, 2), "float32") for n in (16, 8, 4))]
    boxes = np.array([[[10.3, 20.7, 50.9, 61.2], [33.3, 8.1, 41.8, 17.0]]], "float32")
    layer = roi_align.PyramidROIAlign((7, 7), exact=True)
    pooled = ops.convert_to_numpy(layer([boxes / side, metas(side, 1), *features]))[0]
    middle = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    np.testing.assert_allclose(pooled.mean(axis=(1, 2)), middle, atol=1e-3)


def test_batch_equals_singles_and_order_is_kept(rng):
    features = pyramid(rng)
    boxes = np.stack([reference.random_boxes(rng, 9) for _ in range(2)])
    layer = roi_align.PyramidROIAlign((3, 3))
    both = ops.convert_to_numpy(layer([boxes, metas(), *features]))
    for i in range(2):
        one = layer([boxes[i : i + 1], metas(batch=1), *(f[i : i + 1] for f in features)])
        np.testing.assert_allclose(ops.convert_to_numpy(one)[0], both[i], atol=1e-6)
    order = rng.permutation(9)
    shuffled = ops.convert_to_numpy(layer([boxes[:, order], metas(), *features]))
    np.testing.assert_allclose(shuffled, both[:, order], atol=1e-6)


def test_gradient_reaches_the_features_only_where_they_were_read():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("uses TensorFlow's tape; the training-step test covers the other backends")
    import tensorflow as tf

    features = [tf.Variable(tf.ones((1, n, n, 1))) for n in (32, 16, 8, 4)]
    boxes = np.array([[[0.0, 0.0, 0.25, 0.25]]], "float32")
    layer = roi_align.PyramidROIAlign((4, 4), exact=True)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer([boxes, metas(128, 1), *features], training=True))
    first, *others = tape.gradient(total, features)
    assert np.allclose(np.sum(first), 16)  # the weights of every sample sum to one
    assert np.all(first[0, 9:, :, 0] == 0)
    assert all(np.all(g == 0) for g in others)
