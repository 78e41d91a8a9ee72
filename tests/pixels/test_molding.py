"""Molding: nothing moves on the way in."""

import numpy as np
import pytest
from skimage.transform import resize as skimage_resize

from mrcnn.errors import UserError
from mrcnn.pixels import molding
from mrcnn.pixels.image_meta import compose_image_meta, parse_image_meta
from mrcnn.pixels.resampling import (
    contiguous_pixels,
    hat_weights,
    nearest_indices,
    resize_smooth,
    resize_weights,
    sparse_hat_weights,
)
from tests.support.reference_shapes import centroid, make_config, rectangle

# ---- Resampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(7, 7), (7, 20), (20, 7), (5, 1), (1, 5)])
def test_resize_weights_are_scikit_images(sizes):
    rng = np.random.default_rng(0)
    values = rng.random(sizes[0])
    expected = skimage_resize(values, (sizes[1],), order=1, mode="constant", anti_aliasing=False)
    np.testing.assert_allclose(resize_weights(*sizes, exact=False) @ values, expected, atol=1e-6)
    if sizes[1] >= sizes[0]:
        edge = skimage_resize(values, (sizes[1],), order=1, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(resize_weights(*sizes, exact=True) @ values, edge, atol=1e-6)


@pytest.mark.parametrize("support", [1.0, 1.37, 2.5, 4.0])
@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_sparse_weights_are_the_dense_ones(size, support):
    inside = np.linspace(0, size, 64 * size + 1)  # pixel centres and edges among them
    centres = np.concatenate([inside, [-5.0, -support, size + support, size + 7.3]])
    sparse = sparse_hat_weights(centres, size, support)
    assert sparse.dtype == np.float32
    np.testing.assert_array_equal(sparse.toarray(), hat_weights(centres, size, support))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_contiguous_pixels_change_the_memory_only(dtype, channels):
    image = np.arange(4 * 6 * channels).reshape(4, 6, channels).astype(dtype)
    views = [
        image,
        image[::-1, ::-1],
        np.rot90(image),
        image.transpose(1, 0, 2),
        image[:0],
        image[..., :1],
        image[..., ::-1],
        np.broadcast_to(image[..., :1], (4, 6, 3)),
    ]
    for view in views:
        result = contiguous_pixels(view)
        assert result.flags.c_contiguous and result.dtype == dtype
        np.testing.assert_array_equal(result, view)


@pytest.mark.parametrize("shape", [(37, 50), (90, 110), (61, 200), (40, 60)])
def test_resizing_does_not_move_a_blob(shape):
    rows, columns = np.arange(61) + 0.5 - 25.3, np.arange(67) + 0.5 - 31.6
    image = np.exp(-(rows[:, None] ** 2 + columns**2) / 2 / 4**2)
    factor = np.array(shape) / image.shape
    resized = resize_smooth(image, shape)
    assert np.abs(centroid(resized) / factor - centroid(image)).max() < 0.01
    assert resized.sum() / factor.prod() == pytest.approx(image.sum(), rel=1e-3)


@pytest.mark.parametrize("shape", [(37, 50), (90, 110), (61, 200), (40, 60)])
@pytest.mark.parametrize("box", [(10.0, 12.0, 21.0, 30.0), (9.3, 20.7, 25.1, 33.2)])
def test_resizing_does_not_move_a_rectangle(shape, box):
    image = rectangle(box, (61, 67))
    factor = np.array(shape) / image.shape
    resized = resize_smooth(image, shape)
    assert np.abs(centroid(resized) / factor - centroid(image)).max() < 0.05
    assert resized.sum() / factor.prod() == pytest.approx(image.sum(), rel=0.02)


def test_resizing_keeps_a_constant_and_any_trailing_axes():
    image = np.full((13, 17, 2), 7, np.uint8)
    for shape in [(5, 40), (13, 17), (1, 1)]:
        resized = resize_smooth(image, shape)
        assert resized.shape == (*shape, 2) and resized.dtype == np.float32
        np.testing.assert_allclose(resized, 7, rtol=1e-6)


def test_nearest_indices_are_centred():
    assert nearest_indices(3, 3).tolist() == [0, 1, 2]
    assert nearest_indices(2, 6).tolist() == [0, 0, 0, 1, 1, 1]
    assert nearest_indices(9, 3).tolist() == [1, 4, 7]


@pytest.mark.parametrize("sizes", [(60, 45), (40, 60), (256, 384), (64, 32), (61, 47), (13, 90)])
def test_nearest_indices_have_no_mean_offset(sizes):
    picked = nearest_indices(*sizes) + 0.5
    offsets = picked - (np.arange(sizes[1]) + 0.5) * sizes[0] / sizes[1]
    assert np.abs(offsets).max() <= 0.5 + 1e-9
    quarter = sizes[1] // 4
    assert abs(offsets.mean()) < 0.02
    assert all(abs(offsets[i * quarter : (i + 1) * quarter].mean()) < 0.07 for i in range(4))


# ---- Images ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((4, 5), 1),
        ((4, 5), 3),
        ((4, 5, 1), 3),
        ((4, 5, 2), 1),
        ((4, 5, 2), 3),
        ((4, 5, 3), 3),
        ((4, 5, 4), 3),
        ((4, 5, 3), 1),
        ((4, 5, 4), 1),
        ((4, 5, 4), 4),
        ((4, 5, 7), 7),
    ],
)
def test_adapt_channels(shape, count):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    adapted = molding.adapt_channels(image, count)
    assert adapted.shape == (4, 5, count) and adapted.dtype == np.uint8
    if count == 3 and shape[-1] in (3, 4):
        np.testing.assert_array_equal(adapted, image[..., :3])
    if shape[2:] in ((), (1,), (2,)):
        grey = image.reshape(4, 5, -1)[..., :1]
        np.testing.assert_array_equal(adapted, np.repeat(grey, count, axis=-1))


