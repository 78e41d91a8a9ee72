"""matterport's interface to training data: `load_image_gt` and `data_generator`.

Both keep matterport's arguments and layouts, and as there they draw from NumPy's global random
state (seed with `np.random.seed`). `mrcnn.model.MaskRCNN.train` uses
`mrcnn.data.batches.BatchLoader`.

Shapes: B images, H W pixels, C channels, N instances of one image, G = MAX_GT_INSTANCES,
M = IMAGE_META_SIZE, A anchors, R random regions, T = TRAIN_ROIS_PER_IMAGE, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mrcnn.data.augment import apply_augmentation
from mrcnn.data.dataset import whole_numbers
from mrcnn.data.examples import make_example
from mrcnn.data.sources import (
    BrokenImages,
    WrongClasses,
    active_classes,
    check_class_ids,
    check_classes,
    load_arrays,
    warn_dropped,
)
from mrcnn.errors import UserError
from mrcnn.matterport.numpy_targets import (
    build_detection_targets,
    build_rpn_targets,
    generate_random_rois,
)
from mrcnn.network.anchors import image_anchors
from mrcnn.pixels import masks, molding
from mrcnn.pixels.boxes import extract_bboxes
from mrcnn.pixels.image_meta import compose_image_meta


def _global_rng() -> np.random.Generator:
    return np.random.default_rng(np.random.randint(2**31))


def load_image_gt(
    dataset: Any,
    config: Any,
    image_id: int,
    augment: bool = False,
    augmentation: Any = None,
    use_mini_mask: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Load one image with its ground truth, resized as the network needs it.

    augment: already deprecated in matterport: a left-right flip in half of the cases.
    augmentation: see `mrcnn.data.augment`; it must keep the image's height and width.
    use_mini_mask: return the masks cut to their boxes and resized to MINI_MASK_SHAPE.

    Returns image [H, W, C] of the image's own type, not molded; image_meta [M]; class_ids
    int32 [N]; bbox int32 [N, 4] pixels (y1, x1, y2, x2); mask bool [H, W, N] or mini masks
    [h, w, N]. Instances without a pixel in the result are left out.

    With PIXEL_CONVENTION = "matterport" image and masks are sampled as in matterport; with
    "exact" as in training.
    """
    load = _load_exact if config.exact_pixels else _load_as_matterport
    rng = _global_rng()
    image, mask, class_ids, original_shape, window, scale = load(
        dataset, config, image_id, rng, _with_flip(augmentation, augment)
    )
    bbox = extract_bboxes(mask)
    meta = compose_image_meta(
        image_id, original_shape, image.shape, window, scale, active_classes(dataset, image_id)
    )
    if use_mini_mask:
        mask = masks.minimize_mask(bbox, mask, config.MINI_MASK_SHAPE, exact=config.exact_pixels)
    return image, meta, class_ids, bbox, mask


def _with_flip(augmentation: Any, augment: bool) -> Any:
    """The augmentation, preceded by matterport's deprecated random flip if asked for."""
    if not augment:
        return augmentation
    logging.warning("load_image_gt: augment is deprecated, use augmentation")

    def flip_and_more(image, layers, rng):
        if rng.random() < 0.5:
            image, layers = image[:, ::-1], layers[:, ::-1]
        return apply_augmentation(augmentation, image, layers, rng)

    return flip_and_more


def _load_as_matterport(dataset, config, image_id, rng, augmentation):
    """Resize image and masks each in matterport's way, then augment what the network will see."""
    image = np.asarray(dataset.load_standardised(image_id, config))
    mask, class_ids = dataset.load_mask(image_id)
    original_shape = image.shape
    if mask.shape[-1] == 0:  # the base class returns [0, 0, 0] for an image without instances
        mask = np.zeros((*original_shape[:2], 0), bool)
    image = molding.adapt_channels(image, config.IMAGE_CHANNEL_COUNT)
    image, window, scale, padding, crop = molding.resize_image(
        image,
        min_dim=config.IMAGE_MIN_DIM,
        max_dim=config.IMAGE_MAX_DIM,
        min_scale=config.IMAGE_MIN_SCALE,
        mode=config.IMAGE_RESIZE_MODE,
        rng=rng,
    )
    mask = masks.resize_mask(mask, scale, padding, crop).astype(bool)
    if augmentation is not None:
        shape, count = image.shape, mask.shape[-1]
        layers = masks.masks_to_layers(mask)
        image, layers = apply_augmentation(augmentation, image, layers, rng)
        if image.shape != shape:
            raise UserError(f"augmentation: it changed the image from {shape} to {image.shape}")
        mask = masks.layers_to_masks(layers, count)
    kept = mask.any(axis=(0, 1))
    class_ids = whole_numbers(class_ids, image_id)
    check_class_ids(dataset, image_id, class_ids)
    return image, mask[:, :, kept], class_ids[kept], original_shape, window, scale


