"""Random variations of a training image and of its instances together.

An augmentation is any callable ``(image, layers, rng) -> (image, layers)``:

    image   uint8 [H, W, C], values 0..255
    layers  int32 [H, W, L], label layers as in `mrcnn.pixels.masks` (0 is background)
    rng     numpy.random.Generator, the only source of randomness

`RandomAugmentation` is one made for microscopy. imgaug augmenters are accepted wherever an
augmentation is (`apply_augmentation`); imgaug itself is imported only then.

Shapes: H W pixels, C channels, L layers.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from mrcnn.errors import UserError, one_line
from mrcnn.pixels.resampling import contiguous_pixels

Augmentation = Callable[
    [np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]
]

# Luminance of linear mixtures of red, green and blue (ITU-R BT.601).
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _mean(curve: np.ndarray, image: np.ndarray) -> float:
    """Mean of curve[image], of a uint8 image and the 256 values of its levels."""
    return float(np.bincount(image.ravel(), minlength=256) @ curve / image.size)


def adjust_brightness(values: np.ndarray, factor: float) -> np.ndarray:
    """Multiply float values 0..255. (Adding would push faint fluorescence below black.)"""
    return values * factor


def adjust_contrast(values: np.ndarray, factor: float, mean: float) -> np.ndarray:
    """Stretch float values 0..255 about `mean` by `factor` (1 changes nothing)."""
    return (values - mean) * factor + mean


def adjust_gamma(values: np.ndarray, gamma: float) -> np.ndarray:
    """Raise float values 0..255, taken as 0..1, to the power `gamma`."""
    return 255 * (values / 255) ** gamma


def invert(image: np.ndarray) -> np.ndarray:
    """Negative of a uint8 image: dark nuclei on a light background and the other way round."""
    return 255 - image


def to_grey(image: np.ndarray) -> np.ndarray:
    """Replace red, green and blue by their luminance; uint8 [H, W, 3] in and out."""
    grey = _to_uint8(image @ LUMINANCE)
    return np.repeat(grey[..., None], 3, axis=-1)


def rotate_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turn the colours of a uint8 [H, W, 3] image about the grey axis.

    A rotation of the RGB cube about its diagonal: grey pixels stay as they are, 120 degrees
    turn red into green. One small matrix product; a conversion to HSV and back would take ten times
    as long.
    """
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    # Rodrigues' formula for the axis (1, 1, 1) / sqrt(3).
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = cos * np.eye(3) + sin * cross + (1 - cos) / 3
    return _to_uint8(image @ matrix.T.astype(np.float32))


