"""What five corrected images of stained tissue teach a network that never saw any.

    python -m benchmarks.corrections --dataset DIR --weights W.h5 --output OUT
    python -m benchmarks.corrections --dataset DIR --weights W.h5 --output OUT --recipe all

DIR holds stage1_train.zip; W.h5 is a network that was trained without tissue (`nucleus.py
generalise`, fold "tissue"). Five images of `fit` are the corrections. Twelve other images of
tissue and 20 of fluorescence from `tune`, drawn once with a fixed seed, are scored before and after
150 steps of 4 crops. OUT keeps images, weights and scores; what is there is not made again.

Recipes: "fine-tune" is that of `mrcnn.fine_tune`; "all-the-way" keeps the new weights as they are;
"no-rehearsal" is "all-the-way" without rehearsal; "gentle" has a fifth of the rate, and the first
three stages of the backbone do not train; "all" trains like a full training: batch
norms that learn, no rehearsal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import mrcnn
from benchmarks.command import exit_code
from mrcnn.cli.flag_values import positive
from mrcnn.data.labelled import LabelledImages
from mrcnn.data.pairs import find_pairs
from mrcnn.evaluation.bootstrap import paired_difference
from mrcnn.evaluation.evaluation import Evaluation
from mrcnn.fine_tuning import Recipe
from samples.nucleus import subsets
from samples.nucleus.dsb2018 import load_dataset
from samples.nucleus.kinds import LARGE, ON_PURPLE, ON_WHITE, SMALL

# {set: [(subset, kind, images)]}
SETS = {
    "corrections": [("fit", ON_PURPLE, 3), ("fit", ON_WHITE, 2)],
    "tissue": [("tune", ON_PURPLE, 7), ("tune", ON_WHITE, 5)],
    "fluorescence": [("tune", SMALL, 13), ("tune", LARGE, 7)],
}
SCORED = ("tissue", "fluorescence")
RECIPES = {
    "fine-tune": Recipe(),
    "all-the-way": Recipe(way=1),
    "no-rehearsal": Recipe(rehearsal=0, way=1),
    "gentle": Recipe(layers="4+", factor=0.2, way=1),
    "all": Recipe(factor=0.6, freeze_bn=False, rehearsal=0, way=1),
}


def make_sets(dataset: str, output: Path) -> None:
    """Write the images and labels of SETS that are not there yet."""
    rng = np.random.default_rng(0)
    for name, parts in SETS.items():
        for subset, kind, count in parts:
            ids = sorted(
                image_id
                for image_id, row in subsets.assigned().items()
                if row["subset"] == subset and row["kind"] == kind
            )
            chosen = rng.permutation(ids)[:count].tolist()
            data = load_dataset(dataset, subset, True)
            for number in data.image_ids:
                image_id = data.image_reference(number)
                short = image_id[:12]
                if image_id in chosen and not (output / name / "labels" / f"{short}.tif").exists():
                    labels = data.load_layers(number)[0].max(axis=-1)
                    pixels = np.asarray(data.open_image(number))[..., :3]
                    mrcnn.add_to_training_set(output / name, short, pixels, labels)


def scores(weights: Path, output: Path) -> dict[str, dict[str, float]]:
    """{set: {image: score}} of a weight file."""
    detector, found = mrcnn.load(weights), {}
    for name in SCORED:
        data = LabelledImages()
        data.load_pairs(find_pairs(output / name / "images", output / name / "labels"))
        data.prepare()
        evaluation = Evaluation()
        for number in data.image_ids:
            result = detector.detect(data.open_image(number))
            truth, _ = data.load_layers(number)
            reference, image = data.image_reference(number), data.load_image(number)
            evaluation.add(reference, image, truth, result.labels, result.scores, None)
        found[name] = {row["image_id"]: float(row["score"]) for row in evaluation.rows}
    return found


def kept_scores(path: Path, weights: Path, output: Path) -> dict[str, dict[str, float]]:
    """`scores`, read from a file or written there."""
    if not path.exists():
        path.write_text(json.dumps(scores(weights, output), indent=1))
    return json.loads(path.read_text())


def tuned(recipe: str, weights: str, output: Path, steps: int) -> Path:
    """The weight file of a recipe, in a folder of its own below `output`."""
    logs = output / recipe
    made = sorted(logs.glob("*/mask_rcnn_*.h5"))
    if made:
        return made[-1]
    images, labels = (output / "corrections" / part for part in ("images", "labels"))
    return mrcnn.fine_tune(
        images, labels, weights, steps=steps, minutes=None, logs=logs, recipe=RECIPES[recipe]
    )


def compare(options: argparse.Namespace) -> None:
    """Make what is missing, and print the scores before and after."""
    output, recipe = Path(options.output), options.recipe
    make_sets(options.dataset, output)
    before = kept_scores(output / "before.json", Path(options.weights), output)
    after = kept_scores(
        output / f"{recipe}.json", tuned(recipe, options.weights, output, options.steps), output
    )
    for name in SCORED:
        old, new = (list(found[name].values()) for found in (before, after))
        difference, interval = paired_difference(new, old)
        print(
            f"{recipe:<14}{name:<14}{len(new):3d} images  before {np.mean(old):.4f}  after "
            f"{np.mean(new):.4f}  {difference:+.4f} ({interval.low:+.3f} to {interval.high:+.3f})"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="corrections", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", required=True, metavar="DIR", help="folder with stage1_train.zip")
    add("--weights", required=True, metavar="W.h5", help="to start from")
    add("--output", required=True, metavar="OUT", help="folder for images, weights and scores")
    add("--recipe", choices=tuple(RECIPES), default="fine-tune", help="(default: %(default)s)")
    add("--steps", type=positive, default=150, metavar="N", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    return exit_code("corrections", lambda: compare(options))


if __name__ == "__main__":
    sys.exit(main())
