"""Seconds per image to detect and per step to train, on one synthetic picture.

    python benchmarks/speed.py                         512x512, both sets of widths and precisions
    python benchmarks/speed.py --side 256 --repeat 5 --widths nucleus --precision bfloat16

"matterport" has the widths of matterport's nucleus sample (pyramid 256, heads 1024 and 256, 1000
proposals), "nucleus" those of samples/nucleus. Weights are random: every tensor has a fixed size,
so the network's time does not depend on what it finds; only pasting masks does, and is timed with
what the random weights find. Medians after one call that compiles.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

from mrcnn.dataset import Dataset  # noqa: E402
from samples.nucleus.nucleus import NucleusConfig  # noqa: E402

# matterport's nucleus sample, and the widths of its library.
MATTERPORT_WIDTHS = {
    "TOP_DOWN_PYRAMID_SIZE": 256,
    "FPN_CLASSIF_FC_LAYERS_SIZE": 1024,
    "RPN_CONV_CHANNELS": 512,
    "MASK_CONV_CHANNELS": 256,
    "TRAIN_ROIS_PER_IMAGE": 128,
    "POST_NMS_ROIS_TRAINING": 1000,
    "POST_NMS_ROIS_INFERENCE": 1000,
    "DETECTION_MAX_INSTANCES": 100,
}


class OnePicture(Dataset):
    """A picture of bright discs on dark ground."""

    def fill(self, side: int, nuclei: int = 60):
        rng = np.random.default_rng(0)
        rows, columns = np.mgrid[:side, :side]
        self.labels = np.zeros((side, side), np.int32)
        for label in range(1, nuclei + 1):
            y, x = rng.uniform(0, side, 2)
            self.labels[(rows - y) ** 2 + (columns - x) ** 2 < rng.uniform(6, 14) ** 2] = label
        noise = rng.normal(0, 8, (side, side))
        self.picture = np.clip(30 + 150 * (self.labels > 0) + noise, 0, 255).astype(np.uint8)
        self.add_class("discs", 1, "disc")
        self.add_image("discs", image_id="discs", path=None)
        self.prepare()
        return self

    def load_image(self, image_id):
        return np.repeat(self.picture[..., None], 3, axis=2)

    def load_mask(self, image_id):
        ids = np.unique(self.labels)[1:]
        return self.labels[..., None] == ids, np.ones(len(ids), np.int32)


def make_config(side: int, widths: str, precision: str, training: bool):
    """A configuration for pictures of side x side pixels that are not enlarged."""
    values = dict(MATTERPORT_WIDTHS) if widths == "matterport" else {}
    values |= {
        "IMAGE_RESIZE_MODE": "square",
        "IMAGE_MIN_DIM": side,
        "IMAGE_MAX_DIM": side,
        "IMAGE_MIN_SCALE": 0,
        "PRECISION": precision,
        "IMAGES_PER_GPU": 2 if training else 1,
    }
    return type("SpeedConfig", (NucleusConfig,), values)()


def median_seconds(work, repeat: int) -> float:
    """Median time of `repeat` calls after one that compiles."""
    work()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def time_detection(side: int, widths: str, precision: str, repeat: int) -> float:
    """Seconds per image: picture in, full-size masks out."""
    from mrcnn.model import MaskRCNN

    config = make_config(side, widths, precision, training=False)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights find more than DETECTION_MAX_INSTANCES
        model = MaskRCNN("inference", config, folder)
        image = OnePicture().fill(side).load_image(0)
        return median_seconds(lambda: model.detect([image]), repeat)


def time_training(side: int, widths: str, precision: str, repeat: int, layers: str) -> float:
    """Seconds per step of two images."""
    from mrcnn.data import BatchLoader
    from mrcnn.model import MaskRCNN
    from mrcnn.training import LAYER_REGEX

    config = make_config(side, widths, precision, training=True)
    with tempfile.TemporaryDirectory() as folder:
        model = MaskRCNN("training", config, folder)
        model.set_trainable(LAYER_REGEX[layers], verbose=0)
        model.compile(1e-5)
        batch = BatchLoader(OnePicture().fill(side), config)[0][0]
        return median_seconds(lambda: model.keras_model.train_on_batch(batch), repeat)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--side", type=int, default=512, help="pixels, a multiple of 64")
    add("--repeat", type=int, default=5, help="timed calls; the median counts")
    add("--widths", nargs="+", default=["matterport", "nucleus"])
    add("--precision", nargs="+", default=["float32", "bfloat16"])
    chosen = parser.parse_args()
    print(f"{chosen.side}x{chosen.side} pixels; seconds, median of {chosen.repeat}\n")
    print("| widths | precision | detect, an image | train all, 2 images | train heads, 2 images |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for widths in chosen.widths:
        for precision in chosen.precision:
            setting = (chosen.side, widths, precision, chosen.repeat)
            numbers = [time_detection(*setting)]
            numbers += [time_training(*setting, layers) for layers in ("all", "heads")]
            cells = " | ".join(f"{n:.2f}" for n in numbers)
            print(f"| {widths} | {precision} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
