"""Random variations of micrographs: stain, focus, haze, light, noise.

`MicrographAugmentation` adds them to `augment.RandomAugmentation`. Images are expected as
`exposure` standardises them: objects bright on a dark background, so that stained tissue
is seen as its negative. Lengths are fractions of the diameter of a typical object of the image, so
that they mean the same at every magnification.

Stains absorb light: in optical density, minus the logarithm of the transmitted share, amounts of
stain add up (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001).

Shapes: H W pixels, C channels, L label layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mrcnn.data.augment import RandomAugmentation
from mrcnn.pixels.resampling import resize_smooth

# Absorbance of red, green and blue light by haematoxylin, eosin and a third, neutral dye: rows of
# unit length (Ruifrok and Johnston; the third is their cross product).
HAEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)
STAINS = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)], np.float32)
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)

# The least light that a pixel transmits, so that its density is finite.
LEAST_LIGHT = 1 / 255
DEFAULT_DIAMETER = 24.0  # pixels, for images without objects


def to_density(image: np.ndarray) -> np.ndarray:
    """Optical density, float32, of an image 0..255 that is the negative of transmitted light."""
    return -np.log(np.maximum(1 - image.astype(np.float32) / 255, LEAST_LIGHT))


def from_density(density: np.ndarray) -> np.ndarray:
    """The negative of what light a density lets through, float32 0..255."""
    return 255 * (1 - np.exp(-np.maximum(density, 0)))


def stretch(values: np.ndarray) -> np.ndarray:
    """Bring float values to 0..255 by their 1st and 99.8th percentiles, as files are when read."""
    low, high = np.percentile(values[::3, ::3], (1, 99.8))
    return (values - low) * (255 / max(high - low, 8.0))


def smooth_field(shape: tuple[int, int], cell: float, rng: np.random.Generator) -> np.ndarray:
    """Random float32 [H, W], bilinear between normal numbers on a grid of `cell` pixels."""
    grid = [max(2, round(size / max(cell, 1.0)) + 1) for size in shape]
    return resize_smooth(rng.standard_normal(grid, np.float32), shape)


def restain(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Other amounts and colours of the stains of an image [H, W, 3], 0..255.

    strength: 0 to 1. Amounts change by a factor of up to 1 + strength either way, the colours of
    the dyes by a fifth of it.
    """
    amounts = to_density(image) @ np.linalg.inv(STAINS)
    amounts *= (1 + strength) ** rng.uniform(-1, 1, 3).astype(np.float32)
    dyes = STAINS + 0.2 * strength * rng.standard_normal((3, 3), np.float32)
    return from_density(amounts @ dyes)


def colourise(image: np.ndarray, diameter: float, rng: np.random.Generator) -> np.ndarray:
    """A grey image as if its objects were stained, on counterstained tissue: [H, W, 3], 0..255.

    Objects keep their shape and texture as amounts of a random dye; between them is another dye in
    clouds larger and grains smaller than the objects.
    """
    shape = image.shape[:2]
    grey = image.mean(axis=-1, dtype=np.float32) / 255
    dye = np.abs(rng.normal((0.6, 0.8, 0.35), 0.2)).astype(np.float32)
    ground = np.abs(rng.normal((0.3, 0.7, 0.3), 0.25)).astype(np.float32)
    amount = rng.uniform(0.5, 2.0) * grey ** rng.uniform(0.5, 1.2)
    clouds = smooth_field(shape, rng.uniform(1.5, 4) * diameter, rng)
    grains = smooth_field(shape, rng.uniform(0.1, 0.5) * diameter, rng)
    between = rng.uniform(0, 0.7) * np.maximum(
        1 + rng.uniform(0.1, 0.5) * clouds + rng.uniform(0.05, 0.35) * grains, 0
    )
    between *= 1 - rng.uniform(0.3, 1) * np.minimum(1.5 * grey, 1)
    return from_density(amount[..., None] * dye + between[..., None] * ground)


