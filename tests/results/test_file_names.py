"""Results of images whatever their names."""

import os
import warnings

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.errors import MRCNNWarning
from mrcnn.pixels.exposure import measure
from mrcnn.results.file_names import file_name, warn_of_long
from mrcnn.results.result import Result
from mrcnn.results.writers import FORMATS, ResultWriter


def test_short_names_stay_and_long_ones_stay_apart():
    assert file_name("a" * 200) == "a" * 200
    one, two = file_name("a" * 255), file_name("a" * 254 + "b")
    assert one != two and len(one) == 200 == len(two)
    assert len(os.fsencode(file_name("\u00e9" * 127))) <= 200
    assert file_name(os.fsdecode(b"\xff" * 255)).isprintable()


def test_what_is_cut_is_said():
    with pytest.warns(MRCNNWarning, match="2 images have names of more than 200 bytes") as caught:
        warn_of_long(["short", "a" * 255, "b" * 201])
    assert file_name("a" * 255)[-12:] in str(caught[0].message) and len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_long(["short", "a" * 200])


@pytest.mark.parametrize("name", ["a" * 255, os.fsdecode(b"n\xff" + b"x" * 253)])
def test_results_of_long_names(name, tmp_path):
    """In Kaggle's layout the name of a folder is that of the image: up to 255 bytes."""
    pytest.importorskip("roifile")
    image = np.zeros((30, 40, 3), np.uint8)
    image[5:9, 5:9] = 200
    labels = (image[..., 0] > 0).astype(np.int32)
    result = Result(
        labels, np.ones(1), np.ones(1, np.int32), ("object",), image, measure(image, Config())
    )
    writer = ResultWriter(tmp_path, FORMATS, {})
    writer.add(name, result)
    writer.close(True)
    assert (tmp_path / f"{file_name(name)}.png").is_file()
    assert len(list(tmp_path.glob("labels/*.tif"))) == 1
