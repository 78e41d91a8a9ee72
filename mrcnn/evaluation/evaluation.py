"""Scores of a set of images: one row per image, a summary, a table, files and images.

Shapes: H, W pixels, L label layers, G true and D detected objects, T IoU thresholds.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mrcnn.atomic import atomic_path
from mrcnn.evaluation import metrics
from mrcnn.evaluation.bootstrap import bootstrap_interval
from mrcnn.evaluation.crowds import only, outside_crowds, shares_in_crowds
from mrcnn.evaluation.metrics import IOU_THRESHOLDS
from mrcnn.pixels.overlaps import intersections, iou_of_counts
from mrcnn.results import drawing

PIXEL_SCORES = {
    "pixel_accuracy": metrics.pixel_accuracy,
    "mean_accuracy": metrics.mean_accuracy,
    "mean_iu": metrics.mean_iu,
    "frequency_weighted_iu": metrics.frequency_weighted_iu,
}
# Titles of the single numbers in the table.
TITLES = {
    "score": "Competition score",
    "panoptic_quality": "Panoptic quality",
    "aggregated_jaccard_index": "Aggregated Jaccard",
    "coco_ap": "COCO AP .50:.95",
    "coco_ap_50": "COCO AP .50",
    "coco_ap_75": "COCO AP .75",
    "pixel_accuracy": "Pixel accuracy",
    "mean_accuracy": "Mean accuracy",
    "mean_iu": "Mean IU",
    "frequency_weighted_iu": "Frequency weighted IU",
}
# Diameters in pixels at which the table by size is divided.
SIZES = (10, 15, 20, 30, 45)
PERCENT = [f"{round(100 * t)}" for t in IOU_THRESHOLDS]


class Kinds(NamedTuple):
    """How images are classified, to break scores down."""

    of: Callable[[np.ndarray, np.ndarray], str]  # (image uint8 [H, W, 3], areas [G]) -> a name
    names: Sequence[str]
    groups: Mapping[str, Sequence[str]]  # names that are often considered together


class Evaluation:
    """Collects images with `add`; `summary`, `table` and `write` give the overall scores."""

    def __init__(self, kinds: Kinds | None = None) -> None:
        """kinds: breaks the scores down by kind of image; without it there is no such table."""
        self.kinds = kinds
        self.rows: list[dict] = []
        self.ious: list[np.ndarray] = []
        self.true_areas: list[np.ndarray] = []  # [G] pixels
        # IoU [G, D], scores [D] and shares in crowds [C, D] of all detections.
        self.for_coco: list[tuple[np.ndarray, np.ndarray | None, np.ndarray]] = []
        self.confusion = np.zeros((2, 2), np.int64)

    def add(
        self,
        image_id: str,
        image: np.ndarray,
        truth: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray | None = None,
        seconds: float | None = None,
        crowds: np.ndarray | None = None,
    ) -> dict:
        """Score one image and return its row.

        image uint8 [H, W, 3]; truth int [H, W, L]; labels int [H, W]; scores [D]: confidences
        by ascending label, None where they are not known; seconds: of the detection; crowds: int
        [H, W, L], or None where there are none: detections in them count neither way.
        """
        shared, truth_areas, areas = intersections(truth, labels)
        iou = iou_of_counts(shared, truth_areas, areas)
        shares = np.zeros((0, len(areas))) if crowds is None else shares_in_crowds(crowds, labels)
        self.for_coco.append((iou, scores, shares))
        kept = outside_crowds(iou, shares)
        iou, shared, areas, labels = iou[:, kept], shared[:, kept], areas[kept], only(labels, kept)
        confusion = metrics.pixel_confusion(truth.any(axis=-1), labels > 0)
        by_threshold = metrics.threshold_scores(iou)
        row = {
            "image_id": image_id,
            **({"kind": self.kinds.of(image, truth_areas)} if self.kinds else {}),
            "height": image.shape[0],
            "width": image.shape[1],
            "true": iou.shape[0],
            "detected": iou.shape[1],
            "score": float(by_threshold.mean()),
            "panoptic_quality": metrics.panoptic_quality(iou),
            "aggregated_jaccard_index": metrics.aji_of_counts(shared, truth_areas, areas),
            **{name: score(confusion) for name, score in PIXEL_SCORES.items()},
            **{f"ap_{p}": float(v) for p, v in zip(PERCENT, by_threshold, strict=True)},
            **{f"f1_{p}": float(v) for p, v in zip(PERCENT, metrics.f1(iou), strict=True)},
            "seconds": seconds,
        }
        self.rows.append(row)
        self.ious.append(iou)
        self.true_areas.append(truth_areas)
        self.confusion += confusion
        return row

    def mean(self, key: str, rows: Sequence[dict] | None = None) -> float:
        """Mean of a column over all images (or the given rows)."""
        rows = self.rows if rows is None else rows
        return float(np.mean([row[key] for row in rows])) if rows else float("nan")

    def interval(self, key: str, rows: Sequence[dict] | None = None) -> list[float]:
        """Ends of the 95 % interval of `mean`, by bootstrap over the images."""
        rows = self.rows if rows is None else rows
        return list(bootstrap_interval([row[key] for row in rows]))

    def summary(self) -> dict:
        """Everything as plain numbers, ready for JSON.

        Instance scores are means over the images; COCO AP is pooled over all detections, and
        the pixel scores over all pixels. COCO AP is None where confidences are not known.
        """
        pooled = np.sum(
            [metrics.count_matches(iou) for iou in self.ious]
            or [np.zeros((len(IOU_THRESHOLDS), 3), int)],
            axis=0,
        )
        coco = [None] * 3
        if self.rows and all(scores is not None for _, scores, _ in self.for_coco):
            ious, scores, crowds = zip(*self.for_coco, strict=True)
            ap = metrics.coco_ap(ious, scores, crowds=crowds)
            coco = [None if np.isnan(v) else float(v) for v in (ap.mean(), ap[0], ap[5])]
        seconds = [row["seconds"] for row in self.rows if row["seconds"] is not None]
        return {
            "images": len(self.rows),
            "true": sum(row["true"] for row in self.rows),
            "detected": sum(row["detected"] for row in self.rows),
            "score": self.mean("score"),
            "score_interval": self.interval("score"),
            "thresholds": IOU_THRESHOLDS.tolist(),
            "tp_over_tp_fp_fn": [self.mean(f"ap_{p}") for p in PERCENT],
            "f1": [self.mean(f"f1_{p}") for p in PERCENT],
            "pooled_tp_fp_fn": pooled.tolist(),
            "panoptic_quality": self.mean("panoptic_quality"),
            "aggregated_jaccard_index": self.mean("aggregated_jaccard_index"),
            **dict(zip(("coco_ap", "coco_ap_50", "coco_ap_75"), coco, strict=True)),
            **{name: score(self.confusion) for name, score in PIXEL_SCORES.items()},
            "by_kind": self.by_kind(),
            "by_size": self.by_size(),
            "seconds_per_image": float(np.median(seconds)) if seconds else None,
        }

    def by_kind(self) -> dict[str, dict]:
        """Number of images, score with its interval and TP / (TP + FP + FN) at .50 of every kind
        that occurs, and of every group of which several kinds occur."""
        result: dict[str, dict] = {}
        if self.kinds is None:
            return result
        names, groups = self.kinds.names, self.kinds.groups
        for title, members in [*((kind, (kind,)) for kind in names), *groups.items()]:
            rows = [row for row in self.rows if row["kind"] in members]
            if len({row["kind"] for row in rows}) > (title in groups):
                result[title] = {
                    "images": len(rows),
                    "score": self.mean("score", rows),
                    "score_interval": self.interval("score", rows),
                    "ap_50": self.mean("ap_50", rows),
                }
        return result

    def by_size(self) -> list[dict]:
        """How well true objects are found, by the diameter in pixels of a disc of their area.

        For every range of `SIZES` that occurs: `above` and `up_to` (None: no limit), `objects`, and
        the fractions of them that have an IoU above .50 and above .75 with one detection.
        """
        diameters = 2 * np.sqrt(np.concatenate([np.zeros(0), *self.true_areas]) / np.pi)
        best = np.concatenate([np.zeros(0), *(iou.max(axis=1, initial=0) for iou in self.ious)])
        result = []
        for above, up_to in pairwise((None, *SIZES, None)):
            chosen = (diameters > (above or 0)) & (diameters <= (up_to or np.inf))
            if chosen.any():
                found = {f"found_{p}": float((best[chosen] > p / 100).mean()) for p in (50, 75)}
                row = {"above": above, "up_to": up_to, "objects": int(chosen.sum())}
                result.append({**row, **found})
        return result

    def table(self) -> str:
        """The summary as text to read."""
        summary = self.summary()
        lines = [
            f"{summary['images']} images, {summary['true']} true objects, "
            f"{summary['detected']} detected",
            "",
        ]
        for key, title in TITLES.items():
            value = summary[key]
            lines.append(
                f"{title:<24}"
                + ("     - (needs confidences)" if value is None else f"{value:8.4f}")
            )
            if key == "score":
                lines[-1] += "   " + _interval(summary["score_interval"])
        lines += ["", "IoU threshold           " + "".join(f"{t:7.2f}" for t in IOU_THRESHOLDS)]
        for title, key in (("TP / (TP + FP + FN)", "tp_over_tp_fp_fn"), ("F1", "f1")):
            lines.append(f"{title:<24}" + "".join(f"{v:7.3f}" for v in summary[key]))
        if summary["by_kind"]:
            lines += ["", f"{'Kind of image':<30}{'images':>7}{'at .50':>8}{'score':>8}"]
        for kind, values in summary["by_kind"].items():
            lines.append(
                f"{kind:<30}{values['images']:7d}{values['ap_50']:8.4f}"
                f"{values['score']:8.4f}   {_interval(values['score_interval'])}"
            )
        if summary["by_size"]:
            lines += ["", f"{'Size of object':<29}{'objects':>8}  found at .50  at .75"]
        for row in summary["by_size"]:
            lines.append(
                f"{_range_text(row):<29}{row['objects']:8d}{row['found_50']:14.3f}"
                f"{row['found_75']:8.3f}"
            )
        if summary["seconds_per_image"] is not None:
            lines += ["", f"Detection took {summary['seconds_per_image']:.2f} s per image (median)"]
        return "\n".join(lines)

    def write(self, folder: str | os.PathLike, **facts) -> None:
        """Write metrics.json (the summary and any further `facts`) and metrics.csv (one row per
        image) into the folder, each whole or not at all."""
        folder = Path(folder)
        with atomic_path(folder / "metrics.json") as temporary:
            text = json.dumps({**facts, **self.summary()}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
        with (
            atomic_path(folder / "metrics.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            if self.rows:
                writer = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)


def _range_text(row: Mapping) -> str:
    above, up_to = row["above"], row["up_to"]
    if above is None:
        return f"up to {up_to} pixels across"
    return f"above {above}" if up_to is None else f"above {above}, up to {up_to}"


def _interval(ends: Sequence[float]) -> str:
    return f"(95 %: {ends[0]:.3f} to {ends[1]:.3f})"


def figure(
    image: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    row: dict,
    iou: np.ndarray,
) -> np.ndarray:
    """A figure of one image with captions `score/IoU` (see `drawing`).

    row, iou [G, D]: what `Evaluation` holds for the image.
    """
    best = iou.max(axis=0) if len(iou) else np.zeros(iou.shape[1])
    captions = []
    for index, (y, x, _, _) in enumerate(_boxes(labels).tolist()):
        confidence = f"{scores[index]:.2f}/" if scores is not None else ""
        captions.append(((confidence + f"{best[index]:.2f}").replace("0.", "."), y, x))
    title = (
        f"score {row['score']:.3f}   truth green ({row['true']})   detected red "
        f"({row['detected']})   both yellow   caption "
        f"{'score/' if scores is not None else ''}IoU"
    )
    return drawing.truth_and_detections(image, truth, labels, captions, title)


def paper_figures(
    image: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    iou: np.ndarray,
    noun: str = "object",
) -> dict[str, np.ndarray]:
    """The paper's figures 7 and 8 of one image, by name; arguments as for `figure`."""
    best = iou.max(axis=0) if len(iou) else np.zeros(iou.shape[1])
    confidences = [f"{score:.2f}" for score in scores] if scores is not None else [""] * len(best)
    boxes = _boxes(labels)
    true_boxes = np.concatenate([_boxes(layer) for layer in np.moveaxis(truth, -1, 0)])
    compared = [f"{c}/{b:.2f}" for c, b in zip(confidences, best, strict=True)]
    labelled = [f"{noun} {c}" for c in confidences]
    return {
        "figure7": drawing.figure_7(image, true_boxes, boxes, compared),
        "figure8": drawing.figure_8(image, labels, boxes, labelled),
    }


def _boxes(labels: np.ndarray) -> np.ndarray:
    """Box [D, 4] of each instance (y1, x1, y2, x2, ends exclusive), by ascending label."""
    boxes = [box for box in ndimage.find_objects(labels) if box is not None]
    ends = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in boxes]
    return np.array(ends, int).reshape(-1, 4)


def timed(function, *arguments):
    """(result, seconds) of a call."""
    started = time.perf_counter()
    return function(*arguments), time.perf_counter() - started
