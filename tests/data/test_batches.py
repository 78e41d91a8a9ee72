"""The batch loader: what is in a batch, that it can be repeated, and what it puts up with."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.data.augment import RandomAugmentation
from mrcnn.data.batches import BatchLoader
from mrcnn.data.sources import MAX_BROKEN_IMAGES, ImageCache
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.matterport.generator import data_generator
from tests.support.reference_data import SquaresDataset


class TinyConfig(Config):
    NAME = "tiny"
    NUM_CLASSES = 3
    IMAGES_PER_GPU = 2
    PIXEL_CONVENTION = "exact"
    IMAGE_RESIZE_MODE = "crop"
    IMAGE_MIN_DIM = 64
    IMAGE_MAX_DIM = 128
    IMAGE_SCALE_JITTER = (0.7, 1.4)
    MAX_GT_INSTANCES = 8
    MINI_MASK_SHAPE = (14, 14)
    STEPS_PER_EPOCH = 4
    VALIDATION_STEPS = 2
    SEED = 5


def config_with(**values):
    return type("Changed", (TinyConfig,), values)()


def dataset_of(count, **options):
    return SquaresDataset([(80 + 4 * i, 100) for i in range(count)], **options)


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)


def run_epoch(loader):
    """All batches of an epoch, with Keras's calls around them."""
    loader.on_epoch_begin()
    batches = [loader[i][0] for i in range(len(loader))]
    loader.on_epoch_end()
    return batches


def ids_of(batch):
    return batch["input_image_meta"][:, 0].astype(int).tolist()


# ---- What is in a batch ------------------------------------------------------------------------


def test_keys_shapes_and_types():
    config = TinyConfig()
    (batch,) = BatchLoader(dataset_of(5), config)[0]
    expected = {
        "input_image": ((2, 64, 64, 3), np.float32),
        "input_image_meta": ((2, config.IMAGE_META_SIZE), np.float32),
        "input_gt_class_ids": ((2, 8), np.int32),
        "input_gt_boxes": ((2, 8, 4), np.float32),
        "input_gt_masks": ((2, 8, 14, 14), np.uint8),
    }
    assert {key: (value.shape, value.dtype.type) for key, value in batch.items()} == expected


def test_content_of_a_plain_batch():
    """Without scaling and augmentation, molded image, boxes and masks are the source's."""
    config = config_with(IMAGE_SCALE_JITTER=(1.0, 1.0))
    dataset = SquaresDataset([(64, 64)] * 2, squares=2)
    (batch,) = BatchLoader(dataset, config, shuffle=False)[0]
    for i in range(2):
        expected = dataset.load_image(i) - config.MEAN_PIXEL.astype(np.float32)
        np.testing.assert_allclose(batch["input_image"][i], expected, atol=1e-3)
        np.testing.assert_array_equal(batch["input_gt_boxes"][i, :2], dataset.boxes(i))
        assert batch["input_gt_class_ids"][i].tolist() == [1, 1] + [0] * 6
        assert batch["input_gt_masks"][i, :2].all() and not batch["input_gt_masks"][i, 2:].any()
        assert batch["input_image_meta"][i].tolist() == [
            i, 64, 64, 3, 64, 64, 3, 0, 0, 64, 64, 1, 1, 1, 0,
        ]  # fmt: skip


def test_images_without_objects_give_zeros():
    (batch,) = BatchLoader(dataset_of(3, squares=0), TinyConfig())[0]
    for key in ("input_gt_class_ids", "input_gt_boxes", "input_gt_masks"):
        assert not batch[key].any()


