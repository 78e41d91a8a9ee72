"""From a Dataset to training batches.

`BatchLoader` feeds `train`: batch i of epoch e is a pure function of (config.SEED, e, i), whatever
the number of threads and the order of access, so a resumed run sees what an uninterrupted one
would.

Shapes: B images, H W pixels, C channels, L label layers, N instances of one image,
G = MAX_GT_INSTANCES, M = IMAGE_META_SIZE.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from mrcnn.data.examples import Example, make_example, select_instances
from mrcnn.data.random_regions import random_regions
from mrcnn.data.sampling import pass_order, sampling_weights
from mrcnn.data.sources import (
    BrokenImages,
    ImageReader,
    WrongClasses,
    active_classes,
    check_classes,
    warn_dropped,
)
from mrcnn.errors import UserError
from mrcnn.pixels import masks, molding
from mrcnn.pixels.image_meta import compose_image_meta

# First element of a seed, so that the order of the images and the changes to them are drawn from
# different streams.
ORDER_STREAM, EXAMPLE_STREAM = 0, 1


class BatchLoader(keras.utils.PyDataset):
    """Training or validation batches of a Dataset, for `keras.Model.fit(..., shuffle=False)`.

    (With `shuffle=True`, its default, Keras shuffles the batches of an epoch without a seed.)

    dataset: a prepared `mrcnn.data.dataset.Dataset`.
    augmentation: see `mrcnn.data.augment`; only when training.
    shuffle: a new random order for every pass over the data set, in which images come as often as
        `Dataset.sampling_weight` says; only when training.
    steps: batches per epoch (default STEPS_PER_EPOCH, or VALIDATION_STEPS when not training).
    no_augmentation_sources: names of the sources whose images are left as they are.
    training: False returns the same batches in every epoch, without shuffling, augmentation or
        scale jitter (windows of the crop mode are drawn, but always the same ones).
    start_epoch: the epoch to begin with, to continue as if the earlier ones had been run.
    proposer: without USE_RPN_ROIS, makes `input_rois` from the batch's molded images; by default
        they are random regions around the objects.
    part: (i, n): of every batch only the i-th of n equal parts, for n processes that share it.

    `loader[i]` is a tuple of one dictionary:
        input_image         float32 [B, H, W, C], molded
        input_image_meta    float32 [B, M]
        input_gt_class_ids  int32 [B, G], zero padded, negative for crowds
        input_gt_boxes      float32 [B, G, 4], y1, x1, y2, x2 in pixels of the molded image,
                            fractional where scaling puts an outline between pixels
        input_gt_masks      uint8 [B, G, h, w], 0 or 1; mini masks, or whole ones [B, G, H, W]
                            without USE_MINI_MASK
        input_rois          float32 [B, POST_NMS_ROIS_TRAINING, 4], pixels; only without
                            USE_RPN_ROIS
    """

    def __init__(
        self,
        dataset: Any,
        config: Any,
        *,
        augmentation: Any = None,
        shuffle: bool = True,
        steps: int | None = None,
        no_augmentation_sources: Sequence[str] | None = None,
        training: bool = True,
        start_epoch: int = 0,
        proposer: Callable[[np.ndarray], np.ndarray] | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        super().__init__(workers=max(1, config.DATA_WORKERS), use_multiprocessing=False)
        if len(dataset.image_ids) == 0:
            raise UserError("the data set holds no images: add some and call prepare()")
        check_classes(dataset, config.NUM_CLASSES)
        self.dataset = dataset
        self.config = config
        self.training = training
        self.augmentation = augmentation if training else None
        self.shuffle = shuffle and training
        self.weights = sampling_weights(dataset) if self.shuffle else None
        default_steps = config.STEPS_PER_EPOCH if training else config.VALIDATION_STEPS
        self.steps = int(default_steps if steps is None else steps)
        self.plain_sources = frozenset(no_augmentation_sources or ())
        self.epoch = start_epoch
        self.proposer = proposer
        self.part = part
        self.image_shape: tuple[int, ...] | None = None  # all images must have it, where given
        self.reader = ImageReader(dataset, config)
        taken = None if self.weights is None else int(np.count_nonzero(self.weights))
        self.broken = BrokenImages(dataset, taken)
        # The first UserError of a batch. TensorFlow turns what a data thread raises into an error
        # of its own; the caller of fit can raise this one instead.
        self.error: UserError | None = None
        self._within_epoch = False
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()
        self._dropped: dict[int, int] = {}
        self._warned: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.steps

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray]]:
        """Batch `index` of the current epoch."""
        try:
            return self._batch(index)
        except UserError as error:
            self.error = self.error or error
            raise

    def _batch(self, index: int) -> tuple[dict[str, np.ndarray]]:
        batch: dict[str, np.ndarray] = {}
        shapes = set() if self.image_shape is None else {tuple(self.image_shape)}
        positions = self._own(self._positions(index))
        for row, position in enumerate(positions):
            entry = self._entry(position)
            shapes.add(entry["input_image"].shape)
            if len(shapes) > 1:
                raise UserError(
                    f'IMAGE_RESIZE_MODE = "{self.config.IMAGE_RESIZE_MODE}" gives images of '
                    f'different shapes {sorted(shapes)} in one run: use "square" or "crop"'
                )
            for key, array in entry.items():
                if row == 0:
                    batch[key] = np.empty((len(positions), *array.shape), array.dtype)
                batch[key][row] = array
        if self.proposer is not None and not self.config.USE_RPN_ROIS:
            batch["input_rois"] = self.proposer(batch["input_image"])
        return (batch,)

    def on_epoch_begin(self) -> None:
        """Called by Keras."""
        self._within_epoch = True

    def on_epoch_end(self) -> None:
        """Called by Keras: advance to the next epoch."""
        # Keras also calls this before the first epoch, when it resets its iterator.
        if self._within_epoch and self.training:
            self.epoch += 1
        self._within_epoch = False

    @property
    def dropped_instances(self) -> int:
        """Instances left out so far because of MAX_GT_INSTANCES."""
        with self._lock:
            return sum(self._dropped.values())

    def image_ids(self, index: int) -> list[int]:
        """The ids of the images in batch `index` of the current epoch."""
        return [self._load(position)[0] for position in self._positions(index)]

    def _positions(self, index: int) -> range:
        """Positions of a batch's images in the endless sequence of passes over the data set."""
        if not 0 <= index < self.steps:
            raise IndexError(f"batch {index} of {self.steps}")
        batch = self.config.BATCH_SIZE
        epoch = self.epoch if self.training else 0
        start = (epoch * self.steps + index) * batch
        return range(start, start + batch)

    def _own(self, positions: range) -> range:
        """This process's part of a batch's positions."""
        own, count = self.part
        each = len(positions) // count
        return positions[own * each : (own + 1) * each]

    def _image_at(self, position: int) -> int:
        """The id of the image at a position in the endless sequence."""
        ids = self.dataset.image_ids
        which_pass, place = divmod(position, len(ids))
        if not self.shuffle:
            return int(ids[place])
        with self._lock:
            if which_pass not in self._orders:
                rng = np.random.default_rng([self.config.SEED, ORDER_STREAM, which_pass])
                self._orders[which_pass] = pass_order(ids, self.weights, rng)
                if len(self._orders) > 8:  # a batch of a tiny data set spans several passes
                    self._orders.popitem(last=False)
            return int(self._orders[which_pass][place])

    def _load(self, position: int) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The image at a position, or the next one that can be read: (id, arrays)."""
        while True:
            image_id = self._image_at(position)
            if image_id not in self.broken.ids:
                try:
                    return image_id, self.reader.read(image_id)
                except WrongClasses:
                    raise
                except Exception as error:  # whatever a reader of files may raise
                    self.broken.report(image_id, error)
            position += 1

    def _entry(self, position: int) -> dict[str, np.ndarray]:
        """The arrays of one image, without the batch axis."""
        config = self.config
        rng = np.random.default_rng([config.SEED, EXAMPLE_STREAM, position])
        image_id, (image, layers, class_ids) = self._load(position)
        plain = self.dataset.image_info[image_id]["source"] in self.plain_sources
        example = make_example(
            image,
            layers,
            class_ids,
            config,
            rng,
            None if plain else self.augmentation,
            jitter=config.IMAGE_SCALE_JITTER if self.training else (1.0, 1.0),
        )
        example = self._limit(example, position, image_id, rng)
        meta = compose_image_meta(
            image_id,
            image.shape,
            example.image.shape,
            example.window,
            example.scale,
            active_classes(self.dataset, image_id),
        )
        return {
            "input_image": molding.mold_image(example.image, config).astype(np.float32),
            "input_image_meta": np.asarray(meta, np.float32),
            **ground_truth_arrays(example, config, rng, random_rois=self.proposer is None),
        }

    def _limit(self, example: Example, position: int, image_id: int, rng) -> Example:
        """Keep a random MAX_GT_INSTANCES of the instances; count and report the others."""
        count, limit = len(example.class_ids), self.config.MAX_GT_INSTANCES
        if count <= limit:
            return example
        with self._lock:
            self._dropped[position] = count - limit
            first_time = image_id not in self._warned
            self._warned.add(image_id)
        if first_time:
            warn_dropped(self.dataset, image_id, count, limit)
        kept = np.sort(rng.choice(count, limit, replace=False))
        layers, kept = select_instances(example.layers, kept, count)
        return example._replace(layers=layers, class_ids=example.class_ids[kept])


def ground_truth_arrays(
    example: Example, config: Any, rng: np.random.Generator, random_rois: bool = True
) -> dict:
    """Zero-padded class ids [G], boxes [G, 4] and masks [G, h, w] of one example.

    random_rois: without USE_RPN_ROIS also regions around the objects.
    """
    count, limit = len(example.class_ids), config.MAX_GT_INSTANCES
    source_boxes = example.source_boxes()
    boxes = example.to_input(source_boxes)
    mini = config.USE_MINI_MASK
    mask_shape = tuple(config.MINI_MASK_SHAPE[:2]) if mini else example.image.shape[:2]
    arrays = {
        "input_gt_class_ids": np.zeros(limit, np.int32),
        "input_gt_boxes": np.zeros((limit, 4), np.float32),
        "input_gt_masks": np.zeros((limit, *mask_shape), np.uint8),
    }
    if count:
        arrays["input_gt_class_ids"][:count] = example.class_ids
        arrays["input_gt_boxes"][:count] = boxes
        arrays["input_gt_masks"][:count] = (
            masks.layer_mini_masks(example.layers, source_boxes, mask_shape, config.exact_pixels)
            if mini
            else example.whole_masks().transpose(2, 0, 1)
        )
    if random_rois and not config.USE_RPN_ROIS:
        shape, count = example.image.shape, config.POST_NMS_ROIS_TRAINING
        rois = random_regions(shape, count, boxes, rng)
        arrays["input_rois"] = rois.astype(np.float32)
    return arrays
