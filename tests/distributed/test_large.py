"""A large image is shared among the workers tile by tile, and gives what one process gives."""

import numpy as np
import pytest

from mrcnn.distributed import team
from mrcnn.images.image_files import open_image
from mrcnn.segmenter import Segmenter
from tests.test_segmenter import SETTINGS, SpotFinder, spots

zarr = pytest.importorskip("zarr")


def test_tiles_go_to_all_workers(client, rng, tmp_path, monkeypatch):
    pixels = spots(rng, (1500, 1700), 900)
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(256, 256))
    finder = Segmenter(SpotFinder(), ("spot",), SETTINGS)
    image = open_image(tmp_path / "a.zarr")
    groups, give_out = [], team.Team._give_out

    def watched(self, task, priority=0):
        groups.append(priority)
        return give_out(self, task, priority)

    monkeypatch.setattr(team.Team, "_give_out", watched)
    [far] = finder.map([image], client=client, tile=256)
    assert groups.count(10) > 15  # groups of tiles, besides the first look
    here = finder.detect(image, tile=256)
    assert len(here) > 500
    for one, other in ((far.labels, here.labels), (far.scores, here.scores)):
        np.testing.assert_array_equal(one, other)
    assert far.to_dataframe().equals(here.to_dataframe())
