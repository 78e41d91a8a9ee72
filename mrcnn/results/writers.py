"""What `detect` writes: any set of formats from one run.

    report        index.html: numbers, distributions and a gallery, in one file
    pictures      <ImageId>.png, outlines over the image
    labels        labels/<ImageId>.tif, one number per object
    zarr          zarr/<ImageId>.ome.zarr, the same for slides
    rois          rois/<ImageId>.zip, for ImageJ
    geojson       geojson/<ImageId>.geojson, for QuPath
    coco          coco.json, all images in one file
    measurements  measurements.csv, all images in one table

What is written image by image stays when a run is interrupted; with a `RunLog`, the next run
resumes from there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mrcnn.atomic import atomic_path, file_system_errors
from mrcnn.errors import UserError
from mrcnn.results import drawing, result_files
from mrcnn.results.file_names import file_name
from mrcnn.results.label_zarr import require_zarr, write_label_zarr
from mrcnn.results.report import ReportWriter, begin_partial
from mrcnn.results.result import Result
from mrcnn.results.run_log import PARTIAL, RunLog, damaged
from mrcnn.results.taken import Taken

# Where each format goes.
PLACES = {
    "report": "index.html",
    "pictures": "pictures",
    "labels": "labels/",
    "zarr": "zarr/",
    "rois": "rois/",
    "geojson": "geojson/",
    "coco": "coco.json",
    "measurements": "measurements.csv",
}
FORMATS = tuple(PLACES)
DEFAULT_FORMATS = ("report", "pictures", "labels", "measurements")


class ImageWriter(Protocol):
    """A format that only one application has."""

    path: Path
    partial: Path  # what an interrupted run leaves

    def add(self, name: str, labels: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Write an image; labels int [H, W], scores [N] by ascending label."""

    def lengths(self) -> dict[str, int]:
        """The bytes so far of the partial files, by their names."""

    def files(self) -> list[str]:
        """The names of the files of a complete run."""

    def close(self, complete: bool) -> None:
        """Give the file its final name if the run is complete."""


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
        log: RunLog | None = None,
    ):
        """
        Args:
            output: folder.
            formats: names from FORMATS.
            facts: about the run, for the report.
            microns: pixel size in microns, for the report.
            nouns: what one object and several are called.
            extra: writers of further formats.
            log: records every image; the images that it already has are kept.

        Raises UserError if a package that a format needs is missing, a file cannot be written, or
        the log is damaged.
        """
        self.output, self.formats = Path(output), tuple(formats)
        self.nouns, self.extra, self.log = nouns, tuple(extra), log
        self.total = 0  # objects
        if "rois" in formats:
            _demand_roifile()
        if "zarr" in formats:
            require_zarr()
        lengths = log.lengths if log else {}
        kept = {path: lengths.get(f"{path}{PARTIAL}", 0) for path in PLACES.values()}
        self.coco = (
            Coco(self.output / "coco.json", kept["coco.json"]) if "coco" in formats else None
        )
        self.table = None
        if "measurements" in formats:
            table = self.output / "measurements.csv"
            self.table = Table(table, kept["measurements.csv"])
        self.report = None
        if "report" in formats:
            page, title = self.output / "index.html", nouns[1].capitalize()
            self.report = ReportWriter(
                page, title, facts, microns, nouns=nouns, kept=kept["index.html"]
            )
        for line in log.done if log else ():
            self._recall(line, log)

    def _recall(self, line: Mapping[str, Any], log: RunLog) -> None:
        """Restore an image from its line in the log."""
        try:
            if line["failed"] is not None:
                if self.report:
                    self.report.add_failed(line["name"], line["failed"])
                return
            self.total += line["memory"]["objects"]
            if self.report:
                self.report.recall(line["memory"]["report"])
            if self.coco:
                self.coco.recall(line["memory"]["coco"])
        except (KeyError, TypeError, ValueError):
            raise damaged(log.path) from None

    def add(self, name: str, result: Result, taken: Taken | None = None) -> None:
        """Write what was found in an image. Raises UserError if the file system refuses, and
        MemoryError, after the image is noted as failed.

        taken: what the table and the report say about the image; by default what the result says.
        """
        try:
            self._add(name, result, taken)
        except MemoryError:
            self.add_failed(name, "out of memory")
            raise

    def _add(self, name: str, result: Result, taken: Taken | None) -> None:
        taken = taken or Taken.of(result)
        files = self._files_of(name)
        for writer in self.extra:
            writer.add(name, result.labels, result.scores)
        if "pictures" in files or self.report:
            shown, shown_labels = result.preview()
        if "pictures" in files:
            title = f"{len(result)} {self.nouns[len(result) != 1]}   {name}"
            image = drawing.detections_only(shown, shown_labels, title)
            drawing.save_png(self.output / files["pictures"], image)
        if "labels" in files:
            result_files.write_label_image(self.output / files["labels"], result.labels)
        if "zarr" in files:
            write_label_zarr(self.output / files["zarr"], result.labels, result.microns)
        if "rois" in files:
            result_files.write_imagej_rois(self.output / files["rois"], result.labels)
        if "geojson" in files:
            result.to_geojson(self.output / files["geojson"])
        memory: dict[str, Any] = {"objects": len(result)}
        if self.coco:
            memory["coco"] = self.coco.add(name, result)
        if self.table or self.report:
            measured = result.to_dataframe()
        if self.report:
            # The pixel size that the report was given is that of the full size.
            factor = result.reduction if self.report.microns is not None else 1.0
            memory["report"] = self.report.add(
                name,
                shown,
                shown_labels,
                result_files.enlarged(measured, factor),
                link=files.get("pictures"),
                shape=[round(side * factor) for side in result.labels.shape],
                taken=str(taken),
            )
        if self.table:
            self.table.add(name, measured.assign(**taken.row()))
        self.total += len(result)
        if self.log:
            self.log.add(name, self._lengths(), list(files.values()), memory)

    def _files_of(self, name: str) -> dict[str, str]:
        """An image's own files by format, relative to the output folder."""
        file = file_name(name)
        places = {
            "pictures": f"{file}.png",
            "labels": f"labels/{file}.tif",
            "zarr": f"zarr/{file}.ome.zarr",
            "rois": f"rois/{file}.zip",
            "geojson": f"geojson/{file}.geojson",
        }
        return {kind: place for kind, place in places.items() if kind in self.formats}

    def _growing(self) -> list[Any]:
        """The writers of files of the whole run."""
        return [writer for writer in (*self.extra, self.table, self.coco, self.report) if writer]

    def _lengths(self) -> dict[str, int]:
        return {
            name: length for writer in self._growing() for name, length in writer.lengths().items()
        }

    def add_failed(self, name: str, reason: str) -> None:
        """Note an image that could not be read; further formats list it without objects."""
        for writer in self.extra:
            writer.add(name, np.zeros((1, 1), np.int32))
        if self.report:
            self.report.add_failed(name, reason)
        if self.log:
            self.log.add(name, self._lengths(), failed=reason)

    def close(self, complete: bool) -> None:
        """Give the files of the whole run their final names if it is complete."""
        # The long files first, and what they are made from stays until all are there, so that a run
        # that is killed here resumes from here.
        made = [writer for writer in (self.report, self.coco) if writer]
        for writer in made:
            writer.close(complete, keep=self.log is not None)
        for writer in (self.table, *self.extra):
            if writer:
                writer.close(complete)
        if self.log and complete:
            for writer in made:
                writer.partial.unlink()
            self.log.finish([name for writer in self._growing() for name in writer.files()])

    def paths(self) -> dict[str, str]:
        """See `paths_of`."""
        others = [name for writer in self.extra for name in writer.files()]
        return paths_of(self.output, self.formats, others)

    def places(self) -> str:
        """Where the results are, in words."""
        places = [place for name, place in PLACES.items() if name in self.formats]
        places += [writer.path.name for writer in self.extra]
        return f"{self.output}: " + ", ".join(places)

    @property
    def partial(self) -> Path:
        """What an interrupted run leaves."""
        return self.extra[0].partial if self.extra else self.output


