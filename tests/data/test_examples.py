"""One training example: crop, scale and padding keep image and labels on one grid."""

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.data import examples
from mrcnn.data.augment import RandomAugmentation
from mrcnn.data.examples import make_example

MOVES = RandomAugmentation(brightness=0, contrast=0, gamma=0, invert=0, grey=0, hue=0, blur=0)


class CropConfig(Config):
    NAME = "crop"
    NUM_CLASSES = 2
    PIXEL_CONVENTION = "exact"
    IMAGE_RESIZE_MODE = "crop"
    IMAGE_MIN_DIM = 128
    IMAGE_MAX_DIM = 128


def discs(shape, centres, radius):
    """Image of white discs on black, and their labels in one layer."""
    layers = np.zeros((*shape, 1), np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    for i, (cy, cx) in enumerate(centres):
        layers[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = i + 1
    return (255 * (layers > 0)).astype(np.uint8).repeat(3, axis=-1), layers


def centroid(weights):
    """Centre of mass in continuous coordinates, where pixel i's centre is i + .5."""
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(y * weights).sum(), (x * weights).sum()]) / weights.sum()


def places(example, index):
    """Centre of mass of instance `index` in pixels of the input."""
    return centroid(example.layers[..., 0] == index + 1) * example.scales + example.window[:2]


def part_around(box, margin):
    """Slices of a box with some pixels more on every side."""
    y1, x1, y2, x2 = (int(value) for value in (*np.floor(box[:2]), *np.ceil(box[2:])))
    return slice(y1 - margin, y2 + margin), slice(x1 - margin, x2 + margin)


def linear_oracle(values, out_size, scale, start):
    """Naive linear interpolation of a row, one output pixel at a time."""
    result = []
    for i in range(out_size):
        place = (i + 0.5 - start) / scale
        if not 0 <= place < len(values):
            result.append(0.0)
            continue
        place = min(max(place - 0.5, 0), len(values) - 1)
        left = int(place)
        right = min(left + 1, len(values) - 1)
        result.append(values[left] * (1 - place + left) + values[right] * (place - left))
    return np.array(result)


@pytest.mark.parametrize(
    ("size", "out", "scale", "start"), [(7, 14, 2, 0), (6, 20, 2.5, 3), (1, 5, 3, 1), (9, 9, 1, 0)]
)
def test_enlarging_is_linear_between_pixel_centres(size, out, scale, start):
    values = np.random.default_rng(size).uniform(0, 255, size)
    matrix = examples.interpolation_matrix(size, out, scale, start)
    expected = linear_oracle(values, out, scale, start)
    np.testing.assert_allclose(matrix @ values, expected, rtol=1e-4, atol=1e-3)


def test_shrinking_averages_and_stays_centred():
    matrix = examples.interpolation_matrix(64, 16, 0.25, 0)
    centres = matrix @ (np.arange(64) + 0.5)
    # Away from the rim a ramp comes out as the ramp at the output pixels' centres.
    np.testing.assert_allclose(centres[1:-1], (np.arange(16) + 0.5)[1:-1] * 4, rtol=1e-5)
    stripes = np.tile([0.0, 255.0], 32)
    assert np.ptp((matrix @ stripes)[1:-1]) < 1e-3


def test_interpolation_of_an_image_is_the_same_along_both_axes():
    image = np.random.default_rng(0).uniform(0, 255, (5, 8, 3))
    rows = examples.interpolation_matrix(5, 10, 2, 0)
    columns = examples.interpolation_matrix(8, 16, 2, 0)
    expected = np.einsum("Yy,yxc,Xx->YXc", rows.toarray(), image, columns.toarray())
    np.testing.assert_allclose(examples.interpolate(image, rows, columns), expected, rtol=1e-4)


def test_every_crop_pixel_shows_the_source_place_under_its_centre():
    """A ramp tells its own coordinates, whatever the window and the scale."""
    ramp = np.zeros((300, 250, 2), np.float32)
    ramp[..., 0], ramp[..., 1] = np.mgrid[:300, :250] + 0.5
    layers = np.zeros((300, 250, 1), np.int32)
    config, scales = CropConfig(), set()
    for seed in range(10):
        example = make_example(
            ramp, layers, np.zeros(0, np.int32), config, np.random.default_rng(seed),
            jitter=(1.1, 2.0),
        )  # fmt: skip
        steps = np.diff(example.image[2:-2, 2:-2, 0], axis=0)
        np.testing.assert_allclose(steps, 1 / example.scale, rtol=1e-3)
        window = 128 / example.scale
        assert window == pytest.approx(round(window))
        # The window's edge is an integer: half an output pixel before the first centre.
        edge = example.image[64, 64, 0] - 64.5 / example.scale
        assert edge == pytest.approx(round(edge), abs=1e-3)
        scales.add(example.scale)
    assert len(scales) > 5


@pytest.mark.parametrize("limits", [(1.0, 1.0), (0.6, 1.7)])
def test_image_and_mask_centroids_agree(limits):
    """Through crop, jitter, flips and quarter turns, to a tenth of a pixel."""
    centres = [(y, x) for y in range(30, 300, 45) for x in range(30, 300, 45)]
    image, layers = discs((310, 320), np.array(centres) + 0.3, 9)
    class_ids, offsets = np.ones(len(centres), np.int32), []
    for seed in range(12):
        example = make_example(
            image, layers, class_ids, CropConfig(), np.random.default_rng(seed), MOVES,
            jitter=limits,
        )  # fmt: skip
        for i, box in enumerate(example.to_input(example.source_boxes())):
            if box.min() < 3 or box.max() > 125:
                continue  # cut by the crop
            part = part_around(box, 2)
            corner = [part[0].start, part[1].start]
            offsets.append(centroid(example.image[part][..., 0]) + corner - places(example, i))
    offsets = np.array(offsets)
    assert len(offsets) > 20
    assert np.abs(offsets).max() < 0.1
    assert np.abs(offsets.mean(axis=0)).max() < 0.01


