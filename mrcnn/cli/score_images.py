"""The loop over labelled images behind `evaluate`; see detect_images.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.cli.pipeline import Outcome, each_image
from mrcnn.cli.summary import Summary, timing, timing_text
from mrcnn.console import Progress
from mrcnn.data.dataset import Dataset
from mrcnn.errors import UserError
from mrcnn.evaluation.crowds import only, outside_crowds, split_crowds
from mrcnn.evaluation.evaluation import Evaluation, Kinds, figure, paper_figures, timed
from mrcnn.results import drawing
from mrcnn.results.file_names import file_name, warn_of_long
from mrcnn.results.report import ReportWriter
from mrcnn.results.result_files import measurements
from mrcnn.results.writers import ImageWriter

# Images on the contact sheet of those with the lowest scores.
WORST = 20
# From the name and pixels of an image to labels int [H, W], scores [N] by ascending label (if
# known), and the seconds that the detection took.
Predict = Callable[[str, np.ndarray], tuple[np.ndarray, np.ndarray | None, float | None]]


def predictions_of(segmenter: Any) -> Predict:
    """The `predict` of `run_evaluate` for a `Segmenter`."""

    def predict(name: str, image: np.ndarray) -> tuple:
        result, seconds = timed(segmenter.detect, image)
        return result.labels, result.scores, seconds

    return predict


def ways_of(segmenter: Any, source: str) -> dict[str, Any]:
    """What metrics.json says about a `Segmenter`; source: its weights."""
    return {
        "detections": source,
        "postprocessing": segmenter.settings.to_dict(),
        "variants": [str(variant) for variant in segmenter.variants],
    }


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
) -> Summary:
    """Score detections on a labelled data set.

    Writes index.html, metrics.json, metrics.csv, <name>.png and worst.png (the WORST of these
    images on one sheet) into `output`; prints the scores.

    Args:
        dataset: prepared.
        predict: what is scored.
        nouns: what one object and several are called.
        kinds: to break the scores down by.
        extra: writers of the detections.
        limit: only the first images.
        pictures: whether to draw every image; figures: whether to draw the paper's figures 7
            and 8 too.
        facts: for index.html.
        ways: where the detections come from, kept in metrics.json.

    Returns:
        The scores; images that failed are not included.
    """
    writer = EvaluationWriter(output, Evaluation(kinds), nouns, extra, pictures, figures, facts)
    names = [dataset.image_reference(i) for i in list(dataset.image_ids)[:limit]]
    warn_of_long(names)

    def work(number: int, found: tuple, progress: Progress) -> tuple:
        image, truth, crowds, values = found
        return image, truth, *predict(names[number], values), crowds

    def write(number: int, outcome: Outcome) -> str:
        return writer.take(names[number], outcome)

    complete, failed, began = False, {}, time.monotonic()
    try:
        each_image(names, "evaluate", failed, lambda i: labelled(dataset, i), work, write)
        complete = True
    except KeyboardInterrupt:
        done = len(writer.evaluation.rows)
        if done:
            said = f"Stopped. The scores of the {done} images so far are in {output}"
            print(said, file=sys.stderr)
        raise
    finally:
        writer.close(complete, ways or {}, list(failed))
    if not writer.evaluation.rows:
        raise UserError(f"none of the {len(failed)} images could be scored")
    print(writer.evaluation.table() + "\n")
    return writer.summary(time.monotonic() - began, failed)


def labelled(dataset: Dataset, number: int) -> tuple:
    """An image uint8 [H, W, 3], its label layers int [H, W, L], the layers of its crowds, and its
    values as they are in the file. Raises UserError if the sizes differ."""
    truth, crowds = split_crowds(*dataset.load_layers(number))
    image = dataset.load_image(number)
    values = np.asarray(dataset.open_image(number)[:, :])
    if truth.shape[:2] != image.shape[:2]:
        raise UserError(
            f"masks of {truth.shape[0]} x {truth.shape[1]} pixels for an image of "
            f"{image.shape[0]} x {image.shape[1]}"
        )
    return image, truth, crowds, values


class EvaluationWriter:
    """Writes what `run_evaluate` finds, image by image.

    Attributes:
        evaluation: the scores so far; page: the report.
    """

    def __init__(
        self,
        output: Path,
        evaluation: Evaluation,
        nouns: tuple[str, str],
        extra: Sequence[ImageWriter],
        pictures: bool,
        figures: bool,
        facts: Mapping[str, str] | None,
    ):
        self.output, self.evaluation, self.nouns, self.extra = output, evaluation, nouns, extra
        self.pictures, self.figures = pictures, figures
        title = f"{nouns[1].capitalize()} against the truth"
        self.page = ReportWriter(
            output / "index.html", title, facts or {}, kind="evaluate", nouns=nouns
        )

    def take(self, name: str, outcome: Outcome) -> str:
        """Write the outcome for an image. Returns a note about the scores so far."""
        if outcome.error is not None:
            self.page.add_failed(name, str(outcome.error or "out of memory"))
            return ""
        self.add(name, *outcome.result)
        return f"mean score {self.evaluation.mean('score'):.3f}"

    def add(
        self,
        name: str,
        image: np.ndarray,
        truth: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray | None,
        seconds: float | None,
        crowds: np.ndarray,
    ) -> None:
        """Score an image and write its results; see `Evaluation.add` for the arguments."""
        for writer in self.extra:
            writer.add(name, labels, scores)
        row = self.evaluation.add(name, image, truth, labels, scores, seconds, crowds)
        all_ious, _, shares = self.evaluation.for_coco[-1]
        kept = outside_crowds(all_ious, shares)
        labels, scores = only(labels, kept), None if scores is None else np.asarray(scores)[kept]
        iou = self.evaluation.ious[-1]
        if self.pictures:
            picture = figure(image, truth, labels, scores, row, iou)
            drawing.save_png(self.output / f"{file_name(name)}.png", picture)
        self.page.add(
            name,
            drawing.brighten(image),
            labels,
            measurements(labels, scores, image),
            truth,
            row,
            f"{file_name(name)}.png" if self.pictures else None,
        )
        if self.figures:
            drawn = paper_figures(image, truth, labels, scores, iou, self.nouns[0])
            for kind, picture in drawn.items():
                drawing.save_png(self.output / f"{kind}_{file_name(name)}.png", picture)

    def close(self, complete: bool, ways: Mapping[str, Any], failed: Sequence[str]) -> None:
        """Write what concerns all images; ways: where the detections come from."""
        for writer in self.extra:
            writer.close(complete)
        rows = self.evaluation.rows
        self.page.close(complete, self.evaluation.summary() if rows else None)
        if rows:
            self.evaluation.write(self.output, **ways, complete=complete, failed=failed)

    def summary(self, seconds: float, failed: Mapping[str, str]) -> Summary:
        """The scores, and where they are; draws the sheet of the worst images."""
        scores, places = self.evaluation.summary(), ", ".join(self.places())
        images, score = scores["images"], f"{scores['score']:.4f}"
        table = {
            "Images": str(images),
            f"True {self.nouns[1]}": str(scores["true"]),
            "Detected": str(scores["detected"]),
            "Score": score,
            "Seconds": timing_text(seconds, images),
            "Skipped": str(len(failed)),
            "Report": str(self.output / "index.html"),
            "Written to": f"{self.output}: {places}",
        }
        facts = {**scores, **timing(seconds, images), "skipped": failed, "output": self.output}
        result = f"Score {score} of {images} images. Written to {self.output}: {places}"
        return Summary(result, facts, table, failed)

    def places(self) -> list[str]:
        """Where the results are, in words; draws the sheet of the worst images."""
        written = ["index.html", "metrics.json", "metrics.csv"]
        if self.pictures:
            rows = sorted(self.evaluation.rows, key=lambda row: row["score"])
            paths = [self.output / f"{file_name(row['image_id'])}.png" for row in rows]
            # A scored image has no picture if there was not enough memory to draw it.
            worst = [path for path in paths if path.is_file()][:WORST]
            if worst:
                sheet = "worst.png"
                while (self.output / sheet) in paths:  # an image of that name
                    sheet = f"_{sheet}"
                drawing.save_png(self.output / sheet, drawing.contact_sheet(worst))
                written += ["pictures", f"{sheet} (the {len(worst)} worst)"]
        return written
