"""The loops over images behind `detect` and `evaluate`.

Reading, detecting and writing overlap (see pipeline.py). An image that cannot be read, or whose
masks cannot, is reported with its name and skipped; the run goes on. A full disk ends it. Ctrl-C
leaves what has been done so far and says where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mrcnn.errors import UserError
from samples.nucleus import drawing, tta
from samples.nucleus.evaluate import Evaluation, figure, report_figures, timed
from samples.nucleus.pipeline import Outcome, run_overlapped
from samples.nucleus.postprocess import DEFAULTS, PostProcessing, postprocess
from samples.nucleus.progress import Progress
from samples.nucleus.results import DEFAULT_FORMATS, ResultWriter
from samples.nucleus.submission import Submission, SubmissionWriter

# Pictures on the contact sheet of what an evaluation found hardest.
WORST = 20


def detect_labels(model, image: np.ndarray, settings: PostProcessing = DEFAULTS,
                  variants: Sequence[tta.Variant] = tta.NONE) -> tuple[np.ndarray, np.ndarray]:
    """Label map int32 [H, W] without overlaps and confidences [N] by ascending label."""
    return postprocess(tta.detect(model, image, variants), image.shape, settings)


def each_image(dataset, limit: int | None, what: str, failed: list[str], read: Callable,
               work: Callable, write: Callable) -> None:
    """Take the image numbers of the data set through the stages of `run_overlapped`.

    `write` returns a note for the progress line. The ids of images that fail go to `failed`.
    """
    numbers = list(dataset.image_ids)[:limit]
    progress = Progress(len(numbers), what)

    def report(number: int, outcome: Outcome) -> None:
        note = outcome.result
        if outcome.error is not None:
            image_id, note = dataset.image_reference(number), "failed"
            failed.append(image_id)
            progress.message(f"{image_id}: skipped: {outcome.error or 'out of memory'}")
        progress.step(note)

    run_overlapped(numbers, read, work, write, report)


def run_detect(model, dataset, output: Path, limit: int | None = None,
               formats: Sequence[str] = DEFAULT_FORMATS, settings: PostProcessing = DEFAULTS,
               variants: Sequence[tta.Variant] = tta.NONE,
               microns: float | None = None) -> list[str]:
    """Detect on a data set into the folder `output`.

    formats: of results.FORMATS. settings, variants: see `detect_labels`. microns: side of a pixel,
    for measurements.
    Returns the ids of the images that failed; they get an empty row, for Kaggle wants every
    image.
    """
    writer = ResultWriter(output, formats, microns)
    total, failed = 0, []

    def work(number: int, image: np.ndarray) -> tuple:
        return image, *detect_labels(model, image, settings, variants)

    def write(number: int, outcome: Outcome) -> str:
        nonlocal total
        image_id = dataset.image_reference(number)
        if outcome.error is not None:
            writer.add_failed(image_id)
            return ""
        image, labels, scores = outcome.result
        writer.add(image_id, image, labels, scores)
        total += len(scores)
        return f"{len(scores)} nuclei"

    complete = False
    try:
        each_image(dataset, limit, "detect", failed, dataset.load_image, work, write)
        complete = True
    except KeyboardInterrupt:
        print(f"Stopped. The rows so far are in {writer.partial}")
        raise
    finally:
        writer.close(complete)
    print(f"{total} nuclei. Written to {writer.places()}")
    return failed


def run_evaluate(dataset, output: Path, source: str, model=None,
                 submission: Submission | None = None, limit: int | None = None,
                 pictures: bool = True, settings: PostProcessing = DEFAULTS,
                 variants: Sequence[tta.Variant] = tta.NONE,
                 figures: bool = False) -> list[str]:
    """Score a model, or a submission file, on a labelled data set.

    Writes metrics.json, metrics.csv, <ImageId>.png, worst.png (the WORST of these pictures on one
    sheet) and, with a model, submit.csv into `output`; prints the table. source: where the
    detections come from, kept in metrics.json; with a model also its post-processing. settings,
    variants: of a model, see `detect_labels`. figures: draw the report's figures 7 and 8 as well.
    Returns the ids of the images that failed; they are not part of the scores.
    """
    evaluation = Evaluation()
    writer = None if model is None else SubmissionWriter(output / "submit.csv")

    def read(number: int) -> tuple:
        truth, _ = dataset.load_layers(number)
        image = dataset.load_image(number)
        if truth.shape[:2] != image.shape[:2]:
            raise UserError(f"masks of {truth.shape[0]} x {truth.shape[1]} pixels for an image of "
                            f"{image.shape[0]} x {image.shape[1]}")
        return image, truth

    def work(number: int, pair: tuple) -> tuple:
        image, truth = pair
        if model is not None:
            (labels, scores), seconds = timed(detect_labels, model, image, settings, variants)
        else:
            image_id = dataset.image_reference(number)
            labels, seconds = submission.labels(image_id, image.shape[:2]), None
            scores = submission.scores(image_id)
        return image, truth, labels, scores, seconds

    def write(number: int, outcome: Outcome) -> str:
        if outcome.error is not None:
            return ""
        image_id = dataset.image_reference(number)
        image, truth, labels, scores, seconds = outcome.result
        if writer is not None:
            writer.add(image_id, labels, scores)
        row = evaluation.add(image_id, image, truth, labels, scores, seconds)
        if pictures:
            drawing.save_png(output / f"{image_id}.png",
                             figure(image, truth, labels, scores, row, evaluation.ious[-1]))
        if figures:
            drawn = report_figures(image, truth, labels, scores, evaluation.ious[-1])
            for name, picture in drawn.items():
                drawing.save_png(output / f"{name}_{image_id}.png", picture)
        return f"mean score {evaluation.mean('score'):.3f}"

    complete, failed = False, []
    try:
        each_image(dataset, limit, "evaluate", failed, read, work, write)
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
            ways = {} if model is None else {"postprocessing": dataclasses.asdict(settings),
                                             "variants": [str(v) for v in variants]}
            evaluation.write(output, detections=source, **ways, complete=complete, failed=failed)
    if not evaluation.rows:
        raise UserError(f"none of the {len(failed)} images could be scored")
    print(evaluation.table())
    written = "metrics.json, metrics.csv"
    if pictures:
        rows = sorted(evaluation.rows, key=lambda row: row["score"])
        paths = [output / f"{row['image_id']}.png" for row in rows]
        # A scored image has no picture where memory did not suffice for that.
        worst = [path for path in paths if path.is_file()][:WORST]
        if worst:
            drawing.save_png(output / "worst.png", drawing.contact_sheet(worst))
            written += f", pictures, worst.png (the {len(worst)} worst)"
    print(f"\nWritten to {output}: {written}")
    return failed
