"""A folder of images that tests of several modules pair with labels."""

import pytest

from tests.support.labelled_files import write_image


@pytest.fixture
def images(tmp_path):
    """Two images in one folder and one in a folder inside, of different kinds."""
    folder = tmp_path / "images"
    for number, name in enumerate(("a.tif", "b.png", "plate/a.jpg")):
        write_image(folder / name, seed=number)
    return folder
