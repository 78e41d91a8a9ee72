"""Masks: round trips without offset, label layers, and empty inputs."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import resize as skimage_resize

from mrcnn.errors import UserError
from mrcnn.pixels import masks as mk
from mrcnn.pixels import molding
from mrcnn.pixels.boxes import extract_bboxes


def disc(centre, radius, shape=(60, 70)):
    """The pixels whose centres lie inside a disc."""
    rows, columns = (np.arange(size) + 0.5 for size in shape)
    return np.hypot(rows[:, None] - centre[0], columns[None, :] - centre[1]) <= radius


def centroid(mask):
    """Centre of mass (y, x) in continuous coordinates."""
    return np.argwhere(mask).mean(axis=0) + 0.5


def some_masks(rng, count, shape=(60, 70)):
    """Discs at sub-pixel places, some of them overlapping."""
    discs = [disc(rng.uniform(12, 48, 2), rng.uniform(3, 12), shape) for _ in range(count)]
    return np.stack(discs, axis=-1)


# ---- matterport's functions --------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 0.77, 1, 1.5, 2.3])
def test_resize_mask_is_matterports_zoom(scale):
    masks = some_masks(np.random.default_rng(0), 3)
    padding = [(3, 1), (0, 2), (0, 0)]
    expected = np.pad(ndimage.zoom(masks, [scale, scale, 1], order=0), padding)
    resized = mk.resize_mask(masks, scale, padding)
    assert resized.dtype == bool and resized.shape == expected.shape
    # Where a sample falls midway between two pixels, rounding may pick either.
    assert (resized != expected).mean() < 0.002


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7, 3.0])
def test_exact_resize_mask_does_not_move_discs(scale):
    masks = some_masks(np.random.default_rng(1), 60)
    resized = mk.resize_mask(masks, scale, [(0, 0)] * 3, exact=True)
    factor = np.array(resized.shape[:2]) / masks.shape[:2]
    offsets = [centroid(resized[..., i]) / factor - centroid(masks[..., i]) for i in range(60)]
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.05
    assert np.abs(offsets).max() < 0.5


@pytest.mark.parametrize("mode", ["square", "pad64", "crop"])
@pytest.mark.parametrize("exact", [False, True])
def test_resize_mask_follows_resize_image(mode, exact):
    mask = disc((30.2, 20.4), 14)[..., None]
    image = np.repeat(mask * np.uint8(255), 3, axis=-1)
    molded, _, scale, padding, crop = molding.resize_image(
        image, 64, 128, 1.4, mode, exact=exact, rng=np.random.default_rng(0)
    )
    resized = mk.resize_mask(mask, scale, padding, crop, exact=exact)
    assert resized.shape == (*molded.shape[:2], 1)
    assert (resized[..., 0] != (molded[..., 0] > 127)).sum() < 0.1 * resized.sum()


@pytest.mark.parametrize("mini_shape", [(28, 28), [56, 40], (7, 9)])
def test_minimize_mask_is_matterports(mini_shape):
    masks = some_masks(np.random.default_rng(2), 6)
    boxes = extract_bboxes(masks)
    mini = mk.minimize_mask(boxes, masks, mini_shape)
    assert mini.shape == (*mini_shape, 6) and mini.dtype == bool
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        patch = masks[y1:y2, x1:x2, i].astype(float)
        expected = skimage_resize(
            patch, tuple(mini_shape), order=1, mode="constant", anti_aliasing=False
        )
        unclear = np.abs(expected - 0.5) < 1e-6
        np.testing.assert_array_equal(mini[..., i][~unclear], (expected > 0.5)[~unclear])


@pytest.mark.parametrize("seed", range(6))
def test_exact_mini_masks_have_no_bias(seed):
    masks = some_masks(np.random.default_rng(seed), 10)
    boxes = extract_bboxes(masks)
    mini = mk.minimize_mask(boxes, masks, (56, 56), exact=True)
    back = mk.expand_mask(boxes, mini, masks.shape, exact=True)
    assert back.shape == masks.shape and back.dtype == bool
    for i in range(10):
        assert np.abs(centroid(back[..., i]) - centroid(masks[..., i])).max() < 0.05
        intersection = (back[..., i] & masks[..., i]).sum()
        assert intersection / (back[..., i] | masks[..., i]).sum() > 0.97


def test_a_filled_box_stays_filled_when_exact():
    masks = np.zeros((30, 30, 1), bool)
    masks[3:17, 5:12] = True
    boxes = [[3, 5, 17, 12]]
    mini = mk.minimize_mask(boxes, masks, (28, 28), exact=True)
    assert mini.all()
    np.testing.assert_array_equal(mk.expand_mask(boxes, mini, (30, 30), exact=True), masks)


def test_mini_masks_of_a_shape_that_divides_evenly_are_exact():
    masks = np.zeros((40, 40, 1), bool)
    masks[4:18, 6:34, 0] = np.random.default_rng(0).random((14, 28)) > 0.5
    boxes = np.array([[4, 6, 18, 34]])
    mini = mk.minimize_mask(boxes, masks, (28, 56), exact=True)
    np.testing.assert_array_equal(mini[..., 0], masks[4:18, 6:34, 0].repeat(2, 0).repeat(2, 1))


def test_mini_masks_of_nothing():
    nothing = np.zeros((20, 20, 0), bool)
    assert mk.minimize_mask(np.zeros((0, 4)), nothing, (28, 28)).shape == (28, 28, 0)
    mini = np.zeros((28, 28, 0), bool)
    assert mk.expand_mask(np.zeros((0, 4)), mini, (20, 30, 3)).shape == (20, 30, 0)


def test_a_box_without_area():
    boxes = np.array([[3, 3, 3, 9]])
    with pytest.raises(UserError, match=r"box 0 = \[3, 3, 3, 9\] has no area"):
        mk.minimize_mask(boxes, np.ones((20, 20, 1), bool), (28, 28))
    assert not mk.expand_mask(boxes, np.ones((28, 28, 1), bool), (20, 20)).any()


# ---- Label layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_layers_round_trip_with_overlapping_masks(seed):
    masks = some_masks(np.random.default_rng(seed), 12)
    assert (masks.sum(axis=-1) > 1).any()
    layers = mk.masks_to_layers(masks)
    assert layers.dtype == np.int32 and layers.shape[:2] == masks.shape[:2]
    assert 1 < layers.shape[-1] <= 12
    homes = [
        {layer for layer in range(layers.shape[-1]) if (layers[..., layer] == i + 1).any()}
        for i in range(12)
    ]
    assert all(len(home) == 1 for home in homes)
    np.testing.assert_array_equal(mk.layers_to_masks(layers, 12), masks)


def test_disjoint_masks_need_one_layer():
    masks = np.zeros((10, 10, 3), np.uint8)
    masks[:5, :, 0] = masks[5:, :5, 1] = masks[5:, 5:, 2] = 1
    layers = mk.masks_to_layers(masks)
    assert layers.shape == (10, 10, 1)
    np.testing.assert_array_equal(mk.layers_to_masks(layers, 3), masks.astype(bool))


def test_identical_masks_are_kept_apart():
    masks = np.repeat(disc((30, 30), 9)[..., None], 3, axis=-1)
    layers = mk.masks_to_layers(masks)
    assert layers.shape[-1] == 3
    np.testing.assert_array_equal(mk.layers_to_masks(layers, 3), masks)


def test_an_empty_mask_keeps_its_number():
    masks = np.zeros((10, 10, 3), bool)
    masks[2:4, 2:5, 0] = masks[6:9, 1:3, 2] = True
    layers = mk.masks_to_layers(masks)
    np.testing.assert_array_equal(mk.layers_to_masks(layers, 3), masks)
    assert mk.layer_boxes(layers, 3).tolist() == [[2, 2, 4, 5], [0, 0, 0, 0], [6, 1, 9, 3]]


def test_layers_of_nothing():
    layers = mk.masks_to_layers(np.zeros((6, 7, 0), bool))
    assert layers.shape == (6, 7, 1) and not layers.any()
    assert mk.layers_to_masks(layers, 0).shape == (6, 7, 0)
    assert mk.layer_boxes(layers, 0).shape == (0, 4)
    mini = mk.layer_mini_masks(layers, np.zeros((0, 4), np.int32), (28, 28), True)
    assert mini.shape == (0, 28, 28) and mini.dtype == bool
    assert mk.resize_layers(layers, (12, 3)).shape == (12, 3, 1)


def test_layer_boxes_are_the_masks_boxes():
    masks = some_masks(np.random.default_rng(5), 9)
    boxes = mk.layer_boxes(mk.masks_to_layers(masks), 9)
    assert boxes.dtype == np.int32
    np.testing.assert_array_equal(boxes, extract_bboxes(masks))


@pytest.mark.parametrize("exact", [False, True])
def test_layer_mini_masks_are_minimize_mask(exact):
    masks = some_masks(np.random.default_rng(6), 9)
    boxes = extract_bboxes(masks)
    mini = mk.layer_mini_masks(mk.masks_to_layers(masks), boxes, (28, 20), exact)
    expected = mk.minimize_mask(boxes, masks, (28, 20), exact=exact)
    np.testing.assert_array_equal(mini, np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("count", [1, 300])
def test_layer_mini_masks_of_every_size(exact, count):
    """From a single pixel to most of the image, at its edges too, in two layers."""
    rng = np.random.default_rng(count)
    masks = np.zeros((90, 150, count), bool)
    for i in range(count):
        height, width = rng.integers(1, [88, 148]) if i % 10 == 0 else rng.integers(1, 20, 2)
        y, x = rng.integers(0, [91 - height, 151 - width])
        masks[y : y + height, x : x + width, i] = rng.random((height, width)) < 0.8
    boxes = extract_bboxes(masks)
    expected = np.zeros((count, 28, 20), bool)
    found = masks.any(axis=(0, 1))
    minimized = mk.minimize_mask(boxes[found], masks[..., found], (28, 20), exact=exact)
    expected[found] = np.moveaxis(minimized, -1, 0)
    mini = mk.layer_mini_masks(mk.masks_to_layers(masks), boxes, (28, 20), exact)
    np.testing.assert_array_equal(mini, expected)


def test_layer_mini_mask_of_a_vanished_instance_is_empty():
    layers = np.zeros((9, 9, 1), np.int32)
    layers[2:5, 2:5] = 2
    mini = mk.layer_mini_masks(layers, mk.layer_boxes(layers, 2), (14, 14), True)
    assert not mini[0].any() and mini[1].all()


@pytest.mark.parametrize("out_shape", [(120, 140), (90, 105), (83, 101), (45, 50)])
def test_resize_layers_does_not_move_discs(out_shape):
    masks = some_masks(np.random.default_rng(7), 60)
    resized = mk.resize_layers(mk.masks_to_layers(masks), out_shape)
    assert resized.dtype == np.int32
    back = mk.layers_to_masks(resized, 60)
    factor = np.array(out_shape) / masks.shape[:2]
    offsets = [centroid(back[..., i]) / factor - centroid(masks[..., i]) for i in range(60)]
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.05
    areas = back.sum((0, 1)) / masks.sum((0, 1)) / factor.prod()
    assert abs(areas.mean() - 1) < 0.03
