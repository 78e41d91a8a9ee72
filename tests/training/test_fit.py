"""Training for real on a few tiny images: stages, losses, schedules, stopping and resuming."""

import csv
import os
import signal
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

from mrcnn.atomic import LOCK, locked
from mrcnn.data.dataset import Dataset
from mrcnn.errors import UserError
from mrcnn.model import MaskRCNN
from mrcnn.network.resnet import resnet_graph
from mrcnn.training import fit
from mrcnn.training.callbacks import Plateau
from tests.support.tiny import TinyConfig
from tests.support.weight_recorder import WeightRecorder


class Squares(Dataset):
    """Bright squares on dark background; every third image is empty."""

    def fill(self, count=6):
        self.add_class("squares", 1, "square")
        self.add_class("squares", 2, "unused")
        for i in range(count):
            self.add_image("squares", image_id=f"image {i}", path=None)
        self.prepare()
        return self

    def _boxes(self, image_id):
        rng = np.random.default_rng(int(image_id))
        corners = rng.integers(0, 36, (0 if image_id % 3 == 2 else 2, 2))
        return [(y, x, y + 20, x + 20) for y, x in corners]

    def load_image(self, image_id):
        image = np.full((64, 64, 3), 30, np.uint8)
        for y1, x1, y2, x2 in self._boxes(image_id):
            image[y1:y2, x1:x2] = 220
        return image

    def load_mask(self, image_id):
        boxes = self._boxes(image_id)
        masks = np.zeros((64, 64, len(boxes)), bool)
        for i, (y1, x1, y2, x2) in enumerate(boxes):
            masks[y1:y2, x1:x2, i] = True
        return masks, np.ones(len(boxes), np.int32)


def small_backbone(image, architecture=None, stage5=False, train_bn=True):
    """Five strided convolutions: what matters here is around the backbone."""
    stages, x = [], image / 64.0
    for number, width in enumerate((8, 8, 16, 16, 16), start=1):
        x = keras.layers.Conv2D(
            width, 3, strides=2, padding="same", activation="relu", name=f"res{number}_conv"
        )(x)
        stages.append(x)
    return stages


