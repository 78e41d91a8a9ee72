"""The kinds of image in the 2018 Data Science Bowl, drawn from scratch.

Each function takes an empty Scene and a random generator, places nuclei in the scene and returns
the image: uint8 [H, W] for grey kinds, [H, W, 3] for coloured ones. Grey values and sizes
follow those measured on the competition's training images; sizes are in pixels and do not grow
with the image.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from samples.nucleus.synthetic_optics import (
    absorb,
    blend,
    camera,
    coverage,
    dome,
    draw_shape,
    fibre_field,
    noise_field,
    uneven_light,
)
from samples.nucleus.synthetic_shapes import Nucleus, Scene, random_nucleus, scatter


def _area(scene: Scene) -> float:
    """The image's area in units of 256 x 256 pixels."""
    return scene.labels.size / 256.0**2


def _centres(scene: Scene, rng, count: int, spread: float) -> list[tuple[float, float, float]]:
    height, width = scene.shape
    return [(rng.uniform(0, height), rng.uniform(0, width), spread) for _ in range(count)]


def fluorescence_small(scene: Scene, rng) -> np.ndarray:
    """Small nuclei on black: cultured cells, sparse to crowded, some dividing, some dying."""
    look = rng.choice(["smooth", "crowded", "spotted"], p=[0.4, 0.4, 0.2])
    radius, count, touching, groups, blur = {
        "smooth": (rng.uniform(6, 9), rng.integers(8, 45), 0.12, 0, rng.uniform(0.5, 0.8)),
        "crowded": (rng.uniform(5, 7), rng.integers(30, 80), 0.45, 2, rng.uniform(0.5, 0.9)),
        "spotted": (rng.uniform(8, 11), rng.integers(12, 32), 0.35, 3, rng.uniform(1.2, 1.7)),
    }[look]

    def make(position):
        dividing = rng.random() < 0.07
        if dividing:
            return random_nucleus(rng, position, radius * 0.65, (1.2, 2.8), 0.13, style="dividing")
        stretch = (1.0, 1.25) if look == "spotted" else (1.05, 1.8)
        return random_nucleus(rng, position, radius * rng.lognormal(0, 0.18), stretch, 0.04)

    clusters = _centres(scene, rng, groups, 45) if rng.random() < 0.6 else []
    scatter(scene, rng, int(count * _area(scene)) + 1, make, touching, 0.15, clusters)
    level = rng.uniform(40, 95)
    grain = noise_field(scene.shape, 1.3, rng)
    spots = np.clip(noise_field(scene.shape, 2.0, rng), 0, None) ** 1.5
    rough = {"smooth": 0.08, "crowded": 0.18, "spotted": 0.15}[look]
    texture = 1 + rough * grain + (0.45 * spots - 0.2) * (look == "spotted")
    mode = "add" if rng.random() < 0.35 else "max"
    light = np.zeros(scene.shape)
    for nucleus, window, depth, own in scene.patches():
        value = level * rng.lognormal(0, 0.25) * texture[window]
        if nucleus.style == "dividing":
            value = rng.uniform(2.0, 3.5) * level * (1 + 0.3 * grain[window])
        rim = 0.55 + 0.45 * dome(depth, 0.8 * nucleus.minor)
        blend(light[window], coverage(depth) * (own | (mode == "add")), value * rim, mode)
    return _fluorescence_camera(light, rng, blur, haze=0.05, dark=rng.uniform(2, 7))