def test_luminance_of_grey_is_itself():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(molding.adapt_channels(rgb, 1)[..., 0], grey)


@pytest.mark.parametrize(("shape", "count"), [((4, 5, 3), 4), ((4, 5, 5), 3), ((5,), 3)])
def test_impossible_channels(shape, count):
    with pytest.raises(UserError, match="^an image (of|with) "):
        molding.adapt_channels(np.zeros(shape, np.uint8), count)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("shape", "arguments", "out", "window", "scale"),
    [
        ((100, 50), (0, 128, 0, "square"), (128, 128), (14, 39, 114, 89), 1),
        ((100, 50), (64, 128, 0, "square"), (128, 128), (0, 32, 128, 96), 1.28),
        ((300, 150), (64, 128, 0, "square"), (128, 128), (0, 32, 128, 96), 128 / 300),
        ((100, 50), (64, 128, 3, "square"), (128, 128), (0, 32, 128, 96), 1.28),
        ((100, 50), (0, None, 0, "pad64"), (128, 64), (14, 7, 114, 57), 1),
        ((64, 128), (None, None, None, "pad64"), (64, 128), (0, 0, 64, 128), 1),
        ((100, 50), (64, None, 2, "pad64"), (256, 128), (28, 14, 228, 114), 2),
        ((100, 50), (64, None, 0, "crop"), (64, 64), (0, 0, 64, 64), 1.28),
        ((100, 50), (64, 64, 9, "none"), (100, 50), (0, 0, 100, 50), 1),
    ],
)
def test_resize_image_geometry(exact, shape, arguments, out, window, scale):
    image = np.random.default_rng(0).integers(1, 256, (*shape, 3), np.uint8)
    rng = np.random.default_rng(1)
    result = molding.resize_image(image, *arguments, exact=exact, rng=rng)
    molded, found_window, found_scale, padding, crop = result
    assert molded.shape == (*out, 3) and molded.dtype == np.uint8
    assert tuple(found_window) == window
    assert found_scale == pytest.approx(scale)
    top, left, bottom, right = window
    if arguments[-1] != "crop":
        assert crop is None
        assert padding == [(top, out[0] - bottom), (left, out[1] - right), (0, 0)]
    outside = molded.copy()
    outside[top:bottom, left:right] = 0
    assert not outside.any()


def test_crops_are_parts_of_the_scaled_image_and_reproducible():
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    places = set()
    for seed in range(5):
        crops = [
            molding.resize_image(image, 64, mode="crop", rng=np.random.default_rng(seed))
            for _ in range(2)
        ]
        np.testing.assert_array_equal(crops[0][0], crops[1][0])
        y, x, height, width = crops[0][4]
        np.testing.assert_array_equal(crops[0][0], image[y : y + height, x : x + width])
        places.add((y, x))
    assert len(places) > 1
    assert molding.resize_image(image, 64, mode="crop")[0].shape == (64, 64, 3)


@pytest.mark.parametrize("size", [(61, 67), (200, 220)])
def test_exact_molding_does_not_move_a_rectangle(size):
    box = np.array([20.25, 15.5, 41.75, 32.125])
    image = np.repeat(rectangle(box, size)[..., None] * 255, 3, axis=-1).astype(np.float32)
    molded, window, *_ = molding.resize_image(image, 128, 128, 0, "square", exact=True)
    factor = (np.array(window[2:]) - window[:2]) / size
    expected = (box[:2] + box[2:]) / 2 * factor + window[:2]
    assert np.abs(centroid(molded[..., 0]) - expected).max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 64, 0, "stretch"), "unknown"),
        ((0, None, 0, "square"), "max_dim"),
        ((None, 64, 0, "crop"), "min_dim"),
        ((100, 64, 0, "pad64"), "multiple of 64"),
    ],
)
def test_resize_image_refuses(arguments, words):
    with pytest.raises(UserError, match=words):
        molding.resize_image(np.zeros((10, 10, 3), np.uint8), *arguments)


def test_resize_image_wants_channels():
    with pytest.raises(UserError, match="channels"):
        molding.resize_image(np.zeros((10, 10), np.uint8), 64, 64)