def test_overlapping_masks_stay_whole():
    class Overlapping(SquaresDataset):
        def boxes(self, image_id):
            return np.array([[10, 10, 40, 40], [20, 20, 60, 60]])

    config = config_with(IMAGE_SCALE_JITTER=(1.0, 1.0), USE_MINI_MASK=False)
    dataset = Overlapping([(64, 64)] * 2, squares=2)
    (batch,) = BatchLoader(dataset, config, shuffle=False)[0]
    masks, _ = dataset.load_mask(0)
    np.testing.assert_array_equal(
        batch["input_gt_masks"][0, :2].astype(bool), masks.transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(batch["input_gt_boxes"][0, :2], dataset.boxes(0))


def test_whole_masks_fill_their_boxes():
    config = config_with(USE_MINI_MASK=False, IMAGE_SCALE_JITTER=(1.3, 1.3))
    (batch,) = BatchLoader(dataset_of(4, squares=1), config, augmentation=RandomAugmentation())[1]
    assert batch["input_gt_masks"].shape == (2, 8, 64, 64)
    boxes = batch["input_gt_boxes"]
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    pixels = batch["input_gt_masks"].sum(axis=(2, 3))
    np.testing.assert_allclose(pixels, areas, rtol=0.2)


def test_crowds_keep_their_negative_ids():
    class Crowds(SquaresDataset):
        def load_mask(self, image_id):
            masks, class_ids = super().load_mask(image_id)
            return masks, class_ids * [1, -1]

    config = config_with(IMAGE_SCALE_JITTER=(1.0, 1.0))
    (batch,) = BatchLoader(Crowds([(64, 64)] * 2, squares=2), config)[0]
    assert batch["input_gt_class_ids"][:, :2].tolist() == [[1, -1]] * 2


def test_more_instances_than_allowed_are_counted_and_reported_once():
    config = config_with(MAX_GT_INSTANCES=2, IMAGE_SCALE_JITTER=(1.0, 1.0))
    loader = BatchLoader(SquaresDataset([(64, 64)] * 2, squares=5), config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (first,), (again,), _ = loader[0], loader[0], loader[1]
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2 and all("MAX_GT_INSTANCES = 2" in text for text in texts)
    assert {text.split(":")[0] for text in texts} == {"image0.png", "image1.png"}
    # Four images were used, each three too many; the repeated batch counts once.
    dropped = loader.dropped_instances
    assert 4 <= dropped <= 12 and (first["input_gt_class_ids"] == 1).all()
    loader[0]
    assert loader.dropped_instances == dropped
    assert_same(first, again)


def test_sources_can_be_left_unaugmented():
    dataset = SquaresDataset([(64, 64)] * 6, source=["squares", "other"])
    config = config_with(IMAGE_SCALE_JITTER=(1.0, 1.0))

    def blacken(image, layers, rng):
        return np.zeros_like(image), layers

    loader = BatchLoader(
        dataset, config, augmentation=blacken, steps=3, no_augmentation_sources=["other"]
    )
    for batch in run_epoch(loader):
        raw = batch["input_image"] + config.MEAN_PIXEL
        for image_id, image in zip(ids_of(batch), raw, strict=True):
            assert (image.max() > 100) == (image_id % 2 == 1)


def test_random_regions_where_the_rpn_gives_none():
    config = config_with(USE_RPN_ROIS=False, POST_NMS_ROIS_TRAINING=50)
    (batch,) = BatchLoader(dataset_of(3), config)[0]
    rois = batch["input_rois"]
    assert rois.shape == (2, 50, 4) and rois.dtype == np.float32
    assert (rois[..., 2:] > rois[..., :2]).all() and rois.min() >= 0 and rois.max() <= 64


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_channel_counts(channels):
    mean = np.arange(channels) + 20.0
    config = config_with(IMAGE_CHANNEL_COUNT=channels, MEAN_PIXEL=mean)
    dataset = dataset_of(3, channels=channels)
    (batch,) = BatchLoader(dataset, config, augmentation=RandomAugmentation())[0]
    assert batch["input_image"].shape == (2, 64, 64, channels)
    assert np.isfinite(batch["input_image"]).all()


def test_colour_images_become_grey_where_one_channel_is_wanted():
    config = config_with(IMAGE_CHANNEL_COUNT=1, MEAN_PIXEL=np.array([0.0]))
    (batch,) = BatchLoader(dataset_of(3, channels=3), config)[0]
    assert batch["input_image"].shape == (2, 64, 64, 1) and batch["input_image"].max() > 150


@pytest.mark.parametrize("mode", ["square", "crop"])
@pytest.mark.parametrize("convention", ["exact", "matterport"])
def test_modes_for_images_of_any_size(mode, convention):
    dim = 128 if mode == "square" else 64
    config = config_with(IMAGE_RESIZE_MODE=mode, PIXEL_CONVENTION=convention)
    dataset = SquaresDataset([(50, 90), (150, 40), (30, 30), (200, 200)])
    for batch in run_epoch(BatchLoader(dataset, config, augmentation=RandomAugmentation())):
        assert batch["input_image"].shape == (2, dim, dim, 3)
        assert batch["input_gt_boxes"].min() >= 0 and batch["input_gt_boxes"].max() <= dim


@pytest.mark.parametrize("mode", ["pad64", "none"])
def test_modes_that_keep_the_shape(mode):
    config = config_with(IMAGE_RESIZE_MODE=mode, IMAGE_MIN_DIM=64)
    size = 100 if mode == "pad64" else 128
    (batch,) = BatchLoader(SquaresDataset([(size, size)] * 3), config)[0]
    assert batch["input_image"].shape == (2, 128, 128, 3)
    mixed = BatchLoader(SquaresDataset([(64, 64), (192, 64)]), config)
    with pytest.raises(UserError, match=f'IMAGE_RESIZE_MODE = "{mode}".*square'):
        mixed[0]


# ---- Repeatable --------------------------------------------------------------------------------


def test_batches_do_not_depend_on_order_or_threads():
    dataset, config, moves = dataset_of(7), TinyConfig(), RandomAugmentation()
    expected = run_epoch(BatchLoader(dataset, config, augmentation=moves, steps=9))
    other = BatchLoader(dataset, config, augmentation=moves, steps=9)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(9), 2)).tolist()
    with ThreadPoolExecutor(4) as pool:
        for index, (batch,) in zip(order, pool.map(other.__getitem__, order), strict=True):
            assert_same(batch, expected[index])


