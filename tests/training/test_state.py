"""Training state: what is written comes back, and a resumed run equals one that never stopped."""

import io
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from mrcnn.errors import UserError
from mrcnn.training import state


def build(optimizer="sgd", dropout_seed=3, trainable=True, rate=0.1):
    """A small model with batch norm, dropout (its own random stream) and an optimizer."""
    keras.utils.set_random_seed(7)
    image = keras.Input((4,))
    x = layers.Dense(5, name="first", trainable=trainable)(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5, seed=dropout_seed, name="drop")(x)
    model = keras.Model(image, layers.Dense(1, name="last")(x))
    kinds = {
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(rate),
        "cosine": lambda: keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(rate, 20), momentum=0.9
        ),
    }
    model.compile(kinds[optimizer](), loss="mse")
    return model


def steps(model, first, last):
    """Trains on batches first..last-1 of a fixed sequence."""
    for number in range(first, last):
        rng = np.random.default_rng(number)
        model.train_on_batch(rng.standard_normal((8, 4)), rng.standard_normal((8, 1)))


def numbers(variables):
    """Values by position: Keras counts optimizers and seed generators in their paths."""
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.backend
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "cosine"])
def test_resumed_training_equals_training_that_never_stopped(tmp_path, optimizer):
    whole = build(optimizer)
    steps(whole, 0, 6)

    first = build(optimizer)
    steps(first, 0, 3)
    state.save_state(tmp_path / "state.npz", first, {"epoch": 3})
    weights = first.get_weights()

    second = build(optimizer)
    steps(second, 50, 52)  # whatever it did before is forgotten
    second.set_weights(weights)
    assert state.load_state(tmp_path / "state.npz", second) == {"epoch": 3}
    steps(second, 3, 6)
    assert_same(numbers(second.weights), numbers(whole.weights))
    assert_same(numbers(second.optimizer.variables), numbers(whole.optimizer.variables))


def test_progress_is_read_back_without_a_model(tmp_path):
    progress = {"epoch": 12, "stage": {"layers": "3+"}, "rng": {"state": 2**120}, "note": "ü"}
    state.save_state(tmp_path / "state.npz", build(), progress)
    assert state.read_progress(tmp_path / "state.npz") == progress
    assert state.read_progress(tmp_path / "absent.npz") is None


def test_file_needs_no_pickle(tmp_path):
    state.save_state(tmp_path / "state.npz", build(), {})
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_learning_rate_stays_as_compiled(tmp_path):
    first = build(rate=0.1)
    steps(first, 0, 2)
    state.save_state(tmp_path / "state.npz", first, {})
    second = build(rate=0.01)
    state.load_state(tmp_path / "state.npz", second)
    assert float(second.optimizer.learning_rate) == pytest.approx(0.01)
    assert int(second.optimizer.iterations) == 2


def test_optimizer_false_restores_the_random_streams_only(tmp_path):
    first = build()
    steps(first, 0, 2)
    state.save_state(tmp_path / "state.npz", first, {"epoch": 1})
    second = build(dropout_seed=99, trainable=False)
    assert state.load_state(tmp_path / "state.npz", second, optimizer=False) == {"epoch": 1}
    assert int(second.optimizer.iterations) == 0
    seeds = [numbers(m.get_layer("drop").variables) for m in (first, second)]
    assert_same(*seeds)


@pytest.mark.parametrize("changed", [{"optimizer": "adam"}, {"trainable": False}])
def test_state_of_other_optimizer_or_layers_is_refused_and_changes_nothing(tmp_path, changed):
    first = build()
    steps(first, 0, 2)
    state.save_state(tmp_path / "state.npz", first, {})
    second = build(**changed)
    steps(second, 5, 6)
    before = numbers(second.optimizer.variables)
    with pytest.raises(UserError, match="same OPTIMIZER and the same layers") as error:
        state.load_state(tmp_path / "state.npz", second)
    assert "\n" not in str(error.value) and "state.npz" in str(error.value)
    assert_same(numbers(second.optimizer.variables), before)


def test_absent_and_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "state.npz"
    with pytest.raises(UserError, match="no such state file"):
        state.load_state(path, build())
    state.save_state(path, build(), {})
    whole = path.read_bytes()
    for contents in (whole[: len(whole) // 2], b"", b"not a zip file"):
        path.write_bytes(contents)
        with pytest.raises(UserError, match="damaged") as error:
            state.load_state(path, build())
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="damaged"):
            state.read_progress(path)


@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        '{"format": 1, "paths": [], "progress": {}}',
        '{"format": 1, "paths": {"seed": [3]}, "progress": {}}',
        "9" * 5000,
    ],
)
def test_a_damaged_header_is_one_line(tmp_path, header):
    with open(tmp_path / "state.npz", "wb") as file:
        np.savez(file, header=np.array(header))
    with pytest.raises(UserError, match="state.npz is damaged.*delete it to resume from the weig"):
        state.read_progress(tmp_path / "state.npz")


def test_what_only_zip_files_can_bring_about_is_one_line(tmp_path):
    """Compressed members, which may have any size; encrypted ones; shapes beyond the memory."""
    path = tmp_path / "state.npz"
    header = np.array('{"format": 1, "paths": {}, "progress": {}}')
    np.savez_compressed(path, header=header)
    compressed = path.read_bytes()
    np.savez(path, header=header)
    plain = path.read_bytes()
    central = plain.rindex(b"PK\x01\x02")
    encrypted = bytearray(plain)
    encrypted[6] |= 1
    encrypted[central + 8] |= 1
    other = bytearray(plain)
    other[8] = other[central + 10] = 99  # a compression that nobody has
    npy, shape = io.BytesIO(), (10**15,)
    numbers = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(npy, numbers)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", npy.getvalue())
    huge = path.read_bytes()
    for contents in (compressed, bytes(encrypted), bytes(other), huge):
        path.write_bytes(contents)
        with pytest.raises(UserError, match="state.npz is damaged"):
            state.read_progress(path)


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    state.save_state(path, build(), {"epoch": 1})

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        state.save_state(path, build(), {"epoch": 2})
    assert state.read_progress(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_model_without_optimizer_saves_seeds_and_progress(tmp_path):
    image = keras.Input((4,))
    model = keras.Model(image, layers.Dropout(0.5, seed=1)(image))
    state.save_state(tmp_path / "state.npz", model, {"epoch": 0})
    assert state.load_state(tmp_path / "state.npz", model) == {"epoch": 0}


@pytest.mark.backend
def test_weights_come_back_where_the_file_has_them(tmp_path):
    first = build("adam")
    steps(first, 0, 2)
    state.save_state(tmp_path / "state.npz", first, {}, weights=True)
    second = build("adam")
    steps(second, 5, 6)
    before = numbers(second.weights)
    state.load_state(tmp_path / "state.npz", second, optimizer=False)  # another stage
    assert_same(numbers(second.weights), before)
    state.load_state(tmp_path / "state.npz", second)
    assert_same(numbers(second.weights), numbers(first.weights))


@pytest.mark.parametrize("saved, loaded", [("cosine", "sgd"), ("sgd", "cosine")])
def test_a_rate_may_become_a_schedule_and_a_schedule_a_rate(tmp_path, saved, loaded):
    first = build(saved)
    steps(first, 0, 2)
    state.save_state(tmp_path / "state.npz", first, {})
    second = build(loaded)
    state.load_state(tmp_path / "state.npz", second)
    assert int(second.optimizer.iterations) == 2
    assert_same(numbers(second.optimizer.momentums), numbers(first.optimizer.momentums))
