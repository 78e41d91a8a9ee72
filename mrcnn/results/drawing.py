"""Pictures of detections, drawn straight into arrays: fast for hundreds of nuclei.

Shapes: H, W pixels of the image, L label layers, z zoom.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrcnn.atomic import atomic_path
from mrcnn.pixels.masks import masks_to_layers

GREEN, RED, YELLOW = (0, 220, 0), (255, 40, 40), (255, 230, 0)
TARGET_SIDE, LARGEST_ZOOM = 900, 4
HEADER_PIXELS, FONT_PIXELS = 22, 11


def zoom_for(shape: Sequence[int]) -> int:
    """Integer factor that brings the long side near TARGET_SIDE, so that captions are legible."""
    return int(np.clip(round(TARGET_SIDE / max(shape[:2])), 1, LARGEST_ZOOM))


def enlarge(array: np.ndarray, zoom: int) -> np.ndarray:
    """Repeat every pixel zoom x zoom times; always a copy."""
    # All columns first: the second repeat then moves whole rows.
    return array.repeat(zoom, axis=1).repeat(zoom, axis=0)


def brighten(image: np.ndarray) -> np.ndarray:
    """Stretch uint8 images that are dark all over (fluorescence often is), for display only."""
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


def instance_colors(count: int) -> np.ndarray:
    """Bright colours, uint8 [count, 3]; consecutive ones differ most. Always the same ones."""
    # Steps of the golden ratio spread the hues evenly for any count.
    hues = np.arange(count) * 0.618034 % 1.0
    # HSV with saturation .8 and value 1, by the piecewise-linear formula of each channel.
    offsets = np.array([0.0, 2 / 3, 1 / 3])
    ramps = np.abs((hues[:, None] + offsets) % 1.0 * 6 - 3) - 1
    return np.rint(255 * (1 - 0.8 * (1 - np.clip(ramps, 0, 1)))).astype(np.uint8)


def overlay_instances(
    image: np.ndarray,
    instances: np.ndarray,
    colors: Sequence | np.ndarray | None = None,
    *,
    fill: float = 0.0,
    thickness: int = 1,
) -> np.ndarray:
    """Draw the outlines of the instances into a copy of the image.

    Args:
        image: uint8 [H, W] or [H, W, C], C = 1, 3 or 4 (alpha is ignored).
        instances: a label map int [H, W] (0 is background), label layers int [H, W, L] (instances
            may overlap), or a stack of bool masks [H, W, N].
        colors: one RGB triple for all or one for each instance, 0..255; default instance_colors.
        fill: opacity of the colour inside the instances, 0..1.
        thickness: of the outlines, in pixels.

    Returns uint8 [H, W, 3].
    """
    picture = _rgb(image)
    layers = _as_layers(instances, picture.shape)
    count = int(layers.max(initial=0))
    colors = np.asarray(instance_colors(count) if colors is None else colors)
    colors = np.broadcast_to(colors, (count, 3)) if colors.ndim == 1 else colors
    for number in range(layers.shape[-1]):
        layer = layers[:, :, number]
        if fill > 0:
            inside = layer > 0
            mixed = (1 - fill) * picture[inside] + fill * colors[layer[inside] - 1]
            picture[inside] = np.rint(mixed).astype(np.uint8)
        edge = outline(layer, thickness)
        picture[edge] = colors[layer[edge] - 1]
    return picture


def truth_and_detections(
    image: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray,
    captions: Sequence[tuple[str, int, int]] = (),
    title: str = "",
) -> np.ndarray:
    """Outlines as in the paper's figure 7: truth green, detections red, yellow where both coincide.

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
    _paint(canvas, edge, instance_colors(int(labels.max(initial=0)))[big[edge] - 1])
    return _with_text(canvas, [], title)


def figure_7(
    image: np.ndarray, true_boxes: np.ndarray, boxes: np.ndarray, captions: Sequence[str]
) -> np.ndarray:
    """The paper's figure 7: true boxes green, detected ones red, with captions.

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
    colours = instance_colors(int(labels.max(initial=0)))
    edge = outline(big)
    _paint(canvas, edge, colours[big[edge] - 1])
    boxes = np.asarray(boxes, int).reshape(-1, 4)
    numbers = np.unique(labels[labels > 0])
    for box, number in zip(boxes, numbers, strict=True):
        _frame(canvas, box * zoom, colours[number - 1])
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
    with atomic_path(Path(path)) as temporary:
        # Level 1: half the time of the default for a few per cent more bytes.
        Image.fromarray(picture).save(temporary, "PNG", compress_level=1)


def _rgb(image: np.ndarray) -> np.ndarray:
    """A copy as uint8 [H, W, 3]."""
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"image: [H, W] or [H, W, 1, 3 or 4], not {image.shape}")
    channels = image[..., :3] if image.shape[2] >= 3 else np.repeat(image, 3, axis=2)
    return np.array(channels, np.uint8)


def _as_layers(instances: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Instances in any of the three forms as label layers int32 [H, W, L]."""
    instances = np.asarray(instances)
    if instances.shape[:2] != tuple(shape[:2]):
        raise ValueError(f"instances {instances.shape} do not fit an image {tuple(shape)}")
    if instances.dtype == bool:
        return masks_to_layers(instances if instances.ndim == 3 else instances[..., None])
    layers = instances if instances.ndim == 3 else instances[..., None]
    return layers.astype(np.int32)
