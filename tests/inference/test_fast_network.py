"""The fast form of the inference network gives what the plain model gives."""

import keras
import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.inference import fast_network
from mrcnn.inference.fast_network import FastNetwork, limit_factor, padded_count, with_limits
from mrcnn.inference.folding import folded_weights
from mrcnn.network import compiled, models
from mrcnn.network.layers import BatchNorm, LayerBank
from tests.network.test_models import batch, set_weights
from tests.support.tiny import TinyConfig


class Resnet101Config(TinyConfig):
    BACKBONE = "resnet101"


def build(config, dtype="float32", shape=(64, 64)):
    bank = LayerBank(dtype)
    plain = models.inference_model(config, bank, (*shape, config.IMAGE_CHANNEL_COUNT))
    set_weights(plain)
    return plain, FastNetwork(config, bank)


def wide_batch(config, rng, shape, images=2):
    """Images [images, *shape, C] and meta data that says so."""
    molded, metas = batch(config, rng, images)
    molded = rng.normal(scale=40, size=(images, *shape, molded.shape[-1])).astype("float32")
    metas[:, 1:3] = metas[:, 4:6] = metas[:, 9:11] = shape
    return molded, metas


def assert_same(found, outputs, atol=2e-4):
    detections, classes, deltas, masks, rois = map(np.asarray, outputs[:5])
    np.testing.assert_allclose(found.rois, rois, atol=atol)
    np.testing.assert_allclose(found.classes, classes, atol=atol)
    np.testing.assert_allclose(found.deltas, deltas, atol=10 * atol)
    np.testing.assert_allclose(found.detections, detections, atol=atol)
    there = detections[..., 4] > 0
    assert there.any()
    for row, count in enumerate(there.sum(axis=1)):
        np.testing.assert_allclose(found.masks[row, :count], masks[row, :count], atol=atol)


@pytest.mark.backend
def test_fast_equals_plain_on_several_shapes(rng):
    config = TinyConfig()
    plain, fast = build(config)
    for shape in ((64, 64), (64, 128)):
        model = models.inference_model(config, fast.source, (*shape, 3))
        inputs = wide_batch(config, rng, shape)
        assert_same(fast(*inputs), model.predict_on_batch(list(inputs)))


@pytest.mark.parametrize(
    "shape, factor",
    [
        ((1024, 1024), 1),
        ((1024, 1088), 2),
        ((2048, 2048), 4),
        ((512, 1024), 1),
        ((64, 64), 1),
        ((64, 30016), 2),
    ],
)
def test_limits_grow_with_the_area(shape, factor):
    config = TinyConfig()
    assert limit_factor(config, shape) == 1
    config.LIMITS_PER_MEGAPIXEL = True
    assert limit_factor(config, shape) == factor
    limited = with_limits(config, factor)
    assert limited.POST_NMS_ROIS_INFERENCE == 40 * factor
    assert limited.PRE_NMS_LIMIT == 200 * factor
    assert limited.DETECTION_MAX_INSTANCES == 10 * factor
    assert config.POST_NMS_ROIS_INFERENCE == 40  # a copy was changed


@pytest.mark.backend
def test_limited_graphs_give_what_the_plain_model_with_these_limits_gives(rng, monkeypatch):
    monkeypatch.setattr(fast_network, "MEGAPIXEL", 64 * 64)
    config = TinyConfig()
    config.LIMITS_PER_MEGAPIXEL = True
    _, fast = build(config)
    for shape, factor in (((64, 64), 1), ((128, 192), 8), ((64, 64), 1)):
        inputs = wide_batch(config, rng, shape, images=1)
        model = models.inference_model(with_limits(config, factor), fast.source, (*shape, 3))
        found = fast(*inputs)
        assert found.rois.shape[1] == 40 * factor
        assert_same(found, model.predict_on_batch(list(inputs)))


