"""Kaggle's submission format: run-length codes, no overlaps, one CSV row per nucleus.

    ImageId,EncodedPixels
    <id>,<start> <length> <start> <length> ...
    <id of an image without nuclei>,

Pixels are numbered from 1, column by column (top to bottom, then left to right).
Shapes: H, W pixels, N instances, h, w pixels of one instance's patch.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mrcnn.data.dataset import Dataset
from mrcnn.errors import MRCNNWarning, UserError, quoted
from mrcnn.files import read_bytes
from mrcnn.pixels.masks import label_map

HEADER = ["ImageId", "EncodedPixels"]
# Names of files may be bytes that are not UTF-8: they are written and read as they are.
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}


# --- run-length codes ---------------------------------------------------------------------


def label_runs(labels: np.ndarray) -> dict[int, str]:
    """Run-length codes of all instances of a label map [H, W] (0 background), one pass.

    Returns {label: "start length start length ..."}, labels ascending.
    """
    labels = np.asarray(labels)
    if not labels.size:
        return {}
    # A run begins where a pixel differs from the one above it, at the top of a column from the
    # last one of the column before.
    begins = np.ones(labels.shape, bool)
    np.not_equal(labels[1:], labels[:-1], out=begins[1:])
    np.not_equal(labels[0, 1:], labels[-1, :-1], out=begins[0, 1:])
    starts = np.flatnonzero(begins.T)
    lengths = np.diff(starts, append=labels.size)
    values = labels[starts % len(labels), starts // len(labels)]
    inside = np.flatnonzero(values > 0)
    if not len(inside):
        return {}
    order = inside[np.argsort(values[inside], kind="stable")]
    numbers = np.stack([starts[order] + 1, lengths[order]], axis=1).ravel().tolist()
    present, first = np.unique(values[order], return_index=True)
    ends = [*(2 * first[1:]).tolist(), len(numbers)]
    return {
        label: " ".join(map(str, numbers[2 * begin : end]))
        for label, begin, end in zip(present.tolist(), first.tolist(), ends, strict=True)
    }


def rle_encode(mask: np.ndarray) -> str:
    """Run-length code of one mask [H, W]; "" for an empty mask."""
    if np.ndim(mask) != 2:
        raise UserError(f"rle_encode: a mask of shape [H, W] is needed, not {np.shape(mask)}")
    return label_runs(np.asarray(mask) != 0).get(1, "")


def rle_pixels(rle: str, shape: Sequence[int]) -> np.ndarray:
    """Zero-based, column-major pixel numbers of a run-length code, ascending by run.

    Raises UserError if the code is not pairs of whole numbers inside the image, or holds a pixel
    twice.
    """
    try:
        runs = np.array(rle.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise UserError("run-length code: holds something that is not a whole number") from None
    if len(runs) % 2:
        raise UserError("run-length code: an odd count of numbers, expected start length pairs")
    starts, lengths = runs[::2] - 1, runs[1::2]
    size = int(shape[0]) * int(shape[1])
    if (starts < 0).any() or (lengths < 1).any() or (starts > size - lengths).any():
        raise UserError(f"run-length code: a run lies outside the {shape[0]} x {shape[1]} image")
    order = np.argsort(starts, kind="stable")
    # Before the pixels are listed: runs that overlap may hold any number of them.
    if (starts[order][1:] < (starts + lengths)[order][:-1]).any():
        raise UserError("run-length code: the mask overlaps itself, two runs share a pixel")
    # Each run's first pixel, repeated, plus a count that starts at zero within each run.
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


def rle_decode(rle: str, shape: Sequence[int]) -> np.ndarray:
    """Run-length code -> bool mask [H, W]. Raises UserError for a wrong code."""
    mask = np.zeros(int(shape[0]) * int(shape[1]), bool)
    mask[rle_pixels(rle, shape)] = True
    return mask.reshape(int(shape[1]), int(shape[0])).T


# --- overlaps -----------------------------------------------------------------------------


def remove_overlaps(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`label_map` of whole masks [H, W, N], for callers that have no patches."""
    planes = np.ascontiguousarray(np.moveaxis(masks, -1, 0)).astype(bool, copy=False)
    return label_map([(0, 0, plane) for plane in planes], scores, masks.shape)


