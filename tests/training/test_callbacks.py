"""The callbacks in real fits of a tiny model, on whichever backend is active."""

import io
import math
import os
import re
import sys
import time

import keras
import numpy as np
import pytest

from mrcnn.console import duration_text
from mrcnn.errors import UserError
from mrcnn.training import callbacks as C
from mrcnn.training.averaging import WeightAverage
from mrcnn.training.log import loss_curve_png, read_log
from mrcnn.training.progress import COMPILING, losses_text, number_text
from tests.support.terminal import Terminal
from tests.support.weight_recorder import WeightRecorder

pytestmark = pytest.mark.backend

STEPS = 4


class Loader(keras.utils.PyDataset):
    """Batches of two rows; what is put into `poison` replaces the inputs of (epoch, batch)."""

    def __init__(self, poison=None):
        super().__init__(workers=1)
        self.epoch = 0
        self.poison = poison or {}

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        x = np.random.default_rng([self.epoch, index]).normal(size=(2, 3)).astype("float32")
        x *= self.poison.get((self.epoch, index), 1.0)
        return x, x.sum(axis=1, keepdims=True)

    def on_epoch_end(self):
        self.epoch += 1

    def image_ids(self, index):
        return [100 * self.epoch + 2 * index, 100 * self.epoch + 2 * index + 1]


def tiny_model(learning_rate=0.01):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(learning_rate), "mse")
    return model


def fit(callbacks, epochs=2, initial_epoch=0, loader=None, validation=None, model=None):
    model = model or tiny_model()
    loader = loader or Loader()
    model.fit(
        loader,
        epochs=epochs,
        initial_epoch=initial_epoch,
        validation_data=validation,
        callbacks=[C.LoaderEpoch(loader), *callbacks],
        verbose=0,
        shuffle=False,
    )
    return model


class Clock:
    """Every reading is `tick` seconds after the one before."""

    def __init__(self, tick):
        self.now = 0.0
        self.tick = tick

    def __call__(self):
        self.now += self.tick
        return self.now


ALL_LOGS = {
    "loss": 1.2341,
    "rpn_class_loss": 0.12,
    "rpn_bbox_loss": 0.33,
    "mrcnn_class_loss": 0.21,
    "mrcnn_bbox_loss": 0.3,
    "mrcnn_mask_loss": 1.27,
}


def test_texts():
    assert losses_text(ALL_LOGS) == (
        "loss 1.234 (rpn_class .12 rpn_bbox .33 class .21 bbox .30 mask 1.27)"
    )
    assert losses_text({"loss": 2.0}) == "loss 2.000"
    assert losses_text(None) == "loss ?"
    assert [number_text(v) for v in (0.834, 0.999, 10.5, 0.0, math.nan)] == [
        ".83",
        "1.00",
        "10.50",
        ".00",
        "nan",
    ]
    assert duration_text(751.4) == "00:12:31"
    assert duration_text(100 * 3600) == "100:00:00"


def test_progress_in_a_pipe_writes_plain_lines():
    stream = io.StringIO()
    fit([C.ProgressLine(stream, interval=0)], epochs=2, validation=Loader())
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    steps = [line for line in lines if re.match(r"epoch \d/2  step \d/4  loss \d", line)]
    assert len(steps) == 2 * STEPS
    assert steps[0].startswith("epoch 1/2  step 1/4") and "s/step" not in steps[0]
    assert re.search(r"  \S*\.\d\d s/step  ETA \d\d:\d\d:\d\d$", steps[-1])
    assert sum("validation step" in line for line in lines) == 2 * STEPS
    ends = [line for line in lines if re.match(r"epoch \d/2  loss \S+  val loss \S+  00:", line)]
    assert len(ends) == 2 and ends[-1] == lines[-1] and ends[-1].endswith("ETA 00:00:00")


def test_progress_in_a_pipe_waits_between_lines():
    stream = io.StringIO()
    fit([C.ProgressLine(stream, interval=3600)], epochs=3)
    lines = stream.getvalue().splitlines()
    # The first step at once, so that one sees it runs; then the ends of the epochs alone.
    assert len(lines) == 1 + 3
    assert "step 1/4" in lines[0]