def tint(image: np.ndarray, gains: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Change each channel of a uint8 [H, W, C] image on its own, as other stains and dyes would.

    gains, powers: [C]; a value v, taken as 0..1, becomes gain * v ** power.
    """
    curves = _to_uint8(255 * gains * (np.arange(256.0)[:, None] / 255) ** powers)
    return curves[image, np.arange(image.shape[-1])]


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a uint8 [H, W, C] image; `sigma` in pixels."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=3)


@dataclass(frozen=True)
class RandomAugmentation:
    """Flips, quarter turns and colour changes for microscopy, each drawn independently.

    The geometric changes are exact (no pixel is interpolated). `hue`, `tint` and `grey` touch
    images of three channels only. Set a value to 0 or False to switch its change off.
    """

    flips: bool = True  # mirror up-down and left-right, each in half of the cases
    right_angles: bool = True  # turn by 0, 90, 180 or 270 degrees
    brightness: float = 0.3  # multiply by 1 / (1 + value) to 1 + value
    contrast: float = 0.3  # stretch by 1 / (1 + value) to 1 + value
    gamma: float = 0.3  # exponent from 1 / (1 + value) to 1 + value
    invert: float = 0.1  # probability of the negative
    grey: float = 0.2  # probability of losing the colour
    hue: float = 0.3  # probability of turning the hue ...
    hue_degrees: float = 40.0  # ... by up to this angle, either sign
    tint: float = 0.3  # probability of another stain: each channel with its own ...
    tint_gain: float = 0.6  # ... factor, from 1 - value to 1
    tint_power: float = 0.4  # ... and exponent, from 1 / (1 + value) to 1 + value
    blur: float = 0.1  # probability of a slight blur ...
    blur_sigma: float = 1.0  # ... of up to this sigma, in pixels

    def changed(self, settings: Sequence[str]) -> RandomAugmentation:
        """A copy with "name=value" settings applied, values being Python literals.

        Raises UserError for an unknown name, and for a value of another type.
        """
        values = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in {field.name for field in dataclasses.fields(self)}:
                near = difflib.get_close_matches(name, dir(self), 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(
                    f"{setting}: expected NAME=VALUE with a setting of RandomAugmentation{hint}"
                )
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                value = None
            if not isinstance(value, int | float):
                raise UserError(f"{setting}: expected a number, True or False")
            values[name] = value
        return dataclasses.replace(self, **values)

    def __call__(
        self, image: np.ndarray, layers: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vary one image and its label layers; see the module's docstring for the arguments."""
        image, layers = self.move(image, layers, rng)
        return self.recolour(image, rng), layers

    def move(
        self, image: np.ndarray, layers: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The geometric half. Quarter turns swap height and width where the two differ."""
        flip_y, flip_x = rng.random(2) < 0.5
        turns = int(rng.integers(4))
        if self.flips:
            steps = (slice(None, None, -1 if flip_y else 1), slice(None, None, -1 if flip_x else 1))
            image, layers = image[steps], layers[steps]
        if self.right_angles and turns:
            image, layers = np.rot90(image, turns), np.rot90(layers, turns)
        return contiguous_pixels(image), contiguous_pixels(layers)

    def recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The photometric half: uint8 [H, W, C] in and out."""
        # Every number is drawn whether it is used or not, so that switching one change off
        # leaves the others as they were under the same seed.
        gain, stretch, power, turn = rng.uniform(-1, 1, 4)
        do_invert, do_grey, do_hue, do_blur = rng.random(4) < (
            self.invert, self.grey, self.hue, self.blur)  # fmt: skip
        sigma = rng.uniform(0, self.blur_sigma)
        do_tint = rng.random() < self.tint
        gains = 1 - rng.uniform(0, self.tint_gain, image.shape[-1])
        powers = (1 + self.tint_power) ** rng.uniform(-1, 1, image.shape[-1])
        coloured = image.shape[-1] == 3
        if do_grey and coloured:
            image = to_grey(image)
        if do_hue and coloured:
            image = rotate_hue(image, turn * self.hue_degrees)
        if do_tint and coloured:
            image = tint(image, gains, powers)
        # One curve for all 256 values, rounded once: three roundings would cost a dark image,
        # which uses only a few dozen values, much of what it shows.
        curve = adjust_gamma(np.arange(256.0), (1 + self.gamma) ** power)
        curve = adjust_contrast(curve, (1 + self.contrast) ** stretch, _mean(curve, image))
        curve = _to_uint8(adjust_brightness(curve, (1 + self.brightness) ** gain))
        image = np.take(invert(curve) if do_invert else curve, image)
        if do_blur:
            image = blur(image, sigma)
        return image


def flip_left_right(
    image: np.ndarray, layers: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror half of the images: the only augmentation of the paper (section 3.8.1)."""
    if rng.random() < 0.5:
        image, layers = image[:, ::-1], layers[:, ::-1]
    return contiguous_pixels(image), contiguous_pixels(layers)


def is_imgaug(augmentation: Any) -> bool:
    """Whether this is an imgaug augmenter rather than one of our callables."""
    return hasattr(augmentation, "to_deterministic")


def apply_augmentation(
    augmentation: Any, image: np.ndarray, layers: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Vary one image with an augmentation of either kind.

    augmentation: None, an `Augmentation` or an imgaug augmenter (`Fliplr`, `Sequential`, ...).
    image: uint8 [H, W, C]; layers: int32 [H, W, L].
    Returns the two, which may have another height and width after a quarter turn.
    Raises UserError where the result is not uint8 or image and layers no longer match.
    """
    if augmentation is None:
        return image, layers
    if image.dtype != np.uint8:
        raise UserError(
            f"augmentation: images must be uint8, this one is {image.dtype}; "
            "scale it to 0..255 in Dataset.load_image"
        )
    channels, depth = image.shape[-1], layers.shape[-1]
    change = _apply_imgaug if is_imgaug(augmentation) else _call
    image, layers = change(augmentation, image, layers, rng)
    same_size = image.shape[:2] == layers.shape[:2]
    if not same_size or image.shape[2:] != (channels,) or layers.shape[2:] != (depth,):
        raise UserError(
            f"augmentation: the image came back as {image.shape} and its label layers as "
            f"{layers.shape}; both must keep the same height and width and their channels"
        )
    if image.dtype != np.uint8:
        raise UserError(f"augmentation: it returned an image of {image.dtype}, not uint8")
    return image, layers


def _call(augmentation, image, layers, rng):
    return augmentation(image, layers, rng)


def _apply_imgaug(augmenter, image, layers, rng):
    """Run an imgaug augmenter; the labels follow its geometric changes, nearest neighbour."""
    try:
        from imgaug.augmentables.segmaps import SegmentationMapsOnImage
    except ImportError as error:
        raise UserError(
            f"augmentation: imgaug cannot be imported ({one_line(error)}); "
            'pip install "mrcnn-keras[imgaug]", or use mrcnn.data.augment.RandomAugmentation'
        ) from error
    # A copy, because seeding changes the augmenter and loader threads share it.
    augmenter = augmenter.deepcopy()
    augmenter.seed_(int(rng.integers(2**31)))
    augmenter = augmenter.to_deterministic()
    new_image = augmenter.augment_image(image)
    maps = SegmentationMapsOnImage(layers, shape=image.shape)
    maps = augmenter.augment_segmentation_maps(maps)
    # As in matterport: an augmenter that crops or enlarges the image would break its window.
    if new_image.shape != image.shape:
        raise UserError(
            f"augmentation: the imgaug augmenter changed the image from {image.shape} to "
            f"{new_image.shape}; use keep_size=True or leave that augmenter out"
        )
    return new_image, maps.get_arr().astype(np.int32)
