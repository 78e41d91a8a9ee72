"""The order of a pass over a data set: permutations, and images taken as often as their weight."""

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.data.batches import ORDER_STREAM, BatchLoader
from mrcnn.data.sampling import pass_order, sampling_weights
from mrcnn.errors import UserError
from tests.support.reference_data import SquaresDataset


class SmallConfig(Config):
    NAME = "small"
    NUM_CLASSES = 3
    IMAGES_PER_GPU = 2
    IMAGE_RESIZE_MODE = "crop"
    IMAGE_MIN_DIM = 64
    MAX_GT_INSTANCES = 8
    STEPS_PER_EPOCH = 3
    SEED = 5


class Weighted(SquaresDataset):
    def __init__(self, weights, **options):
        super().__init__([(64, 64)] * len(weights), **options)
        self.weights = weights

    def sampling_weight(self, image_id):
        return self.weights[image_id]


def generator(number, seed=0):
    return np.random.default_rng([seed, ORDER_STREAM, number])


@pytest.mark.parametrize("weight", [1.0, 0.3, 7])
def test_equal_weights_give_a_permutation(weight):
    ids = np.arange(50)
    for number in range(5):
        order = pass_order(ids, np.full(50, weight), generator(number))
        np.testing.assert_array_equal(order, generator(number).permutation(ids))


@pytest.mark.parametrize("seed", range(40))
def test_a_pass_holds_each_image_floor_or_ceil_of_its_share(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    weights = rng.choice([0.0, 0.1, 1.0, 1.0, 2.0, 17.0], count) * rng.uniform(0.5, 2, count)
    weights[rng.integers(count)] = 1.0
    ids = rng.permutation(1000)[:count]
    share = weights / weights.mean()
    counts = []
    for number in range(200):
        order = pass_order(ids, weights, generator(number, seed))
        assert len(order) == count and set(order) <= set(ids[weights > 0])
        counts.append([(order == image_id).sum() for image_id in ids])
        assert (np.abs(counts[-1] - share) < 1 + 1e-9).all()
    # The standard error of the mean of 200 draws of one or none is at most .036.
    assert np.abs(np.mean(counts, axis=0) - share).max() < 5 * 0.036


def test_copies_of_an_image_are_spread_over_the_pass():
    weights = np.r_[30.0, np.ones(30)]
    places = np.concatenate(
        [
            np.flatnonzero(pass_order(np.arange(31), weights, generator(number)) == 0)
            for number in range(100)
        ]
    )
    assert abs(places.mean() - 15) < 1.5 and places.std() > 7


@pytest.mark.parametrize(
    "weights, message",
    [
        ([1.0, -1.0], r"sampling_weight\(1\) = -1.0 is not allowed"),
        ([1.0, np.nan], r"sampling_weight\(1\) = nan"),
        ([np.inf, 1.0], r"sampling_weight\(0\) = inf"),
        ([0.0, 0.0], "0 for all images"),
    ],
)
def test_wrong_weights_are_one_line(weights, message):
    with pytest.raises(UserError, match=message) as error:
        BatchLoader(Weighted(weights), SmallConfig())
    assert "\n" not in str(error.value)


def test_data_sets_have_equal_weights():
    np.testing.assert_array_equal(sampling_weights(SquaresDataset([(64, 64)] * 3)), np.ones(3))


def test_loader_takes_images_by_weight_and_can_be_resumed():
    dataset = Weighted([5.0, 0.0, 1.0, 1.0, 1.0])
    loader = BatchLoader(dataset, SmallConfig())
    taken = []
    for epoch in range(10):  # 60 places: 12 passes of 5, of which image 0 has 3.125 on average
        loader.epoch = epoch
        taken += [i for batch in range(len(loader)) for i in loader.image_ids(batch)]
    for number in range(12):
        part = taken[5 * number : 5 * number + 5]
        assert part.count(0) in (3, 4) and part.count(1) == 0
    again = BatchLoader(dataset, SmallConfig(), start_epoch=7)
    assert [i for batch in range(3) for i in again.image_ids(batch)] == taken[42:48]


def test_validation_takes_every_image_once():
    loader = BatchLoader(Weighted([9.0, 0.0, 1.0, 1.0]), SmallConfig(), training=False, steps=2)
    assert loader.image_ids(0) + loader.image_ids(1) == [0, 1, 2, 3]


def test_all_images_that_are_taken_may_be_broken():
    class Broken(Weighted):
        def load_image(self, image_id):
            if image_id == 0:
                raise OSError("no such image")
            return super().load_image(image_id)

    with pytest.raises(UserError, match="1 of 1 images failed"):
        BatchLoader(Broken([1.0, 0.0, 0.0]), SmallConfig())[0]
