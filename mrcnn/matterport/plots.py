"""Galleries, curves, grids and tables: the part of `mrcnn.visualize` that draws no instances.

Matplotlib is imported when something is drawn. Figures are shown where there is something to show
them on (a window, a notebook) and otherwise stay the current figure of pyplot, ready for `savefig`.
"""

import html
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def show_figure() -> None:
    """`plt.show()`, unless the backend of matplotlib only writes files."""
    import matplotlib.pyplot as plt

    if plt.get_backend().lower() not in {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}:
        plt.show()


def display_images(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    cols: int = 4,
    cmap: Any = None,
    norm: Any = None,
    interpolation: str | None = None,
) -> None:
    """Show images [H, W] or [H, W, C], values 0..255, in rows of `cols`, with optional titles.

    cmap, norm, interpolation: as in matplotlib's `imshow`. (matterport: visualize.display_images)
    """
    import matplotlib.pyplot as plt

    titles = titles if titles is not None else [""] * len(images)
    rows = max(1, -(-len(images) // cols))
    figure = plt.figure(figsize=(14, max(1.0, 14 * rows / cols)))
    for number, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, cols, number)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
        image = np.asarray(image).astype(np.uint8)
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        axes.imshow(image, cmap=cmap, norm=norm, interpolation=interpolation)
    show_figure()


def display_top_masks(
    image: np.ndarray,
    mask: np.ndarray,
    class_ids: np.ndarray,
    class_names: Sequence[str],
    limit: int = 4,
) -> None:
    """Show the image and, for the `limit` classes with the most pixels, the masks of that class.

    image [H, W, C]; mask [H, W, N]; class_ids int [N]. (matterport: visualize.display_top_masks)
    """
    class_ids = np.asarray(class_ids)
    areas = {int(c): np.count_nonzero(mask[:, :, class_ids == c]) for c in np.unique(class_ids)}
    top = sorted((c for c in areas if areas[c] > 0), key=lambda c: -areas[c])[:limit]
    images = [image]
    titles = [f"H x W = {image.shape[0]} x {image.shape[1]}"]
    for class_id in [*top, *[None] * (limit - len(top))]:
        of_class = mask[:, :, class_ids == class_id] if class_id is not None else mask[:, :, :0]
        # Each instance in its own shade.
        images.append((of_class * np.arange(1, of_class.shape[-1] + 1)).sum(axis=-1))
        titles.append(class_names[class_id] if class_id is not None else "-")
    display_images(images, titles=titles, cols=limit + 1, cmap="Blues_r")


def plot_precision_recall(AP: float, precisions: Sequence[float], recalls: Sequence[float]) -> None:
    """Draw precision over recall; `AP`, the average precision at IoU .5, goes into the title.

    (matterport: visualize.plot_precision_recall)
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots()
    axes.set_title(f"Precision and recall, AP@50 = {AP:.3f}")
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1.1)
    axes.set_ylim(0, 1.1)
    axes.plot(recalls, precisions)


def plot_overlaps(
    gt_class_ids: np.ndarray,
    pred_class_ids: np.ndarray,
    pred_scores: np.ndarray,
    overlaps: np.ndarray,
    class_names: Sequence[str],
    threshold: float = 0.5,
) -> None:
    """Draw a grid of the IoU of every prediction (rows) with every true instance (columns).

    Cells above `threshold` say whether the classes agree.

    Args:
        gt_class_ids: int [G], zeros are padding.
        pred_class_ids: int [D], zeros are padding.
        pred_scores: float [D].
        overlaps: float [D, G].
        class_names: by class id.
        threshold: the IoU above which a pair counts as a match.

    (matterport: visualize.plot_overlaps)
    """
    import matplotlib.pyplot as plt

    gt_class_ids, pred_class_ids = np.asarray(gt_class_ids), np.asarray(pred_class_ids)
    gt_class_ids = gt_class_ids[gt_class_ids != 0]
    pred_class_ids = pred_class_ids[pred_class_ids != 0]
    overlaps = np.asarray(overlaps, float)
    figure, axes = plt.subplots(figsize=(12, 10))
    axes.set_xlabel("Ground truth")
    axes.set_ylabel("Predictions")
    rows = [
        f"{class_names[int(c)]} ({s:.2f})"
        for c, s in zip(pred_class_ids, pred_scores, strict=False)
    ]
    axes.set_yticks(np.arange(len(rows)), rows)
    columns = [class_names[int(c)] for c in gt_class_ids]
    axes.set_xticks(np.arange(len(columns)), columns, rotation=90)
    if overlaps.size == 0:
        return
    axes.imshow(overlaps, interpolation="nearest", cmap="Blues")
    for (i, j), value in np.ndenumerate(overlaps):
        verdict = ""
        if value > threshold and i < len(pred_class_ids) and j < len(gt_class_ids):
            verdict = "match" if gt_class_ids[j] == pred_class_ids[i] else "wrong"
        # Readable on the shade of the cell; grey for cells without overlap.
        color = "white" if value > overlaps.max() / 2 else "black" if value > 0 else "grey"
        axes.text(
            j, i, f"{value:.3f}\n{verdict}", ha="center", va="center", fontsize=9, color=color
        )
    figure.tight_layout()


def display_table(table: Iterable[Iterable[Any]]) -> None:
    """Show rows of values: as an HTML table in a notebook, as aligned text elsewhere.

    (matterport: visualize.display_table)
    """
    rows = [[str(value) for value in row] for row in table]
    if _in_notebook():
        from IPython.display import HTML, display

        cells = ("".join(f"<td>{html.escape(value)}</td>" for value in row) for row in rows)
        display(HTML("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"))
        return
    columns = max((len(row) for row in rows), default=0)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(columns)]
    for row in rows:
        aligned = (value.ljust(width) for value, width in zip(row, widths, strict=False))
        print("  ".join(aligned).rstrip())


def display_weight_stats(model: Any) -> None:
    """Show shape, minimum, maximum and standard deviation of every trainable layer's weights.

    Weights that are all equal (except biases of convolutions, which start as zeros) and weights
    beyond 1000 are marked. model: a `mrcnn.model.MaskRCNN`.

    (matterport: visualize.display_weight_stats)
    """
    table = [["WEIGHT NAME", "SHAPE", "MIN", "MAX", "STD"]]
    for layer in model.get_trainable_layers():
        for variable, value in zip(layer.weights, layer.get_weights(), strict=True):
            remark = ""
            is_conv_bias = "Conv2D" in type(layer).__name__ and variable.name.startswith("bias")
            if value.min() == value.max() and not is_conv_bias:
                remark += " *** dead?"
            if np.abs(value).max() > 1000:
                remark += " *** overflow?"
            table.append(
                [
                    f"{layer.name}/{variable.name}{remark}",
                    str(value.shape),
                    f"{value.min():+9.4f}",
                    f"{value.max():+10.4f}",
                    f"{value.std():+9.4f}",
                ]
            )
    display_table(table)


def _in_notebook() -> bool:
    # Code that runs in a notebook has IPython loaded already.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
