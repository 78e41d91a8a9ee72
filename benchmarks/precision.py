"""What bfloat16 costs in accuracy and gains in speed: the same weights in both, on real images.

    python benchmarks/precision.py --dataset DIR --subset stage1_train --limit 80

Images are chosen evenly over the sorted ids. Scores are the nucleus application's: the mean over
IoU thresholds .50 to .95, averaged over the images. The time is that of `detect` alone; the first
image of every shape, which compiles, is detected once before it is timed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

from benchmarks import ours, report, workers  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402

PRECISIONS = ("float32", "bfloat16")


def evenly(items: list, limit: int | None) -> list:
    """`limit` of the items, spread evenly over them; all of them without a limit."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def measure(models: dict, dataset, numbers: list[int]) -> dict[str, tuple]:
    """{precision: (Evaluation, seconds of each image)}; the precisions take turns."""
    from mrcnn.evaluation.evaluation import Evaluation
    from samples.nucleus.submission import ranked_scores, remove_overlaps

    results = {precision: (Evaluation(), []) for precision in models}
    seen = set()
    for done, number in enumerate(numbers, 1):
        image, (truth, _) = dataset.load_image(number), dataset.load_layers(number)
        for precision, model in models.items():
            if (precision, image.shape) not in seen:
                seen.add((precision, image.shape))
                model.detect([image])
            seconds, found = workers.timed(lambda m=model, i=image: m.detect([i])[0])
            labels = remove_overlaps(found["masks"], found["scores"])
            scores = ranked_scores(labels, found["scores"])
            evaluation, times = results[precision]
            evaluation.add(dataset.image_reference(number), image, truth, labels, scores)
            times.append(seconds)
        means = "  ".join(f"{p} {e.mean('score'):.4f}" for p, (e, _) in results.items())
        print(f"{done} of {len(numbers)} images  {means}", file=sys.stderr, flush=True)
    return results


def table(results: dict[str, tuple]) -> str:
    """Scores and speeds as Markdown, and the differences."""
    rows = []
    for precision, (evaluation, times) in results.items():
        rows.append((precision, len(times), sum(row["detected"] for row in evaluation.rows),
                     f"{evaluation.mean('score'):.4f}", f"{evaluation.mean('ap_50'):.4f}",
                     f"{len(times) / sum(times):.2f}", report.Timing.of(times)))  # fmt: skip
    first, second = (evaluation for evaluation, _ in results.values())
    differences = [b["score"] - a["score"] for a, b in zip(first.rows, second.rows, strict=True)]
    ratio = sum(results["float32"][1]) / sum(results["bfloat16"][1])
    titles = ["precision", "images", "detected", "score", "at IoU .50", "images/s",
              "seconds per image (quartiles)"]  # fmt: skip
    return (
        f"{report.markdown_table(titles, rows)}\n\nbfloat16 minus float32: score "
        f"{np.mean(differences):+.4f}, largest change of one image "
        f"{max(differences, key=abs):+.4f}; bfloat16 is {ratio:.2f} times as fast"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", required=True, metavar="DIR", help="folder with labelled images")
    add("--subset", default="stage1_train")
    add("--limit", type=int, help="number of images")
    add("--weights", help="a weight file of the nucleus network; by default the shipped one")
    chosen = parser.parse_args(arguments)
    if chosen.limit is not None and chosen.limit < 1:
        parser.error("--limit must be at least 1")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    setup = parse(arguments)
    return exit_code("precision.py", lambda: compare(setup))


def compare(setup: argparse.Namespace) -> None:
    from samples.nucleus.nucleus import load_dataset

    dataset = load_dataset(setup.dataset, setup.subset, labelled=True)
    numbers = evenly(sorted(dataset.image_ids, key=dataset.image_reference), setup.limit)
    weights = setup.weights or ours.weights_of("nucleus")
    models = {
        precision: ours.make_detector(ours.configuration("nucleus", PRECISION=precision), weights)
        for precision in PRECISIONS
    }
    print(table(measure(models, dataset, numbers)))


if __name__ == "__main__":
    sys.exit(main())
