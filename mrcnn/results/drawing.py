"""Pictures of detections, drawn straight into arrays: fast for hundreds of nuclei.

Shapes: H, W pixels of the image, L label layers, z zoom.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
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
    """Repeat every pixel zoom x zoom times; always a copy."""
    # All columns first: the second repeat then moves whole rows.
    return array.repeat(zoom, axis=1).repeat(zoom, axis=0)


def brighten(image: np.ndarray) -> np.ndarray:
    """Stretch uint8 images that are dark all over (fluorescence often is), for the eye only."""
    top = np.percentile(image, 99.8)
    if not 0 < top < 128:
        return image
    return np.minimum(np.arange(256) * (220 / top), 255).astype(np.uint8)[image]


def outline(labels: np.ndarray, thickness: int = 1) -> np.ndarray:
    """Pixels of each instance of a label map [H, W] that touch something else: bool [H, W].

    thickness: of the line, in pixels; it lies inside the instance.
    """
    labels = np.asarray(labels)
    inside = labels != 0
    below, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge = np.zeros(labels.shape, bool)
    edge[0], edge[-1], edge[:, 0], edge[:, -1] = True, True, True, True
    edge[:-1] |= below
    edge[1:] |= below
    edge[:, :-1] |= right
    edge[:, 1:] |= right
    edge &= inside
    for _ in range(thickness - 1):
        grown = edge.copy()
        grown[:-1] |= edge[1:]
        grown[1:] |= edge[:-1]
        grown[:, :-1] |= edge[:, 1:]
        grown[:, 1:] |= edge[:, :-1]
        # Other instances that the line could grow into have their own line there already.
        edge = grown & inside
    return edge


def truth_and_detections(
    image: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray,
    captions: Sequence[tuple[str, int, int]] = (),
    title: str = "",
) -> np.ndarray:
    """Outlines as in the paper's figure 7: truth green, detections red, both at once yellow.

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
    _paint(canvas, green, GREEN)
    _paint(canvas, red, RED)
    _paint(canvas, green & red, YELLOW)
    return _with_text(canvas, [(t, y * zoom, x * zoom) for t, y, x in captions], title)


def detections_only(image: np.ndarray, labels: np.ndarray, title: str = "") -> np.ndarray:
    """Outlines of the detections in colours that tell neighbours apart."""
    zoom = zoom_for(image.shape)
    canvas, big = enlarge(brighten(image), zoom), enlarge(labels, zoom)
    edge = outline(big, 2 if zoom >= 3 else 1)
    _paint(canvas, edge, _palette(int(labels.max(initial=0)))[big[edge]])
    return _with_text(canvas, [], title)


def figure_7(
    image: np.ndarray, true_boxes: np.ndarray, boxes: np.ndarray, captions: Sequence[str]
) -> np.ndarray:
    """The paper's figure 7: boxes of the truth green, of the detections red, with captions.

    image uint8 [H, W, 3]; true_boxes [G, 4] and boxes [D, 4] in pixels (y1, x1, y2, x2, ends
    exclusive); captions [D], such as score/IoU. Returns uint8 [z H + header, z W, 3].
    """
    zoom = zoom_for(image.shape)
    canvas = enlarge(brighten(image), zoom)
    for colour, group in ((GREEN, true_boxes), (RED, boxes)):
        for box in np.asarray(group, int).reshape(-1, 4):
            _frame(canvas, box * zoom, colour)
    texts = [
        (text, y * zoom, x * zoom)
        for text, (y, x, _, _) in zip(
            captions, np.asarray(boxes, int).reshape(-1, 4).tolist(), strict=True
        )
    ]
    return _with_text(
        canvas, texts, "Ground truth and detections: truth green, detected red, captions score/IoU"
    )


def figure_8(
    image: np.ndarray, labels: np.ndarray, boxes: np.ndarray, captions: Sequence[str]
) -> np.ndarray:
    """The paper's figure 8: detections with class, score, box and outline.

    labels int [H, W]; the others as for `figure_7`, boxes [D, 4] by ascending label.
    """
    zoom = zoom_for(image.shape)
    canvas, big = enlarge(brighten(image), zoom), enlarge(labels, zoom)
    colours = _palette(int(labels.max(initial=0)))
    edge = outline(big)
    _paint(canvas, edge, colours[big[edge]])
    boxes = np.asarray(boxes, int).reshape(-1, 4)
    numbers = np.unique(labels[labels > 0])
    for box, number in zip(boxes, numbers, strict=True):
        _frame(canvas, box * zoom, colours[number])
    texts = [
        (text, y * zoom, x * zoom)
        for text, (y, x, _, _) in zip(captions, boxes.tolist(), strict=True)
    ]
    return _with_text(canvas, texts, "Detections")


def _frame(canvas: np.ndarray, box: Sequence[int], colour: Sequence) -> None:
    """A frame one pixel wide inside a box of the canvas."""
    y1, x1, y2, x2 = (int(v) for v in box)
    canvas[y1:y2, [x1, x2 - 1]] = colour
    canvas[[y1, y2 - 1], x1:x2] = colour


def contact_sheet(
    paths: Sequence[str | os.PathLike], columns: int = 5, side: int = 480
) -> np.ndarray:
    """Small copies of image files in rows, each fitted into side x side pixels.

    Returns uint8 [rows * side, columns * side, 3].
    """
    columns = min(columns, len(paths))
    rows = -(-len(paths) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for number, path in enumerate(paths):
        with Image.open(path) as picture:
            tile = picture.convert("RGB")
        tile.thumbnail((side - 4, side - 4))  # a margin between the tiles
        sheet.paste(tile, (number % columns * side, number // columns * side))
    return np.asarray(sheet)


def _paint(canvas: np.ndarray, where: np.ndarray, colours: Sequence | np.ndarray) -> None:
    """canvas[where] = colours, several times as fast for the few pixels of outlines."""
    canvas.reshape(-1, 3)[np.flatnonzero(where)] = colours


def _palette(count: int) -> np.ndarray:
    """Bright colours uint8 [count + 1, 3]; steps of the golden ratio spread the hues."""
    hue = (np.arange(count + 1) * 0.618034) % 1
    channels = [np.clip(np.abs((hue * 6 + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    return (55 + 200 * np.stack(channels, axis=-1)).astype(np.uint8)


def _with_text(
    canvas: np.ndarray, captions: Sequence[tuple[str, int, int]], title: str
) -> np.ndarray:
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


@lru_cache
def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):  # older Pillow, or one without FreeType
        return ImageFont.load_default()


def save_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as a PNG file, whole or not at all."""
    data = encode_png(picture)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(data)


def encode_png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> the bytes of a PNG file.

    In less than half of Pillow's time, which tries five filters on each row: enlarged images
    repeat their rows, so that the filter "up", the difference to the row above, suits them all.
    """
    height, width = picture.shape[:2]
    rows = np.asarray(picture, np.uint8).reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = 2  # "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered, 2)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
