"""What the two notebooks in this folder need besides the package: data to look at, and drawing.

    inspect_nucleus_data.ipynb     what goes into training
    inspect_nucleus_model.ipynb    what the network does with an image

Matplotlib and pandas are imported when something is drawn or listed.

Boxes are y1, x1, y2, x2 in pixels, ends exclusive. Shapes: H, W pixels, N boxes or instances,
A anchors, L pyramid levels.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrcnn.data.examples import Example
from mrcnn.evaluation import metrics
from mrcnn.inference.postprocess import Detections, PostProcessing, postprocess
from mrcnn.pixels.boxes import extract_bboxes
from mrcnn.pixels.image_meta import parse_image_meta
from mrcnn.pixels.masks import Patch, expand_mask, layer_boxes
from mrcnn.pixels.molding import unmold_image
from mrcnn.pixels.overlaps import iou_matrix
from mrcnn.results.drawing import overlay_instances
from samples.nucleus.dsb2018 import NucleusDataset
from samples.nucleus.kinds import kind_of
from samples.nucleus.nucleus import load_dataset
from samples.nucleus.synthesize import synthesize

if TYPE_CHECKING:
    import pandas as pd

    from mrcnn.config import Config
    from mrcnn.results.result import Result


# ---- Data ----------------------------------------------------------------------------------------


def open_data(
    dataset_dir: str | os.PathLike | None,
    subset: str,
    count: int = 12,
    size: int = 256,
    seed: int = 0,
) -> NucleusDataset:
    """A labelled data set to look at, prepared.

    Args:
        dataset_dir: folder of the user's data; None draws synthetic images into a temporary
            folder, which is deleted with the data set.
        subset: see `NucleusDataset.load_nucleus`.
        count, size, seed: of synthetic images, see `synthesize`.

    Raises:
        UserError: there are no such images, or some lack masks.
    """
    if dataset_dir is not None:
        return load_dataset(str(dataset_dir), subset, labelled=True)
    folder = tempfile.mkdtemp(prefix="nuclei_")
    synthesize(folder, count, size, seed, subset)
    dataset = load_dataset(folder, subset, labelled=True)
    # Images are read on request: the folder stays as long as the data set.
    weakref.finalize(dataset, shutil.rmtree, folder, ignore_errors=True)
    return dataset


def list_images(dataset: NucleusDataset) -> pd.DataFrame:
    """A row for every image: its kind of microscopy, size, nuclei, and their typical diameter.

    diameter: that of a disc with the median area of the nuclei, in pixels; covered: share of the
    image's pixels that lie in nuclei.
    """
    import pandas as pd

    rows = []
    for image_id in dataset.image_ids:
        image = dataset.load_image(image_id)
        layers, class_ids = dataset.load_layers(image_id)
        areas = np.bincount(layers.ravel(), minlength=len(class_ids) + 1)[1:]
        typical = np.median(areas) if len(areas) else np.nan
        rows.append(
            {
                "image": dataset.image_reference(image_id)[:12],
                "kind": kind_of(image, areas),
                "height": image.shape[0],
                "width": image.shape[1],
                "nuclei": len(areas),
                "diameter": 2 * np.sqrt(typical / np.pi),
                "covered": areas.sum() / layers[..., 0].size,
            }
        )
    return pd.DataFrame(rows)


def draw_example(example: Example) -> np.ndarray:
    """The network's input with the outlines of its instances, uint8 [H, W, 3]."""
    return overlay_instances(example.image, example.whole_masks())


def draw_batch(batch: dict[str, np.ndarray], config: Config) -> list[np.ndarray]:
    """The images of a batch of `BatchLoader`, with the outlines of its instances.

    Returns uint8 [H, W, 3] for each image.
    """
    images = []
    for row, image in enumerate(unmold_image(batch["input_image"], config)):
        there = batch["input_gt_class_ids"][row] > 0
        masks = batch["input_gt_masks"][row, there].transpose(1, 2, 0)
        if config.USE_MINI_MASK:
            boxes = np.rint(batch["input_gt_boxes"][row, there])
            masks = expand_mask(boxes, masks, image.shape, exact=config.exact_pixels)
        images.append(overlay_instances(image, masks > 0))
    return images