@pytest.mark.parametrize(
    ("channels", "mean"), [(1, 12.5), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (2, [9.0])]
)
def test_mold_image_subtracts_the_mean_pixel(channels, mean):
    config = make_config(IMAGE_CHANNEL_COUNT=channels, MEAN_PIXEL=mean)
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, channels), dtype=np.uint8)
    for image in (images, images[0]):
        molded = molding.mold_image(image, config)
        assert molded.dtype == np.float32
        np.testing.assert_array_equal(molded, image.astype(np.float32) - np.float32(mean))


@pytest.mark.parametrize(
    ("channels", "mean"), [(1, 12.5), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (2, [9.0])]
)
def test_mold_image_round_trip(channels, mean):
    config = make_config(IMAGE_CHANNEL_COUNT=channels, MEAN_PIXEL=mean)
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, channels), np.uint8)
    molded = molding.mold_image(image, config)
    assert molded.dtype == np.float32
    np.testing.assert_allclose(molded, image - np.asarray(mean, float), rtol=1e-6)
    np.testing.assert_array_equal(molding.unmold_image(molded, config), image)


# ---- Meta data ---------------------------------------------------------------------------------


def test_image_meta_round_trip():
    meta = compose_image_meta(
        7, (100, 50, 3), (128, 128, 3), (14, 39, 114, 89), 1.5, np.array([1, 0, 1])
    )
    assert meta.shape == (12 + 3,)
    expected = {
        "image_id": 7,
        "original_image_shape": [100, 50, 3],
        "image_shape": [128, 128, 3],
        "window": [14, 39, 114, 89],
        "scale": 1.5,
        "active_class_ids": [1, 0, 1],
    }
    for parsed, pick in [
        (parse_image_meta(np.stack([meta, meta])), 1),
        (parse_image_meta(meta), ...),
    ]:
        assert {key: value[pick].tolist() for key, value in parsed.items()} == expected


def test_meta_of_a_grey_image_has_the_same_length():
    assert compose_image_meta(0, (9, 8), (9, 8, 1), (0, 0, 9, 8), 1, [1]).shape == (13,)


# ---- Inputs ------------------------------------------------------------------------------------


def test_mold_inputs_stacks_equal_shapes():
    config = make_config(IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128)
    images = [np.full(shape, 200, np.uint8) for shape in [(50, 60), (90, 20, 3), (300, 300, 4)]]
    molded, metas, windows = molding.mold_inputs(images, config)
    assert molded.shape == (3, 128, 128, 3) and molded.dtype == np.float32
    assert metas.shape == (3, config.IMAGE_META_SIZE) and windows.shape == (3, 4)
    parsed = parse_image_meta(metas)
    np.testing.assert_array_equal(parsed["window"], windows)
    assert parsed["original_image_shape"].tolist() == [[50, 60, 3], [90, 20, 3], [300, 300, 3]]
    np.testing.assert_allclose(molded[2, 64, 64], 200 - config.MEAN_PIXEL, rtol=1e-5)


def test_mold_inputs_lists_different_shapes():
    config = make_config(IMAGE_RESIZE_MODE="pad64", IMAGE_MIN_DIM=0, IMAGE_CHANNEL_COUNT=1)
    molded, metas, _ = molding.mold_inputs([np.zeros((50, 60)), np.zeros((70, 60, 3))], config)
    assert [image.shape for image in molded] == [(64, 64, 1), (128, 64, 1)]
    assert metas.shape == (2, config.IMAGE_META_SIZE)


def test_mold_inputs_of_nothing():
    molded, metas, windows = molding.mold_inputs([], make_config())
    assert len(molded) == 0 and metas.shape == (0, 14) and windows.shape == (0, 4)


@pytest.mark.parametrize(("mode", "words"), [("crop", "training"), ("none", "10 x 64")])
def test_mold_inputs_refuses(mode, words):
    config = make_config(IMAGE_RESIZE_MODE=mode, IMAGE_MIN_DIM=64)
    with pytest.raises(UserError, match=words):
        molding.mold_inputs([np.zeros((10, 64, 3), np.uint8)], config)


@pytest.mark.parametrize("mode", ["square", "none"])
def test_scales_need_a_mode_that_pads_to_what_comes_out(mode):
    config = make_config(IMAGE_RESIZE_MODE=mode, IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=64)
    images = [np.zeros((64, 64, 3), np.uint8)] * 2
    with pytest.raises(
        UserError, match=f'a scale of 2.5 needs IMAGE_RESIZE_MODE = "pad64".*{mode}'
    ):
        molding.mold_inputs(images, config, [None, 2.5])
    config.IMAGE_RESIZE_MODE = "pad64"
    molded, metas, _ = molding.mold_inputs(images, config, [None, 2.5])
    assert [image.shape[:2] for image in molded] == [(64, 64), (192, 192)]
    assert parse_image_meta(metas)["scale"].tolist() == [1, 2.5]