def fluorescence_large(scene: Scene, rng) -> np.ndarray:
    """Large nuclei with visible interiors: chromatin grain, dark nucleoli, bright centres."""
    radius = min(rng.choice([rng.uniform(12, 16), rng.uniform(19, 26)]), scene.shape[0] / 5)
    bright = rng.random() < 0.35

    def make(position):
        if rng.random() < 0.05:
            return random_nucleus(rng, position, radius * 0.7, (1.0, 1.6), 0.12, style="dividing")
        size = radius * rng.lognormal(0, 0.15)
        return random_nucleus(rng, position, size, (1.05, 1.9), rng.choice([0.02, 0.05]))

    fill = rng.uniform(0.12, 0.5)
    count = max(3, int(fill * scene.labels.size / (np.pi * radius**2)))
    scatter(scene, rng, count, make, touching=0.35, crowd=0.1)
    level = rng.uniform(90, 150) if bright else rng.uniform(18, 45)
    fine = noise_field(scene.shape, 1.2, rng)
    coarse = noise_field(scene.shape, radius / 5, rng)
    nucleoli = ndimage.gaussian_filter((noise_field(scene.shape, radius / 6, rng) > 1.7) * 1.0, 1.2)
    texture = 1 + 0.07 * fine + 0.10 * coarse - rng.uniform(0, 0.3) * nucleoli
    if bright:
        texture = texture + 0.12 * np.clip(noise_field(scene.shape, 1.8, rng), 0, None) ** 1.5
    mode = "add" if rng.random() < 0.4 else "max"
    light = np.zeros(scene.shape)
    for nucleus, window, depth, own in scene.patches():
        value = level * rng.lognormal(0, 0.2) * texture[window]
        if nucleus.style == "dividing":
            value = 1.7 * level * (1 + 0.35 * fine[window])
        rim = 0.7 + 0.3 * dome(depth, 0.35 * nucleus.minor)
        blend(light[window], coverage(depth, 1.5) * (own | (mode == "add")), value * rim, mode)
    return _fluorescence_camera(light, rng, rng.uniform(0.8, 1.5), 0.08, rng.uniform(2, 8))


def tissue_fluorescence(scene: Scene, rng) -> np.ndarray:
    """A thick section in fluorescence: crowded nuclei of any brightness in the haze of others."""
    radius = min(rng.uniform(4.5, 14), scene.shape[0] / 8)
    lean = rng.uniform(0, np.pi) if rng.random() < 0.4 else None
    stretch = (1.2, 2.4) if lean is not None else (1.0, 1.6)

    def make(position):
        angle = None if lean is None else lean + rng.normal(0, 0.4)
        size = radius * rng.lognormal(0, 0.2)
        return random_nucleus(rng, position, size, stretch, rng.choice([0.03, 0.06]), angle)

    count = max(3, int(rng.uniform(0.25, 0.8) * scene.labels.size / (np.pi * radius**2)))
    groups = _centres(scene, rng, 4, 60) if rng.random() < 0.4 else []
    scatter(scene, rng, count, make, touching=0.6, crowd=0.2, clusters=groups)
    level, spread = rng.uniform(30, 110), rng.uniform(0.2, 0.6)
    grain = noise_field(scene.shape, max(0.8, radius / 7), rng)
    depths = rng.uniform(0.4, 1.2) * radius
    haze = _out_of_focus(scene.shape, make, rng, int(count * rng.uniform(0.3, 1.2)), depths)
    light = 1.5 * level * haze
    for nucleus, window, depth, own in scene.patches():
        value = level * rng.lognormal(0, spread) * (1 + rng.uniform(0.05, 0.3) * grain[window])
        rim = 0.6 + 0.4 * dome(depth, rng.uniform(0.3, 0.9) * nucleus.minor)
        light[window] += coverage(depth, 1.5) * own * value * rim
    body = 1 + 0.3 * noise_field(scene.shape, 1.5 * radius, rng)
    light += rng.uniform(0, 0.4) * level * np.clip(body, 0, None)
    blur = rng.uniform(0.05, 0.18) * radius
    return _fluorescence_camera(light, rng, blur, rng.uniform(0.1, 0.5), rng.uniform(2, 20))


def _fluorescence_camera(light: np.ndarray, rng, blur: float, haze: float, dark: float):
    """Debris, cytoplasm glow, lens blur, uneven illumination and camera noise: uint8 [H, W]."""
    debris = np.zeros(light.shape)
    for _ in range(rng.poisson(3 * light.size / 256**2)):
        y, x = rng.integers(0, light.shape)
        debris[y, x] = rng.uniform(2, 8) * max(light.max(), 1) / 10
    light = ndimage.gaussian_filter(light + debris, blur)
    glow = ndimage.gaussian_filter(light, 12)
    body = 1 + 0.4 * noise_field(light.shape, 12, rng)
    light = light + haze * ndimage.gaussian_filter(light, 4) + 0.06 * glow * body + dark
    light = light * uneven_light(light.shape, rng.uniform(0.05, 0.4), rng)
    return camera(light, rng, electrons=rng.uniform(5, 25), read_noise=rng.uniform(0.3, 0.9))