def mix_channels(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey from random shares of the channels, [H, W, C] float32: no hue can be relied on."""
    shares = rng.dirichlet(np.ones(image.shape[-1])).astype(np.float32)
    return np.repeat((image @ shares)[..., None], image.shape[-1], axis=-1)


def add_haze(
    image: np.ndarray, diameter: float, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Add what lies out of focus above and below: a blurred, mirrored copy, moved at random."""
    sigma = rng.uniform(0.25, 1.0) * diameter
    other = image[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    other = np.roll(other, tuple(rng.integers(0, image.shape[:2])), axis=(0, 1))
    step = max(1, int(sigma / 3))
    small = other[::step, ::step].astype(np.float32)
    small = ndimage.gaussian_filter(small, (sigma / step, sigma / step, 0), mode="nearest")
    return image + rng.uniform(0.2, 1) * strength * resize_smooth(small, image.shape[:2])


def shade(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Uneven light: multiply by a smooth field between 1 - strength and 1."""
    field = smooth_field(image.shape[:2], max(image.shape[:2]) / rng.uniform(1, 3), rng)
    span = max(float(np.ptp(field)), 1e-6)
    return image * (1 - strength * rng.random() * (field - field.min()) / span)[..., None]


def add_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Camera noise, half of it growing with the square root of the light.

    deviation: largest standard deviation, of 255.
    """
    grey_only = image.shape[-1] == 1 or np.array_equal(image[..., 0], image[..., -1])
    shape = (*image.shape[:2], 1) if grey_only else image.shape
    scale = rng.uniform(0, deviation) * (0.5 + 0.5 * np.sqrt(np.clip(image, 0, 255) / 255))
    return image + scale * rng.standard_normal(shape, np.float32)


def vary_objects(
    image: np.ndarray, layers: np.ndarray, lowest: float, rng: np.random.Generator
) -> np.ndarray:
    """Dim every object by a factor of its own from `lowest` to 1, towards the background."""
    label = layers.max(axis=-1)
    background = (
        np.median(image[::3, ::3][label[::3, ::3] == 0], axis=0)
        if (label[::3, ::3] == 0).any()
        else np.zeros(image.shape[-1])
    )
    factors = rng.uniform(lowest, 1, int(label.max()) + 1).astype(np.float32)
    factors[0] = 1
    soft = ndimage.gaussian_filter(factors[label], 1.0)[..., None]
    return background + (image - background) * soft


def typical_diameter(layers: np.ndarray) -> float:
    """Diameter of a disc with the objects' median area, in pixels; DEFAULT_DIAMETER without any."""
    areas = np.bincount(layers.ravel())[1:]
    areas = areas[areas > 0]
    return float(np.sqrt(np.median(areas) * 4 / np.pi)) if len(areas) else DEFAULT_DIAMETER


@dataclass(frozen=True)
class MicrographAugmentation(RandomAugmentation):
    """`RandomAugmentation` and what happens to micrographs; probabilities unless said otherwise."""

    stain: float = 0.0  # other amounts and colours of stain
    stain_strength: float = 0.6
    colourise: float = 0.0  # grey images as if they were stained tissue
    mix: float = 0.0  # grey of random shares of the channels
    objects: float = 0.0  # every object dimmed on its own ...
    objects_lowest: float = 0.25  # ... to this factor at least
    shade: float = 0.0  # uneven light ...
    shade_strength: float = 0.7  # ... down to 1 minus this
    haze: float = 0.0  # light from out of focus ...
    haze_strength: float = 0.8  # ... of up to this share
    defocus: float = 0.0  # blur ...
    defocus_share: float = 0.12  # ... of up to this sigma, in object diameters
    noise: float = 0.0  # of the camera ...
    noise_deviation: float = 20.0  # ... of up to this standard deviation, of 255

    def __call__(
        self, image: np.ndarray, layers: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vary one image and its label layers; see `mrcnn.data.augment` for the arguments."""
        image, layers = self.move(image, layers, rng)
        [photons] = rng.spawn(1)  # so that the inherited changes stay as they are under a seed
        image = self.photograph(image, layers, photons)
        return self.recolour(image, rng), layers

    def photograph(
        self, image: np.ndarray, layers: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Prepare and photograph the specimen again: uint8 [H, W, C] in and out."""
        do = dict(zip(
            ("stain", "colourise", "mix", "objects", "shade", "haze", "defocus", "noise"),
            rng.random(8), strict=True,
        ))  # fmt: skip
        do = {name: number < getattr(self, name) for name, number in do.items()}
        if not any(do.values()) or not image.size:
            return image
        diameter = typical_diameter(layers)
        values = image.astype(np.float32)
        if do["objects"]:
            values = vary_objects(values, layers, self.objects_lowest, rng)
        if image.shape[-1] == 3:
            if do["mix"]:
                values = mix_channels(values, rng)
            grey = np.array_equal(values[..., 0], values[..., 1])
            if do["colourise"] and grey:
                values = stretch(colourise(values, diameter, rng))
            if do["stain"]:
                values = stretch(restain(np.clip(values, 0, 255), self.stain_strength, rng))
        if do["shade"]:
            values = shade(values, self.shade_strength, rng)
        if do["haze"]:
            values = add_haze(values, diameter, self.haze_strength, rng)
        if do["defocus"]:
            sigma = rng.uniform(0, self.defocus_share) * diameter
            values = ndimage.gaussian_filter(values, (sigma, sigma, 0), mode="nearest", truncate=3)
        if do["shade"] or do["haze"] or do["objects"]:
            values = stretch(values)
        if do["noise"]:
            values = add_noise(values, self.noise_deviation, rng)
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# Chosen by how well a network does on kinds of images that it was never trained on (`generalise` of
# samples/nucleus).
MICROGRAPHS = MicrographAugmentation(
    stain=0.5,
    colourise=0.3,
    mix=0.3,
    objects=0.15,
    objects_lowest=0.4,
    shade=0.3,
    haze=0.3,
    defocus=0.2,
    noise=0.2,
)
