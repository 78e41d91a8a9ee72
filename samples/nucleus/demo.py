"""The nucleus app from end to end on synthetic images, with nothing to download.

    python samples/nucleus/demo.py
    python samples/nucleus/demo.py --quick --output /tmp/demo

Draws a test set, detects its nuclei with the shipped weights (without them it first trains
briefly on a synthetic training set), scores the result against the exact masks and prints where
everything is. Every command of nucleus.py that it uses is printed, for use with other data.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[2])
if ROOT_DIR not in sys.path:  # so that the sample runs from any directory
    sys.path.insert(0, ROOT_DIR)

from mrcnn.errors import UserError  # noqa: E402
from samples.nucleus import nucleus  # noqa: E402


@dataclass(frozen=True)
class Size:
    """How much the demo does."""

    train_images: int
    test_images: int
    pixels: int  # per side
    epochs: int
    steps: int  # batches per epoch


FULL = Size(train_images=60, test_images=8, pixels=256, epochs=4, steps=30)
QUICK = Size(train_images=8, test_images=4, pixels=128, epochs=1, steps=4)


def run(*arguments: str) -> None:
    """Run one command of nucleus.py, printing it first. Exits with its status if it fails."""
    print("\n$ python samples/nucleus/nucleus.py " + shlex.join(arguments), flush=True)
    status = nucleus.main(list(arguments))
    if status:
        sys.exit(status)


def train_from_nothing(data: Path, logs: Path, size: Size, seed: int) -> Path:
    """Train on the synthetic images from random weights; returns the weight file."""
    import keras

    from mrcnn.data.augment import RandomAugmentation
    from mrcnn.model import MaskRCNN

    class DemoConfig(nucleus.NucleusConfig):
        STEPS_PER_EPOCH = size.steps
        VALIDATION_STEPS = 1
        SEED = seed
        # Random weights, unlike pretrained ones, need the batch norm to learn its statistics.
        TRAIN_BN = None
        LEARNING_RATE = 0.001

    model = MaskRCNN("training", DemoConfig(), str(logs))
    for layer in model.bank.layers.values():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # the usual .99 forgets the start too slowly for a short run
    dataset = nucleus.load_dataset(str(data), "stage1_train", labelled=True)
    model.train(
        dataset,
        None,
        learning_rate=model.config.LEARNING_RATE,
        epochs=size.epochs,
        layers="all",
        augmentation=RandomAugmentation(),
    )
    path = logs / "mask_rcnn_demo.h5"
    model.save_weights(str(path))
    return path


def demo(output: Path, weights: Path | None, size: Size, seed: int) -> None:
    """Run all steps into the new folder `output` and print where the results are."""
    started = time.monotonic()
    data, results = output / "data", output / "results"

    def synthesize(subset: str, count: int) -> None:
        amount = ["--count", str(count), "--size", str(size.pixels), "--seed", str(seed)]
        run("synthesize", "--output", str(data), "--subset", subset, *amount)

    synthesize("stage1_test", size.test_images)
    if not weights:
        synthesize("stage1_train", size.train_images)
        print("\nThere are no shipped weights: training briefly on synthetic images first.")
        print("A few minutes from random weights show that it works, not how well it can.")
        weights = train_from_nothing(data, output / "logs", size, seed)
    subset = ["--dataset", str(data), "--subset", "stage1_test"]
    run("detect", *subset, "--weights", str(weights), "--output", str(results))
    submission, scores = results / "submit.csv", output / "scores"
    print("\nAll scores from here on are scores on synthetic images.")
    run("evaluate", *subset, "--submission", str(submission), "--output", str(scores))
    score = json.loads((scores / "metrics.json").read_text())["score"]
    print(
        f"\nDone in {time.monotonic() - started:.0f} s.\n"
        f"Submission file:            {submission}\n"
        f"Pictures of detections:     {results}\n"
        f"Pictures with the truth:    {scores}\n"
        f"Score on synthetic images:  {score:.3f}   (1 is perfect; real images are harder)"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for errors, 130 after Ctrl-C."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up notes
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = Path.cwd() / "demo" / time.strftime("%Y%m%dT%H%M%S")
    parser.add_argument("--output", type=Path, default=folder, help="a new folder for all results")
    parser.add_argument("--weights", type=Path, help="weight file (default: the shipped one)")
    parser.add_argument("--quick", action="store_true", help="a few small images, few steps")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images")
    chosen = parser.parse_args(arguments)
    output = chosen.output.resolve()
    weights = chosen.weights or Path(nucleus.SHIPPED_WEIGHTS)
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"--output {output}: not an empty folder; choose another")
        if chosen.weights and not weights.is_file():
            raise UserError(f"--weights {weights}: no such file")
        size = QUICK if chosen.quick else FULL
        demo(output, weights if weights.is_file() else None, size, chosen.seed)
    except (UserError, OSError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