def ranked_scores(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores of the instances that are left in their `label_map`, by ascending label."""
    present = np.unique(labels[labels > 0])
    return np.sort(np.asarray(scores, np.float64))[::-1][present - 1]


def mask_to_rle(image_id: str, mask: np.ndarray, scores: np.ndarray) -> str:
    """The CSV lines of one image (matterport's function): masks [H, W, N], scores [N]."""
    runs = label_runs(remove_overlaps(mask, scores)).values()
    return "\n".join(f"{image_id},{code}" for code in runs) or f"{image_id},"


# --- the CSV file -------------------------------------------------------------------------


class SubmissionWriter:
    """Writes submit.csv image by image.

    Rows go to `<name>.partial` and to disk at once, so that an interrupted run leaves what it
    has; `close` gives the finished file its name in one step. `scores.csv`, written beside it,
    holds one confidence per row, for scores that need them (Kaggle's format has no place for them).
    """

    def __init__(self, path: str | os.PathLike, kept: Mapping[str, int] | None = None):
        """kept: of a resumed run, the bytes of its partial files (`lengths`).

        Raises UserError if the files cannot be written."""
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.scores_path = self.path.with_name("scores.csv")
        self._scores_partial = self.path.with_name("scores.csv.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.partial, self._scores_partial) if kept else ():
                os.truncate(path, kept[path.name])
            self._file = open(self.partial, "a" if kept else "w", newline="", **TEXT)
            self._scores = open(self._scores_partial, "a" if kept else "w", newline="", **TEXT)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._score_rows = csv.writer(self._scores, lineterminator="\n")
        if not kept:
            self._rows.writerow(HEADER)
            self._score_rows.writerow(["ImageId", "Score"])

    def add(self, image_id: str, labels: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Write an image's rows. labels: map [H, W]; scores [N]: of its instances, ascending
        label. Raises UserError if the file system refuses."""
        codes = list(label_runs(labels).values())
        try:
            self._rows.writerows([image_id, code] for code in codes or [""])
            if scores is not None:
                self._score_rows.writerows([image_id, f"{score:.6f}"] for score in scores)
            self._file.flush()
            self._scores.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None

    def lengths(self) -> dict[str, int]:
        """The bytes of both files so far, by their names."""
        self._file.flush()
        self._scores.flush()
        return {
            self.partial.name: self._file.tell(),
            self._scores_partial.name: self._scores.tell(),
        }

    def files(self) -> list[str]:
        """The names of the files of a complete run."""
        return [self.path.name, self.scores_path.name]

    def close(self, complete: bool = True) -> None:
        """Close the files; give them their final names if the run is complete.

        Raises UserError if the file system refuses; an incomplete run, which has an error of
        its own, keeps as much as fits.
        """
        try:
            with self._file, self._scores:  # both are closed, whatever goes wrong
                for file in (self._file, self._scores):
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            if complete:
                raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        if complete:
            os.replace(self.partial, self.path)
            os.replace(self._scores_partial, self.scores_path)


class Submission:
    """A submission file in memory: image id -> run-length codes with their line numbers."""

    def __init__(self, path: str | os.PathLike):
        """Read the file. Raises UserError naming file and line if it is not a submission."""
        self.path = Path(path)
        self._rows: dict[str, list[tuple[int, str]]] = {}
        # One image's masks fit one field; csv's own limit of 128 KiB is too small for large ones.
        before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            self._read(csv.reader(io.StringIO(_text_of(self.path), newline="")))
        except csv.Error as error:
            raise UserError(f"{self.path}: cannot be read ({error})") from None
        finally:
            csv.field_size_limit(before)  # all readers of the process share it
        self._scores = self._read_scores(self.path.with_name("scores.csv"))
        unlike = [i for i in self._rows if self._scores and self.scores(i) is None]
        if unlike:
            warnings.warn(
                f"{self.path}: scores.csv beside it has a wrong number of scores for {len(unlike)} "
                f"images (first: {quoted(unlike[0])}): their confidences count as unknown",
                MRCNNWarning,
                stacklevel=2,
            )

    def _read(self, rows: Iterable[list[str]]) -> None:
        header = next(iter(rows), [])
        if [field.strip() for field in header] != HEADER:
            raise UserError(f"{self.path}: the first line must be {','.join(HEADER)}")
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            if len(row) != 2 or not row[0].strip():
                raise UserError(f"{self.path} line {number}: expected <ImageId>,<runs>")
            codes = self._rows.setdefault(row[0].strip(), [])
            if row[1].strip():
                codes.append((number, row[1].strip()))

    def _read_scores(self, path: Path) -> dict[str, list[float]]:
        """The confidences that `detect` writes beside a submission; {} without such a file."""
        scores: dict[str, list[float]] = {}
        if not path.exists():
            return scores
        try:
            for row in list(csv.reader(io.StringIO(_text_of(path), newline="")))[1:]:
                score = float(row[1])
                if not 0 <= score <= 1:
                    raise ValueError(f"a score of {score:g}")
                scores.setdefault(row[0], []).append(score)
        except (IndexError, ValueError, csv.Error) as error:
            raise UserError(
                f"{path}: not a readable list of ImageId,Score with scores from 0 to 1 "
                f"({quoted(error)})"
            ) from None
        return scores

    @property
    def image_ids(self) -> list[str]:
        """Ids in the order of the file."""
        return list(self._rows)

    def labels(self, image_id: str, shape: Sequence[int]) -> np.ndarray:
        """The image's label map int32 [H, W], numbered in the file's order; zeros for an image
        that the file does not have. Raises UserError for bad runs and for overlaps."""
        labels = np.zeros(int(shape[0]) * int(shape[1]), np.int32)
        for label, (number, code) in enumerate(self._rows.get(image_id, []), 1):
            try:
                pixels = rle_pixels(code, shape)
            except UserError as error:
                raise UserError(f"{self.path} line {number}: {error}") from None
            if labels[pixels].any():
                raise UserError(
                    f"{self.path} line {number}: overlaps an earlier mask of "
                    f"{quoted(image_id)}; Kaggle does not accept that"
                )
            labels[pixels] = label
        return np.ascontiguousarray(labels.reshape(int(shape[1]), int(shape[0])).T)

    def scores(self, image_id: str) -> np.ndarray | None:
        """Confidences [N] of the image's instances, or None if they are not known."""
        count, scores = len(self._rows.get(image_id, [])), self._scores.get(image_id, [])
        return np.array(scores) if len(scores) == count else None


def _text_of(path: Path) -> str:
    """The text of an untrusted CSV file. Raises UserError if there is none."""
    return read_bytes(path).removeprefix(codecs.BOM_UTF8).decode(**TEXT)


def unknown_images(submission: Submission, dataset: Dataset) -> str:
    """A line about the images of a submission that a data set lacks; empty if there are none."""
    known = {dataset.image_reference(i) for i in dataset.image_ids}
    unknown = [image_id for image_id in submission.image_ids if image_id not in known]
    if not unknown:
        return ""
    return (
        f"{submission.path}: {len(unknown)} of its images are not in the subset and are not scored "
        f"(first: {quoted(unknown[0])})"
    )


def absent_images(submission: Submission, dataset: Dataset, limit: int | None = None) -> str:
    """A line about a data set's first images that a submission lacks; empty if there are none.

    Raises UserError if it has none of them.
    """
    wanted = {dataset.image_reference(i) for i in list(dataset.image_ids)[:limit]}
    path, absent = submission.path, wanted - set(submission.image_ids)
    if absent == wanted:
        raise UserError(f"{path} has none of the {len(wanted)} images of the subset")
    if not absent:
        return ""
    return (
        f"{path}: {len(absent)} of {len(wanted)} images are not in it and count as empty "
        f"(first: {min(absent)})"
    )