# Absorbances of red, green and blue light for one unit of stain, read off the competition's images
VIOLET = (0.52, 0.90, 0.13)
MAGENTA = (0.50, 1.15, 0.38)
# The single dyes (Ruifrok and Johnston, 2001), times 1.4: a typical strength.
HAEMATOXYLIN, EOSIN = (0.91, 0.98, 0.41), (0.10, 1.00, 0.30)
LILAC_GROUND = (0.13, 0.20, 0.04)
PINK_GROUND = (0.02, 0.16, 0.06)


def tissue(scene: Scene, rng) -> np.ndarray:
    """Purple-stained tissue: violet nuclei in lilac fibres, or magenta ones on white and pink."""
    violet = rng.random() < 0.6
    radius = rng.uniform(7, 12) if rng.random() < 0.75 else rng.uniform(13, 18)
    radius = min(radius, scene.shape[0] / 8)
    lean = rng.uniform(0, np.pi) if violet and rng.random() < 0.7 else None
    stretch = (1.2, 2.6) if lean is not None else (1.0, 1.4)

    def make(position):
        angle = None if lean is None else lean + rng.normal(0, 0.35)
        size = radius * rng.lognormal(0, 0.2)
        return random_nucleus(rng, position, size, stretch, rng.choice([0.03, 0.06]), angle)

    fill = rng.uniform(0.08, 0.45)
    count = max(3, int(fill * scene.labels.size / (np.pi * radius**2)))
    groups = _centres(scene, rng, 3, 50) if rng.random() < 0.5 else []
    scatter(scene, rng, count, make, 0.5, 0.12, groups)

    clump = noise_field(scene.shape, radius / 7, rng)
    fine = noise_field(scene.shape, 0.9, rng)
    stain = _out_of_focus(scene.shape, make, rng, count // 5 + 1)
    for nucleus, window, depth, own in scene.patches():
        dark = rng.uniform(0.4, 1.4) if violet else rng.uniform(0.7, 1.9)
        mottle = (0.10 if dark > 1.2 else 0.25) * clump[window] + 0.08 * fine[window]
        rim = 1.12 - 0.2 * dome(depth, 0.3 * nucleus.minor)
        value = np.clip(dark * (rim + mottle), 0.1, None)
        blend(stain[window], coverage(depth, 1.5) * own, value, "over")
    ground = _tissue_ground(scene, rng, violet, radius, lean)
    ground_colour = LILAC_GROUND if violet else PINK_GROUND
    white = (200, 186, 218) if violet else (232, 230, 224)
    image = absorb([(stain, VIOLET if violet else MAGENTA), (ground, ground_colour)], white)
    image = ndimage.gaussian_filter(image, (*[rng.uniform(0.7, 1.2)] * 2, 0))
    image *= uneven_light(scene.shape, rng.uniform(0.0, 0.15), rng)[..., None]
    return camera(image, rng, electrons=rng.uniform(8, 20), read_noise=0.8)


def haematoxylin_eosin(scene: Scene, rng) -> np.ndarray:
    """Sections of any magnification, strength and shade of stain: blue nuclei in pink tissue."""
    radius = rng.choice([rng.uniform(3.2, 5), rng.uniform(5, 9), rng.uniform(9, 18)])
    radius = min(radius, scene.shape[0] / 8)
    lean = rng.uniform(0, np.pi) if rng.random() < 0.35 else None
    stretch = (1.3, 3.0) if lean is not None else (1.0, 1.6)
    pale = rng.random() < 0.3  # vesicular nuclei: a dark rim, clear inside, a nucleolus

    def make(position):
        angle = None if lean is None else lean + rng.normal(0, 0.3)
        size = radius * rng.lognormal(0, 0.22)
        return random_nucleus(rng, position, size, stretch, rng.choice([0.03, 0.07]), angle)

    count = max(3, int(rng.uniform(0.06, 0.55) * scene.labels.size / (np.pi * radius**2)))
    groups = _centres(scene, rng, 4, 6 * radius) if rng.random() < 0.6 else []
    scatter(scene, rng, count, make, 0.5, 0.15, groups)
    clump = noise_field(scene.shape, max(0.7, radius / 6), rng)
    fine = noise_field(scene.shape, 0.9, rng)
    strength, spread = rng.uniform(0.45, 1.6), rng.uniform(0.1, 0.35)
    blue = _out_of_focus(scene.shape, make, rng, count // 6 + 1, 0.35 * radius)
    for nucleus, window, depth, own in scene.patches():
        inside = dome(depth, rng.uniform(0.2, 0.5) * nucleus.minor)
        rim = 1.2 - (0.75 if pale else 0.25) * inside
        value = rng.lognormal(0, spread) * (rim + 0.22 * clump[window] + 0.08 * fine[window])
        blend(blue[window], coverage(depth, 1.5) * own, np.clip(value, 0.15, None), "over")
    pink = _connective_tissue(scene, rng, radius)
    dyes = [tuple(np.clip(rng.normal(dye, 0.1), 0.02, None)) for dye in (HAEMATOXYLIN, EOSIN)]
    white = rng.uniform(215, 250) + rng.normal(0, 5, 3)
    image = absorb([(strength * blue, dyes[0]), (strength * pink, dyes[1])], white)
    image = ndimage.gaussian_filter(image, (*[rng.uniform(0.5, 1.3)] * 2, 0))
    image *= uneven_light(scene.shape, rng.uniform(0.0, 0.15), rng)[..., None]
    return camera(image, rng, electrons=rng.uniform(8, 30), read_noise=0.8)


def _connective_tissue(scene: Scene, rng, radius: float) -> np.ndarray:
    """Amount of eosin: fibres and cell bodies in clouds, clear where there is no tissue. [H, W]"""
    shape = scene.shape
    fibres = fibre_field(shape, rng, length=rng.uniform(2, 5) * radius, width=rng.uniform(0.7, 2))
    cloud = noise_field(shape, rng.uniform(2, 6) * radius, rng)
    bodies = noise_field(shape, rng.uniform(0.4, 1.0) * radius, rng)
    amount = rng.uniform(0.15, 0.9) * (1 + 0.2 * fibres + 0.25 * cloud + 0.15 * bodies)
    clear = ndimage.gaussian_filter((cloud > rng.uniform(0.3, 3)) * 1.0, 1.5)
    return np.clip(amount, 0, None) * (1 - clear)


def _out_of_focus(
    shape: tuple[int, int],
    make,
    rng,
    count: int,
    blur: float | None = None,
) -> np.ndarray:
    """Pale smudges of nuclei above or below the plane in focus, which nobody annotates.

    blur: sigma in pixels, by default 3 to 5.
    """
    smudges = np.zeros(shape)
    for _ in range(count):
        nucleus = make((rng.uniform(0, shape[0]), rng.uniform(0, shape[1])))
        draw_shape(smudges, nucleus, rng.uniform(0.15, 0.45))
    return ndimage.gaussian_filter(smudges, rng.uniform(3, 5) if blur is None else blur)


def _tissue_ground(scene: Scene, rng, violet: bool, radius: float, lean) -> np.ndarray:
    """Amount of counterstain between the nuclei: fibres, cell bodies, holes. [H, W]"""
    shape = scene.shape
    fibres = fibre_field(shape, rng, length=rng.uniform(14, 30), width=rng.uniform(0.7, 1.4))
    cloud = noise_field(shape, 25, rng)
    if violet:
        ground = 1.0 + 0.09 * fibres + 0.12 * cloud
        return ground * np.where(cloud < rng.uniform(-4, -1), 0.6, 1.0)
    bodies = np.zeros(shape)
    for nucleus in scene.nuclei:
        if rng.random() < 0.6:
            place = (nucleus.y + rng.normal(0, 2), nucleus.x + rng.normal(0, 2))
            body = random_nucleus(rng, place, nucleus.major * 1.6, (1.0, 1.5), 0.08)
            draw_shape(bodies, body, rng.uniform(0.5, 1.6), softness=3)
    for _ in range(int(12 * _area(scene))):  # pale red blood cells
        place = (rng.uniform(0, shape[0]), rng.uniform(0, shape[1]))
        cell = random_nucleus(rng, place, radius * 0.8, (1.0, 1.5), 0.06)
        draw_shape(bodies, cell, rng.uniform(0.2, 0.5), softness=3)
    bodies *= 1 + 0.15 * noise_field(shape, 2, rng)
    return bodies + 0.15 * np.clip(fibres + cloud, 0, None)


def bright_field(scene: Scene, rng) -> np.ndarray:
    """A smear in bright field: grey, translucent, folded cells with small dark nuclei."""
    height, width = scene.shape
    cells = max(2, int(rng.uniform(3, 9) * _area(scene)))
    largest = min(75.0, height / 3.5)
    clumps = _centres(scene, rng, 2, 0.35 * largest + 25)
    haze = np.zeros(scene.shape)  # optical density of the cell bodies
    for _ in range(cells):
        y, x, spread = clumps[rng.integers(2)]
        if rng.random() < 0.4:
            y, x, spread = rng.uniform(0, height), rng.uniform(0, width), 1.0
        place = (rng.normal(y, spread), rng.normal(x, spread))
        body = random_nucleus(rng, place, largest * rng.uniform(0.55, 1.0), (1.0, 1.5), 0.09)
        _draw_body(haze, body, rng)
        within = rng.normal((body.y, body.x), 0.12 * body.minor)
        scene.place(random_nucleus(rng, within, rng.uniform(5, 10.5), (1.0, 1.6), 0.03))
    while not scene.nuclei or rng.random() < 0.5:  # leucocytes: touching lobes without a body
        place = (rng.uniform(0, height), rng.uniform(0, width))
        _place_lobes(scene, rng, place)
    grain = noise_field(scene.shape, 1.2, rng)
    density = haze * (1 + 0.10 * noise_field(scene.shape, 1.0, rng))
    for nucleus, window, depth, own in scene.patches():
        rim = 1.1 - 0.15 * dome(depth, 0.4 * nucleus.minor)
        value = rng.uniform(0.45, 1.1) * (rim + 0.12 * grain[window])
        blend(density[window], coverage(depth, 1.5) * own, value, "add")
    for _ in range(rng.poisson(12 * _area(scene))):  # bacteria and dust, too small for nuclei
        y, x = rng.integers(0, scene.shape)
        density[y : y + 1, x : x + rng.integers(1, 4)] += rng.uniform(0.3, 0.9)
    light = rng.uniform(222, 244) * np.exp(-density)
    light = ndimage.gaussian_filter(light, rng.uniform(0.6, 1.0))
    light *= uneven_light(scene.shape, rng.uniform(0.0, 0.08), rng)
    return camera(light, rng, electrons=rng.uniform(10, 40), read_noise=0.7)


def _draw_body(haze: np.ndarray, body: Nucleus, rng) -> None:
    """Add a thin, wrinkled cell body with a darker border to the density [H, W], in place."""
    window = body.cut(haze.shape)
    if min(s.stop - s.start for s in window) < 2:
        return
    part = haze[window]
    depth = body.depth(window) + 2.5 * noise_field(part.shape, 5, rng)
    thickness = rng.uniform(0.08, 0.35)
    wrinkles = np.abs(fibre_field(part.shape, rng, length=20, width=1.5))
    folds = np.clip(wrinkles - 1.8, 0, None) * rng.uniform(0.1, 0.35)
    border = rng.uniform(0.0, 0.25) * np.exp(-((depth - 2) ** 2) / 6)
    cloud = 1 + 0.18 * noise_field(part.shape, 9, rng)
    part += coverage(depth, 1.5) * (thickness * cloud + folds + border)


def _place_lobes(scene: Scene, rng, place: tuple[float, float]) -> None:
    """Two or three small round lobes that touch."""
    for lobe in range(rng.integers(2, 4)):
        radius = rng.uniform(3.0, 4.5)
        beside = None
        if lobe and scene.nuclei:
            last = scene.nuclei[-1]
            turn = rng.uniform(0, 2 * np.pi)
            reach = 0.92 * (last.minor + radius)
            beside = (last.y + reach * np.sin(turn), last.x + reach * np.cos(turn))
        scene.place(random_nucleus(rng, beside or place, radius, (1.0, 1.3), 0.04), crowd=0.2)
