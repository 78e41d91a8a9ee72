"""`Segmenter.map` over a cluster and lazily gives what `detect` gives."""

import numpy as np
import pytest
from skimage.io import imsave

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.segmenter import Segmenter
from tests.test_segmenter import SETTINGS, SpotFinder, spots

dask_array = pytest.importorskip("dask.array")


@pytest.fixture(scope="module")
def finder():
    return Segmenter(SpotFinder(), ("spot",), SETTINGS)


def test_map_over_a_cluster(finder, client, rng, tmp_path):
    images = [spots(rng), spots(rng, (90, 120), 9), spots(rng) / 1e4]
    images[2][0, 0] = np.nan
    imsave(tmp_path / "a.png", images[1], check_contrast=False)
    given = [images[0], tmp_path / "a.png", np.zeros(7), images[2]]
    with pytest.warns(MRCNNWarning, match="1 values are NaN"):
        far = list(finder.map(given, client=client, errors="return"))
    with pytest.warns(MRCNNWarning, match="1 values are NaN"):
        here = list(finder.map(given, errors="return"))
    assert isinstance(far[2], UserError) and str(far[2]) == str(here[2])
    for one, other in zip(far, here, strict=True):
        if not isinstance(one, Exception):
            np.testing.assert_array_equal(one.labels, other.labels)
            assert one.to_dataframe().equals(other.to_dataframe()) and len(one)
            assert one.exposure == other.exposure and one.scale == other.scale
    with pytest.raises(UserError, match="is not an image"):
        list(finder.map(given, client=client))


@pytest.mark.parametrize("far", [False, True], ids=["threads", "cluster"])
def test_lazy_arrays(finder, client, rng, far):
    stack = np.stack([spots(rng, (90, 120), 9) for _ in range(3)])
    expected = np.stack([finder.detect(image).labels for image in stack])
    how = {} if far else {"scheduler": "threads"}
    for array, right in (
        (dask_array.from_array(stack, chunks=(2, 50, 50)), expected),
        (dask_array.from_array(np.stack([stack] * 3, -1), chunks=50), expected),
        (dask_array.from_array(stack[0], chunks=40), expected[0]),
        (dask_array.from_array(np.stack([stack[0]] * 3, -1), chunks=40), expected[0]),
    ):
        labels = finder.map(array)
        assert labels.shape == right.shape and labels.dtype == np.int32
        if far:
            computed = client.compute(labels).result()
        else:
            computed = labels.compute(**how)
        np.testing.assert_array_equal(computed, right)


def test_what_is_no_stack_of_images(finder):
    with pytest.raises(UserError, match="nor a stack of images"):
        finder.map(dask_array.zeros((2, 3, 9, 9, 9)))
    with pytest.raises(UserError, match="too large for one task"):
        finder.map(dask_array.zeros((30_000, 30_000)))
    with pytest.raises(UserError, match="its scheduler decides"):
        finder.map(dask_array.zeros((9, 9)), errors="return")
