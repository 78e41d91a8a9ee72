"""What a microscope does to synthetic nuclei: texture, stain, blur, uneven light and noise.

Drawing works on [H, W] float arrays. A nucleus is drawn from its depth below the outline (see
synthetic_shapes.py) with a one-pixel ramp centred on the outline, so edges stay where the mask
has them; blur is symmetric and keeps them there.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from samples.nucleus.synthetic_shapes import Nucleus


def noise_field(shape: tuple[int, int], sigma: float | tuple[float, float], rng) -> np.ndarray:
    """Smooth random field [H, W] with zero mean, unit deviation and grains of `sigma` pixels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return (field - field.mean()) / max(field.std(), 1e-9)


def fibre_field(shape: tuple[int, int], rng, length: float = 24.0, width: float = 0.8):
    """Wavy fibres along one random direction: [H, W], zero mean, unit deviation."""
    side = int(np.hypot(*shape)) + 16
    straight = noise_field((side, side), (width, length), rng)
    angle, bend = rng.uniform(0, np.pi), rng.uniform(2.0, 10.0)
    ys, xs = np.mgrid[: shape[0], : shape[1]].astype(float)
    ys, xs = ys - shape[0] / 2, xs - shape[1] / 2
    across = ys * np.cos(angle) - xs * np.sin(angle) + bend * noise_field(shape, 20, rng)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    where = [across + side / 2, along + side / 2]
    return ndimage.map_coordinates(straight, where, order=1, mode="wrap")


def coverage(depth: np.ndarray, softness: float = 1.0) -> np.ndarray:
    """0 outside to 1 inside, with a ramp of `softness` pixels centred on the outline."""
    return np.clip(depth / softness + 0.5, 0.0, 1.0)


def blend(part: np.ndarray, cover: np.ndarray, value: np.ndarray | float, mode: str) -> None:
    """Draw `value` on a part of a canvas, in place, weighted by `cover` [h, w].

    mode "max": the stronger of what is there and the value; "add": their sum (light from
    overlapping nuclei adds up); "over": the value covers what is there.
    """
    if mode == "max":
        np.maximum(part, cover * value, out=part)
    elif mode == "add":
        part += cover * value
    else:
        part += cover * (value - part)


def draw_shape(canvas: np.ndarray, shape: Nucleus, value: float, softness: float = 1.0) -> None:
    """Draw a uniform shape that is not a nucleus, such as a cell body, in place."""
    window = shape.cut(canvas.shape, margin=3 + softness)
    blend(canvas[window], coverage(shape.depth(window), softness), value, "max")


def dome(depth: np.ndarray, edge: float) -> np.ndarray:
    """Relative thickness of a nucleus: 0 at its outline, 1 where it is `edge` pixels deep."""
    rise = np.clip(depth / max(edge, 1e-6), 0.0, 1.0)
    return np.sqrt(rise * (2.0 - rise))


def uneven_light(shape: tuple[int, int], strength: float, rng) -> np.ndarray:
    """Illumination that falls off from a random point: [H, W], about 1."""
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    y, x = rng.uniform(0.2, 0.8, 2) * shape
    falloff = ((ys - y) / shape[0]) ** 2 + ((xs - x) / shape[1]) ** 2
    tilt = rng.uniform(-1, 1) * (ys / shape[0] - 0.5) + rng.uniform(-1, 1) * (xs / shape[1] - 0.5)
    return 1.0 - strength * falloff + 0.5 * strength * tilt


def camera(light: np.ndarray, rng, electrons: float, read_noise: float) -> np.ndarray:
    """Grey values [H, W] or [H, W, 3] in 0..255 to uint8 with shot noise and read noise.

    `electrons` is the number of electrons per grey value: fewer is noisier.
    """
    counted = rng.poisson(np.clip(light, 0, None) * electrons) / electrons
    counted = counted + rng.normal(0, read_noise, light.shape)
    return np.clip(np.rint(counted), 0, 255).astype(np.uint8)


def absorb(stains: list[tuple[np.ndarray, tuple[float, float, float]]], white) -> np.ndarray:
    """Light through stained tissue (Beer-Lambert): [H, W, 3] in 0..255.

    `stains` are (amount [H, W], absorbance of R, G, B at amount 1), `white` the bare glass's RGB.
    """
    density = sum(np.clip(amount, 0, None)[..., None] * np.asarray(rgb) for amount, rgb in stains)
    return np.asarray(white, float) * np.exp(-density)