def test_resuming_gives_what_an_uninterrupted_run_would_have():
    dataset, config, moves = dataset_of(7), TinyConfig(), RandomAugmentation()
    whole = BatchLoader(dataset, config, augmentation=moves)
    epochs = [run_epoch(whole) for _ in range(3)]
    resumed = run_epoch(BatchLoader(dataset, config, augmentation=moves, start_epoch=2))
    for one, two in zip(epochs[2], resumed, strict=True):
        assert_same(one, two)
    assert not np.array_equal(epochs[0][0]["input_image"], epochs[1][0]["input_image"])


def test_another_seed_gives_other_batches():
    one, two = (
        BatchLoader(dataset_of(7), config_with(SEED=seed))[0][0]["input_image"] for seed in (1, 2)
    )
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_visits_every_image_once(shuffle):
    loader = BatchLoader(dataset_of(8), TinyConfig(), shuffle=shuffle)
    passes = [sum((ids_of(batch) for batch in run_epoch(loader)), []) for _ in range(3)]
    for ids in passes:
        assert sorted(ids) == list(range(8))
    assert (passes[0] == list(range(8))) == (not shuffle)
    assert (passes[0] != passes[1]) == shuffle


def test_passes_go_on_across_epochs():
    """Epochs shorter than the data set: no image comes twice before all came once."""
    loader = BatchLoader(dataset_of(9), TinyConfig(), steps=3)
    ids = sum((ids_of(batch) for _ in range(3) for batch in run_epoch(loader)), [])
    assert sorted(ids[:9]) == sorted(ids[9:]) == list(range(9))