def _load_exact(dataset, config, image_id, rng, augmentation):
    """The training pipeline's sampling, with matterport's layout of the result."""
    image, layers, class_ids = load_arrays(dataset, image_id, config)
    example = make_example(image, layers, class_ids, config, rng, augmentation, min_area=0)
    mask = example.whole_masks()
    kept = mask.any(axis=(0, 1))
    resized = example.image
    if np.issubdtype(image.dtype, np.integer):
        resized = np.rint(resized).astype(image.dtype)
    class_ids = example.class_ids[kept]
    return resized, mask[:, :, kept], class_ids, image.shape, example.window, example.scale


def data_generator(
    dataset: Any,
    config: Any,
    shuffle: bool = True,
    augment: bool = False,
    augmentation: Any = None,
    random_rois: int = 0,
    batch_size: int = 1,
    detection_targets: bool = False,
    no_augmentation_sources: Sequence[str] | None = None,
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Yield batches endlessly, as matterport's generator does.

    shuffle: a new order for every pass over the data set. augment, augmentation: see
    `load_image_gt`. random_rois: add this many random regions R per image. detection_targets:
    with random_rois, add the targets of the heads too. no_augmentation_sources: names of sources
    whose images are not augmented.

    Yields (inputs, outputs), lists of arrays:
        inputs: images float32 [B, H, W, C] molded, image_meta [B, M], rpn_match int32 [B, A, 1],
            rpn_bbox [B, RPN_TRAIN_ANCHORS_PER_IMAGE, 4], gt_class_ids int32 [B, G], gt_boxes
            int32 [B, G, 4] pixels, gt_masks bool [B, h, w, G]; then rpn_rois int32 [B, R, 4] with
            random_rois, and rois [B, T, 4] with detection_targets.
        outputs: empty, or with detection_targets class_ids [B, T, 1], bboxes [B, T, K, 4] and
            masks [B, T, MASK_SHAPE, K].

    Unlike matterport's it also yields images without objects (their anchors are all background).
    An image that cannot be used is reported once and skipped; UserError after five of them.
    """
    check_classes(dataset, config.NUM_CLASSES)
    plain_sources = frozenset(no_augmentation_sources or ())
    broken, crowded = BrokenImages(dataset), set()
    rows: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    for image_id in _endless_ids(dataset, shuffle):
        if image_id in broken.ids:
            continue
        plain = dataset.image_info[image_id]["source"] in plain_sources
        try:
            loaded = load_image_gt(
                dataset,
                config,
                image_id,
                augment=augment and not plain,
                augmentation=None if plain else augmentation,
                use_mini_mask=config.USE_MINI_MASK,
            )
        except WrongClasses:
            raise
        except Exception as error:  # file readers may raise anything
            broken.report(image_id, error)
            continue
        count = len(loaded[2])
        if count > config.MAX_GT_INSTANCES and image_id not in crowded:
            crowded.add(image_id)
            warn_dropped(dataset, image_id, count, config.MAX_GT_INSTANCES)
        rows.append(_generator_row(loaded, config, random_rois, detection_targets))
        if len(rows) == batch_size:
            inputs, outputs = (
                [np.stack(arrays) for arrays in zip(*part, strict=True)]
                for part in zip(*rows, strict=True)
            )
            yield inputs, outputs
            rows = []


def _endless_ids(dataset: Any, shuffle: bool) -> Iterator[int]:
    ids = np.array(dataset.image_ids)
    while len(ids):
        if shuffle:
            np.random.shuffle(ids)
        yield from ids.tolist()


def _generator_row(loaded, config, random_rois, detection_targets):
    """One image's share of a batch: (inputs, outputs) without the batch axis."""
    image, meta, class_ids, boxes, mask = loaded
    rng = _global_rng()
    limit = config.MAX_GT_INSTANCES
    match, deltas = build_rpn_targets(
        image.shape, image_anchors(config, image.shape), class_ids, boxes, config, rng=rng
    )
    extra, outputs = [], []
    if random_rois:
        rpn_rois = generate_random_rois(image.shape, random_rois, class_ids, boxes, rng=rng)
        extra.append(rpn_rois)
        if detection_targets:
            rois, *outputs = build_detection_targets(
                rpn_rois, class_ids, boxes, mask, config, rng=rng
            )
            outputs[0] = outputs[0][:, None]
            extra.append(rois)
    if len(class_ids) > limit:
        kept = rng.choice(len(class_ids), limit, replace=False)
        class_ids, boxes, mask = class_ids[kept], boxes[kept], mask[:, :, kept]
    missing = limit - len(class_ids)
    inputs = [
        molding.mold_image(image.astype(np.float32), config),
        meta,
        match[:, None],
        deltas,
        np.pad(class_ids, (0, missing)),
        np.pad(boxes, [(0, missing), (0, 0)]),
        np.pad(mask, [(0, 0), (0, 0), (0, missing)]),
    ]
    return inputs + extra, outputs
