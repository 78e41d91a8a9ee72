"""The loops over images behind `detect` and `evaluate`.

An image that cannot be read, or whose masks cannot, is reported with its name and skipped; the
run goes on. Ctrl-C leaves what has been done so far and says where.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mrcnn.errors import UserError
from samples.nucleus import drawing
from samples.nucleus.evaluate import Evaluation, figure, timed
from samples.nucleus.progress import Progress
from samples.nucleus.submission import (
    Submission,
    SubmissionWriter,
    ranked_scores,
    remove_overlaps,
)


def detect_labels(model, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label map int32 [H, W] without overlaps and confidences [N] by ascending label."""
    result = model.detect([image], verbose=0)[0]
    labels = remove_overlaps(result["masks"], result["scores"])
    return labels, ranked_scores(labels, result["scores"])


def each_image(dataset, limit: int | None, what: str, work: Callable[[int, str], str]) -> list[str]:
    """Call work(image number, image id) -> note for every image; returns the ids that failed."""
    numbers = list(dataset.image_ids)[:limit]
    progress, failed = Progress(len(numbers), what), []
    for number in numbers:
        image_id = dataset.image_reference(number)
        try:
            note = work(number, image_id)
        except (UserError, MemoryError) as error:
            failed.append(image_id)
            note = "failed"
            progress.message(f"{image_id}: skipped: {error or 'out of memory'}")
        progress.step(note)
    return failed


def run_detect(model, dataset, output: Path, limit: int | None = None,
               pictures: bool = True) -> list[str]:
    """Detect on a data set into output/submit.csv and output/<ImageId>.png.

    Returns the ids of the images that failed; they get an empty row, for Kaggle wants every
    image.
    """
    writer = SubmissionWriter(output / "submit.csv")
    total = 0

    def work(number: int, image_id: str) -> str:
        nonlocal total
        try:
            image = dataset.load_image(number)
            labels, scores = detect_labels(model, image)
        except (UserError, MemoryError):
            writer.add(image_id, np.zeros((1, 1), np.int32))
            raise
        writer.add(image_id, labels, scores)
        if pictures:
            title = f"{len(scores)} nuclei   {image_id}"
            drawing.save_png(output / f"{image_id}.png",
                             drawing.detections_only(image, labels, title))
        total += len(scores)
        return f"{len(scores)} nuclei"

    complete = False
    try:
        failed = each_image(dataset, limit, "detect", work)
        complete = True
    except KeyboardInterrupt:
        print(f"Stopped. The rows so far are in {writer.partial}")
        raise
    finally:
        writer.close(complete)
    print(f"{total} nuclei. Submission: {writer.path}"
          + (f"  Pictures: {output}" if pictures else ""))
    return failed


def run_evaluate(dataset, output: Path, source: str, model=None,
                 submission: Submission | None = None, limit: int | None = None,
                 pictures: bool = True) -> list[str]:
    """Score a model, or a submission file, on a labelled data set.

    Writes metrics.json, metrics.csv, <ImageId>.png and, with a model, submit.csv into `output`;
    prints the table. source: where the detections come from, kept in metrics.json.
    Returns the ids of the images that failed; they are not part of the scores.
    """
    evaluation = Evaluation()
    writer = None if model is None else SubmissionWriter(output / "submit.csv")

    def work(number: int, image_id: str) -> str:
        truth, _ = dataset.load_layers(number)
        image = dataset.load_image(number)
        if truth.shape[:2] != image.shape[:2]:
            raise UserError(f"masks of {truth.shape[0]} x {truth.shape[1]} pixels for an image of "
                            f"{image.shape[0]} x {image.shape[1]}")
        if model is not None:
            (labels, scores), seconds = timed(detect_labels, model, image)
            writer.add(image_id, labels, scores)
        else:
            labels, seconds = submission.labels(image_id, image.shape[:2]), None
            scores = submission.scores(image_id)
        row = evaluation.add(image_id, image, truth, labels, scores, seconds)
        if pictures:
            drawing.save_png(output / f"{image_id}.png",
                             figure(image, truth, labels, scores, row))
        return f"mean score {evaluation.mean('score'):.3f}"

    complete, failed = False, []
    try:
        failed = each_image(dataset, limit, "evaluate", work)
        complete = True
    except KeyboardInterrupt:
        if evaluation.rows:
            print(f"Stopped. The scores of the {len(evaluation.rows)} images so far are in "
                  f"{output}")
        raise
    finally:
        if writer is not None:
            writer.close(complete)
        if evaluation.rows:
            evaluation.write(output, detections=source, complete=complete, failed=failed)
    if not evaluation.rows:
        raise UserError(f"none of the {len(failed)} images could be scored")
    print(evaluation.table())
    print(f"\nWritten to {output}: metrics.json, metrics.csv" + (", pictures" if pictures else ""))
    return failed