def test_data_sets_smaller_than_a_batch_repeat():
    loader = BatchLoader(dataset_of(2), config_with(IMAGES_PER_GPU=5), steps=1)
    ids = ids_of(loader[0][0])
    assert len(ids) == 5 and set(ids) == {0, 1} and set(ids[:2]) == {0, 1}


def test_validation_is_the_same_every_epoch():
    config = TinyConfig()
    loader = BatchLoader(
        dataset_of(6), config, augmentation=RandomAugmentation(invert=1.0), training=False
    )
    assert len(loader) == config.VALIDATION_STEPS
    first, second = run_epoch(loader), run_epoch(loader)
    for one, two in zip(first, second, strict=True):
        assert_same(one, two)
        assert (one["input_image_meta"][:, 11] == 1).all()  # the scale: no jitter
        # Not augmented: the ground of image i has brightness 10 + i.
        raw = one["input_image"] + config.MEAN_PIXEL
        np.testing.assert_allclose(raw.min(axis=(1, 2, 3)), np.array(ids_of(one)) + 10, atol=1e-3)
    assert sum(map(ids_of, first), []) == [0, 1, 2, 3]


def test_the_epoch_counts_only_what_was_begun():
    """Keras resets its iterator before the first epoch, which also ends an epoch."""
    loader = BatchLoader(dataset_of(3), TinyConfig(), start_epoch=4)
    loader.on_epoch_end()
    assert loader.epoch == 4
    run_epoch(loader)
    assert loader.epoch == 5


def test_image_ids_name_the_batch():
    loader = BatchLoader(dataset_of(7), TinyConfig())
    assert [loader.image_ids(i) for i in range(4)] == [ids_of(loader[i][0]) for i in range(4)]


# ---- In Keras's hands --------------------------------------------------------------------------


