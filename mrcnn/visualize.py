"""Drawing functions: those of matterport's visualize module, with the same names and parameters.

They work without a display, without IPython and without OpenCV. Matplotlib is imported when
something is drawn; `plt.show()` is called only where there is a window or a notebook to show in.

Boxes are (y1, x1, y2, x2) in pixels, ends exclusive. Colours are RGB triples in 0..1.
Shapes: H, W pixels, C channels, N instances, G true instances, D detections, R regions.
"""

import colorsys
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrcnn import utils
from mrcnn.errors import UserError
from mrcnn.matterport.plots import (
    display_images,
    display_table,
    display_top_masks,
    display_weight_stats,
    plot_overlaps,
    plot_precision_recall,
    show_figure,
)
from mrcnn.results.drawing import instance_colors, overlay_instances

__all__ = [
    "apply_mask", "display_differences", "display_images", "display_instances", "display_table",
    "display_top_masks", "display_weight_stats", "draw_box", "draw_boxes", "draw_rois",
    "instance_colors", "overlay_instances", "plot_overlaps", "plot_precision_recall",
    "random_colors",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Scripts written against matterport use `visualize.plt`.
    if name == "plt":
        import matplotlib.pyplot as plt

        return plt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def random_colors(N: int, bright: bool = True) -> list[tuple[float, float, float]]:
    """N colours of evenly spaced hues, in random order (Python's global generator).

    bright: full brightness, otherwise .7. (matterport: visualize.random_colors)
    """
    colors = [colorsys.hsv_to_rgb(i / N, 1.0, 1.0 if bright else 0.7) for i in range(N)]
    random.shuffle(colors)
    return colors


def apply_mask(
    image: np.ndarray, mask: np.ndarray, color: Sequence[float], alpha: float = 0.5
) -> np.ndarray:
    """Blend `color` into the image [H, W, >= 3] where mask [H, W] is 1, in place; returns it.

    alpha: opacity of the colour. (matterport: visualize.apply_mask)
    """
    inside = np.asarray(mask) == 1
    blended = image[inside, :3] * (1 - alpha) + alpha * 255 * np.asarray(color)[:3]
    image[inside, :3] = blended.astype(image.dtype)
    return image


def draw_box(image: np.ndarray, box: Sequence[int], color: Sequence[int]) -> np.ndarray:
    """Draw a frame two pixels wide, inside the box, into the image [H, W, C] in place; returns it.

    color: C values in the units of the image. Parts outside the image are left out.
    (matterport: visualize.draw_box)
    """
    y1, x1, y2, x2 = (int(v) for v in box)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    box_rows, box_columns = (rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2)
    inner = (rows >= y1 + 2) & (rows < y2 - 2) & (columns >= x1 + 2) & (columns < x2 - 2)
    image[box_rows & box_columns & ~inner] = color
    return image


def display_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray,
    class_ids: np.ndarray,
    class_names: Sequence[str],
    scores: Sequence[float] | None = None,
    title: str = "",
    figsize: tuple[float, float] = (16, 16),
    ax: Any = None,
    show_mask: bool = True,
    show_bbox: bool = True,
    colors: Sequence | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Draw instances over an image: mask, outline, dashed box, caption (class and score).

    Args:
        image: [H, W, C] or [H, W], values 0..255.
        boxes: [N, 4] pixels; an instance whose box is all zero is skipped.
        masks: [H, W, N].
        class_ids: int [N].
        class_names: by class id.
        scores: [N].
        title: of the axes.
        figsize: inches, of the figure made when `ax` is None.
        ax: matplotlib axes to draw on; with None a figure is made and shown.
        show_mask, show_bbox: whether to draw the coloured area and the box.
        colors: [N] colours, random by default.
        captions: [N] texts instead of class and score.

    Raises UserError where the numbers of boxes, masks and class ids differ, and where the masks
    differ in size from the image.
    (matterport: visualize.display_instances)
    """
    boxes, class_ids = np.asarray(boxes), np.asarray(class_ids)
    count = boxes.shape[0]
    if count == 0:
        print("No instances to display")
    elif not count == masks.shape[-1] == class_ids.shape[0]:
        raise UserError(
            f"{count} boxes, {masks.shape[-1]} masks and {class_ids.shape[0]} class "
            "ids: display_instances needs one of each for every instance"
        )
    if count:
        _require_whole_masks(masks, image)
    own_figure = ax is None
    ax = _axes(figsize) if own_figure else ax
    _frame(ax, image, (10, 10), title)
    colors = random_colors(count) if colors is None else colors
    canvas = _as_rgb(image)
    for i in range(count):
        if not boxes[i].any():
            continue  # lost when the image was cropped
        if show_bbox:
            _add_box(ax, boxes[i], colors[i], linestyle="dashed", alpha=0.7)
        if captions is None:
            caption = str(class_names[class_ids[i]])
            caption += f" {scores[i]:.3f}" if scores is not None else ""
        else:
            caption = captions[i]
        ax.text(boxes[i][1], boxes[i][0] + 8, caption, color="w", size=11)
        if show_mask:
            apply_mask(canvas, masks[:, :, i], colors[i])
        _add_outline(ax, masks[:, :, i], colors[i])
    ax.imshow(canvas)
    if own_figure:
        show_figure()


def display_differences(
    image: np.ndarray,
    gt_box: np.ndarray,
    gt_class_id: np.ndarray,
    gt_mask: np.ndarray,
    pred_box: np.ndarray,
    pred_class_id: np.ndarray,
    pred_score: np.ndarray,
    pred_mask: np.ndarray,
    class_names: Sequence[str],
    title: str = "",
    ax: Any = None,
    show_mask: bool = True,
    show_box: bool = True,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.5,
) -> None:
    """Draw ground truth (green) and predictions (red, captioned score / IoU) over the same image.

    Args:
        image: [H, W, C].
        gt_box: [G, 4] pixels, zero rows are padding.
        gt_class_id: int [G].
        gt_mask: [H, W, G].
        pred_box: [D, 4] pixels.
        pred_class_id: int [D].
        pred_score: [D].
        pred_mask: [H, W, D].
        class_names: by class id.
        title, ax, show_mask, show_box: as in display_instances.
        iou_threshold, score_threshold: what counts as a match, as in utils.compute_matches. The
            IoU in a caption is that of the match, or the largest one where there is none.

    (matterport: visualize.display_differences)
    """
    real = np.any(gt_box, axis=1)
    gt_box, gt_class_id, gt_mask = gt_box[real], gt_class_id[real], gt_mask[:, :, real]
    # compute_matches returns results in the order of the scores: captions must follow it.
    order = np.argsort(-np.asarray(pred_score), kind="stable")
    pred_box, pred_class_id = pred_box[order], pred_class_id[order]
    pred_score, pred_mask = np.asarray(pred_score)[order], pred_mask[:, :, order]
    _, pred_match, overlaps = utils.compute_matches(
        gt_box, gt_class_id, gt_mask, pred_box, pred_class_id, pred_score, pred_mask,
        iou_threshold=iou_threshold, score_threshold=score_threshold,
    )  # fmt: skip
    captions = [""] * len(gt_box)
    for i, match in enumerate(pred_match):
        iou = overlaps[i, int(match)] if match > -1 else np.max(overlaps[i], initial=0.0)
        captions.append(f"{pred_score[i]:.2f} / {iou:.2f}")
    display_instances(
        image,
        np.concatenate([gt_box, pred_box]),
        np.concatenate([gt_mask, pred_mask], axis=-1),
        np.concatenate([gt_class_id, pred_class_id]),
        class_names,
        title=title or "Truth (green) and detections (red)\ncaptions: score / IoU",
        ax=ax,
        show_mask=show_mask,
        show_bbox=show_box,
        colors=[(0, 1, 0, 0.8)] * len(gt_box) + [(1, 0, 0, 1)] * len(pred_box),
        captions=captions,
    )


def draw_rois(
    image: np.ndarray,
    rois: np.ndarray,
    refined_rois: np.ndarray,
    mask: np.ndarray,
    class_ids: np.ndarray,
    class_names: Sequence[str],
    limit: int = 10,
) -> None:
    """Draw regions of interest (dashed, grey for background), their refined boxes and masks.

    Args:
        image: [H, W, C].
        rois, refined_rois: [R, 4] pixels.
        mask: float [R, h, w], each relative to its ROI.
        class_ids: int [R], 0 is background.
        limit: of more ROIs than this, a random choice is drawn (NumPy's global generator).

    Prints how many are positive. (matterport: visualize.draw_rois)
    """
    ids = np.arange(len(rois))
    title = f"{len(ids)} ROIs"
    if len(ids) > limit:
        ids = np.random.choice(ids, limit, replace=False)
        title = f"{limit} of {len(rois)} ROIs, chosen at random"
    ax = _axes((12, 12))
    _frame(ax, image, (20, 50), title)
    canvas = _as_rgb(image)
    for i in ids:
        color = np.random.rand(3)
        positive = class_ids[i] > 0
        _add_box(ax, rois[i], color if positive else "gray", linestyle="dashed")
        if positive:
            _add_box(ax, refined_rois[i], color)
            _join_corners(ax, rois[i], refined_rois[i], color)
            y1, x1 = refined_rois[i][:2]
            ax.text(x1, y1 + 8, class_names[class_ids[i]], color="w", size=11)
            box = np.asarray(rois[i][:4]).astype(np.int32)
            apply_mask(canvas, utils.unmold_mask(mask[i], box, canvas.shape), color)
    ax.imshow(canvas)
    positives = np.count_nonzero(np.asarray(class_ids) > 0)
    print(f"Positive ROIs: {positives}")
    print(f"Negative ROIs: {np.count_nonzero(np.asarray(class_ids) == 0)}")
    print(f"Positive ratio: {positives / max(1, len(class_ids)):.2f}")


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray | None = None,
    refined_boxes: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    captions: Sequence[str] | None = None,
    visibilities: Sequence[int] | None = None,
    title: str = "",
    ax: Any = None,
) -> None:
    """Draw boxes, their refined boxes (solid), masks and captions over an image.

    Args:
        image: [H, W, C].
        boxes, refined_boxes: [N, 4] pixels, at least one of the two.
        masks: [H, W, N].
        captions: [N].
        visibilities: [N], 0 dotted and grey (without its refined box), 1 dotted in colour (the
            default), 2 solid.
        title, ax: as in display_instances; the figure is not shown, so that more can be drawn.

    Raises UserError where both kinds of boxes are missing, and where the masks differ in size from
    the image. (matterport: visualize.draw_boxes)
    """
    if boxes is None and refined_boxes is None:
        raise UserError("draw_boxes needs boxes or refined_boxes")
    count = len(boxes) if boxes is not None else len(refined_boxes)
    if masks is not None:
        _require_whole_masks(masks, image)
    ax = _axes((12, 12)) if ax is None else ax
    margin = image.shape[0] // 10
    _frame(ax, image, (margin, margin), title)
    colors = random_colors(count)
    canvas = _as_rgb(image)
    for i in range(count):
        visibility = 1 if visibilities is None else visibilities[i]
        color = colors[i] if visibility else "gray"
        if boxes is not None:
            if not np.any(boxes[i]):
                continue  # lost when the image was cropped
            _add_box(
                ax,
                boxes[i],
                color,
                alpha=1.0 if visibility else 0.5,
                linestyle="solid" if visibility == 2 else "dotted",
            )
        refined = refined_boxes[i] if refined_boxes is not None and visibility else None
        if refined is not None:
            _add_box(ax, refined, color)
            if boxes is not None:
                _join_corners(ax, boxes[i], refined, color)
        if captions is not None:
            y1, x1 = (boxes[i] if refined is None and boxes is not None else refined_boxes[i])[:2]
            ax.text(
                x1,
                y1,
                captions[i],
                size=11,
                va="top",
                color="w",
                bbox={"facecolor": color, "alpha": 0.5, "pad": 2, "edgecolor": "none"},
            )
        if masks is not None:
            apply_mask(canvas, masks[:, :, i], colors[i])
            _add_outline(ax, masks[:, :, i], colors[i])
    ax.imshow(canvas)


def _require_whole_masks(masks: np.ndarray, image: np.ndarray) -> None:
    """Raise UserError for masks that differ in size from the image, such as mini masks."""
    if masks.shape[:2] != image.shape[:2]:
        raise UserError(
            f"the masks are {masks.shape[0]} x {masks.shape[1]}, the image {image.shape[0]} x "
            f"{image.shape[1]} pixels: mini masks (USE_MINI_MASK) have to be enlarged, by "
            "utils.expand_mask or load_image_gt(..., use_mini_mask=False)"
        )


def _axes(figsize: tuple[float, float]) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize)[1]


def _frame(ax: Any, image: np.ndarray, margins: tuple[int, int], title: str) -> None:
    """Axes without ticks, with the given margins (rows, columns) in pixels around the image."""
    height, width = image.shape[:2]
    ax.set_ylim(height + margins[0], -margins[0])
    ax.set_xlim(-margins[1], width + margins[1])
    ax.axis("off")
    ax.set_title(title)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """A copy as uint8 [H, W, 3]; grey is repeated, further channels are dropped."""
    image = image[:, :, None] if image.ndim == 2 else image
    channels = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    return channels.astype(np.uint8)


def _add_box(ax: Any, box: Sequence[float], color: Any, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    y1, x1, y2, x2 = (float(v) for v in box[:4])
    # imshow puts the centre of the first pixel, not its corner, at 0.
    ax.add_patch(
        Rectangle(
            (x1 - 0.5, y1 - 0.5),
            x2 - x1,
            y2 - y1,
            linewidth=2,
            edgecolor=color,
            facecolor="none",
            **style,
        )
    )


def _join_corners(ax: Any, box: Sequence[float], refined: Sequence[float], color: Any) -> None:
    """A line between the top left corners of a box and of its refined box."""
    ax.plot([box[1] - 0.5, refined[1] - 0.5], [box[0] - 0.5, refined[0] - 0.5], color=color)


def _add_outline(ax: Any, mask: np.ndarray, color: Any) -> None:
    """The contours of a mask [H, W] as polygons, closed where it touches the image's border."""
    from matplotlib.patches import Polygon
    from skimage.measure import find_contours

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return
    patch = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # A border of zeros closes the contours; the shift below removes it again.
    for contour in find_contours(np.pad(patch.astype(np.uint8), 1), 0.5):
        points = contour[:, ::-1] + (columns[0] - 1, rows[0] - 1)
        ax.add_patch(Polygon(points, facecolor="none", edgecolor=color))
