import numpy as np
import pytest

from mrcnn.data.batches import BatchLoader
from mrcnn.data.dataset import Dataset
from mrcnn.data.mixture import Mixture
from mrcnn.data.sampling import pass_order, sampling_weights
from mrcnn.errors import UserError


class Grey(Dataset):
    """Images of one grey level, each with one square object."""

    def __init__(self, source, level, count, classes=("cell",), heavy=()):
        super().__init__()
        for number, name in enumerate(classes, 1):
            self.add_class(source, number, name)
        for i in range(count):
            self.add_image(source, f"{source}{i}", None)
        self.level, self.heavy = level, heavy
        self.prepare()

    def load_image(self, image_id):
        return np.full((64, 64, 3), self.level, np.uint8)

    def load_mask(self, image_id):
        mask = np.zeros((64, 64, 1), bool)
        mask[10:30, 10 : 20 + image_id] = True
        return mask, np.ones(1, np.int32)

    def sampling_weight(self, image_id):
        return 3.0 if image_id in self.heavy else 1.0

    def image_reference(self, image_id):
        return self.image_info[image_id]["id"]


def test_shares_do_not_depend_on_the_number_of_images():
    mixture = Mixture(Grey("a", 10, 50), [(Grey("b", 20, 4, heavy=(0,)), 0.3)])
    weights = sampling_weights(mixture)
    np.testing.assert_allclose(weights.sum(), 1)
    np.testing.assert_allclose(weights[50:], [0.15, 0.05, 0.05, 0.05])
    rng = np.random.default_rng(0)
    taken = np.concatenate([pass_order(mixture.image_ids, weights, rng) for _ in range(200)])
    assert abs((taken >= 50).mean() - 0.3) < 0.01


def test_every_image_is_that_of_its_part():
    one, other = Grey("a", 10, 3), Grey("b", 20, 2)
    mixture = Mixture(one, [(other, 0.5)])
    assert mixture.class_names == one.class_names and mixture.num_images == 5
    for i, (part, number) in enumerate([(one, 0), (one, 1), (one, 2), (other, 0), (other, 1)]):
        assert mixture.image_reference(i) == part.image_reference(number)
        np.testing.assert_array_equal(mixture.load_image(i), part.load_image(number))
        np.testing.assert_array_equal(mixture.load_mask(i)[0], part.load_mask(number)[0])
        np.testing.assert_array_equal(mixture.load_layers(i)[0], part.load_layers(number)[0])


def test_the_classes_of_all_parts_count_in_training(tiny_config):
    tiny_config.NUM_CLASSES = 2
    mixture = Mixture(Grey("a", 10, 2), [(Grey("b", 20, 2), 0.5)])
    loader = BatchLoader(mixture, tiny_config, training=False, steps=2)
    for index in range(2):
        meta = loader[index][0]["input_image_meta"]
        assert (meta[:, 12:] == 1).all()  # active classes


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.0,), (-0.1,), (1.2,)])
def test_wrong_shares(shares):
    with pytest.raises(UserError, match="must be above 0, and all together below 1"):
        Mixture(Grey("a", 10, 2), [(Grey("b", 20, 2), share) for share in shares])


def test_other_classes():
    with pytest.raises(UserError, match="do not match"):
        Mixture(Grey("a", 10, 2), [(Grey("b", 20, 2, classes=("dog",)), 0.5)])