class Recorder(keras.Model):
    """A model that learns nothing and remembers which images it was given."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.seen = []

    def call(self, inputs):
        return self.dense(inputs["input_gt_boxes"])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.seen.append((training, keras.ops.convert_to_numpy(x["input_image_meta"][:, 0])))
        return keras.ops.mean(y_pred**2)


@pytest.mark.parametrize("workers", [1, 2])
def test_fit_gets_every_batch_in_order_and_leaves_no_thread(workers):
    config, dataset = config_with(DATA_WORKERS=workers), dataset_of(7)
    reference = BatchLoader(dataset, config, start_epoch=1)
    expected = sum((list(map(ids_of, run_epoch(reference))) for _ in range(3)), [])
    before = set(threading.enumerate())
    loader = BatchLoader(dataset, config, start_epoch=1)
    validation = BatchLoader(dataset, config, training=False)
    model = Recorder()
    model(loader[0][0])  # built here, or Keras would build it by a run on made-up numbers
    model.compile("sgd", run_eagerly=True)
    # Without shuffle=False Keras would mix the batches, beyond our seed's control.
    model.fit(
        loader, validation_data=validation, initial_epoch=1, epochs=4, shuffle=False, verbose=0
    )
    seen = [ids.astype(int).tolist() for training, ids in model.seen if training]
    checked = [ids.astype(int).tolist() for training, ids in model.seen if not training]
    assert seen == expected
    assert checked == [[0, 1], [2, 3]] * 3
    assert loader.epoch == 4
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive(), thread.name


# ---- What it puts up with ----------------------------------------------------------------------


def test_a_broken_image_is_replaced_and_named_once():
    dataset = dataset_of(5, broken={2})
    loader = BatchLoader(dataset, TinyConfig(), shuffle=False, steps=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = run_epoch(loader) + run_epoch(loader)
    assert [str(warning.message).split(":")[0] for warning in caught] == ["image2.png"]
    assert issubclass(caught[0].category, MRCNNWarning)
    assert sum(map(ids_of, batches), [])[:5] == [0, 1, 3, 3, 4]
    assert loader.image_ids(1) == ids_of(loader[1][0])


def test_many_broken_images_are_an_error():
    count = MAX_BROKEN_IMAGES + 1
    loader = BatchLoader(dataset_of(20, broken=set(range(count))), TinyConfig(), shuffle=False)
    with pytest.warns(MRCNNWarning), pytest.raises(UserError, match=f"{count} of 20 images failed"):
        loader[0]
    assert isinstance(loader.error, UserError)


def test_only_broken_images_are_an_error():
    loader = BatchLoader(dataset_of(2, broken={0, 1}), TinyConfig())
    with pytest.warns(MRCNNWarning), pytest.raises(UserError, match="2 of 2 images failed"):
        loader[0]


@pytest.mark.parametrize(
    ("load_layers", "message"),
    [
        (lambda i: (np.zeros((3, 3, 1), np.int32), np.zeros(0, np.int32)), r"masks \(3, 3\)"),
        (lambda i: (np.full((80, 100, 1), 7, np.int32), np.ones(2, np.int32)), "only 2 class ids"),
    ],
)
def test_masks_that_do_not_fit_are_reported(load_layers, message):
    dataset = dataset_of(1)
    dataset.load_layers = load_layers
    with pytest.raises(UserError, match=message):
        BatchLoader(dataset, TinyConfig())[0]


def test_errors_of_an_augmentation_are_not_taken_for_broken_files():
    def wrong(image, layers, rng):
        raise ZeroDivisionError

    loader = BatchLoader(dataset_of(3), TinyConfig(), augmentation=wrong)
    with pytest.raises(ZeroDivisionError):
        loader[0]


def test_an_empty_data_set_is_refused():
    with pytest.raises(UserError, match="no images"):
        BatchLoader(dataset_of(0), TinyConfig())


def test_there_is_no_batch_beyond_the_last():
    loader = BatchLoader(dataset_of(3), TinyConfig())
    with pytest.raises(IndexError):
        loader[len(loader)]


# ---- Cache -------------------------------------------------------------------------------------


def test_images_are_read_once_while_they_fit():
    dataset = dataset_of(4)
    loader = BatchLoader(dataset, TinyConfig())
    for _ in range(3):
        run_epoch(loader)
    assert dataset.loads == 4
    assert loader.reader.memory.bytes <= loader.reader.memory.max_bytes


def test_the_cache_keeps_no_larger_array_alive():
    loader = BatchLoader(dataset_of(2, channels=4), TinyConfig())
    image = loader.reader.read(0)[0]
    assert image.shape[-1] == 3 and image.base is None
    assert loader.reader.memory.get(0)[0] is image


def test_the_cache_holds_no_more_than_its_bound():
    cache = ImageCache(1000)
    for key in range(10):
        cache.put(key, (np.zeros(100, np.uint8), np.zeros(100, np.uint16)))
        assert cache.bytes <= 1000
        cache.get(0)  # the one in use stays
    assert cache.bytes == 900
    assert [key for key in range(10) if cache.get(key) is not None] == [0, 8, 9]
    cache.put(99, (np.zeros(2000, np.uint8),))
    assert cache.get(99) is None and cache.bytes == 900


def test_batches_do_not_depend_on_the_cache():
    dataset, config = dataset_of(4), TinyConfig()
    cached, uncached = BatchLoader(dataset, config), BatchLoader(dataset, config)
    uncached.reader.memory = ImageCache(0)
    for one, two in zip(run_epoch(cached), run_epoch(uncached), strict=True):
        assert_same(one, two)
    loads = dataset.loads
    uncached.on_epoch_begin()
    uncached[0]
    assert dataset.loads == loads + 2


class KnownSquares(SquaresDataset):
    """A data set that can say when an image has changed."""

    version = 0

    def fingerprint(self, image_id):
        return f"{self.image_info[image_id]['size']} {self.version}"


def test_batches_do_not_depend_on_the_disk_cache(tmp_path):
    sizes, moves = [(80, 100), (90, 70)], RandomAugmentation()
    plain = run_epoch(BatchLoader(KnownSquares(sizes), TinyConfig(), augmentation=moves))
    config = config_with(CACHE_DIR=tmp_path / "cache")
    for expected_loads in (2, 0):  # the second time from the folder
        dataset = KnownSquares(sizes)
        loader = BatchLoader(dataset, config, augmentation=moves)
        for one, two in zip(plain, run_epoch(loader), strict=True):
            assert_same(one, two)
        assert dataset.loads == expected_loads
    dataset.version = 1
    run_epoch(BatchLoader(dataset, config))
    assert dataset.loads == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_broken_images_are_not_cached(tmp_path):
    config = config_with(CACHE_DIR=str(tmp_path))
    for _ in range(2):
        loader = BatchLoader(KnownSquares([(80, 100)] * 3, broken={1}), config)
        with pytest.warns(MRCNNWarning, match="image1.png: cannot be used"):
            run_epoch(loader)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_cache_needs_fingerprints(tmp_path):
    config = config_with(CACHE_DIR=tmp_path / "cache")
    with pytest.warns(MRCNNWarning, match="SquaresDataset does not override fingerprint"):
        loader = BatchLoader(dataset_of(3), config)
    run_epoch(loader)
    assert not (tmp_path / "cache").exists()


def test_a_disk_cache_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    config = config_with(CACHE_DIR=tmp_path / "file")
    with pytest.raises(UserError, match="CACHE_DIR = .*file: not a folder"):
        BatchLoader(KnownSquares([(80, 100)]), config)


@pytest.mark.parametrize(
    "class_ids, words",
    [
        ([1, 1, 3], "image0.png: load_mask gives the class id 3, but NUM_CLASSES = 3"),
        ([1, -4, 1], "image0.png: load_mask gives the class id -4"),
        ([1, 0, 1], "0 is the background"),
        ([1, 1.5, 1], "not whole numbers"),
        ([1, 2**40, 1], "not whole numbers"),
    ],
)
def test_class_ids_that_are_no_classes(class_ids, words):
    """Not one broken image among others: nothing right can be learnt from such a data set."""
    dataset = dataset_of(1)
    dataset.load_mask = lambda image_id: (SquaresDataset.load_mask(dataset, image_id)[0], class_ids)
    with pytest.raises(UserError, match=words):
        BatchLoader(dataset, TinyConfig())[0]
    for convention in ("matterport", "exact"):
        config = config_with(IMAGE_RESIZE_MODE="square", PIXEL_CONVENTION=convention)
        with pytest.raises(UserError, match=words):
            next(data_generator(dataset, config))


def test_wrong_class_ids_of_one_image_end_training():
    dataset = dataset_of(9)
    masks, wrong = dataset.load_mask, 5
    dataset.load_mask = lambda i: (masks(i)[0], np.full(3, 8 if i == wrong else 1))
    loader = BatchLoader(dataset, TinyConfig(), steps=9)
    with pytest.raises(UserError, match="image5.png: load_mask gives the class id 8, but NUM_CLAS"):
        run_epoch(loader)
    assert not loader.broken.ids


@pytest.mark.parametrize("count", [2, 5])
def test_as_many_classes_as_the_network(count):
    config = config_with(NUM_CLASSES=count)
    for begin in (BatchLoader, lambda *arguments: next(data_generator(*arguments))):
        with pytest.raises(
            UserError, match=f"3 classes .*BG, square, other.* NUM_CLASSES = {count}"
        ):
            begin(dataset_of(2), config)
    with pytest.raises(UserError, match="image0.png: its source .?nobody.? has no class"):
        BatchLoader(dataset_of(2, source="nobody"), TinyConfig())
