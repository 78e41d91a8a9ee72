"""Instances drawn into image arrays, without matplotlib: fast enough for thousands of images.

Instances are a label map int [H, W] (0 is background, instance i has the value i + 1), label layers
int [H, W, L] (see masks.py; instances may overlap), or a stack of bool masks [H, W, N].

Shapes: H, W pixels, N instances, G true instances, D detected instances.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mrcnn.pixels.masks import layer_boxes, masks_to_layers
from mrcnn.pixels.overlaps import iou_matrix

TRUTH_COLOR = (0, 220, 0)
PREDICTION_COLOR = (255, 30, 30)
BOTH_COLOR = (255, 230, 0)

# Images smaller than this are enlarged by a whole factor, so that captions can be read.
TARGET_SIDE = 1000
LARGEST_FACTOR = 4
HEADER_HEIGHT = 22


def instance_colors(count: int) -> np.ndarray:
    """Bright colours, uint8 [count, 3]; neighbours in number differ most. Always the same ones."""
    # Steps of the golden ratio spread the hues evenly for any count.
    hues = np.arange(count) * 0.618034 % 1.0
    # HSV with saturation .8 and value 1, by the piecewise-linear formula of each channel.
    offsets = np.array([0.0, 2 / 3, 1 / 3])
    ramps = np.abs((hues[:, None] + offsets) % 1.0 * 6 - 3) - 1
    return np.rint(255 * (1 - 0.8 * (1 - np.clip(ramps, 0, 1)))).astype(np.uint8)


def boundaries(layer: np.ndarray, thickness: int = 1) -> np.ndarray:
    """The outer `thickness` pixels of every instance of a label map [H, W], bool [H, W].

    Outlines lie inside the instances and are closed at the border of the image.
    """
    size = 2 * thickness + 1
    lowest = ndimage.minimum_filter(layer, size, mode="constant", cval=0)
    highest = ndimage.maximum_filter(layer, size, mode="constant", cval=0)
    return (layer > 0) & ((lowest != layer) | (highest != layer))


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
        instances: see the top of this module.
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
        edge = boundaries(layer, thickness)
        picture[edge] = colors[layer[edge] - 1]
    return picture


def figure7(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    scores: Sequence[float] | None = None,
    ious: Sequence[float] | None = None,
    title: str = "",
) -> np.ndarray:
    """Truth and prediction in one image, in the manner of the paper's figures of results.

    True outlines are green, detected ones red, yellow where the two coincide. Each detection is
    captioned score/IoU, as far as there is room: the worst IoU first, a caption that would cover
    another is left out. Small images are enlarged.

    Args:
        image: uint8 [H, W] or [H, W, C].
        truth: the true instances, see the top of this module; None where they are not known: the
            detections are then drawn in a colour each and captioned with their score.
        prediction: the detected instances.
        scores: [D] in 0..1; None leaves them out of the captions.
        ious: [D], the IoU of each detection with the truth; None: the best one is computed here.
        title: text above the image.

    Returns uint8 [H', W', 3]: the enlarged image below a line of text.
    """
    picture = _rgb(image)
    found = _as_layers(prediction, picture.shape)
    known = None if truth is None else _as_layers(truth, picture.shape)
    if known is not None and ious is None:
        ious = _best_ious(known, found)
    factor = int(np.clip(TARGET_SIDE // max(picture.shape[:2]), 1, LARGEST_FACTOR))
    canvas, found = _enlarge(picture, factor), _enlarge(found, factor)
    thickness = 2 if factor > 2 else 1
    if known is None:
        canvas = overlay_instances(canvas, found, thickness=thickness)
    else:
        canvas = _draw_both(canvas, _enlarge(known, factor), found, thickness)
    count = int(found.max(initial=0))
    captions = [_caption(scores, ious, i) for i in range(count)]
    order = np.argsort(np.asarray(ious)[:count]) if ious is not None else range(count)
    canvas = _draw_captions(canvas, layer_boxes(found, count), captions, order)
    return _with_header(canvas, _header(title, known is not None, scores, ious))


def _draw_both(
    canvas: np.ndarray, truth: np.ndarray, found: np.ndarray, thickness: int
) -> np.ndarray:
    true_edge = np.any([boundaries(layer, thickness) for layer in np.moveaxis(truth, -1, 0)], 0)
    found_edge = np.any([boundaries(layer, thickness) for layer in np.moveaxis(found, -1, 0)], 0)
    canvas[true_edge] = TRUTH_COLOR
    canvas[found_edge] = PREDICTION_COLOR
    canvas[true_edge & found_edge] = BOTH_COLOR
    return canvas


def _best_ious(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """For each detection, by number, the largest IoU with a true instance; float64 [D]."""
    best = np.zeros(int(found.max(initial=0)))
    # iou_matrix has a column for each number that occurs: one may have vanished.
    present = np.unique(found[found > 0])
    best[present - 1] = iou_matrix(truth, found).max(axis=0, initial=0.0)
    return best


def _caption(scores: Sequence[float] | None, ious: Sequence[float] | None, i: int) -> str:
    return "/".join(_short(values[i]) for values in (scores, ious) if values is not None)


def _short(value: float) -> str:
    """Two decimals without the leading zero: .83, 1.00."""
    return f"{value:.2f}".removeprefix("0")


def _header(
    title: str, with_truth: bool, scores: Sequence[float] | None, ious: Sequence[float] | None
) -> str:
    parts = [title] if title else []
    if with_truth:
        parts.append("green: truth, red: prediction, yellow: both")
    captions = [name for name, v in (("score", scores), ("IoU", ious)) if v is not None]
    if captions:
        parts.append("captions: " + "/".join(captions))
    return "   ".join(parts)


def _draw_captions(
    canvas: np.ndarray, boxes: np.ndarray, captions: Sequence[str], order: Sequence[int]
) -> np.ndarray:
    """Write each caption into the middle of its box [N, 4], in this order, none over another."""
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(11)
    taken = np.zeros(canvas.shape[:2], bool)
    for i in order:
        if not (captions[i] and boxes[i].any()):
            continue
        width, height = (round(v) for v in draw.textbbox((0, 0), captions[i], font, "lt")[2:])
        y1, x1, y2, x2 = boxes[i]
        # Kept inside the image, where it fits at all.
        x = max(2, min((x1 + x2 - width) // 2, canvas.shape[1] - width - 2))
        y = max(2, min((y1 + y2 - height) // 2, canvas.shape[0] - height - 2))
        place = taken[max(0, y - 1) : y + height + 2, max(0, x - 2) : x + width + 3]
        if place.any():
            continue
        place[:] = True
        draw.text((x, y), captions[i], "white", font, "lt", stroke_width=1, stroke_fill="black")
    return np.array(picture)


def _with_header(canvas: np.ndarray, text: str) -> np.ndarray:
    """A line of text above the image, in the largest size that fits."""
    if not text:
        return canvas
    strip = Image.new("RGB", (canvas.shape[1], HEADER_HEIGHT))
    draw = ImageDraw.Draw(strip)
    fitting = (s for s in range(14, 6, -1)
               if draw.textlength(text, ImageFont.load_default(s)) < canvas.shape[1] - 8)
    font = ImageFont.load_default(next(fitting, 7))
    draw.text((4, HEADER_HEIGHT // 2), text, "white", font, "lm")
    return np.concatenate([np.asarray(strip), canvas])


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
        raise ValueError(f"instances {instances.shape} do not belong to an image {tuple(shape)}")
    if instances.dtype == bool:
        return masks_to_layers(instances if instances.ndim == 3 else instances[..., None])
    layers = instances if instances.ndim == 3 else instances[..., None]
    return layers.astype(np.int32)


def _enlarge(array: np.ndarray, factor: int) -> np.ndarray:
    return array.repeat(factor, axis=0).repeat(factor, axis=1)
