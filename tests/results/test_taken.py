"""What is said of an image: its line, its columns."""

import numpy as np

from mrcnn.pixels.exposure import Exposure
from mrcnn.results.result import Result
from mrcnn.results.taken import Taken


def result(image, exposure=Exposure(0, 1), microns=None, scale=None):  # noqa: B008
    labels = np.zeros(image.shape[:2], np.int32)
    nothing = np.zeros(0)
    return Result(
        labels, nothing, nothing.astype(np.int32), ("cell",), image, exposure, microns, scale
    )


def test_the_line_and_the_columns_say_what_was_taken():
    found = result(np.zeros((40, 50), np.float32), Exposure(0, 1, True, 7), 0.325, 1.41)
    taken = Taken.of(found, "channel 2 of 3 (DAPI)", "z002", "OME", ["turned"])
    assert str(taken) == (
        "40 x 50 pixels of float32, channel 2 of 3 (DAPI), plane z002, "
        "0.325 microns per pixel (OME), inverted, scale 1.41, turned, "
        "7 values are NaN or infinite: taken as background"
    )
    assert taken.row() == {
        "channels": "channel 2 of 3 (DAPI)",
        "microns_per_pixel": 0.325,
        "microns_from": "OME",
        "inverted": True,
        "scale": 1.41,
    }


def test_of_an_array_alone():
    assert str(Taken.of(result(np.zeros((4, 5, 3), np.uint8)))) == (
        "4 x 5 pixels of uint8, RGB, pixel size unknown, not inverted"
    )
