"""The loops over images behind `detect` and `evaluate`.

Reading, detecting and writing overlap (see pipeline.py). An image that cannot be read, or whose
masks cannot, is reported with its name and skipped; the run goes on. A full disk ends it. Ctrl-C
leaves what has been done so far and says where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrcnn.console import Progress
from mrcnn.errors import UserError
from mrcnn.results.report import ReportWriter
from mrcnn.results.result_files import measurements
from samples.nucleus import drawing
from samples.nucleus.evaluate import Evaluation, figure, report_figures, timed
from samples.nucleus.inputs import Input
from samples.nucleus.pipeline import Outcome, run_overlapped
from samples.nucleus.results import ResultWriter
from samples.nucleus.submission import Submission, SubmissionWriter

# Pictures on the contact sheet of what an evaluation found hardest.
WORST = 20


def each_image(
    names: Sequence[str],
    what: str,
    failed: dict[str, str],
    read: Callable,
    work: Callable,
    write: Callable,
    progress: Progress | None = None,
) -> None:
    """Take the numbers of the images, which have these names, through the stages of
    `run_overlapped`.

    `write` returns a note for the progress line. The names of images that fail go to `failed`,
    with the reason.
    """
    progress = progress or Progress(len(names), what)

    def report(number: int, outcome: Outcome) -> None:
        note = outcome.result
        if outcome.error is not None:
            name, note = names[number], "failed"
            failed[name] = str(outcome.error or "out of memory")
            progress.message(f"{name}: skipped: {failed[name]}")
        progress.step(note)

    run_overlapped(range(len(names)), read, work, write, report)


def run_detect(
    segmenter,
    inputs: Sequence[Input],
    output: Path,
    formats: Sequence[str],
    microns: float | None = None,
    unreadable: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    **how: Any,
) -> dict[str, str]:
    """Detect in pictures into the folder `output`.

    segmenter: a `mrcnn.segmenter.Segmenter`; how: further arguments of its `detect`.
    formats: of results.FORMATS. microns: side of a pixel, in place of what the files say.
    unreadable: files that are no inputs, with the reasons; facts: for the report.
    Returns the names of the pictures that failed, with the reasons, and those of `unreadable`. A
    submission has an empty row of them, for Kaggle wants every image.
    """
    writer = ResultWriter(output, formats, facts or {}, microns)
    failed = dict(unreadable or {})
    for name, reason in failed.items():
        writer.add_failed(name, reason)
    names = [item.name for item in inputs]
    progress = Progress(len(inputs), "detect")
    total = 0

    def read(number: int) -> Any:
        return inputs[number].load()

    def work(number: int, image: Any) -> Any:
        return segmenter.detect(
            image, microns=microns or inputs[number].microns, progress=progress.within, **how
        )

    def write(number: int, outcome: Outcome) -> str:
        nonlocal total
        if outcome.error is not None:
            writer.add_failed(names[number], str(outcome.error or "out of memory"))
            return ""
        writer.add(names[number], outcome.result)
        total += len(outcome.result)
        return f"{len(outcome.result)} nuclei"

    complete = False
    try:
        each_image(names, "detect", failed, read, work, write, progress)
        complete = True
    except KeyboardInterrupt:
        print(f"Stopped. The results so far are in {writer.partial}")
        raise
    finally:
        writer.close(complete)
    print(f"{total} nuclei. Written to {writer.places()}")
    return failed


def run_evaluate(
    dataset,
    output: Path,
    source: str,
    segmenter=None,
    submission: Submission | None = None,
    limit: int | None = None,
    pictures: bool = True,
    figures: bool = False,
    facts: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Score a detector, or a submission file, on a labelled data set.

    Writes index.html, metrics.json, metrics.csv, <ImageId>.png, worst.png (the WORST of these
    pictures on one sheet) and, with a detector, submit.csv into `output`; prints the table. source:
    where the detections come from, kept in metrics.json; with a `Segmenter` also its
    post-processing. figures: draw the paper's figures 7 and 8 as well. facts: for index.html.
    Returns the names of the images that failed, with the reasons; they are not part of the scores.
    """
    evaluation = Evaluation()
    page = ReportWriter(
        output / "index.html",
        "Nuclei against the truth",
        facts or {},
        kind="evaluate",
        nouns=("nucleus", "nuclei"),
    )
    writer = None if segmenter is None else SubmissionWriter(output / "submit.csv")
    names = [dataset.image_reference(i) for i in list(dataset.image_ids)[:limit]]

    def read(number: int) -> tuple:
        truth, _ = dataset.load_layers(number)
        image = dataset.load_image(number)
        if truth.shape[:2] != image.shape[:2]:
            raise UserError(
                f"masks of {truth.shape[0]} x {truth.shape[1]} pixels for an image of "
                f"{image.shape[0]} x {image.shape[1]}"
            )
        return image, truth

    def work(number: int, pair: tuple) -> tuple:
        image, truth = pair
        if segmenter is not None:
            result, seconds = timed(segmenter.detect, image)
            labels, scores = result.labels, result.scores
        else:
            labels, seconds = submission.labels(names[number], image.shape[:2]), None
            scores = submission.scores(names[number])
        return image, truth, labels, scores, seconds

    def write(number: int, outcome: Outcome) -> str:
        image_id = names[number]
        if outcome.error is not None:
            page.add_failed(image_id, str(outcome.error or "out of memory"))
            return ""
        image, truth, labels, scores, seconds = outcome.result
        if writer is not None:
            writer.add(image_id, labels, scores)
        row = evaluation.add(image_id, image, truth, labels, scores, seconds)
        if pictures:
            drawing.save_png(
                output / f"{image_id}.png",
                figure(image, truth, labels, scores, row, evaluation.ious[-1]),
            )
        page.add(
            image_id,
            drawing.brighten(image),
            labels,
            measurements(labels, scores, image),
            truth,
            row,
            f"{image_id}.png" if pictures else None,
        )
        if figures:
            drawn = report_figures(image, truth, labels, scores, evaluation.ious[-1])
            for name, picture in drawn.items():
                drawing.save_png(output / f"{name}_{image_id}.png", picture)
        return f"mean score {evaluation.mean('score'):.3f}"

    complete, failed = False, {}
    try:
        each_image(names, "evaluate", failed, read, work, write)
        complete = True
    except KeyboardInterrupt:
        if evaluation.rows:
            print(
                f"Stopped. The scores of the {len(evaluation.rows)} images so far are in {output}"
            )
        raise
    finally:
        if writer is not None:
            writer.close(complete)
        page.close(complete, evaluation.summary() if evaluation.rows else None)
        if evaluation.rows:
            ways = (
                {}
                if segmenter is None
                else {
                    "postprocessing": dataclasses.asdict(segmenter.settings),
                    "variants": [str(v) for v in segmenter.variants],
                }
            )
            evaluation.write(
                output, detections=source, **ways, complete=complete, failed=list(failed)
            )
    if not evaluation.rows:
        raise UserError(f"none of the {len(failed)} images could be scored")
    print(evaluation.table())
    written = "index.html, metrics.json, metrics.csv"
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
