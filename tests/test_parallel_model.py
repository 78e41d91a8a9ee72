"""ParallelModel gives what the inner model gives, on a machine with any number of GPUs."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from mrcnn.errors import UserError
from mrcnn.parallel_model import ParallelModel

pytestmark = pytest.mark.backend


def two_input_model():
    """Inputs of two types, outputs with and without a batch axis."""
    image = keras.Input((6, 6, 3), name="input_image")
    ids = keras.Input((4,), dtype="int32", name="input_ids")
    x = layers.Conv2D(5, 3, name="conv1")(image)
    x = layers.GlobalAveragePooling2D()(x)
    embedded = layers.Flatten()(layers.Embedding(7, 2, name="embed")(ids))
    scores = layers.Dense(3, name="scores")(layers.Concatenate()([x, embedded]))
    loss = layers.Lambda(lambda s: ops.mean(ops.square(s)), output_shape=(), name="loss_value")(
        scores
    )
    return keras.Model([image, ids], [scores, loss, ids], name="inner")


def batch(size, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(size, 6, 6, 3)).astype("float32"),
        rng.integers(0, 7, size=(size, 4)).astype("int32"),
    ]


def call(model, inputs):
    return [ops.convert_to_numpy(x) for x in model([ops.convert_to_tensor(x) for x in inputs])]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_the_inner_model(count):
    inner = two_input_model()
    parallel = ParallelModel(inner, count)
    inputs = batch(6)
    for ours, expected in zip(call(parallel, inputs), call(inner, inputs), strict=True):
        assert ours.shape == expected.shape and ours.dtype == expected.dtype
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_that_does_not_divide_is_still_whole():
    inner = two_input_model()
    scores, _, ids = call(ParallelModel(inner, 2), batch(5))
    expected, _, expected_ids = call(inner, batch(5))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ids, expected_ids)


def test_is_a_model_of_the_same_inputs_outputs_and_weights():
    inner = two_input_model()
    parallel = ParallelModel(inner, 2)
    assert isinstance(parallel, keras.Model)
    assert [x.shape for x in parallel.inputs] == [x.shape for x in inner.inputs]
    assert [x.name for x in parallel.inputs] == ["input_image", "input_ids"]
    assert [x.shape for x in parallel.outputs] == [x.shape for x in inner.outputs]
    assert parallel.output_names[0] == "scores"
    assert len(parallel.weights) == len(inner.weights)
    assert all(a is b for a, b in zip(parallel.weights, inner.weights, strict=True))


def test_lookups_reach_the_inner_model(capsys):
    inner = two_input_model()
    inner.some_note = "from the inner model"
    parallel = ParallelModel(inner, 2)
    assert parallel.inner_model is inner and parallel.gpu_count == 2
    assert parallel.get_layer("conv1") is inner.get_layer("conv1")
    assert parallel.some_note == "from the inner model"
    parallel.summary(print_fn=lambda text, **_: print(text))
    assert "conv1" in capsys.readouterr().out
    with pytest.raises(AttributeError, match="no_such_thing"):
        parallel.no_such_thing  # noqa: B018
    assert not hasattr(parallel, "_no_such_private_thing")


def test_weights_are_saved_and_loaded_through_the_inner_model(tmp_path):
    parallel, other = ParallelModel(two_input_model(), 2), two_input_model()
    parallel.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    for ours, theirs in zip(parallel.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other.set_weights([w + 1 for w in other.get_weights()])
    other.save_weights(tmp_path / "b.weights.h5")
    parallel.load_weights(tmp_path / "b.weights.h5")
    np.testing.assert_array_equal(parallel.get_weights()[0], other.get_weights()[0])


def test_dictionary_inputs_and_outputs():
    a = keras.Input((2,), name="a")
    b = keras.Input((2,), name="b")
    total = layers.Add(name="total")([a, b])
    inner = keras.Model({"a": a, "b": b}, {"sum": total, "mean": layers.Average()([a, b])})
    parallel = ParallelModel(inner, 2)
    x = np.arange(8, dtype="float32").reshape(4, 2)
    result = parallel({"a": ops.convert_to_tensor(x), "b": ops.convert_to_tensor(x + 1)})
    np.testing.assert_allclose(ops.convert_to_numpy(result["sum"]), 2 * x + 1)
    np.testing.assert_allclose(ops.convert_to_numpy(result["mean"]), x + 0.5)


def test_trains_as_the_inner_model_does():
    def build():
        keras.utils.set_random_seed(1)
        image = keras.Input((6,), name="x")
        return keras.Model(image, layers.Dense(1, name="out")(image))

    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    y = x[:, :1] * 2
    trained = []
    for model in (build(), ParallelModel(build(), 2)):
        model.compile(keras.optimizers.SGD(0.1), loss={"out": "mse"})
        model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    for single, parallel in zip(*trained, strict=True):
        np.testing.assert_allclose(parallel, single, rtol=1e-4, atol=1e-6)


def test_predicts_more_images_than_one_batch():
    whole = two_input_model()
    inner = keras.Model(whole.inputs, whole.get_layer("scores").output)  # no scalar among them
    ours = ParallelModel(inner, 2).predict(batch(6), batch_size=4, verbose=0)
    np.testing.assert_allclose(ours, call(whole, batch(6))[0], rtol=1e-5, atol=1e-6)


def test_wrong_count():
    with pytest.raises(UserError, match="GPU_COUNT = 0 is not allowed"):
        ParallelModel(two_input_model(), 0)