def test_progress_on_a_terminal_leaves_a_line_per_epoch(monkeypatch):
    terminal = Terminal(120)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(terminal.slave), "w", buffering=1))
    line = C.ProgressLine()
    line.set_params({"epochs": 2, "steps": 3})
    line.on_train_begin()
    for epoch in range(2):
        line.on_epoch_begin(epoch)
        for batch in range(3):
            time.sleep(0.3)
            line.on_train_batch_end(batch, ALL_LOGS)
        print("Checkpoint", epoch)
        line.on_epoch_end(epoch, {**ALL_LOGS, "val_loss": 2.0})
    line.finish()
    sys.stdout.close()
    shown, losses = terminal.shown(), losses_text(ALL_LOGS)
    ends = [shown.lines.pop(1), shown.lines.pop(2)]
    assert shown.lines == ["Checkpoint 0", "Checkpoint 1"]
    for epoch, end in enumerate(ends, 1):
        start = re.escape(f"epoch {epoch}/2  {losses}  val loss 2.000  00:00:0")
        assert re.fullmatch(start + r"\d  ETA 00:00:0\d", end)
    for part in (COMPILING, losses, "2/3", "s/step"):
        assert part.encode() in shown.written


def test_eta_counts_the_steps_and_the_validation_left():
    progress = C.ProgressLine(io.StringIO())
    progress.set_params({"epochs": 3, "steps": 10})
    progress._epoch = 1
    progress._step_seconds.extend([2.0, 4.0])
    progress._validation_seconds = 7.0
    # 6 steps of 3 s and a validation in this epoch, 10 steps and a validation in the next.
    assert progress._eta_text(3) == "  ETA " + duration_text(6 * 3 + 7 + 10 * 3 + 7)
    assert progress._eta_text(None) == "  ETA " + duration_text(10 * 3 + 7)


def test_eta_of_a_run_with_a_time_is_never_longer():
    progress = C.ProgressLine(io.StringIO(), seconds_left=lambda: 42.0)
    progress.set_params({"epochs": 9999, "steps": 10})
    progress._epoch = 1
    progress._step_seconds.append(2.0)
    assert progress._eta_text(3) == "  ETA " + duration_text(42)
    assert progress._epoch_text() == "epoch 2"


