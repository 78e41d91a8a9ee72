"""Four-step training: what moves, what stays, whose proposals, and going on."""

import re
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from mrcnn.data.batches import BatchLoader
from mrcnn.errors import UserError
from mrcnn.model import MaskRCNN
from mrcnn.training import alternating, fit
from mrcnn.training.alternating import Proposer, four_steps, train_alternating
from mrcnn.weights.weight_files import layer_tensors
from tests.network.test_models import set_weights
from tests.support.tiny import TinyConfig
from tests.training.test_fit import Squares, small_backbone

COMPUTED_SHAPES = [[-(-64 // s)] * 2 for s in (4, 8, 16, 32, 64)]


class SmallConfig(TinyConfig):
    """Backbone layers are called res1_conv, ..., so that regular expressions know them."""

    BACKBONE = staticmethod(small_backbone)
    COMPUTE_BACKBONE_SHAPE = staticmethod(lambda shape: np.array(COMPUTED_SHAPES))


class C4Config(TinyConfig):
    ARCHITECTURE = "c4"


def tensors(model):
    return {
        name: [ops.convert_to_numpy(v).copy() for _, v in pairs]
        for name, pairs in layer_tensors(model.keras_model).items()
    }


def moved(before, after):
    return {
        name
        for name in before
        if any(not np.array_equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


@pytest.mark.parametrize("kind", [TinyConfig, C4Config])
def test_every_layer_has_its_steps(kind):
    model = MaskRCNN("training", kind(), "logs")
    names = set(layer_tensors(model.keras_model))
    first, second, third, fourth = (
        {name for name in names if re.fullmatch(step.layers, name)}
        for step in four_steps(model.config)
    )
    assert first | second == names
    assert third == {name for name in names if name.startswith("rpn")}
    assert first - third == second - fourth  # the shared backbone
    assert not first & fourth and not third & second
    assert ("res5a_branch1" in fourth) == (kind is C4Config)
    assert "conv1" in first and "mrcnn_class_logits" in fourth


def test_losses_that_do_not_count_weigh_nothing():
    config = TinyConfig()
    config.LOSS_WEIGHTS = {"rpn_bbox_loss": 10.0}
    assert fit.loss_weights(config) == [1, 10, 1, 1, 1]
    assert fit.loss_weights(config, alternating.RPN_LOSSES) == [1, 10, 0, 0, 0]


def test_proposer_keeps_what_the_model_had(rng):
    model = MaskRCNN("training", SmallConfig(), "logs")
    set_weights(model.keras_model)
    proposer = Proposer(model)
    images = rng.normal(scale=40, size=(2, 64, 64, 3)).astype("float32")
    rois = proposer(images)
    assert rois.shape == (2, 50, 4) and rois.dtype == np.float32
    real = rois.any(axis=-1)
    assert real.any() and (rois[real] >= 0).all() and (rois[real] <= 64).all()
    set_weights(model.keras_model, seed=1)
    np.testing.assert_array_equal(proposer(images), rois)
    assert not np.array_equal(Proposer(model)(images), rois)


def test_loader_asks_the_proposer():
    config = TinyConfig()
    config.USE_RPN_ROIS = False
    asked = []

    def proposer(images):
        asked.append(images.shape)
        return np.full((len(images), 50, 4), 3, np.float32)

    loader = BatchLoader(Squares().fill(), config, proposer=proposer)
    assert (loader[0][0]["input_rois"] == 3).all()
    assert asked == [(2, 64, 64, 3)]


def run(model, epochs=(1, 2, 3, 4)):
    train_alternating(model, Squares().fill(), Squares().fill(3), 1e-3, epochs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one go: the model, its weights before and after every step, and what it was fed."""
    model = MaskRCNN("training", SmallConfig(), str(tmp_path_factory.mktemp("whole")))
    states, flags = [tensors(model)], []
    train = MaskRCNN.train

    def recorded(self, *args, **kwargs):
        states.append(tensors(self))
        flags.append((self.config.USE_RPN_ROIS, self.proposer is not None))
        train(self, *args, **kwargs)
        states.append(tensors(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskRCNN, "train", recorded)
        run(model)
    return model, states, flags


def test_four_steps(whole):
    model, states, flags = whole
    assert flags == [(True, False), (False, True), (True, False), (True, False)]
    assert model.epoch == 4 and model.config.USE_RPN_ROIS and model.proposer is None
    for number, step in enumerate(four_steps(model.config)):
        changed = moved(states[1 + 2 * number], states[2 + 2 * number])
        assert changed and all(re.fullmatch(step.layers, name) for name in changed)
    # Step 2 begins with the first backbone and with the proposal network of step 1.
    initial, after_first, before_second = states[0], states[2], states[3]
    assert "res3_conv" in moved(initial, after_first)
    assert not {n for n in moved(initial, before_second) if not n.startswith("rpn")}
    assert not {n for n in moved(after_first, before_second) if n.startswith("rpn")}
    # Steps 3 and 4 share the backbone of step 2.
    assert not {n for n in moved(states[4], states[8]) if n.startswith(("res", "fpn"))}


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(whole, tmp_path, monkeypatch):
    # Once between the first two steps, once within the second.
    model = MaskRCNN("training", SmallConfig(), str(tmp_path))
    with pytest.raises(UserError, match="step 2 of 4 has no epochs"):
        run(model, (1, 1, 1, 1))
    assert model.config.USE_RPN_ROIS and model.proposer is None
    model = MaskRCNN("training", SmallConfig(), str(tmp_path))
    model.load_weights(model.find_last(), by_name=True)
    with pytest.raises(UserError, match="step 3 of 4 has no epochs"):
        run(model, (1, 2, 2, 2))
    model = MaskRCNN("training", SmallConfig(), str(tmp_path))
    model.load_weights(model.find_last(), by_name=True)
    seen = []
    with monkeypatch.context() as patch:  # within step 2: its proposals are still those of step 1
        patch.setattr(MaskRCNN, "train", lambda self, *a, **k: seen.append(self.proposer))
        kept = tensors(model)
        with pytest.raises(UserError, match="step 3 of 4 has no epochs"):
            run(model, (1, 3, 2, 2))
        assert not moved(kept, tensors(model))  # borrowed for the proposer, and given back
    images = np.random.default_rng(0).normal(scale=40, size=(1, 64, 64, 3)).astype("float32")
    first = MaskRCNN("training", SmallConfig(), str(tmp_path / "other"))
    first.load_weights(Path(model.log_dir) / alternating.PROPOSER_FILE, by_name=True)
    np.testing.assert_array_equal(seen[0](images), Proposer(first)(images))

    run(model)
    for name, values in whole[1][-1].items():
        for a, b in zip(values, tensors(model)[name], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)


def test_other_checkpoints_are_refused(whole, tmp_path):
    model, *_ = whole
    older = MaskRCNN("training", SmallConfig(), str(Path(model.log_dir).parent))
    older.load_weights(model.checkpoint_path.format(epoch=2), by_name=True)
    with pytest.raises(UserError, match="epoch 2 is not a checkpoint of alternating training"):
        run(older)


def test_a_layer_that_moves_is_noticed(tmp_path):
    model = MaskRCNN("training", SmallConfig(), str(tmp_path))
    before = alternating._frozen_weights(model, four_steps(model.config)[2])
    alternating._demand_unchanged(model, before)
    layer = model.bank.layers["mrcnn_class_logits"]
    layer.bias.assign(np.ones(3, "float32"))
    with pytest.raises(RuntimeError, match="mrcnn_class_logits has changed"):
        alternating._demand_unchanged(model, before)
