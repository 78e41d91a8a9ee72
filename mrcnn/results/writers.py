"""What `detect` writes: any set of formats from one run.

    report        index.html: numbers, distributions and a gallery, in one file
    images      <ImageId>.png, outlines over the image
    labels        labels/<ImageId>.tif, every nucleus a number
    rois          rois/<ImageId>.zip, for ImageJ
    geojson       geojson/<ImageId>.geojson, for QuPath
    coco          coco.json, all images in one file
    measurements  measurements.csv, all images in one table

What is written for one image after the other stays when a run is interrupted; coco.json is
written at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mrcnn.atomic import atomic_path
from mrcnn.errors import UserError
from mrcnn.results import result_files
from mrcnn.results.report import ReportWriter
from mrcnn.results.result import Result
from mrcnn.results.taken import Taken
from mrcnn.results import drawing
from mrcnn.results.file_names import file_name

# Where each format goes.
PLACES = {
    "report": "index.html",
    "pictures": "pictures",
    "labels": "labels/",
    "rois": "rois/",
    "geojson": "geojson/",
    "coco": "coco.json",
    "measurements": "measurements.csv",
}
FORMATS = tuple(PLACES)
DEFAULT_FORMATS = ("report", "pictures", "labels", "measurements")


class ImageWriter(Protocol):
    """A format of an application's own."""

    path: Path
    partial: Path  # what an interrupted run leaves

    def add(self, name: str, labels: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Write an image; labels int [H, W], scores [N] by ascending label."""

    def close(self, complete: bool) -> None:
        """Give the file its name where the run is complete."""


class ResultWriter:
    """Writes the results of a run image by image."""

    def __init__(
        self,
        output: Path,
        formats: Sequence[str],
        facts: Mapping[str, str],
        microns: float | None = None,
        nouns: tuple[str, str] = ("object", "objects"),
        extra: Sequence[ImageWriter] = (),
    ):
        """
        Args:
            output: folder.
            formats: names out of FORMATS.
            facts: about the run, for the report.
            microns: side of a pixel, for the report.
            nouns: what one and several of the objects are called.
            extra: writers of further formats.

        Raises UserError where a package that a format needs is absent, or a file cannot be written.
        """
        self.output, self.formats = Path(output), tuple(formats)
        self.nouns, self.extra = nouns, tuple(extra)
        if "rois" in formats:
            _demand_roifile()
        self.coco = Coco() if "coco" in formats else None
        self.table = Table(self.output / "measurements.csv") if "measurements" in formats else None
        self.report = None
        if "report" in formats:
            self.report = ReportWriter(
                self.output / "index.html", nouns[1].capitalize(), facts, microns, nouns=nouns
            )

    def add(self, name: str, result: Result, taken: Taken | None = None) -> None:
        """Write what was found in an image. Raises UserError where the file system refuses.

        taken: what the table and the report say of the image; by default what the result says.
        """
        taken = taken or Taken.of(result)
        labels, scores = result.labels, result.scores
        file = file_name(name)
        picture = f"{file}.png" if "pictures" in self.formats else None
        for writer in self.extra:
            writer.add(name, labels, scores)
        if "pictures" in self.formats or self.report:
            shown, shown_labels = result.preview()
        if picture:
            title = f"{len(result)} {self.nouns[len(result) != 1]}   {name}"
            drawing.save_png(
                self.output / picture, drawing.detections_only(shown, shown_labels, title)
            )
        if "labels" in self.formats:
            result_files.write_label_image(self.output / "labels" / f"{file}.tif", labels)
        if "rois" in self.formats:
            result_files.write_imagej_rois(self.output / "rois" / f"{file}.zip", labels)
        if "geojson" in self.formats:
            result.to_geojson(self.output / "geojson" / f"{file}.geojson")
        if self.coco:
            self.coco.add(name, result)
        if self.table or self.report:
            measured = result.to_dataframe()
        if self.report:
            self.report.add(name, shown, shown_labels, measured, link=picture, shape=labels.shape,
                            taken=str(taken))
        if self.table:
            self.table.add(name, measured.assign(**taken.row()))

    def add_failed(self, name: str, reason: str) -> None:
        """An image that could not be read: in the other formats it stands without objects."""
        for writer in self.extra:
            writer.add(name, np.zeros((1, 1), np.int32))
        if self.report:
            self.report.add_failed(name, reason)

    def close(self, complete: bool) -> None:
        """Give the files of the whole run their names where it is complete."""
        for writer in self.extra:
            writer.close(complete)
        if self.table:
            self.table.close(complete)
        if self.coco and complete:
            self.coco.write(self.output / "coco.json")
        if self.report:
            self.report.close(complete)

    def places(self) -> str:
        """Where the results are, in words."""
        places = [place for name, place in PLACES.items() if name in self.formats]
        places += [writer.path.name for writer in self.extra]
        return f"{self.output}: " + ", ".join(places)

    @property
    def partial(self) -> Path:
        """What an interrupted run leaves."""
        return self.extra[0].partial if self.extra else self.output


class Coco:
    """COCO's annotations of all images; every one as text, which takes little memory."""

    def __init__(self) -> None:
        self.images: list[dict] = []
        self.annotations: list[str] = []
        self.classes: tuple[str, ...] = ()

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
        table.insert(0, "image_id", result_files.guarded(image_id))
        try:
            table.to_csv(
                self.partial,
                mode="a",
                header=not self._begun,
                index=False,
                lineterminator="\n",
                float_format="%.6g",
                errors="backslashreplace",  # of names that are no UTF-8
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
