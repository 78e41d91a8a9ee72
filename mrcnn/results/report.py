"""A report of a run as one HTML file that any browser opens: numbers, charts and a gallery.

The page (`report.html`) is fixed. What differs from run to run is data in
`<script type="application/json">` elements, which the page's JavaScript shows as text only: no
name of an image or other foreign text is ever read as HTML. Nothing is fetched; a policy in the
page forbids it.

Every image is in the file once, as a JPEG of at most LARGEST_SIDE pixels and JPEG_BYTES bytes
that serves as thumbnail and large view alike: 36 kB as text where the image is full of detail,
half of that for most fluorescence. An instance takes about 100 bytes for its outline, which is a
vector, and 35 for its row of the table. So 1,000 images of 512x512 with 150 instances each make
at most 60 MB. The gallery keeps only what is near the window in the document.

Shapes: H, W pixels of an image, h, w pixels of its JPEG, L label layers, N instances.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import html
import io
import json
import math
import os
import re
import shutil
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
from PIL import Image
from scipy import ndimage

from mrcnn.atomic import atomic_path
from mrcnn.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = Path(__file__).with_name("report.html")
DATA_MARK = "<!-- data -->"

LARGEST_SIDE, JPEG_BYTES = 1024, 27_000
QUALITIES = (85, 75, 60, 45)
# How far an outline may be from the edge of its instance, in half pixels of the JPEG.
TOLERANCE = 0.8
# Rows of measurements that the page shows per image, and their columns.
MOST_ROWS = 300
COLUMNS = ("label", "score", "area", "perimeter", "eccentricity", "mean_intensity", "neighbours")
# Bars of a histogram, and the share of the values beyond which the last bar takes all the rest.
MOST_BARS, SHOWN_SHARE = 24, 0.99


class ReportWriter:
    """Writes a report image by image.

    Images go to `<path>.partial` at once, so that the memory needed hardly grows with their
    number; `close` makes the page from what is there, even after an interruption.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        title: str,
        facts: Mapping[str, str],
        microns: float | None = None,
        kind: Literal["detect", "evaluate"] = "detect",
        nouns: tuple[str, str] = ("instance", "instances"),
        kept: int = 0,
    ):
        """path: of the page, such as index.html. facts: how the run was made (weights, command,
        version ...), shown as they are. microns: pixel size in microns. nouns: what is
        counted, singular and plural, such as ("nucleus", "nuclei"). kept: bytes to keep of the
        partial file of a resumed run, whose images are recalled. Raises UserError if the file
        cannot be written."""
        self.path, self.title, self.facts = Path(path), title, dict(facts)
        self.microns, self.kind, self.nouns = microns, kind, nouns
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._written = kept  # bytes of whole images in the partial file
        self._images: list[dict[str, Any]] = []
        self._failed: list[dict[str, str]] = []
        # Of all instances: 16 bytes each.
        self._areas, self._scores = array("d"), array("d")
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            begin_partial(self.partial, kept)

    def add(
        self,
        image_id: str,
        image: np.ndarray,
        labels: np.ndarray,
        table: pd.DataFrame,
        truth: np.ndarray | None = None,
        row: Mapping[str, Any] | None = None,
        link: str | None = None,
        shape: Sequence[int] | None = None,
        taken: str | None = None,
    ) -> dict[str, Any]:
        """Add an image. Returns what `recall` takes if the run is interrupted and resumed.

        image uint8 [H, W, 3]; labels int [H, W]; table: `result_files.measurements`, one row per
        instance by ascending label; truth int [H, W, L] and row (its scores, see
        mrcnn/evaluation/evaluation.py), if it was evaluated; link: path of the full image,
        relative to the page; shape: (H, W) of the image itself, if image and labels are a
        smaller copy of it; taken: what was used of the image, in words. Raises UserError if the
        file system refuses.
        """
        jpeg, (height, width) = encode_image(image)
        shown = {
            "jpeg": base64.b64encode(jpeg).decode(),
            # The outlines' coordinates are half pixels of the JPEG, in whole numbers.
            "box": [2 * width, 2 * height],
            "outlines": outline_paths(labels, (height, width)),
            "rows": _table_rows(table),
        }
        if truth is not None:
            layers = np.moveaxis(np.atleast_3d(truth), -1, 0)
            shown["truth"] = "".join(
                path for layer in layers for path in outline_paths(layer, (height, width))
            )
        line = _data_element(f"image-{len(self._images)}", shown).encode()
        with self._writing(), open(self.partial, "ab") as file:
            file.write(line)
        self._written += len(line)
        full_height, full_width = (shape or image.shape)[:2]
        areas, scores = table["area"].to_numpy(), table["score"].to_numpy()
        memory = {
            "image": {
                "name": image_id,
                "height": int(full_height),
                "width": int(full_width),
                "count": len(table),
                "confidence": _mean(scores),
                "area": _median(areas),
                "covered": float(areas.sum()) / max(1, full_height * full_width),
                **(
                    {}
                    if row is None
                    else {
                        name: row[name]
                        for name in ("score", "kind", "true", "detected", "ap_50", "f1_50")
                        if name in row
                    }
                ),
                **({} if taken is None else {"taken": taken}),
                **({} if link is None else {"link": relative_url(link)}),
            },
            "areas": areas.tolist(),
            "scores": scores[~np.isnan(scores)].tolist(),
        }
        self.recall(memory)
        return memory

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore an image that is in the partial file already, from what `add` returned."""
        self._images.append(memory["image"])
        self._areas.extend(memory["areas"])
        self._scores.extend(memory["scores"])

    def lengths(self) -> dict[str, int]:
        """The bytes of the images so far, by the name of the file."""
        return {self.partial.name: self._written}

    def files(self) -> list[str]:
        """The name of the page."""
        return [self.path.name]

    def add_failed(self, image_id: str, reason: str) -> None:
        """List an image that could not be processed, with the reason."""
        self._failed.append({"name": image_id, "reason": reason})

    def close(
        self, complete: bool, summary: Mapping[str, Any] | None = None, keep: bool = False
    ) -> None:
        """Write the page and remove the partial file.

        summary: of an evaluation, see mrcnn/evaluation/evaluation.py. keep: the partial file stays,
        for a run that can be resumed. Raises UserError if the file system refuses; an incomplete
        run, which has an error of its own, then keeps its partial file.
        """
        with contextlib.suppress(*(() if complete else (UserError,))):
            head, tail = _page_parts(self.title)
            with self._writing():  # a full disk may have left half an image
                os.truncate(self.partial, self._written)
            with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
                file.write(head.encode())
                with open(self.partial, "rb") as images:
                    shutil.copyfileobj(images, file)
                file.write(_data_element("report", self._report(complete, summary)).encode())
                file.write(tail.encode())
            if not keep:
                with self._writing():
                    self.partial.unlink()

    def _report(self, complete: bool, summary: Mapping[str, Any] | None) -> dict[str, Any]:
        """All but the images themselves."""
        counts = np.array([image["count"] for image in self._images])
        ratings = [image["score"] for image in self._images if "score" in image]
        areas = np.array(self._areas)
        area_unit = 1 if self.microns is None else self.microns**2
        return {
            "title": self.title,
            "kind": self.kind,
            "nouns": self.nouns,
            "complete": complete,
            "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
            "facts": list(self.facts.items()),
            "microns": self.microns,
            "instances": counts.sum(),
            "median_area": _median(areas),
            "columns": COLUMNS,
            "most_rows": MOST_ROWS,
            "images": self._images,
            "failed": self._failed,
            "summary": summary,
            "histograms": {
                "count": histogram(counts, whole=True),
                "area": histogram(areas * area_unit, whole=self.microns is None),
                "confidence": histogram(np.array(self._scores), most=1.0),
                "score": histogram(np.array(ratings), most=1.0),
            },
        }

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None


# --- the file -----------------------------------------------------------------------------


def begin_partial(path: Path, kept: int) -> None:
    """Create an empty file, or cut an existing one to the bytes that are kept. Raises OSError."""
    if kept:
        os.truncate(path, kept)
    else:
        path.write_bytes(b"")


def _page_parts(title: str) -> tuple[str, str]:
    """The page before and after its data, with the title and the policy in place.

    The policy allows the page's own script and style, by their hashes, and images that are part
    of the page: nothing else would run, and nothing is fetched.
    """
    page = TEMPLATE.read_text(encoding="utf-8")
    for name in ("script", "style"):
        [content] = re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        page = page.replace(f"{name}-hash", f"sha256-{digest}")
    # Lone surrogates, as in some file names, cannot be written.
    readable = title.encode(errors="replace").decode()
    page = page.replace("<title></title>", f"<title>{html.escape(readable)}</title>")
    head, tail = page.split(DATA_MARK)
    return head, tail


def _data_element(name: str, data: Any) -> str:
    """A line of ASCII that holds data; no text in it can end the element or begin another."""
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _plain(data: Any) -> Any:
    """What JSON can hold: no NaN, no infinity, no NumPy types."""
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    if isinstance(data, (np.ndarray, np.generic)):
        return _plain(data.tolist())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data


def relative_url(link: str) -> str:
    """A relative path as a URL that no browser mistakes for an absolute one or for a script."""
    return "./" + quote(os.fsencode(link.replace(os.sep, "/")))


# --- an image ----------------------------------------------------------------------------


def encode_image(image: np.ndarray) -> tuple[bytes, tuple[int, int]]:
    """uint8 [H, W, 3] -> JPEG of at most JPEG_BYTES, and its shape (h, w).

    If it would be too large, the quality is lowered, then the size. Images that are dark all over
    (fluorescence often is) are brightened for display.
    """
    small = Image.fromarray(np.ascontiguousarray(image))
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE), reducing_gap=2)
    small = Image.fromarray(_brightened(np.asarray(small)))
    while True:
        for quality in QUALITIES:
            data = io.BytesIO()
            small.save(data, "JPEG", quality=quality, optimize=True)
            if data.tell() <= JPEG_BYTES:
                return data.getvalue(), (small.height, small.width)
        small.thumbnail((0.8 * small.width, 0.8 * small.height))


def _brightened(image: np.ndarray) -> np.ndarray:
    top = np.percentile(image, 99.8)
    if not 0 < top < 128:
        return image
    return np.minimum(np.arange(256) * (220 / top), 255).astype(np.uint8)[image]


def outline_paths(labels: np.ndarray, shape: Sequence[int]) -> list[str]:
    """Outlines of a label map int [H, W] as SVG paths, by ascending label.

    shape: (h, w) of the image they are drawn over; coordinates are in half pixels of it, so that
    whole numbers are fine enough. Points that matter less than TOLERANCE are left out.
    """
    from skimage.measure import find_contours

    scale = 2 * np.array(shape) / labels.shape
    paths = []
    for label, window in enumerate(ndimage.find_objects(labels), 1):
        if window is None:
            continue
        # Contours run between pixel centres; the margin closes them at the image's edges.
        origin = np.array([side.start for side in window]) - 0.5
        mask = np.pad(labels[window] == label, 1)
        rings = [
            simplified((ring + origin) * scale, TOLERANCE) for ring in find_contours(mask, 0.5)
        ]
        paths.append("".join(_ring_path(np.rint(ring).astype(int)) for ring in rings))
    return paths


def simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """The points [V, 2] of a line without those that are at most `tolerance` off (Douglas-Peucker).

    Like skimage.measure.approximate_polygon, in a tenth of the time for rings as short as those of
    nuclei. The ends stay; those of a ring are the same point.
    """
    points = ring.tolist()
    kept, parts = {0, len(points) - 1}, [(0, len(points) - 1)]
    while parts:
        first, last = parts.pop()
        (y, x), (end_y, end_x) = points[first], points[last]
        dy, dx = end_y - y, end_x - x
        length = math.hypot(dy, dx)
        farthest, most = 0, tolerance
        for number in range(first + 1, last):
            py, px = points[number][0] - y, points[number][1] - x
            distance = abs(dx * py - dy * px) / length if length else math.hypot(py, px)
            if distance > most:
                farthest, most = number, distance
        if farthest:
            kept.add(farthest)
            parts += [(first, farthest), (farthest, last)]
    return ring[sorted(kept)]


def _ring_path(ring: np.ndarray) -> str:
    """A closed ring int [V, 2] of (y, x) as an SVG path of steps, as short as SVG allows."""
    steps = np.diff(ring[:-1], axis=0)
    steps = steps[steps.any(axis=1)]
    if len(steps) < 2:  # only a dot is left of it at this size
        steps = np.array([[0, 1], [1, 0], [0, -1]])
    # A minus sign separates numbers as well as a space does.
    numbers = " ".join(f"{x} {y}" for y, x in steps.tolist()).replace(" -", "-")
    return f"M{ring[0, 1]} {ring[0, 0]}l{numbers}z"


def _table_rows(table: pd.DataFrame) -> list[list[float | None]]:
    """The first MOST_ROWS of the measurements, COLUMNS of them, to four digits."""
    shown = table[list(COLUMNS)].head(MOST_ROWS)
    return [[_short(value) for value in row] for row in shown.itertuples(index=False)]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    value = float(f"{value:.4g}") if abs(value) < 1000 else round(float(value))
    return int(value) if value == int(value) else value


# --- numbers ------------------------------------------------------------------------------


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def histogram(
    values: np.ndarray, whole: bool = False, most: float | None = None
) -> dict[str, Any] | None:
    """A histogram of values of 0 or more; None if there are none.

    Bars are 1, 2 or 5 times a power of ten wide, at least 1 for whole numbers. For unbounded values
    they begin at 0, and the last bar takes all beyond SHOWN_SHARE of them; if there is a largest
    possible value, `most`, bars reach from the smallest value that occurs up to it.
    Returns edges [B + 1] (a value on an edge belongs to the bar above it), counts [B], median,
    whole, and open: whether the last bar holds more than its edges say.
    """
    if not len(values):
        return None
    usual = np.quantile(values, SHOWN_SHARE, method="higher")
    low, high = (0, usual) if most is None else (values.min(), most)
    step = _round_step(max(high - low, 1e-3) / MOST_BARS)
    step = max(step, 1) if whole else step
    first = math.floor(low / step + 1e-9)
    last = math.floor(high / step) + 1 if most is None else math.ceil(high / step - 1e-9)
    # Rounded, so that 3 x 0.1 and 0.3 are the same edge.
    edges = np.round(np.arange(first, max(last, first + 1) + 1) * step, 10)
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    return {
        "edges": edges,
        "counts": counts,
        "median": _median(values),
        "whole": whole,
        "open": most is None and bool(values.max() >= edges[-1]),
    }


def _round_step(smallest: float) -> float:
    """The first of ..., 0.1, 0.2, 0.5, 1, 2, 5, 10, ... that is at least `smallest`."""
    power = 10.0 ** math.floor(math.log10(smallest))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= smallest)
