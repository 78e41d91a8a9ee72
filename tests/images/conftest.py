"""What the tests of image files share."""

import pytest


@pytest.fixture
def zarr():
    return pytest.importorskip("zarr")