def paths_of(output: Path, formats: Sequence[str], others: Sequence[str] = ()) -> dict[str, str]:
    """Where each format is, and the files of an application's own formats by name."""
    places = {**PLACES, "pictures": "*.png"}
    places = {name: place for name, place in places.items() if name in formats}
    places |= {name: name for name in others if name not in PLACES.values()}
    return {name: os.path.join(output, place) for name, place in places.items()}


class Coco:
    """coco.json: COCO annotations of all images; they go to `<name>.partial` at once."""

    def __init__(self, path: Path, kept: int = 0):
        """kept: bytes to keep of the partial file of a resumed run, whose images are recalled."""
        self.path, self.partial = path, path.with_name(path.name + PARTIAL)
        self.images: list[dict] = []
        self.annotations = 0
        self.classes: Sequence[str] = ()
        self._written = kept
        with file_system_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            begin_partial(self.partial, kept)

    def add(self, image_id: str, result: Result) -> dict[str, Any]:
        """Add what was found in an image. Returns what `recall` takes."""
        number = len(self.images) + 1
        height, width = result.labels.shape
        image = {"id": number, "file_name": f"{image_id}.png", "height": height, "width": width}
        found = result_files.coco_annotations(
            result.labels, result.scores, number, self.annotations + 1, result.class_ids
        )
        first = not self.annotations
        text = ",\n".join(json.dumps(annotation) for annotation in found)
        data = (text if first or not found else f",\n{text}").encode()
        with file_system_errors(self.path), open(self.partial, "ab") as file:
            file.write(data)
        self._written += len(data)
        memory = {"image": image, "annotations": len(found), "classes": list(result.classes)}
        self.recall(memory)
        return memory

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore an image whose annotations are in the partial file already."""
        self.images.append(memory["image"])
        self.annotations += memory["annotations"]
        self.classes = memory["classes"]

    def lengths(self) -> dict[str, int]:
        return {self.partial.name: self._written}

    def files(self) -> list[str]:
        return [self.path.name]

    def close(self, complete: bool, keep: bool = False) -> None:
        """Write the file if the run is complete. keep: the partial file stays."""
        if complete:
            self._write()
        if not keep:
            self.partial.unlink()

    def _write(self) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, 1)]
        head = json.dumps({"images": self.images, "categories": categories})
        with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
            file.write((head[:-1] + ', "annotations": [\n').encode())
            with open(self.partial, "rb") as annotations:
                shutil.copyfileobj(annotations, file)
            file.write(b"\n]}\n")


class Table:
    """measurements.csv; rows go to `<name>.partial` at once."""

    def __init__(self, path: Path, kept: int = 0):
        """kept: bytes to keep of the partial file of a resumed run."""
        self.path, self.partial = path, path.with_name(path.name + PARTIAL)
        self._written = kept
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            begin_partial(self.partial, kept)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def add(self, image_id: str, table) -> None:
        """Append an image's table; columns in microns are empty if the pixel size is not known,
        and always come last: all images have the same columns."""
        in_pixels = [name for name in table.columns if name not in result_files.IN_MICRONS]
        table = table.reindex(columns=[*in_pixels, *result_files.IN_MICRONS])
        for name in table.columns.intersection(["channels", "microns_from", "class_name"]):
            table[name] = [result_files.guarded(str(text)) for text in table[name]]
        table.insert(0, "image_id", result_files.guarded(image_id))
        text = table.to_csv(
            header=not self._written, index=False, lineterminator="\n", float_format="%.6g"
        )
        data = text.encode("utf-8", "backslashreplace")  # names may not be valid UTF-8
        try:
            with open(self.partial, "ab") as file:
                file.write(data)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        self._written += len(data)

    def lengths(self) -> dict[str, int]:
        return {self.partial.name: self._written}

    def files(self) -> list[str]:
        return [self.path.name]

    def close(self, complete: bool) -> None:
        """Give the file its final name if the run is complete."""
        if complete:
            os.replace(self.partial, self.path)


def _demand_roifile() -> None:
    try:
        import roifile  # noqa: F401
    except ImportError:
        raise UserError("--format rois needs the package roifile: pip install roifile") from None