def test_small_images_are_centred_in_zeros():
    config = CropConfig()
    image, layers = discs((40, 70), [(20, 35)], 10)
    image = np.maximum(image, 9)
    example = make_example(
        image, layers, np.ones(1, np.int32), config, np.random.default_rng(0), jitter=(0.5, 0.5)
    )
    # Scale 128 / 40 fills the crop; half of it leaves 64 rows and 112 columns.
    assert example.window == (32, 8, 96, 120)
    y1, x1, y2, x2 = example.window
    assert example.image[y1:y2, x1:x2].min() > 8
    inside = np.zeros((128, 128), bool)
    inside[y1:y2, x1:x2] = True
    assert not example.image[~inside].any()
    assert not example.whole_masks()[~inside].any()
    np.testing.assert_allclose(places(example, 0), [64, 64], atol=0.01)


def test_padding_is_not_augmented():
    image, layers = discs((20, 20), [(10, 10)], 5)
    invert = RandomAugmentation(invert=1.0, brightness=0, contrast=0, gamma=0)
    example = make_example(
        image, layers, np.ones(1, np.int32), CropConfig(), np.random.default_rng(0), invert,
        jitter=(0.25, 0.25),
    )  # fmt: skip
    assert not example.image[:8].any()


def test_the_scale_is_matterports_in_crop_mode():
    class Doubled(CropConfig):
        IMAGE_MIN_SCALE = 2.0

    blank, none = np.zeros((400, 300, 3), np.uint8), np.zeros(0, np.int32)
    layers = np.zeros((400, 300, 1), np.int32)
    rng = np.random.default_rng(0)
    assert make_example(blank, layers, none, CropConfig(), rng).scale == 1
    assert make_example(blank, layers, none, Doubled(), rng).scale == 2
    assert make_example(blank[:64], layers[:64], none, CropConfig(), rng).scale == 2


def test_slivers_are_dropped_and_the_rest_renumbered():
    layers = np.zeros((10, 10, 2), np.int32)
    layers[0, :3, 0] = 1  # three pixels
    layers[2:5, 2:5, 0] = 3  # number 2 has none
    layers[4:8, 4:8, 1] = 4
    kept_layers, kept = examples.keep_large(layers, 4, 4)
    assert kept.tolist() == [2, 3]
    assert np.bincount(kept_layers.ravel())[1:].tolist() == [9, 16]
    assert (kept_layers[4:8, 4:8, 1] == 2).all()
    _, all_visible = examples.keep_large(layers, 4, 1)
    assert all_visible.tolist() == [0, 2, 3]


@pytest.mark.parametrize("mode", ["square", "pad64", "none"])
@pytest.mark.parametrize("convention", ["exact", "matterport"])
def test_whole_image_modes_keep_image_and_labels_together(mode, convention):
    class Whole(Config):
        NUM_CLASSES = 2
        IMAGE_RESIZE_MODE = mode
        IMAGE_MIN_DIM = 0 if mode == "none" else 128
        IMAGE_MAX_DIM = 192
        IMAGE_MIN_SCALE = 0
        PIXEL_CONVENTION = convention

    centres = np.array([[20.3, 40.1], [60.2, 80.4]])
    image, layers = discs((96, 128), centres, 11)
    example = make_example(image, layers, np.ones(2, np.int32), Whole(), np.random.default_rng(0))
    assert example.image.dtype == np.float32
    y1, x1, y2, x2 = example.window
    whole = example.whole_masks()
    assert whole.shape == (*example.image.shape[:2], 2)
    assert not whole[:y1].any() and not whole[:, x2:].any()
    for i, box in enumerate(example.to_input(example.source_boxes())):
        part = part_around(box, 2)
        corner = [part[0].start, part[1].start]
        in_image = centroid(example.image[part][..., 0]) + corner
        np.testing.assert_allclose(in_image, places(example, i), atol=0.1)
        expected = centres[i] * [(y2 - y1) / 96, (x2 - x1) / 128] + [y1, x1]
        np.testing.assert_allclose(in_image, expected, atol=0.2)
        np.testing.assert_allclose(centroid(whole[..., i]), expected, atol=0.4)


def test_whole_masks_repeat_source_pixels():
    layers = np.array([[[1], [0]], [[2], [2]]], np.int32)
    enlarged = examples.enlarge_labels(layers, (6, 4), (2.0, 1.0), (1, 1))
    expected = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [0] * 4]
    assert enlarged[..., 0].tolist() == expected


def test_crowds_have_no_say_in_the_scale():
    image, layers = discs((100, 100), [(20, 20), (70, 70)], 8)
    layers[40:, 40:] = 2
    config = type("C", (CropConfig,), {"OBJECT_SIZE": 32, "SCALE_LIMITS": (0.5, 8)})()
    assert examples.crop_scale(image, layers, np.array([1, -1]), config) == pytest.approx(
        2, abs=0.2
    )