# ---- Anchors -------------------------------------------------------------------------------------


def anchors_by_level(config: Config, image_shape: Sequence[int]) -> list[np.ndarray]:
    """The anchors of a network input of (H, W) or longer, float32 [A, 4] for each of L levels."""
    from mrcnn.network.anchors import compute_backbone_shapes, image_anchors
    from mrcnn.network.architecture import architecture_of

    stride, per_cell = config.RPN_ANCHOR_STRIDE, architecture_of(config).anchors_per_cell
    places = np.ceil(compute_backbone_shapes(config, image_shape) / stride).astype(int)
    counts = places.prod(axis=1) * per_cell
    return np.split(image_anchors(config, image_shape), np.cumsum(counts)[:-1])


def middle_anchors(anchors: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """A level's anchors [A, 4] at the position that is nearest to the middle."""
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    distance = np.abs(middles - np.array(image_shape[:2]) / 2).sum(axis=1)
    # Up to four positions are equally near: the first one is taken. Anchors of several shapes
    # have the same position except for rounding.
    return anchors[np.isclose(middles, middles[distance.argmin()], atol=0.01).all(axis=1)]


def score_maps(scores: np.ndarray, config: Config, image_shape: Sequence[int]) -> list[np.ndarray]:
    """Scores of all anchors as images: for each of L levels the best at every position.

    scores: [A]; image_shape: (H, W) or longer, of the network's input. Returns float [h, w] each.
    """
    from mrcnn.network.anchors import compute_backbone_shapes

    stride = config.RPN_ANCHOR_STRIDE
    shapes = np.ceil(compute_backbone_shapes(config, image_shape) / stride).astype(int)
    counts = [len(anchors) for anchors in anchors_by_level(config, image_shape)]
    levels = np.split(scores, np.cumsum(counts)[:-1])
    return [
        level.reshape(*shape, -1).max(axis=-1) for level, shape in zip(levels, shapes, strict=True)
    ]


def boxes_in_input(layers: np.ndarray, meta: np.ndarray) -> np.ndarray:
    """The boxes of an image's instances in pixels of the network's input, float [N, 4].

    layers: int [H, W, number of layers] of the image; meta: [M], what `mold_inputs` says about it.
    """
    about = parse_image_meta(meta)
    y1, x1, y2, x2 = about["window"]
    scale = np.array([y2 - y1, x2 - x1]) / about["original_image_shape"][:2]
    return layer_boxes(layers, int(layers.max(initial=0))) * np.tile(scale, 2) + [y1, x1, y1, x1]


# ---- Images ------------------------------------------------------------------------------------


def panels(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int = 3,
    width: float = 14.0,
    **options: Any,
) -> list[Any]:
    """Images side by side, like `visualize.display_images`, on axes that more can be drawn on.

    Args:
        images: [H, W] or [H, W, 3]; values of any range if they are grey.
        titles: one per image.
        columns: images in a row.
        width: of the figure, in inches.
        options: of matplotlib's `imshow`.

    Returns:
        matplotlib's axes, one per image; without images no figure is made.
    """
    import matplotlib.pyplot as plt

    if not len(images):
        return []
    rows = -(-len(images) // columns)
    height = max(image.shape[0] / image.shape[1] for image in images) * width / columns
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, rows * (height + 0.3)), squeeze=False, layout="constrained"
    )
    for place in axes.flat:
        place.set_axis_off()
    for place, image, title in zip(axes.flat, images, titles, strict=False):
        place.imshow(image, **options)
        place.set_title(title, fontsize=10)
    return list(axes.flat[: len(images)])


