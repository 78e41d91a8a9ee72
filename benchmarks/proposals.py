"""The share of the true nuclei that region proposals reach, by kind of image, and its limits.

    python -m benchmarks.proposals --dataset DIR --subset tune --weights nucleus
    python -m benchmarks.proposals --dataset DIR --subset tune --config PRE_NMS_LIMIT=6000

A nucleus is reached if the box of a proposal has an IoU of .5 or more with its own. The column
"anchors" is the same for all anchors of the image, the most that any network could reach without
moving them; "detected" is the share that remains after the heads at DETECTION_MIN_CONFIDENCE.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict

import numpy as np

from benchmarks.command import exit_code
from mrcnn.cli.detectors import inference_config
from mrcnn.cli.models import build_model
from mrcnn.network.anchors import image_anchors
from mrcnn.pixels import molding
from mrcnn.pixels.boxes import compute_overlaps, denorm_boxes
from mrcnn.pixels.exposure import measure
from mrcnn.pixels.masks import layer_boxes
from samples.nucleus import nucleus
from samples.nucleus.kinds import KINDS, kind_of

REACHED = 0.5  # IoU


def reached(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For true boxes [N, 4], whether any of others [R, 4] has an IoU of REACHED: bool [N]."""
    best = np.zeros(len(boxes))
    for start in range(0, len(others), 4096):
        overlaps = compute_overlaps(boxes, others[start : start + 4096])
        best = np.maximum(best, overlaps.max(axis=1, initial=0))
    return best >= REACHED


def shares(model, image: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Which nuclei, with true boxes [N, 4] in pixels of the image, each kind of boxes reaches."""
    config = model.config
    pixels = measure(image, config).apply(image)
    [scale] = model.find_scales([pixels])
    molded, metas, windows = molding.mold_inputs([pixels], config, [scale])
    shape = molded.shape[1:]
    found = model._fast()(molded, metas, masks=False)
    window = windows[0]
    scale = (window[2:] - window[:2]) / image.shape[:2]
    true = boxes * np.tile(scale, 2) + np.tile(window[:2], 2)

    def pixels_of(normalised):
        return denorm_boxes(normalised, shape[:2], exact=config.exact_pixels).astype(np.float32)

    rois = found.rois[0]
    rois = rois[(rois[:, 2] > rois[:, 0]) & (rois[:, 3] > rois[:, 1])]
    detected = found.detections[0]
    return {
        "anchors": reached(true, image_anchors(config, shape)),
        "proposals": reached(true, pixels_of(rois)),
        "detected": reached(true, pixels_of(detected[detected[:, 4] > 0, :4])),
        "count": np.array([len(rois)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--subset", default="tune")
    parser.add_argument("--weights", default="nucleus")
    parser.add_argument("--logs", default=nucleus.DEFAULT_LOGS_DIR)
    parser.add_argument("--config", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--limit", type=int)
    parser.set_defaults(preset=None)
    options = parser.parse_args()
    config = inference_config(options, nucleus.NucleusApplication())
    model = build_model("inference", config, options.weights, options.logs)
    dataset = nucleus.load_dataset(options.dataset, options.subset, labelled=True)
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for image_id in list(dataset.image_ids)[: options.limit]:
        image, (layers, class_ids) = dataset.load_image(image_id), dataset.load_layers(image_id)
        boxes = layer_boxes(layers, len(class_ids))
        areas = np.bincount(layers.ravel())[1:]
        kind = kind_of(image, areas)
        for what, values in shares(model, image, boxes.astype(np.float32)).items():
            found[kind][what].append(values)
            found["all"][what].append(values)
    print(
        f"{'kind':<28}{'images':>7}{'nuclei':>8}{'anchors':>9}{'proposals':>11}{'detected':>10}"
        f"{'per image':>11}"
    )
    for kind in (*KINDS, "all"):
        if kind in found:
            values = {what: np.concatenate(arrays) for what, arrays in found[kind].items()}
            print(
                f"{kind:<28}{len(found[kind]['count']):7d}{len(values['anchors']):8d}"
                + "".join(
                    f"{values[what].mean():{width}.3f}"
                    for what, width in (("anchors", 9), ("proposals", 11), ("detected", 10))
                )
                + f"{values['count'].mean():11.0f}"
            )


if __name__ == "__main__":
    sys.exit(exit_code("proposals.py", main))
