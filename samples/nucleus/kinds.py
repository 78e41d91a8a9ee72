"""What kind of microscopy an image shows, by a simple rule, to break scores down.

The rule uses three numbers of the uint8 RGB image:

    colour       mean over pixels of (largest - smallest of R, G, B)
    brightness   median over pixels of the mean of R, G, B
    background   median of (largest - smallest of R, G, B) over the brightest fifth of the pixels

- colour above 5: stained tissue; "purple on white" where the background is below 25
  (colourless glass shows through), otherwise "purple on purple";
- grey with a brightness above 60: "bright field";
- grey on a dark background: fluorescence, "small" or "large" by the median area of the true
  nuclei (500 pixels, a disc of 25 pixels across; without truth: just "fluorescence").

On the Data Science Bowl's training images these tests are clear-cut: grey images have a colour
of exactly 0 and stained ones of 11 or more; the background of the latter is at most 15 or at
least 38; no grey image has a brightness between 44 and 226.
"""

from __future__ import annotations

import numpy as np

from mrcnn.evaluation.evaluation import Kinds

FLUORESCENCE = "fluorescence"
SMALL, LARGE = "fluorescence, small nuclei", "fluorescence, large nuclei"
ON_WHITE, ON_PURPLE = "tissue, purple on white", "tissue, purple on purple"
BRIGHT_FIELD = "bright field"
KINDS = (SMALL, LARGE, FLUORESCENCE, ON_WHITE, ON_PURPLE, BRIGHT_FIELD)

# Kinds that are often considered together.
GROUPS = {
    "all fluorescence": (SMALL, LARGE, FLUORESCENCE),
    "all stained tissue": (ON_WHITE, ON_PURPLE),
}

# What is left out of training to measure how well the rest generalises (see generalise.py).
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "tissue": (ON_WHITE, ON_PURPLE),
    "large": (LARGE,),
    "small": (SMALL,),
    "bright-field": (BRIGHT_FIELD,),
}

COLOUR, BRIGHT, GROUND, LARGE_AREA = 5.0, 60.0, 25.0, 500.0


def kind_of(image: np.ndarray, areas: np.ndarray | None = None) -> str:
    """The kind of an image uint8 [H, W, 3]; areas: pixels of its true nuclei, if known."""
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    brightness = red.astype(np.uint16) + green + blue  # three times the mean, in whole numbers
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    if colour.mean() > COLOUR:
        ground = np.median(colour[brightness >= np.percentile(brightness, 80)])
        return ON_WHITE if ground < GROUND else ON_PURPLE
    if np.median(brightness) > 3 * BRIGHT:
        return BRIGHT_FIELD
    if areas is None or not len(areas):
        return FLUORESCENCE
    return LARGE if np.median(areas) > LARGE_AREA else SMALL


def kept_kinds(left_out: str | None) -> list[str] | None:
    """The kinds of images that remain without a group of LEFT_OUT; None for all."""
    if left_out is None:
        return None
    return [kind for kind in KINDS if kind not in LEFT_OUT[left_out]]


KINDS_OF_IMAGES = Kinds(kind_of, KINDS, GROUPS)
