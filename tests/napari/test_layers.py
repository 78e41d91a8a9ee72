"""Between layers of napari and arrays."""

import numpy as np
import pytest
from scipy import ndimage

from mrcnn.napari import layers
from tests.support.spots import STACK, shows


def test_microns_are_read_from_the_scale(viewer):
    from napari.layers import Image

    def microns(scale, units=None):
        return layers.microns_of(
            Image(STACK if len(scale) == 3 else STACK[0], scale=scale, units=units)
        )

    assert microns((0.5, 0.5), ("um", "um")) == 0.5
    assert microns((2, 0.5, 0.5), ("um", "micrometer", "micrometer")) == 0.5
    np.testing.assert_allclose(microns((250, 250), ("nm", "nm")), 0.25)
    assert microns((0.5, 0.6), ("um", "um")) is None
    assert microns((0.5, 0.5)) is None


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
@pytest.mark.parametrize("transform", ["none", "scale", "all"])
def test_a_plane_of_labels_lies_where_the_plane_of_the_image_does(viewer, rng, transform):
    keywords = {}
    if transform != "none":
        keywords = {"scale": (3, 0.5, 0.25), "translate": (7, -2, 5)}
    if transform == "all":
        affine = np.eye(4)
        affine[:3] += rng.normal(0, 0.3, (3, 4))
        keywords |= {"rotate": (10, 20, 30), "shear": (0.1, 0.2, 0.3), "affine": affine}
    image = viewer.add_image(STACK, **keywords)
    labels = viewer.add_labels(np.zeros((1, 90, 120), int), **layers.placement(image, (2,)))
    whole = viewer.add_labels(np.zeros(STACK.shape, int), **layers.placement(image))
    for y, x in [(0, 0), (10, 3), (80, 119)]:
        world = image.data_to_world((2, y, x))
        np.testing.assert_allclose(labels.data_to_world((0, y, x)), world, atol=1e-9)
        np.testing.assert_allclose(whole.data_to_world((2, y, x)), world, atol=1e-9)


def test_the_shown_plane_is_of_the_layer_not_of_the_slider(viewer):
    viewer.add_image(np.zeros((60, 90, 120)), name="longer, and finer")
    layer = viewer.add_image(STACK, scale=(5, 1, 1), translate=(10, 0, 0))
    flat = viewer.add_image(STACK[0])
    for point, expected in [(10, 0), (14, 1), (21, 2), (40, 3), (0, 0)]:
        viewer.dims.set_point(0, point)
        assert layers.shown_plane(layer, viewer.dims.point) == (expected,)
        assert layers.shown_plane(flat, viewer.dims.point) == ()


def test_labels_and_colours_of_several_levels_are_added(viewer):
    image = np.stack([STACK[0]] * 3, -1)
    levels = viewer.add_image([image, image[::2, ::2]], multiscale=True, rgb=True, name="a")
    labels = viewer.add_labels(ndimage.label(STACK[0] > 100)[0])
    name, pixels, numbers = layers.corrected(levels, labels, viewer.dims.point)
    assert name == "a"
    np.testing.assert_array_equal(pixels, image)
    assert shows(numbers, STACK[0])
