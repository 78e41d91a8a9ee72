"""The loops over images behind `detect` and `evaluate`.

Reading, detecting and writing overlap (see pipeline.py). An image that cannot be read, or whose
masks cannot, is reported with its name and skipped; the run goes on. A full disk ends it. Ctrl-C
leaves what has been done so far and says where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.cli.inputs import Input
from mrcnn.cli.pipeline import Outcome, run_overlapped
from mrcnn.console import Progress
from mrcnn.data.dataset import Dataset
from mrcnn.errors import UserError
from mrcnn.evaluation.evaluation import Evaluation, Kinds, figure, report_figures, timed
from mrcnn.results import drawing
from mrcnn.results.report import ReportWriter
from mrcnn.results.result_files import measurements
from mrcnn.results.writers import ImageWriter, ResultWriter

# Images on the contact sheet of what an evaluation found hardest.
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
    segmenter: Any,
    inputs: Sequence[Input],
    output: Path,
    formats: Sequence[str],
    microns: float | None = None,
    unreadable: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    extra: Sequence[ImageWriter] = (),
    **how: Any,
) -> dict[str, str]:
    """Detect in images into the folder `output`.

    Args:
        segmenter: a `mrcnn.segmenter.Segmenter`.
        inputs: the images.
        formats: of `writers.FORMATS`.
        microns: side of a pixel, in place of what the files say.
        unreadable: files that are not inputs, with the reasons.
        facts: for the report.
        extra: writers of further formats.
        how: further arguments of `Segmenter.detect`.

    Returns:
        The names of the images that failed, with the reasons, and those of `unreadable`.
    """
    writer = ResultWriter(output, formats, facts or {}, microns, segmenter.nouns, extra)
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
        return counted(len(outcome.result), segmenter.nouns)

    complete = False
    try:
        each_image(names, "detect", failed, read, work, write, progress)
        complete = True
    except KeyboardInterrupt:
        print(f"Stopped. The results so far are in {writer.partial}")
        raise
    finally:
        writer.close(complete)
    print(f"{counted(total, segmenter.nouns)}. Written to {writer.places()}")
    return failed


def predictions_of(segmenter: Any) -> Predict:
    """What `run_evaluate` asks for, of a `Segmenter`."""

    def predict(name: str, image: np.ndarray) -> tuple:
        result, seconds = timed(segmenter.detect, image)
        return result.labels, result.scores, seconds

    return predict


def ways_of(segmenter: Any, source: str) -> dict[str, Any]:
    """What metrics.json says of a `Segmenter`; source: its weights."""
    return {
        "detections": source,
        "postprocessing": segmenter.settings.to_dict(),
        "variants": [str(variant) for variant in segmenter.variants],
    }


def counted(count: int, nouns: tuple[str, str]) -> str:
    """`1 nucleus`, `2 nuclei`."""
    return f"{count} {nouns[count != 1]}"


# From the name and pixels of an image to labels int [H, W], scores [N] by ascending label where
# they are known, and the seconds of the detection.
Predict = Callable[[str, np.ndarray], tuple[np.ndarray, np.ndarray | None, float | None]]


def run_evaluate(
    dataset: Dataset,
    output: Path,
    predict: Predict,
    *,
    nouns: tuple[str, str] = ("object", "objects"),
    kinds: Kinds | None = None,
    extra: Sequence[ImageWriter] = (),
    limit: int | None = None,
    pictures: bool = True,
    figures: bool = False,
    facts: Mapping[str, str] | None = None,
    ways: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Score detections on a labelled data set.

    Writes index.html, metrics.json, metrics.csv, <name>.png and worst.png (the WORST of these
    images on one sheet) into `output`; prints the table.

    Args:
        dataset: prepared.
        predict: what is scored.
        nouns: what one and several of the objects are called.
        kinds: to break the scores down by.
        extra: writers of the detections.
        limit: only the first images.
        images: whether to draw every image; figures: and the paper's figures 7 and 8.
        facts: for index.html.
        ways: where the detections come from, kept in metrics.json.

    Returns:
        The names of the images that failed, with the reasons; they are not part of the scores.
    """
    evaluation = Evaluation(kinds)
    page = ReportWriter(
        output / "index.html",
        f"{nouns[1].capitalize()} against the truth",
        facts or {},
        kind="evaluate",
        nouns=nouns,
    )
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
        return image, truth, *predict(names[number], image)

    def write(number: int, outcome: Outcome) -> str:
        image_id = names[number]
        if outcome.error is not None:
            page.add_failed(image_id, str(outcome.error or "out of memory"))
            return ""
        image, truth, labels, scores, seconds = outcome.result
        for writer in extra:
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
            drawn = report_figures(image, truth, labels, scores, evaluation.ious[-1], nouns[0])
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
        for writer in extra:
            writer.close(complete)
        page.close(complete, evaluation.summary() if evaluation.rows else None)
        if evaluation.rows:
            evaluation.write(output, **(ways or {}), complete=complete, failed=list(failed))
    if not evaluation.rows:
        raise UserError(f"none of the {len(failed)} images could be scored")
    print(evaluation.table())
    written = "index.html, metrics.json, metrics.csv"
    if pictures:
        rows = sorted(evaluation.rows, key=lambda row: row["score"])
        paths = [output / f"{row['image_id']}.png" for row in rows]
        # A scored image has no image where memory did not suffice for that.
        worst = [path for path in paths if path.is_file()][:WORST]
        if worst:
            drawing.save_png(output / "worst.png", drawing.contact_sheet(worst))
            written += f", images, worst.png (the {len(worst)} worst)"
    print(f"\nWritten to {output}: {written}")
    return failed
