"""matterport's way to training data: one image with its truth, and the generator."""

import itertools
import warnings

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.data.augment import RandomAugmentation
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.matterport.generator import data_generator, load_image_gt
from mrcnn.pixels.image_meta import parse_image_meta
from tests.support.reference_data import SquaresDataset


class SmallConfig(Config):
    NUM_CLASSES = 3
    IMAGE_MIN_DIM = 64
    IMAGE_MAX_DIM = 128
    MAX_GT_INSTANCES = 6
    MINI_MASK_SHAPE = (20, 20)
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    RPN_TRAIN_ANCHORS_PER_IMAGE = 32
    TRAIN_ROIS_PER_IMAGE = 10


ANCHORS = 3 * sum((128 // stride) ** 2 for stride in (4, 8, 16, 32, 64))


def config_with(**values):
    return type("Changed", (SmallConfig,), values)()


def batches(count, *args, **kwargs):
    return list(itertools.islice(data_generator(*args, **kwargs), count))


def ids_of(inputs):
    return inputs[1][:, 0].astype(int).tolist()


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_one_image_in_matterports_layout(convention):
    config = config_with(PIXEL_CONVENTION=convention, IMAGE_MIN_DIM=128)
    dataset = SquaresDataset([(64, 96)])
    image, meta, class_ids, bbox, mask = load_image_gt(dataset, config, 0)
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert mask.shape == (128, 128, 3) and mask.dtype == bool
    assert class_ids.tolist() == [1, 1, 1] and class_ids.dtype == np.int32
    assert bbox.dtype == np.int32
    parsed = parse_image_meta(meta)
    y1, x1, y2, x2 = parsed["window"]
    assert (y2 - y1, x2 - x1) == (85, 128) and parsed["active_class_ids"].tolist() == [1, 1, 0]
    # Boxes hold their masks, and the masks lie on the bright squares.
    for i, (top, left, bottom, right) in enumerate(bbox):
        assert mask[top:bottom, left:right, i].mean() > 0.9
        assert mask[..., i].sum() == mask[top:bottom, left:right, i].sum()
    inner = mask.sum(axis=-1) == 1
    assert image[inner].mean() > 170 and image[~mask.any(axis=-1)].max() < 201
    expected = dataset.boxes(0) * (4 / 3) + np.tile([y1, x1], 2)
    np.testing.assert_allclose(bbox, expected, atol=1.5)


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_mini_masks_and_crops(convention):
    config = config_with(PIXEL_CONVENTION=convention, IMAGE_RESIZE_MODE="crop")
    dataset = SquaresDataset([(300, 300)], squares=40)
    np.random.seed(0)
    image, _, class_ids, bbox, mask = load_image_gt(dataset, config, 0, use_mini_mask=True)
    assert image.shape == (64, 64, 3)
    # Only what the crop shows is left, and every one of the three lists knows it.
    assert 0 < len(class_ids) < 40 and len(bbox) == mask.shape[-1] == len(class_ids)
    assert mask.shape[:2] == (20, 20) and (bbox[:, 2:] > bbox[:, :2]).all()
    assert mask.mean() > 0.8


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_images_without_objects(convention):
    config = config_with(PIXEL_CONVENTION=convention)

    class Empty(SquaresDataset):
        def load_mask(self, image_id):
            return np.empty([0, 0, 0]), np.empty([0], np.int32)

    image, _, class_ids, bbox, mask = load_image_gt(Empty([(64, 64)]), config, 0)
    assert image.shape == (128, 128, 3) or image.shape == (64, 64, 3)
    assert len(class_ids) == 0 and bbox.shape == (0, 4) and mask.shape == (*image.shape[:2], 0)


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_augment_flips_half_of_the_images(convention):
    config = config_with(PIXEL_CONVENTION=convention)
    dataset = SquaresDataset([(128, 128)])
    np.random.seed(3)
    plain = load_image_gt(dataset, config, 0)
    flipped = 0
    for _ in range(12):
        image, _, _, _, mask = load_image_gt(dataset, config, 0, augment=True)
        if np.array_equal(image, plain[0]):
            np.testing.assert_array_equal(mask, plain[4])
        else:
            np.testing.assert_array_equal(image, plain[0][:, ::-1])
            np.testing.assert_array_equal(mask, plain[4][:, ::-1])
            flipped += 1
    assert 0 < flipped < 12


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_image_and_masks_are_augmented_together(convention):
    config = config_with(PIXEL_CONVENTION=convention)
    dataset = SquaresDataset([(128, 128)], squares=1)
    np.random.seed(1)
    for _ in range(5):
        image, _, _, bbox, mask = load_image_gt(
            dataset, config, 0, augmentation=RandomAugmentation(invert=0, gamma=0, hue=0, blur=0)
        )
        y1, x1, y2, x2 = bbox[0]
        assert mask[y1:y2, x1:x2].all() and (y2 - y1, x2 - x1) == (12, 12)
        assert image[mask[..., 0]].min() > image[~mask[..., 0]].max()


def test_quarter_turns_of_long_images_are_refused_where_they_would_break_the_window():
    config = config_with(IMAGE_RESIZE_MODE="none", IMAGE_MIN_DIM=0)

    def turn(image, layers, rng):
        return np.rot90(image), np.rot90(layers)

    with pytest.raises(UserError, match=r"changed the image from \(64, 128, 3\)"):
        load_image_gt(SquaresDataset([(64, 128)]), config, 0, augmentation=turn)


def test_generator_in_matterports_layout():
    config = SmallConfig()
    ((inputs, outputs),) = batches(1, SquaresDataset([(64, 96)] * 3), config, batch_size=2)
    assert outputs == []
    shapes = [array.shape for array in inputs]
    assert shapes == [
        (2, 128, 128, 3), (2, config.IMAGE_META_SIZE), (2, ANCHORS, 1), (2, 32, 4), (2, 6),
        (2, 6, 4), (2, 20, 20, 6),
    ]  # fmt: skip
    types = [inputs[i].dtype.type for i in (0, 2, 4, 5, 6)]
    assert types == [np.float32, np.int32, np.int32, np.int32, np.bool_]
    assert (inputs[4] == [1, 1, 1, 0, 0, 0]).all() and not inputs[5][:, 3:].any()
    counts = [(inputs[2] == value).sum(axis=(1, 2)) for value in (1, -1)]
    assert (counts[0] > 0).all() and (counts[0] + counts[1] == 32).all()


def test_generator_goes_through_the_data_set_batch_by_batch():
    found = batches(3, SquaresDataset([(64, 64)] * 3), SmallConfig(), shuffle=False, batch_size=2)
    assert [ids_of(inputs) for inputs, _ in found] == [[0, 1], [2, 0], [1, 2]]


def test_generator_shuffles_every_pass():
    np.random.seed(0)
    found = batches(12, SquaresDataset([(64, 64)] * 6), SmallConfig(), batch_size=1)
    ids = sum((ids_of(inputs) for inputs, _ in found), [])
    assert sorted(ids[:6]) == sorted(ids[6:]) == list(range(6)) and ids[:6] != ids[6:]


def test_generator_with_random_regions_and_their_targets():
    ((inputs, outputs),) = batches(
        1, SquaresDataset([(64, 64)] * 2), SmallConfig(), batch_size=2, random_rois=200,
        detection_targets=True,
    )  # fmt: skip
    assert [array.shape for array in inputs[7:]] == [(2, 200, 4), (2, 10, 4)]
    assert [array.shape for array in outputs] == [(2, 10, 1), (2, 10, 3, 4), (2, 10, 28, 28, 3)]


def test_generator_yields_images_without_objects():
    ((inputs, _),) = batches(
        1, SquaresDataset([(64, 64)], squares=0), SmallConfig(), random_rois=20,
        detection_targets=True,
    )  # fmt: skip
    assert not inputs[4].any() and not (inputs[2] == 1).any() and (inputs[2] == -1).any()


def test_generator_leaves_sources_unaugmented():
    def blacken(image, layers, rng):
        return np.zeros_like(image), layers

    config = SmallConfig()
    dataset = SquaresDataset([(64, 64)] * 2, source=["squares", "other"])
    ((inputs, _),) = batches(
        1, dataset, config, shuffle=False, batch_size=2, augmentation=blacken,
        no_augmentation_sources=["other"],
    )  # fmt: skip
    raw = inputs[0] + config.MEAN_PIXEL
    assert raw[0].max() < 1 and raw[1].max() > 100


def test_generator_reports_what_it_leaves_out():
    config = config_with(MAX_GT_INSTANCES=2)
    with pytest.warns(MRCNNWarning, match="image0.png.*MAX_GT_INSTANCES = 2") as caught:
        found = batches(3, SquaresDataset([(64, 64)], squares=4), config)
    assert len(caught) == 1 and found[0][0][4].shape == (1, 2)


def test_generator_skips_broken_images():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = batches(4, SquaresDataset([(64, 64)] * 3, broken={1}), SmallConfig(), shuffle=False)
    assert [ids_of(inputs) for inputs, _ in found] == [[0], [2], [0], [2]]
    assert len(caught) == 1 and "image1.png" in str(caught[0].message)


def test_generator_gives_up_on_many_broken_images():
    dataset = SquaresDataset([(64, 64)] * 9, broken=set(range(7)))
    with pytest.warns(MRCNNWarning), pytest.raises(UserError, match="6 of 9 images failed"):
        batches(1, dataset, SmallConfig(), shuffle=False)
