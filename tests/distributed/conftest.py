"""A cluster of two processes for all tests of the room, and a network built in seconds."""

import importlib.util

import pytest

from tests.campaigns.network import make_images, small_model

# The modules of the room need the extra, and so do their tests.
HAS_EXTRA = importlib.util.find_spec("distributed") is not None
collect_ignore_glob = [] if HAS_EXTRA else ["test_*.py"]


@pytest.fixture(scope="session")
def client():
    from mrcnn.distributed.cluster import cores, local_cluster

    with pytest.MonkeyPatch.context() as patch:
        # As many as this process has: scores depend on them in their last bits.
        patch.setenv("TF_NUM_INTRAOP_THREADS", str(cores()))
        with local_cluster(2) as client:
            yield client


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with images/, and the weight file start.h5 of the small network."""
    from mrcnn.weights import description

    folder = tmp_path_factory.mktemp("data")
    make_images(folder, 5)
    model = small_model()
    model.save_weights(folder / "start.h5")
    known = description.describe(model.config, ("cell",), {"min_score": 0.0}, "cells")
    description.write(description.own_file(folder / "start.h5"), known)
    return folder