@pytest.mark.backend
def test_a_forward_pass_without_masks_is_not_repeated(rng, monkeypatch):
    plain, fast = build(TinyConfig())
    images, metas = wide_batch(fast.config, rng, (64, 64), images=1)[:2]
    expected, passes = fast(images, metas), []
    finder = fast._finder
    monkeypatch.setattr(fast, "_finder", lambda factor: passes.append(1) or finder(factor))
    fast(images, metas, masks=False)
    for one, other in zip(fast(images, metas), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(passes) == 1
    fast(images, metas)  # what was kept is gone
    fast(images, metas, masks=False)
    fast(images + 1, metas)  # another image
    fast(images, metas, masks=False)
    set_weights(plain, 1)
    fast(images, metas)  # other weights
    assert len(passes) == 6


def test_fast_equals_plain_with_resnet101(rng):
    plain, fast = build(Resnet101Config())
    inputs = batch(fast.config, rng)
    assert_same(fast(*inputs), plain.predict_on_batch(list(inputs)))


def test_backbone_of_the_users_own(rng):
    def backbone(image, architecture=None, stage5=False, train_bn=True):
        stages, x = [], image
        for width in (8, 8, 8, 8, 8):
            x = keras.layers.Conv2D(width, 3, strides=2, padding="same")(x)
            x = keras.layers.ReLU()(BatchNorm()(x, training=train_bn))
            stages.append(x)
        return stages

    config = TinyConfig()
    config.BACKBONE = backbone
    config.COMPUTE_BACKBONE_SHAPE = lambda shape: np.array(
        [[-(-shape[0] // s), -(-shape[1] // s)] for s in (4, 8, 16, 32, 64)]
    )
    plain, fast = build(config)
    inputs = batch(config, rng)
    assert_same(fast(*inputs), plain.predict_on_batch(list(inputs)))


def test_bfloat16_is_near_float32(rng):
    _, exact = build(TinyConfig())
    _, rounded = build(TinyConfig(), "mixed_bfloat16")
    assert all(
        v.dtype == "bfloat16" for layer in rounded.bank.layers.values() for v in layer.variables
    )
    inputs = batch(exact.config, rng)
    a, b = exact(*inputs), rounded(*inputs)
    assert all(array.dtype == np.float32 for array in b)
    best_a, best_b = (np.sort(f.detections[..., 5], axis=1)[:, ::-1] for f in (a, b))
    np.testing.assert_allclose(best_a[:, 0], best_b[:, 0], atol=0.05)


@pytest.mark.backend
def test_new_weights_are_noticed(rng):
    plain, fast = build(TinyConfig())
    inputs = batch(fast.config, rng)
    before = fast(*inputs)
    set_weights(plain, seed=1)
    after = fast(*inputs)
    assert np.abs(before.classes - after.classes).max() > 1e-3
    assert_same(after, plain.predict_on_batch(list(inputs)))
    norm = plain.get_layer("bn2a_branch2a")
    norm.moving_mean.assign(norm.moving_mean + 0.5)
    assert_same(fast(*inputs), plain.predict_on_batch(list(inputs)))


@pytest.mark.backend
def test_weights_are_watched_alike_eagerly_and_compiled(rng, monkeypatch):
    monkeypatch.setattr(compiled, "EAGER_CALLS", 2)
    folds = []
    fold = fast_network.fold
    monkeypatch.setattr(fast_network, "fold", lambda *a: (folds.append(1), fold(*a)))
    config = TinyConfig()
    _, fast = build(config)
    inputs = wide_batch(config, rng, (64, 64), 1)
    for call in range(1, 6):
        found = fast(*inputs)
        kernel = fast.source.layers["conv1"].kernel
        if call in (2, 4):
            kernel.assign(np.asarray(keras.ops.convert_to_numpy(kernel)) * 1.5)
    # Of these five calls, those after the two changes saw other weights than the one before.
    assert len(folds) == 3
    again = FastNetwork(config, fast.source)(*inputs)
    np.testing.assert_allclose(found.classes, again.classes, atol=1e-6)


def test_weights_or_outputs_that_are_not_finite(rng):
    plain, fast = build(TinyConfig())
    inputs = batch(fast.config, rng)
    kernel = plain.get_layer("fpn_p2").kernel
    good = keras.ops.convert_to_numpy(kernel)
    bad = good.copy()
    bad.flat[3] = np.nan
    kernel.assign(bad)
    with pytest.raises(UserError, match="weights of fpn_p2 are not finite"):
        fast(*inputs)
    kernel.assign(good)
    # Nothing after this layer has a ReLU, which may hide what overflowed before it.
    kernel = plain.get_layer("mrcnn_class_logits").kernel
    good = keras.ops.convert_to_numpy(kernel)
    kernel.assign(np.full_like(good, 3e38))
    with pytest.raises(UserError, match="the network's outputs are not finite"):
        fast(*inputs)
    kernel.assign(good)
    fast(*inputs)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite(rng, value):
    _, fast = build(TinyConfig())
    images, metas = batch(fast.config, rng)
    images[1, 5, 7, 0] = value
    with pytest.raises(UserError, match="the image has values that are not finite"):
        fast(images, metas)
    with pytest.raises(UserError, match="the image has values that are not finite"):
        fast.features(images)


def test_no_detections(rng):
    config = TinyConfig()
    config.DETECTION_MIN_CONFIDENCE = 1.1
    _, fast = build(config)
    found = fast(*batch(config, rng))
    assert not found.detections.any()
    assert found.masks.shape == (2, 0, *config.MASK_SHAPE, config.NUM_CLASSES)


@pytest.mark.parametrize("strides", [1, 2])
def test_folded_convolution_equals_convolution_and_norm(rng, strides):
    convolution = keras.layers.Conv2D(5, 3, strides=strides, padding="same")
    norm = BatchNorm()
    image = rng.normal(size=(2, 8, 9, 4)).astype("float32")
    norm(convolution(image))
    for variable in [*convolution.variables, *norm.variables]:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    folded = keras.layers.Conv2D(5, 3, strides=strides, padding="same")
    folded.build(image.shape)
    folded.set_weights(folded_weights(convolution, norm))
    expected = keras.ops.convert_to_numpy(norm(convolution(image), training=False))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(folded(image)), expected, rtol=1e-4, atol=1e-4
    )


def test_padded_count():
    for steps in (1, 8):
        counts = [padded_count(n, steps) for n in range(1, 600)]
        assert all(c >= n for n, c in enumerate(counts, 1))
        assert counts == sorted(counts)
        assert all(padded_count(c, steps) == c for c in counts)
        octave = {c for c in counts if 256 < c <= 512}
        assert len(octave) == steps
    assert [padded_count(n) for n in (0, 1, 16, 17, 50, 300)] == [0, 1, 16, 18, 52, 320]