def draw_boxes(
    axes: Any, boxes: np.ndarray, color: Any = "yellow", width: float = 1.0, style: str = "solid"
) -> None:
    """Draw boxes [N, 4] over an image; what lies beyond the image is cut off.

    color: one for all, or one for each box, as in matplotlib; width in points; style of the
    lines: "solid", "dashed", "dotted".
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    limits = axes.get_xlim(), axes.get_ylim()
    # `imshow` puts the centre of the first pixel, not its corner, at 0.
    patches = [
        Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1)
        for y1, x1, y2, x2 in np.asarray(boxes, float).reshape(-1, 4)
    ]
    axes.add_collection(
        PatchCollection(
            patches, facecolor="none", edgecolor=color, linewidth=width, linestyle=style
        )
    )
    axes.set(xlim=limits[0], ylim=limits[1])


def masks_in_place(
    image: np.ndarray, patches: Sequence[Patch], side: int, threshold: float = 0.5
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Every mask in the part of the image around it.

    Args:
        image: uint8 [H, W, 3].
        patches: (y, x, probabilities [h, w]) as `paste_masks` gives them.
        side: S, of the square part in pixels; smaller if the image is.
        threshold: probability from which a pixel belongs to the mask.

    Returns:
        The probabilities, float [S, S], and the image with the mask's outline, uint8 [S, S, 3].
    """
    probabilities, outlined = [], []
    for y, x, patch in patches:
        whole = np.zeros(image.shape[:2])
        whole[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        middle = np.array([y, x]) + np.array(patch.shape) // 2
        top, left = np.clip(middle - side // 2, 0, np.maximum(np.array(whole.shape) - side, 0))
        part = slice(top, top + side), slice(left, left + side)
        probabilities.append(whole[part])
        outlined.append(overlay_instances(image[part], whole[part] >= threshold, (255, 230, 0)))
    return probabilities, outlined


def varied_channels(activations: np.ndarray, count: int) -> dict[int, np.ndarray]:
    """The channels that vary most over the image, by their number: float32 [h, w] each.

    activations: [h, w, channels], of a layer. The 5th and the 95th percentile tell how much a
    channel varies, and what lies beyond them is cut off.
    """
    activations = np.asarray(activations, np.float32)
    low, high = np.percentile(activations, [5, 95], axis=(0, 1))
    order = np.argsort(low - high)[:count]
    return {int(i): activations[..., i].clip(low[i], high[i]) for i in order}


# ---- Scores --------------------------------------------------------------------------------------


def precision_recall(
    truths: Sequence[np.ndarray], results: Sequence[Result], threshold: float = 0.5
) -> tuple[float, np.ndarray, np.ndarray]:
    """Average precision of several images together, as `metrics.compute_ap` gives it for one.

    Args:
        truths: masks bool [H, W, G] of every image.
        results: what was found in the same images.
        threshold: IoU from which a detection counts as correct.

    Returns:
        The average precision, and precisions and recalls [D + 2] of all D detections by
        descending score.
    """
    hits, scores = [np.zeros(0, bool)], [np.zeros(0)]
    for masks, result in zip(truths, results, strict=True):
        ones = np.ones(masks.shape[-1], np.int32)
        _, match, _ = metrics.compute_matches(
            extract_bboxes(masks),
            ones,
            masks,
            result.boxes,
            result.class_ids,
            result.scores,
            result.masks,
            threshold,
        )
        hits.append(match > -1)
        scores.append(np.sort(result.scores)[::-1])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.cumsum(np.concatenate(hits)[order])
    total = sum(masks.shape[-1] for masks in truths)
    precisions = np.concatenate([[0.0], right / np.arange(1, len(right) + 1), [0.0]])
    recalls = np.concatenate([[0.0], right / max(total, 1), [1.0]])
    # The best precision at each recall or beyond it.
    precisions = np.maximum.accumulate(precisions[::-1])[::-1]
    return float(np.sum(np.diff(recalls) * precisions[1:])), precisions, recalls


def score_settings(
    settings: Mapping[str, PostProcessing],
    detections: Sequence[Detections],
    truths: Sequence[np.ndarray],
) -> pd.DataFrame:
    """Mean scores of several images under settings of the post-processing, one row each.

    Args:
        settings: by row name.
        detections: of every image.
        truths: label layers int [H, W, L] of the same images.

    Returns:
        The competition score, and TP / (TP + FP + FN) at IoU .5 and .75.
    """
    import pandas as pd

    rows = {}
    for name, setting in settings.items():
        scores = []
        for found, truth in zip(detections, truths, strict=True):
            labels, _ = postprocess(found, truth.shape, setting)
            scores.append(metrics.threshold_scores(iou_matrix(truth, labels)))
        mean = np.mean(scores, axis=0)
        rows[name] = {"score": mean.mean(), "at .50": mean[0], "at .75": mean[5]}
    return pd.DataFrame.from_dict(rows, orient="index")
