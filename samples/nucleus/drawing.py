"""Pictures of detections, drawn straight into arrays: fast for hundreds of nuclei.

Shapes: H, W pixels of the image, L label layers, z zoom.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrcnn.atomic import atomic_path

GREEN, RED, YELLOW = (0, 220, 0), (255, 40, 40), (255, 230, 0)
TARGET_SIDE, LARGEST_ZOOM = 900, 4
HEADER_PIXELS, FONT_PIXELS = 22, 11


def zoom_for(shape: Sequence[int]) -> int:
    """Whole factor that brings the long side near TARGET_SIDE, so that captions are legible."""
    return int(np.clip(round(TARGET_SIDE / max(shape[:2])), 1, LARGEST_ZOOM))


def enlarge(array: np.ndarray, zoom: int) -> np.ndarray:
    """Repeat every pixel zoom x zoom times."""
    return array.repeat(zoom, axis=0).repeat(zoom, axis=1)


def brighten(image: np.ndarray) -> np.ndarray:
    """Stretch pictures that are dark all over (fluorescence often is), for the eye only."""
    top = np.percentile(image, 99.8)
    if not 0 < top < 128:
        return image
    return np.minimum(image * (220 / top), 255).astype(np.uint8)


def outline(labels: np.ndarray, thickness: int = 1) -> np.ndarray:
    """Pixels of each instance of a label map [H, W] that touch something else: bool [H, W]."""
    remaining = np.asarray(labels).copy()
    result = np.zeros(remaining.shape, bool)
    for _ in range(thickness):
        padded = np.pad(remaining, 1)
        edge = np.zeros(remaining.shape, bool)
        for neighbour in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            edge |= neighbour != remaining
        edge &= remaining > 0
        result |= edge
        remaining[edge] = 0
    return result


def truth_and_detections(image: np.ndarray, truth: np.ndarray, labels: np.ndarray,
                         captions: Sequence[tuple[str, int, int]] = (),
                         title: str = "") -> np.ndarray:
    """The paper's figure 7: truth green, detections red, both at once yellow.

    image uint8 [H, W, 3]; truth int [H, W, L]; labels int [H, W]; captions (text, y, x) in
    image pixels. Returns uint8 [z H + header, z W, 3].
    """
    zoom = zoom_for(image.shape)
    thickness = 2 if zoom >= 3 else 1
    canvas = enlarge(brighten(image), zoom)
    green = np.zeros(canvas.shape[:2], bool)
    for layer in np.moveaxis(np.atleast_3d(truth), -1, 0):
        green |= outline(enlarge(layer, zoom), thickness)
    red = outline(enlarge(labels, zoom), thickness)
    canvas[green], canvas[red], canvas[green & red] = GREEN, RED, YELLOW
    return _with_text(canvas, [(t, y * zoom, x * zoom) for t, y, x in captions], title)


def detections_only(image: np.ndarray, labels: np.ndarray, title: str = "") -> np.ndarray:
    """Outlines of the detections in colours that tell neighbours apart."""
    zoom = zoom_for(image.shape)
    canvas, big = enlarge(brighten(image), zoom), enlarge(labels, zoom)
    edge = outline(big, 2 if zoom >= 3 else 1)
    canvas[edge] = _palette(int(labels.max(initial=0)))[big[edge]]
    return _with_text(canvas, [], title)


def _palette(count: int) -> np.ndarray:
    """Bright colours uint8 [count + 1, 3]; steps of the golden ratio spread the hues."""
    hue = (np.arange(count + 1) * 0.618034) % 1
    channels = [np.clip(np.abs((hue * 6 + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    return (55 + 200 * np.stack(channels, axis=-1)).astype(np.uint8)


def _with_text(canvas: np.ndarray, captions: Sequence[tuple[str, int, int]],
               title: str) -> np.ndarray:
    picture = Image.new("RGB", (canvas.shape[1], canvas.shape[0] + HEADER_PIXELS), "white")
    picture.paste(Image.fromarray(canvas), (0, HEADER_PIXELS))
    draw = ImageDraw.Draw(picture)
    small, large = _font(FONT_PIXELS), _font(FONT_PIXELS + 3)
    for text, y, x in captions:
        # A dark copy one pixel down and right keeps the white text legible on light nuclei.
        draw.text((x + 1, y + HEADER_PIXELS + 1), text, fill="black", font=small)
        draw.text((x, y + HEADER_PIXELS), text, fill="white", font=small)
    draw.text((4, 3), title, fill="black", font=large)
    return np.asarray(picture)


def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):  # older Pillow, or one without FreeType
        return ImageFont.load_default()


def save_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as a PNG file, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=3)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(buffer.getvalue())