@pytest.mark.parametrize("every, updates", [(3, (3, 4, 6, 8, 9, 12)), (8, (4, 8, 12))])
def test_average_of_the_weights_is_kept_and_validated_with(every, updates, monkeypatch):
    monkeypatch.setattr(C, "UPDATE_EVERY", every)
    model = tiny_model(0.1)
    average, recorder = WeightAverage(model, 0.9), WeightRecorder()
    fit([C.AverageWeights(average), recorder], epochs=3, validation=Loader(), model=model)
    steps, validations, ends = (
        [np.concatenate([value.ravel() for value in weights]) for weights in moments]
        for moments in (recorder.steps, recorder.validations, recorder.ends)
    )
    expected, done, at_ends = steps[0], 0, []
    for step in updates:
        kept = min(0.9, (1 + step) / (10 + step)) ** (step - done)
        expected, done = kept * expected + (1 - kept) * steps[step], step
        at_ends += [expected] if step % STEPS == 0 else []
    np.testing.assert_allclose(validations, at_ends, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(ends, steps[STEPS::STEPS])
    assert np.abs(np.array(ends) - validations).max() > 1e-3


class Passing(keras.callbacks.Callback):
    """A clock that a step moves by one second, and a validation by five."""

    def __init__(self, now=0.0):
        super().__init__()
        self.now, self.steps, self.rates = now, 0, []

    def on_train_batch_begin(self, batch, logs=None):
        self.now += 1.0
        self.steps += 1
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_test_begin(self, logs=None):
        self.now += 5.0


class Falling:
    """A schedule that shows the share of the run it is asked for: 1 less that."""

    def __init__(self, total):
        self.total = total

    def progress(self, step):
        return step / self.total

    def at(self, step, progress):
        return 1.0 - progress


def fit_within(seconds, total=10**6, start=0.0, epochs=99):
    clock = Passing(start)
    budget = C.TimeBudget(lambda: clock.now, start, start + seconds, Falling(total))
    saved = []
    fit(
        [clock, budget, C.Checkpoint(lambda epoch, logs: saved.append((epoch, budget.used_up)))],
        epochs=epochs,
        validation=Loader(),
        model=tiny_model(0.0),
    )
    return clock, budget, saved


def test_training_ends_with_its_time(monkeypatch):
    monkeypatch.setattr(C, "RATE_EVERY", 1)
    # Epochs of 4 steps and a validation take 9 seconds. The fifth begins at 36; after its second
    # step, the validation just fits into 43.
    clock, budget, saved = fit_within(43.0, start=100.0)
    assert clock.now == 143.0 and clock.steps == 4 * 4 + 2
    assert budget.used_up and budget.seconds_left() == 0.0
    assert saved == [(1, False), (2, False), (3, False), (4, False), (5, True)]
    # In the first epoch it is not known yet what its end takes.
    assert clock.rates[:3] == pytest.approx([1.0, 1 - 1 / 43, 1 - 2 / 43], rel=1e-5)
    assert clock.rates[-1] == pytest.approx(1 - 37 / (43 - 5), rel=1e-4)
    assert float(clock.model.optimizer.learning_rate) == pytest.approx(0.0, abs=1e-6)


def test_rate_follows_the_steps_where_they_end_first(monkeypatch):
    monkeypatch.setattr(C, "RATE_EVERY", 1)
    clock, budget, _ = fit_within(1000.0, total=8, epochs=2)
    assert clock.rates == pytest.approx([1 - step / 8 for step in range(8)], rel=1e-5)
    assert not budget.used_up


def test_rate_changes_every_few_steps():
    clock, _, _ = fit_within(1000.0, total=16, epochs=4)
    assert clock.rates == pytest.approx([1.0] * C.RATE_EVERY + [0.5] * C.RATE_EVERY, rel=1e-5)


def test_a_plateau_lowers_the_rate_and_goes_on():
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    x = np.ones((2, 3), "float32")
    plateau = C.Plateau(2, 1e-9)  # so small a rate that the loss stays
    fit([plateau, Rates()], epochs=6, validation=(x, x.sum(axis=1, keepdims=True)))
    assert rates == [pytest.approx(rate) for rate in (1e-9, 1e-9, 1e-9, 1e-10, 1e-10, 1e-11)]
    rates.clear()
    fit([C.Plateau(2, 1e-9, plateau.seen), Rates()], epochs=1)
    assert rates == [pytest.approx(1e-11)]


def test_time_that_ends_during_validation_ends_the_run():
    clock, budget, saved = fit_within(8.0)
    assert clock.steps == 4 and clock.now == 9.0
    assert saved == [(1, True)] and budget.used_up


def test_csv_has_one_row_an_epoch_and_resumes(tmp_path):
    path = tmp_path / "logs" / "training.csv"
    fit([C.CSVLog(path)], epochs=3, validation=Loader())
    first = read_log(path)
    assert [row["epoch"] for row in first] == [1, 2, 3]
    assert list(first[0]) == ["epoch", "learning_rate", "seconds", "loss", "val_loss"]
    assert first[0]["learning_rate"] == pytest.approx(0.01)

    # Go on from the checkpoint of epoch 2: its row and those before stay, later ones are replaced.
    fit([C.CSVLog(path)], epochs=4, initial_epoch=2)
    second = read_log(path)
    assert [row["epoch"] for row in second] == [1, 2, 3, 4]
    assert second[:2] == first[:2]
    assert "val_loss" not in second[2]
    assert os.listdir(path.parent) == ["training.csv"]


def test_csv_keeps_a_loss_that_comes_later(tmp_path):
    path = tmp_path / "training.csv"
    fit([C.CSVLog(path)], epochs=1)
    fit([C.CSVLog(path)], epochs=2, initial_epoch=1, validation=Loader())
    rows = read_log(path)
    assert "val_loss" not in rows[0] and "val_loss" in rows[1]


def test_csv_refuses_a_file_that_is_no_log(tmp_path):
    path = tmp_path / "training.csv"
    path.write_text("image,pixels\na,1 2\n")
    with pytest.raises(UserError, match="training.csv is not a training log"):
        fit([C.CSVLog(path)], epochs=1)
    assert path.read_text() == "image,pixels\na,1 2\n"


def test_loss_curve_image(tmp_path):
    from skimage.io import imread

    path = tmp_path / "loss_curve.png"
    fit([C.CSVLog(tmp_path / "log.csv"), C.LossCurve(tmp_path / "log.csv", path)], epochs=1)
    one = imread(path)
    assert one.shape[0] > 300 and one.shape[1] > 600
    assert len(np.unique(one.reshape(-1, one.shape[2]), axis=0)) > 10
    assert sorted(os.listdir(tmp_path)) == ["log.csv", "loss_curve.png"]


def test_loss_curve_shows_every_loss():
    rows = [{"epoch": e, **{k: v / e for k, v in ALL_LOGS.items()}} for e in (1, 2, 3)]
    without = loss_curve_png(rows)
    with_validation = loss_curve_png(
        [{**row, **{f"val_{k}": 1.5 * v for k, v in row.items() if k != "epoch"}} for row in rows]
    )
    assert without.startswith(b"\x89PNG") and without != with_validation


def test_checkpoint_counts_finished_epochs():
    seen = []
    fit(
        [C.Checkpoint(lambda epoch, logs: seen.append((epoch, logs["loss"])))],
        epochs=5,
        initial_epoch=3,
    )
    assert [epoch for epoch, _ in seen] == [4, 5]
    assert all(isinstance(loss, float) for _, loss in seen)


def test_non_finite_loss_stops_with_the_images_of_the_batch(tmp_path):
    saved = []
    stop = C.StopOnNonFiniteLoss(
        loader := Loader({(1, 2): math.nan}), lambda: f"checkpoint_{saved[-1]}.h5"
    )
    csv_log = C.CSVLog(tmp_path / "log.csv")
    with pytest.raises(UserError) as error:
        fit(
            [stop, C.Checkpoint(lambda epoch, logs: saved.append(epoch)), csv_log],
            epochs=5,
            loader=loader,
        )
    message = str(error.value)
    assert "loss = nan at epoch 2, step 3, images 104, 105;" in message
    assert "the last good checkpoint is checkpoint_1.h5" in message
    assert "\n" not in message
    assert saved == [1] and len(read_log(tmp_path / "log.csv")) == 1


def test_non_finite_loss_without_a_checkpoint_or_a_loader():
    loader = Loader({(0, 0): 1e30})
    with pytest.raises(UserError, match="at epoch 1, step 1; there is no checkpoint yet"):
        fit([C.StopOnNonFiniteLoss()], loader=loader)


def test_names_the_images_where_the_data_set_is_known():
    loader = Loader({(0, 0): math.nan})
    loader.dataset = type("Dataset", (), {"image_info": [{"id": "a.png"}, {"id": "b.png"}]})()
    with pytest.raises(UserError, match=r"images 0 \(a\.png\), 1 \(b\.png\)"):
        fit([C.StopOnNonFiniteLoss(loader)], loader=loader)


def test_weights_spoilt_by_the_last_step_of_an_epoch_are_not_saved():
    # The first batches, all zero, change nothing. The loss of the last is about 1e36, finite in
    # float32; its update with this learning rate is not.
    loader = Loader({(0, batch): 0.0 for batch in range(STEPS - 1)} | {(0, STEPS - 1): 1e18})
    saved = []
    with pytest.raises(UserError, match="not finite after the last step of epoch 1, images 6, 7"):
        fit(
            [C.StopOnNonFiniteLoss(loader), C.Checkpoint(lambda *a: saved.append(a))],
            loader=loader,
            model=tiny_model(learning_rate=1e6),
        )
    assert saved == []


def test_non_finite_validation_loss_stops():
    with pytest.raises(UserError, match="val_loss = nan at the end of epoch 1"):
        fit([C.StopOnNonFiniteLoss()], validation=Loader({(e, 0): math.nan for e in range(3)}))


def test_finite_training_is_left_alone():
    loader = Loader()
    with_stop = fit([C.StopOnNonFiniteLoss(loader)], loader=loader)
    for weight, expected in zip(with_stop.get_weights(), fit([]).get_weights(), strict=True):
        assert np.isfinite(weight).all() and weight.shape == expected.shape


def test_a_resumed_run_sees_the_same_batches():
    def losses(epochs, initial_epoch, model):
        seen = []
        fit(
            [C.Checkpoint(lambda epoch, logs: seen.append(logs["loss"]))],
            epochs=epochs,
            initial_epoch=initial_epoch,
            model=model,
        )
        return seen

    keras.utils.set_random_seed(3)
    whole, halves = tiny_model(), tiny_model()
    halves.set_weights(whole.get_weights())
    expected = losses(4, 0, whole)
    actual = losses(2, 0, halves) + losses(4, 2, halves)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_tensorboard_reads_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit([C.TensorBoardLog(tmp_path)], epochs=3, initial_epoch=1, validation=Loader())
    for run, tags in (
        ("train", {"epoch_loss", "epoch_learning_rate"}),
        ("validation", {"epoch_loss"}),
    ):
        assert len(os.listdir(tmp_path / run)) == 1
        log = EventAccumulator(str(tmp_path / run))
        log.Reload()
        assert set(log.Tags()["scalars"]) == tags
        for tag in tags:
            assert [event.step for event in log.Scalars(tag)] == [1, 2]
            assert np.isfinite([event.value for event in log.Scalars(tag)]).all()
            assert tag == "epoch_loss" or log.Scalars(tag)[0].value == pytest.approx(0.01)


def test_without_tensorboard_the_log_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "mrcnn-keras\[tensorboard\]"$'):
        C.TensorBoardLog(tmp_path)