class SquaresConfig(TinyConfig):
    NAME = "squares"
    BACKBONE = staticmethod(small_backbone)
    COMPUTE_BACKBONE_SHAPE = staticmethod(
        lambda shape: np.array([[shape[0] // s, shape[1] // s] for s in (4, 8, 16, 32, 64)])
    )
    LEARNING_WARMUP_STEPS = 2
    LEARNING_SCHEDULE = "cosine"


def make(folder, config=SquaresConfig):
    return MaskRCNN("training", config(), str(folder))


def train(model, epochs, layers="all", rate=0.01, validate=False, **kwargs):
    """validate: where it matters, for its graph takes seconds. It draws random numbers, too."""
    squares = Squares().fill()
    model.train(squares, squares if validate else None, rate, epochs, layers, **kwargs)
    return model


def weights_of(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.keras_model.weights}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, two[path], err_msg=path)


def log_rows(model):
    with open(Path(model.log_dir) / "training.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four epochs in one go."""
    return train(make(tmp_path_factory.mktemp("logs")), 4, validate=True)


def test_a_run_leaves_its_files(finished):
    files = {p.name for p in Path(finished.log_dir).iterdir()}
    assert {
        "mask_rcnn_squares_0001.h5",
        "mask_rcnn_squares_0004.h5",
        "state_0004.npz",
        "training.csv",
        "loss_curve.png",
    } <= files
    assert not any(name.startswith("state_0003") for name in files)
    rows = log_rows(finished)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert {"rpn_class_loss", "val_loss", "val_mrcnn_mask_loss"} <= set(rows[0])
    assert finished.find_last().endswith("mask_rcnn_squares_0004.h5")


def test_same_seed_same_weights(finished, tmp_path):
    model = make(tmp_path)
    taken = Path(model.log_dir)
    with locked(taken):  # by another run of the same minute
        train(model, 4, validate=True)
        assert Path(model.log_dir) != taken and [p.name for p in taken.iterdir()] == [LOCK]
    assert_same(weights_of(model), weights_of(finished))


class AveragedConfig(SquaresConfig):
    WEIGHT_AVERAGING = 0.9
    STEPS_PER_EPOCH = 9  # an update within each epoch and one at its end
    TRAIN_BN = None


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run of three epochs, its weights at the end, and what a `WeightRecorder` kept."""
    recorder = WeightRecorder()
    model = make(tmp_path_factory.mktemp("averaged"), AveragedConfig)
    train(model, 3, validate=True, custom_callbacks=[recorder])
    return model, weights_of(model), recorder


def interrupted_and_resumed(folder, config, epochs):
    """A run that stops after its first epoch and goes on in another model."""
    broken = make(folder, config)

    class Cut(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                with pytest.raises(UserError, match="in use"), locked(broken.log_dir):
                    pass
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, epochs, validate=True, custom_callbacks=[Cut()])
    resumed = make(folder, config)
    resumed.load_weights(resumed.find_last())
    assert resumed.epoch == 1
    train(resumed, epochs, validate=True)
    assert resumed.log_dir == broken.log_dir
    return resumed


def test_resumed_equals_uninterrupted(finished, tmp_path):
    resumed = interrupted_and_resumed(tmp_path, SquaresConfig, 4)
    for path, value in weights_of(finished).items():
        np.testing.assert_allclose(weights_of(resumed)[path], value, atol=1e-6, err_msg=path)
    assert [row["epoch"] for row in log_rows(resumed)] == ["1", "2", "3", "4"]


@pytest.mark.backend  # has all that the plain run has: enough for the other backends
def test_resumed_equals_uninterrupted_with_an_average(averaged, tmp_path):
    resumed = interrupted_and_resumed(tmp_path, AveragedConfig, 3)
    for path, value in averaged[1].items():
        np.testing.assert_allclose(weights_of(resumed)[path], value, atol=1e-6, err_msg=path)
    assert [row["epoch"] for row in log_rows(resumed)] == ["1", "2", "3"]


def test_checkpoints_and_validation_have_the_average(averaged):
    model, _, recorder = averaged
    average, done, expected = recorder.steps[0], 0, []
    for step in (8, 9, 16, 18, 24, 27):
        kept = min(0.9, (1 + step) / (10 + step)) ** (step - done)
        average = [
            kept * old + (1 - kept) * new
            for old, new in zip(average, recorder.steps[step], strict=True)
        ]
        done = step
        expected += [average] if step in (9, 18, 27) else []
    for number, (wanted, raw) in enumerate(zip(expected, recorder.ends, strict=True), start=1):
        model.load_weights(model.checkpoint_path.format(epoch=number))
        saved = model.keras_model.get_weights()
        validated, trained = recorder.validations[number - 1], recorder.steps[9 * number]
        assert any((one != other).any() for one, other in zip(raw, saved, strict=True))
        for values in zip(wanted, saved, validated, raw, trained, strict=True):
            np.testing.assert_allclose(values[1], values[0], rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(values[1], values[2])
            np.testing.assert_array_equal(values[3], values[4])


def test_a_stage_begins_with_the_average_of_the_one_before(averaged):
    model, kept, _ = averaged
    model.load_weights(model.find_last())
    assert model.epoch == 3
    assert_same(weights_of(model), kept)
    recorder = WeightRecorder()
    train(model, 4, layers="heads", custom_callbacks=[recorder])
    for one, other in zip(recorder.steps[0], kept.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_and_batch_norms_are_frozen_and_learn_by_stage(tmp_path):
    class Learning(SquaresConfig):
        TRAIN_BN = None

    model = make(tmp_path, Learning)

    def moved(epochs, layers, freeze):
        before = weights_of(model)
        train(model, epochs, layers, freeze_bn=freeze)
        return {path for path, value in weights_of(model).items() if (value != before[path]).any()}

    frozen, learning = moved(1, "heads", True), moved(2, "all", False)
    assert frozen and not any("res" in path for path in frozen)
    assert any("rpn_conv_shared" in path for path in frozen)
    assert any("fpn_p2" in path for path in frozen) and any("mrcnn_mask" in p for p in frozen)
    assert any("res" in path for path in learning)
    statistics = {path for path in learning if "/moving_" in path}
    assert {path.split("/")[0] for path in statistics} == {
        "mrcnn_class_bn1",
        "mrcnn_class_bn2",
        *(f"mrcnn_mask_bn{n}" for n in (1, 2, 3, 4)),
    }
    assert not statistics & frozen
    assert {"mrcnn_class_bn1/gamma", "mrcnn_class_conv1/kernel"} <= frozen


def test_a_frozen_backbone_trains_on_what_it_infers(rng):
    image = keras.Input((64, 64, 3))
    backbone = keras.Model(image, resnet_graph(image, "resnet50", train_bn=None)[1:4])
    images = rng.normal(0, 50, (2, 64, 64, 3)).astype("float32")
    backbone(images, training=True)  # statistics that are not the initial ones

    def differences():
        return [
            np.abs(one - other).max()
            for one, other in zip(
                backbone(images, training=True), backbone(images, training=False), strict=True
            )
        ]

    assert min(differences()) > 0.01
    fit.set_batch_norms(backbone, False)
    before = backbone.get_weights()
    assert max(differences()) == 0.0
    for value, old in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    fit.set_batch_norms(backbone, None)
    assert min(differences()) > 0.01


class Clock(keras.callbacks.Callback):
    """Stands in for the stopwatch of training: a step takes one second, all else no time."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.passed = self.steps = 0

        def stopwatch(seconds):
            self.passed = seconds
            return lambda: self.passed

        monkeypatch.setattr(fit, "stopwatch", stopwatch)

    def on_train_batch_begin(self, batch, logs=None):
        self.passed += 1
        self.steps += 1


def test_time_budget_ends_a_run_and_counts_what_was_interrupted(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    class Four(AveragedConfig):
        STEPS_PER_EPOCH = 4

    model = make(tmp_path, Four)
    with pytest.raises(KeyboardInterrupt):
        train(model, 9999, time_budget=18, custom_callbacks=[clock, Cut()])
    model = make(tmp_path, Four)
    model.load_weights(model.find_last())
    assert (model.epoch, model.seconds) == (2, 8)
    train(model, 9999, time_budget=18, custom_callbacks=[clock])
    assert clock.steps == 18 and model.epoch == 5 and model.seconds == 18
    rates = [float(row["learning_rate"]) for row in log_rows(model)]
    # Two steps of warm-up, then a cosine over 18 seconds; the rate is set at steps 0, 8, 16.
    half = [0.01 * 0.5 * (1 + np.cos(np.pi * t / 18)) for t in (8, 16)]
    np.testing.assert_allclose(rates, [0.005, half[0], half[0], half[1], half[1]], rtol=1e-4)
    capsys.readouterr()
    train(model, 9999, time_budget=18, custom_callbacks=[clock])
    assert clock.steps == 18 and "done already" in capsys.readouterr().out
    last = make(tmp_path, Four)
    last.load_weights(last.find_last())
    assert (last.epoch, last.seconds) == (5, 18)
    train(last, 6, time_budget=99, custom_callbacks=[clock])  # more time, but one epoch only
    assert clock.steps == 22 and last.epoch == 6


@pytest.fixture
def ctrl_c():
    """Shells have processes in the background, tests among them, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_cleanly(tmp_path, capsys, ctrl_c):
    model = make(tmp_path)

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.params["epochs"] and self.model.optimizer.iterations >= 3:
                os.kill(os.getpid(), signal.SIGINT)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        train(model, 4, custom_callbacks=[Interrupt()])
    assert "mask_rcnn_squares_0001.h5" in capsys.readouterr().err
    assert not list(Path(model.log_dir).glob("*.part")) and threading.active_count() <= before + 2


def test_training_twice_leaves_the_loss_unchanged(finished):
    data = None
    losses = []
    for _ in range(2):
        finished.compile(0.01)
        loader = training_loader(finished)
        data = data or loader[0][0]
        for layer in finished.keras_model.layers:
            for generator in getattr(layer, "_seed_generators", []):
                generator.state.assign([1, 0])
        losses.append(float(finished.keras_model.test_on_batch(data, return_dict=True)["loss"]))
    assert losses[0] == losses[1]


def training_loader(model):
    from mrcnn.data.batches import BatchLoader

    return BatchLoader(Squares().fill(), model.config)


def test_stage_that_is_done_is_skipped(finished, capsys):
    before = weights_of(finished)
    train(finished, 4)
    assert "done already" in capsys.readouterr().out
    assert_same(weights_of(finished), before)


@pytest.mark.parametrize(
    "layers, inside, outside",
    [
        ("heads", ["fpn_p2", "rpn_class_raw", "mrcnn_mask"], ["conv1", "res5a_branch1", "bn3a_x"]),
        ("5+", ["res5a_branch2a", "bn5c_branch2c", "fpn_p6"], ["res4f_branch2a", "bn4a_branch1"]),
        ("4+", ["res4a_branch1", "bn5a_branch1", "rpn_bbox_pred"], ["res3a_branch1", "conv1"]),
        ("3+", ["res3a_branch1", "bn3d_branch2c"], ["res2a_branch1", "bn_conv1"]),
        ("all", ["conv1", "bn_conv1", "mrcnn_bbox_fc"], []),
    ],
)
def test_names_of_stages(layers, inside, outside):
    import re

    regex = fit.LAYER_REGEX[layers]
    assert all(re.fullmatch(regex, name) for name in inside)
    assert not any(re.fullmatch(regex, name) for name in outside)


def test_total_is_weighted_losses_plus_plain_l2(tmp_path):
    class Weighted(SquaresConfig):
        LOSS_WEIGHTS = {"rpn_class_loss": 2.0, "mrcnn_mask_loss": 0.0}
        WEIGHT_DECAY = 0.01

    model = make(tmp_path, Weighted)
    model.set_trainable(fit.LAYER_REGEX["heads"], verbose=0)
    parts = [1.0, 2.0, 3.0, 4.0, 5.0]
    total = model.keras_model.compute_loss(y_pred=[keras.ops.convert_to_tensor(p) for p in parts])
    squares = sum(
        float((value**2).sum())
        for path, value in weights_of(model).items()
        if path.endswith("kernel") and "res" not in path
    )
    assert float(total) == pytest.approx(2 * 1 + 2 + 3 + 4 + 0.01 * squares, rel=1e-4)


def test_schedule():
    schedule = fit.LearningSchedule(2.0, "cosine", warmup=4, total=14)
    values = [float(schedule(step)) for step in (0, 3, 4, 9, 14, 99)]
    np.testing.assert_allclose(values, [0.5, 2.0, 2.0, 1.0, 0.0, 0.0], atol=1e-6)
    constant = fit.LearningSchedule(2.0, warmup=2, total=4)
    np.testing.assert_allclose([float(constant(step)) for step in (0, 1, 4, 50)], [1, 2, 2, 2])


def test_step_schedule_divides_by_ten():
    schedule = fit.LearningSchedule(2.0, "step", warmup=2, total=12, drops=(0.5, 0.9))
    values = [float(schedule(step)) for step in (0, 1, 6, 7, 10, 11, 12, 99)]
    np.testing.assert_allclose(values, [1, 2, 2, 0.2, 0.2, 0.02, 0.02, 0.02], rtol=1e-5)


def test_schedule_of_the_configuration(tiny_config):
    tiny_config.LEARNING_SCHEDULE, tiny_config.LEARNING_WARMUP_STEPS = "step", 3
    tiny_config.LEARNING_DROPS = [0.25]
    schedule = fit.make_schedule(tiny_config, 0.5, 40)
    assert schedule.get_config() == {
        "rate": 0.5,
        "kind": "step",
        "warmup": 3,
        "total": 40,
        "drops": (0.25,),
    }


def test_optimizers(tiny_config):
    sgd = fit.make_optimizer(tiny_config, 0.1)
    assert isinstance(sgd, keras.optimizers.SGD)
    assert (sgd.momentum, sgd.clipnorm) == (0.9, 5.0)
    tiny_config.OPTIMIZER, tiny_config.GRADIENT_CLIP_NORM = "adam", None
    adam = fit.make_optimizer(tiny_config, 0.1)
    assert isinstance(adam, keras.optimizers.Adam) and adam.clipnorm is None


def test_the_first_step_is_traced_once(tiny_config):
    class Counting(fit.TrainingModel):
        calls = 0

        def compute_loss(self, *args, **kwargs):
            Counting.calls += 1
            return super().compute_loss(*args, **kwargs)

    numbers = keras.Input((3,))
    mean = keras.ops.mean(keras.layers.Dense(1)(numbers))
    model = Counting(numbers, [mean] * 5, tiny_config)
    fit.compile_model(model, fit.make_optimizer(tiny_config, 0.1))
    model.train_on_batch(np.ones((2, 3), "float32"))
    assert Counting.calls == 1


def test_loss_that_is_not_finite_stops_and_names_the_images(tmp_path):
    model = make(tmp_path)

    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kernel = model.keras_model.get_layer("mrcnn_class_logits").kernel
                kernel.assign(np.full(kernel.shape, np.nan, "float32"))

    with pytest.raises(UserError, match="image") as caught:
        train(model, 2, custom_callbacks=[Spoil()])
    assert "mask_rcnn_squares_0001.h5" in str(caught.value) and "\n" not in str(caught.value)
    assert not (Path(model.log_dir) / "mask_rcnn_squares_0002.h5").exists()


def test_broken_data_set_is_one_line(tmp_path):
    class Broken(Squares):
        def load_image(self, image_id):
            raise OSError("disk on fire")

    broken = Broken().fill(8)
    with pytest.raises(UserError, match="disk on fire"):
        make(tmp_path).train(broken, None, 0.01, 1, "all")


def test_only_so_many_checkpoints(tmp_path):
    class Few(SquaresConfig):
        CHECKPOINTS_TO_KEEP = 2
        VALIDATION_STEPS = 0

    model = train(make(tmp_path, Few), 3)
    names = sorted(p.name for p in Path(model.log_dir).glob("*.h5"))
    assert names == ["mask_rcnn_squares_0002.h5", "mask_rcnn_squares_0003.h5"]


def test_regions_from_outside_and_whole_masks(tmp_path):
    class Outside(SquaresConfig):
        USE_RPN_ROIS = False
        USE_MINI_MASK = False

    model = train(make(tmp_path, Outside), 1)
    assert np.isfinite(float(log_rows(model)[0]["loss"]))
    inference = MaskRCNN("inference", SquaresConfig(), str(tmp_path))
    report = inference.load_weights(model.find_last())
    assert not report.left_over and not report.initial


def test_whole_images_in_pad64_mode(tmp_path):
    class Wide(SquaresConfig):
        IMAGE_RESIZE_MODE = "pad64"
        IMAGE_MIN_DIM = 128
        IMAGE_MAX_DIM = 64

    model = train(make(tmp_path, Wide), 1)
    assert model.keras_model.input["input_image"].shape[1:] == (128, 128, 3)


class PlateauConfig(SquaresConfig):
    LEARNING_SCHEDULE = "plateau"
    LEARNING_WARMUP_STEPS = 0
    LEARNING_PATIENCE = 2


class Losses(keras.callbacks.Callback):
    """Plays losses to a `Plateau`, and keeps the rates."""

    def __init__(self, losses, seen=None, key="val_loss"):
        super().__init__()
        self.plateau = Plateau(2, 0.8, seen)
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile(optimizer=keras.optimizers.SGD(0.8), loss="mse")
        self.plateau.set_model(model)
        self.plateau.on_train_begin()
        self.rates = []
        for epoch, loss in enumerate(losses):
            self.plateau.on_epoch_end(epoch, {"loss": 0.0, key: loss})
            self.rates.append(round(float(model.optimizer.learning_rate), 6))


def test_rate_falls_where_the_loss_does_not():
    losses = [5.0, 4.0, 4.0, 3.0, 3.5, 3.2, 3.1, 3.0, 2.0]
    run = Losses(losses)
    assert run.rates == [0.8, 0.8, 0.8, 0.8, 0.8, 0.08, 0.08, 0.008, 0.008]
    for cut in range(1, len(losses)):  # and the same when it is interrupted
        first = Losses(losses[:cut])
        rest = Losses(losses[cut:], first.plateau.seen)
        assert first.rates + rest.rates == run.rates


def test_without_validation_the_training_loss_counts():
    run = Losses([3.0, 3.0, 3.0], key="loss")
    assert run.rates == [0.8, 0.8, 0.08]


def test_a_plateau_run_goes_on_with_its_rate(tmp_path):
    model = make(tmp_path, PlateauConfig)

    class Rates(keras.callbacks.Callback):
        seen = []

        def on_epoch_begin(self, epoch, logs=None):
            Rates.seen.append(float(self.model.optimizer.learning_rate))

    # A rate so small that the loss moves by chance only.
    train(model, 6, rate=1e-9, validate=True, custom_callbacks=[Rates()])
    first = list(Rates.seen)
    assert first[0] == pytest.approx(1e-9) and first[-1] < 1e-9
    again = make(tmp_path, PlateauConfig)
    again.load_weights(again.find_last())
    state = again._resume["plateau"]
    Rates.seen.clear()
    train(again, 7, rate=1e-9, validate=True, custom_callbacks=[Rates()])
    assert Rates.seen == [pytest.approx(1e-9 / 10 ** state["divisions"])]
    assert state["divisions"] > 0


def test_a_plateau_knows_no_time_budget(tmp_path):
    with pytest.raises(UserError, match="plateau"):
        train(make(tmp_path, PlateauConfig), 2, time_budget=60)
    with pytest.raises(UserError, match="LEARNING_WARMUP_STEPS"):
        type("Warm", (PlateauConfig,), {"LEARNING_WARMUP_STEPS": 3})()


@pytest.mark.backend
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_biases_learn_at_their_own_rate(name):
    class Biased(SquaresConfig):
        OPTIMIZER = name
        GRADIENT_CLIP_NORM = None

    def steps(factor):
        config = Biased()
        config.LEARNING_BIAS_FACTOR = factor
        layer = keras.layers.Dense(2)
        layer.build((None, 3))
        layer.set_weights([np.ones((3, 2)), np.ones(2)])
        optimizer = fit.make_optimizer(config, 0.1)
        optimizer.build(layer.trainable_variables)
        for number in range(2):
            gradients = [np.full((3, 2), number + 1.0, "float32"), np.full(2, 0.5, "float32")]
            optimizer.apply(
                [keras.ops.convert_to_tensor(g) for g in gradients], layer.trainable_variables
            )
        return [np.asarray(w) - 1 for w in layer.get_weights()]

    (kernel, bias), (same, doubled) = steps(1.0), steps(2.0)
    np.testing.assert_allclose(same, kernel, atol=1e-7)
    np.testing.assert_allclose(doubled, 2 * bias, rtol=1e-5)
    assert np.abs(bias).min() > 0


@pytest.mark.backend
def test_optimizers_follow_the_equations_of_the_paper():
    # Sections 3.1.1 and 3.1.2, in float64. (Keras, as Adam's authors, adds epsilon to the root.)
    gradients = [np.array([0.3, -2.0]), np.array([-0.1, 1.0]), np.array([0.7, 0.4])]

    def ours(name):
        config = SquaresConfig()
        config.OPTIMIZER, config.GRADIENT_CLIP_NORM = name, None
        variable = keras.Variable(np.array([1.0, -1.0], "float32"))
        optimizer = fit.make_optimizer(config, 0.1)
        optimizer.build([variable])
        for gradient in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(gradient.astype("float32"))], [variable])
        return keras.ops.convert_to_numpy(variable)

    theta, velocity = np.array([1.0, -1.0]), 0.0
    for gradient in gradients:
        velocity = 0.9 * velocity + 0.1 * gradient
        theta = theta - velocity
    np.testing.assert_allclose(ours("sgd"), theta, rtol=1e-5)

    theta, m, v = np.array([1.0, -1.0]), 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        theta = theta - 0.1 * m_hat / (np.sqrt(v_hat) + 1e-8)
    np.testing.assert_allclose(ours("adam"), theta, rtol=1e-4)
