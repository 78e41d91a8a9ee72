"""What `detect` writes: any set of formats from one run.

    report        index.html: numbers, distributions and a gallery, in one file
    submission    submit.csv and scores.csv
    pictures      <ImageId>.png, outlines over the picture
    labels        labels/<ImageId>.tif, every nucleus a number
    rois          rois/<ImageId>.zip, for ImageJ
    geojson       geojson/<ImageId>.geojson, for QuPath
    coco          coco.json, all pictures in one file
    measurements  measurements.csv, all pictures in one table

What is written for one picture after the other stays when a run is interrupted; coco.json is
written at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mrcnn.atomic import atomic_path
from mrcnn.errors import UserError
from mrcnn.results import result_files
from mrcnn.results.report import ReportWriter
from mrcnn.results.result import Result
from samples.nucleus import drawing
from samples.nucleus.submission import SubmissionWriter

# Where each format goes.
PLACES = {
    "report": "index.html",
    "submission": "submit.csv",
    "pictures": "pictures",
    "labels": "labels/",
    "rois": "rois/",
    "geojson": "geojson/",
    "coco": "coco.json",
    "measurements": "measurements.csv",
}
FORMATS = tuple(PLACES)
DEFAULT_FORMATS = ("report", "submission", "pictures")
DEFAULT_FORMATS_OF_FILES = ("report", "pictures", "labels", "measurements")
CLASS_NAME = "nucleus"


class ResultWriter:
    """Writes the results of a run picture by picture."""

    def __init__(
        self,
        output: Path,
        formats: Sequence[str],
        facts: Mapping[str, str],
        microns: float | None = None,
    ):
        """facts: about the run, and microns, the side of a pixel, for the report. Raises UserError
        where a package that a format needs is absent, or a file cannot be written."""
        self.output, self.formats = Path(output), tuple(formats)
        if "rois" in formats:
            _demand_roifile()
        self.submission = (
            SubmissionWriter(self.output / "submit.csv") if "submission" in formats else None
        )
        self.coco = Coco() if "coco" in formats else None
        self.table = Table(self.output / "measurements.csv") if "measurements" in formats else None
        self.report = None
        if "report" in formats:
            self.report = ReportWriter(
                self.output / "index.html", "Nuclei", facts, microns, nouns=("nucleus", "nuclei")
            )

    def add(self, name: str, result: Result) -> None:
        """Write what was found in a picture. Raises UserError where the file system refuses."""
        labels, scores = result.labels, result.scores
        picture = f"{name}.png" if "pictures" in self.formats else None
        if self.submission:
            self.submission.add(name, labels, scores)
        if "pictures" in self.formats or self.report:
            shown, shown_labels = result.preview()
        if picture:
            title = f"{len(result)} nuclei   {name}"
            drawing.save_png(
                self.output / picture, drawing.detections_only(shown, shown_labels, title)
            )
        if "labels" in self.formats:
            result_files.write_label_image(self.output / "labels" / f"{name}.tif", labels)
        if "rois" in self.formats:
            result_files.write_imagej_rois(self.output / "rois" / f"{name}.zip", labels)
        if "geojson" in self.formats:
            result.to_geojson(self.output / "geojson" / f"{name}.geojson")
        if self.coco:
            self.coco.add(name, result)
        if self.table or self.report:
            measured = result.to_dataframe()
        if self.report:
            self.report.add(name, shown, shown_labels, measured, link=picture, shape=labels.shape)
        if self.table:
            self.table.add(name, measured)

    def add_failed(self, name: str, reason: str) -> None:
        """A picture that could not be read: Kaggle wants a row of every one."""
        if self.submission:
            self.submission.add(name, np.zeros((1, 1), np.int32))
        if self.report:
            self.report.add_failed(name, reason)

    def close(self, complete: bool) -> None:
        """Give the files of the whole run their names where it is complete."""
        if self.submission:
            self.submission.close(complete)
        if self.table:
            self.table.close(complete)
        if self.coco and complete:
            self.coco.write(self.output / "coco.json")
        if self.report:
            self.report.close(complete)

    def places(self) -> str:
        """Where the results are, in words."""
        return f"{self.output}: " + ", ".join(
            place for name, place in PLACES.items() if name in self.formats
        )

    @property
    def partial(self) -> Path:
        """What an interrupted run leaves."""
        return self.submission.partial if self.submission else self.output


class Coco:
    """COCO's annotations of all pictures; every one as text, which takes little memory."""

    def __init__(self) -> None:
        self.images: list[dict] = []
        self.annotations: list[str] = []
        self.classes: tuple[str, ...] = (CLASS_NAME,)

    def add(self, image_id: str, result: Result) -> None:
        self.classes = result.classes
        number = len(self.images) + 1
        height, width = result.labels.shape
        self.images.append(
            {"id": number, "file_name": f"{image_id}.png", "height": height, "width": width}
        )
        found = result_files.coco_annotations(
            result.labels, result.scores, number, len(self.annotations) + 1, result.class_ids
        )
        self.annotations += [json.dumps(annotation) for annotation in found]

    def write(self, path: Path) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, 1)]
        head = json.dumps({"images": self.images, "categories": categories})
        with atomic_path(path) as temporary:
            Path(temporary).write_text(
                head[:-1] + ', "annotations": [\n' + ",\n".join(self.annotations) + "\n]}\n"
            )


class Table:
    """measurements.csv; rows go to `<name>.partial` at once."""

    def __init__(self, path: Path):
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._begun = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.partial.write_text("")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def add(self, image_id: str, table) -> None:
        """Append a picture's table; columns in microns are empty where a pixel's side is not
        known."""
        table = table.reindex(
            columns=[
                *table.columns,
                *(name for name in result_files.IN_MICRONS if name not in table),
            ]
        )
        table.insert(0, "image_id", image_id)
        try:
            table.to_csv(
                self.partial,
                mode="a",
                header=not self._begun,
                index=False,
                lineterminator="\n",
                float_format="%.6g",
            )
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        self._begun = True

    def close(self, complete: bool) -> None:
        if complete:
            os.replace(self.partial, self.path)


def _demand_roifile() -> None:
    try:
        import roifile  # noqa: F401
    except ImportError:
        raise UserError("--format rois needs the package roifile: pip install roifile") from None
