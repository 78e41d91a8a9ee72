"""Molding: nothing moves on the way in, nothing moves on the way out."""

import numpy as np
import pytest
from skimage.transform import resize as skimage_resize

from mrcnn import molding
from mrcnn.config import Config
from mrcnn.errors import UserError
from mrcnn.resampling import nearest_indices, resize_smooth, resize_weights


def make_config(**keys):
    return type("TestConfig", (Config,), {"NUM_CLASSES": 2, **keys})()


def coverage(start, stop, size):
    """How much of each pixel of an axis lies in [start, stop)."""
    pixels = np.arange(size)
    return np.clip(np.minimum(stop, pixels + 1) - np.maximum(start, pixels), 0, 1)


def rectangle(box, shape):
    """An anti-aliased rectangle: float [H, W], each pixel's covered share."""
    return np.outer(coverage(box[0], box[2], shape[0]), coverage(box[1], box[3], shape[1]))


def centroid(image):
    """Centre of mass (y, x) in continuous coordinates."""
    image = np.asarray(image, float)
    rows, columns = (np.arange(size) + 0.5 for size in image.shape)
    return np.array([rows @ image.sum(1), columns @ image.sum(0)]) / image.sum()


def soft_disc(box, centre, radius, cells=28):
    """Probabilities [cells, cells] of a disc's mask inside a float box, .5 on its outline."""
    steps = (np.arange(cells) + 0.5) / cells
    y = box[0] + steps * (box[2] - box[0]) - centre[0]
    x = box[1] + steps * (box[3] - box[1]) - centre[1]
    distance = np.hypot(y[:, None], x[None, :])
    return (1 / (1 + np.exp((distance - radius) / 2))).astype(np.float32)


def disc(centre, radius, shape):
    """The pixels whose centres lie inside a disc."""
    rows, columns = (np.arange(size) + 0.5 for size in shape)
    return np.hypot(rows[:, None] - centre[0], columns[None, :] - centre[1]) <= radius


def paste_full(mask, box, shape, threshold=0.5):
    full = np.zeros(shape, bool)
    y, x, patch = molding.paste_mask(mask, box, shape, threshold)
    full[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return full


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


# ---- Pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "count"),
    [((4, 5), 1), ((4, 5), 3), ((4, 5, 1), 3), ((4, 5, 2), 1), ((4, 5, 2), 3), ((4, 5, 3), 3),
     ((4, 5, 4), 3), ((4, 5, 3), 1), ((4, 5, 4), 1), ((4, 5, 4), 4), ((4, 5, 7), 7)],
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
    with pytest.raises(UserError, match="^an image of "):
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
    [((0, 64, 0, "stretch"), "unknown"), ((0, None, 0, "square"), "max_dim"),
     ((None, 64, 0, "crop"), "min_dim"), ((100, 64, 0, "pad64"), "64 divides")],
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
def test_mold_image_round_trip(channels, mean):
    config = make_config(IMAGE_CHANNEL_COUNT=channels, MEAN_PIXEL=mean)
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, channels), np.uint8)
    molded = molding.mold_image(image, config)
    assert molded.dtype == np.float32
    np.testing.assert_allclose(molded, image - np.asarray(mean, float), rtol=1e-6)
    np.testing.assert_array_equal(molding.unmold_image(molded, config), image)


# ---- Meta data ---------------------------------------------------------------------------------


def test_image_meta_round_trip():
    meta = molding.compose_image_meta(
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
    for parsed, pick in [(molding.parse_image_meta(np.stack([meta, meta])), 1),
                         (molding.parse_image_meta(meta), ...)]:
        assert {key: value[pick].tolist() for key, value in parsed.items()} == expected


def test_meta_of_a_grey_image_has_the_same_length():
    assert molding.compose_image_meta(0, (9, 8), (9, 8, 1), (0, 0, 9, 8), 1, [1]).shape == (13,)


# ---- Inputs ------------------------------------------------------------------------------------


def test_mold_inputs_stacks_equal_shapes():
    config = make_config(IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128)
    images = [np.full(shape, 200, np.uint8) for shape in [(50, 60), (90, 20, 3), (300, 300, 4)]]
    molded, metas, windows = molding.mold_inputs(images, config)
    assert molded.shape == (3, 128, 128, 3) and molded.dtype == np.float32
    assert metas.shape == (3, config.IMAGE_META_SIZE) and windows.shape == (3, 4)
    parsed = molding.parse_image_meta(metas)
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


# ---- Pasting masks -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_straight_edge_is_pasted_exactly(seed):
    # Linear interpolation reproduces a ramp, so its outline must be right to the pixel.
    rng = np.random.default_rng(seed)
    box = np.concatenate([rng.uniform(2, 8, 2), rng.uniform(40, 58, 2)])
    slope, through = rng.uniform(-0.02, 0.02, 2), rng.uniform(20, 35, 2)

    def ramp(y, x):
        return 0.5 + slope[0] * (y[:, None] - through[0]) + slope[1] * (x[None, :] - through[1])

    cells = (np.arange(28) + 0.5) / 28
    mask = ramp(box[0] + cells * (box[2] - box[0]), box[1] + cells * (box[3] - box[1]))
    pasted = paste_full(mask, box, (60, 60))
    centres = np.arange(60) + 0.5
    # Beyond the outermost cells' centres the mask continues level.
    inner = [centres[(centres > box[i] + 1) & (centres < box[i + 2] - 1)] for i in range(2)]
    found = pasted[np.ix_(*[line.astype(int) for line in inner])]
    np.testing.assert_array_equal(found, ramp(*inner) >= 0.5)
    assert 0 < found.sum() < found.size


@pytest.mark.parametrize("seed", range(8))
def test_pasted_disc_lies_where_the_disc_is(seed):
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(25, 35, 2), rng.uniform(6, 20)
    margin = radius + rng.uniform(0.2, 2, 4)
    box = np.concatenate([centre - margin[:2], centre + margin[2:]])
    pasted = paste_full(soft_disc(box, centre, radius), box, (60, 60))
    truth = disc(centre, radius, (60, 60))
    # A pixel or two on the outline may differ: the mask's cells are not the image's pixels.
    assert np.abs(centroid(pasted) - centroid(truth)).max() < 0.2
    assert (pasted & truth).sum() / (pasted | truth).sum() > 0.96


def test_pasting_has_no_mean_offset_and_no_mean_growth():
    offsets, growth = [], []
    rng = np.random.default_rng(0)
    for _ in range(60):
        centre, radius = rng.uniform(25, 35, 2), rng.uniform(4, 15)
        box = np.concatenate([centre - radius, centre + radius])
        pasted = paste_full(soft_disc(box, centre, radius), box, (60, 60))
        offsets.append(centroid(pasted) - centre)
        growth.append(np.sqrt(pasted.sum() / np.pi) - radius)
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.02
    assert abs(np.mean(growth)) < 0.03


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [((2, 3, 5, 7), (2, 5), (3, 7)), ((2.4, 3.4, 5.4, 7.4), (2, 5), (3, 7)),
     ((2.6, 3.6, 5.6, 7.6), (3, 6), (4, 8)), ((-3.0, -2, 4, 2), (0, 4), (0, 2)),
     ((6, 8, 40, 50), (6, 10), (8, 12)), ((2.6, 3, 3.4, 9), (3, 3), (3, 9)),
     ((20, 20, 30, 30), (20, 20), (20, 20)), ((-9, -9, -1, -1), (0, 0), (0, 0))],
)
def test_a_full_mask_covers_the_pixel_centres_inside_its_box(box, rows, columns):
    y, x, patch = molding.paste_mask(np.ones((28, 28)), box, (10, 12))
    assert (y, y + patch.shape[0]) == rows and (x, x + patch.shape[1]) == columns
    assert patch.dtype == bool and patch.all()


def test_mask_cells_map_to_their_own_pixels():
    mask = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    y, x, patch = molding.paste_mask(mask, (2, 3, 8, 8), (20, 20), 0.5)
    assert (y, x) == (2, 3)
    np.testing.assert_array_equal(patch, mask >= 0.5)


def test_unmold_mask_pastes_into_whole_pixels():
    mask = np.zeros((28, 28), np.float32)
    mask[:, :14] = 1
    full = molding.unmold_mask(mask, (2, 4, 8, 12), (10, 20, 3))
    expected = np.zeros((10, 20), bool)
    expected[2:8, 4:8] = True
    np.testing.assert_array_equal(full, expected)


# ---- Results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_exact_results_come_back_to_the_original_pixels(scale):
    config = make_config(PIXEL_CONVENTION="exact")
    original, window = (80, 120), (10, 4, 10 + int(80 * scale), 4 + int(120 * scale))
    image_shape = (window[2] + 30, window[3] + 12)
    centres = np.array([[30.3, 40.8], [50.6, 90.1]])
    radii = np.array([12.0, 9.5])
    boxes = np.concatenate([centres - radii[:, None], centres + radii[:, None]], axis=1)
    molded = boxes * scale + [10, 4, 10, 4]
    detections = np.zeros((5, 6), np.float32)
    detections[:2, :4] = molded / np.tile(image_shape, 2)
    detections[:2, 4:] = [[1, 0.9], [1, 0.8]]
    masks = np.zeros((5, 28, 28, 2), np.float32)
    for i in range(2):
        masks[i, ..., 1] = soft_disc(boxes[i], centres[i], radii[i])
    found, class_ids, scores, full = molding.unmold_detections(
        detections, masks, original, image_shape, window, config
    )
    assert full.shape == (80, 120, 2) and full.dtype == bool
    assert class_ids.tolist() == [1, 1] and scores.dtype == np.float32
    np.testing.assert_array_equal(found, np.rint(boxes))
    for i in range(2):
        truth = disc(centres[i], radii[i], original)
        assert np.abs(centroid(full[..., i]) - centroid(truth)).max() < 0.15
        assert (full[..., i] & truth).sum() / (full[..., i] | truth).sum() > 0.97


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_no_detections(convention):
    results = molding.unmold_detections(
        np.zeros((3, 6)), np.zeros((3, 28, 28, 2)), (20, 30, 3), (64, 64, 3), (0, 0, 64, 64),
        make_config(PIXEL_CONVENTION=convention),
    )
    assert [result.shape for result in results] == [(0, 4), (0,), (0,), (20, 30, 0)]


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_patches_are_the_masks(convention):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (6, 2))
    detections = np.hstack([low, low + rng.uniform(0.1, 0.5, (6, 2)), np.ones((6, 2))])
    arguments = (
        detections, rng.random((6, 28, 28, 2)), (50, 70), (64, 64), (8, 0, 56, 64),
        make_config(PIXEL_CONVENTION=convention),
    )
    boxes, class_ids, scores, masks = molding.unmold_detections(*arguments)
    *same, patches = molding.unmold_patches(*arguments)
    for first, second in zip((boxes, class_ids, scores), same, strict=True):
        np.testing.assert_array_equal(first, second)
    assert len(patches) == masks.shape[-1] == 6
    for i, (y, x, patch) in enumerate(patches):
        assert patch.any() and patch.sum() == masks[..., i].sum()
        found = masks[y : y + patch.shape[0], x : x + patch.shape[1], i]
        np.testing.assert_array_equal(found, patch)


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_boxes_without_area_are_left_out(convention):
    detections = np.array([
        [0.5, 0.5, 0.5, 0.9, 1, 0.9],
        [0.2, 0.2, 0.6, 0.6, 1, 0.8],
        [0.6, 0.6, 0.2, 0.2, 1, 0.7],
    ])
    boxes, class_ids, scores, masks = molding.unmold_detections(
        detections, np.ones((3, 28, 28, 2)), (64, 64), (64, 64), (0, 0, 64, 64),
        make_config(PIXEL_CONVENTION=convention),
    )
    assert scores.tolist() == [pytest.approx(0.8)] and len(boxes) == len(class_ids) == 1
    y1, x1, y2, x2 = boxes[0]
    assert masks.sum() > 0 and masks[y1:y2, x1:x2, 0].sum() == masks.sum()


def test_mask_threshold_is_honoured():
    detections = np.array([[0.0, 0.0, 1.0, 1.0, 1, 0.9]])
    masks = np.full((1, 28, 28, 2), 0.4)
    for threshold, filled in [(0.3, True), (0.5, False)]:
        config = make_config(PIXEL_CONVENTION="exact", MASK_THRESHOLD=threshold)
        results = molding.unmold_detections(
            detections, masks, (9, 9), (64, 64), (0, 0, 64, 64), config
        )
        assert results[3].all() == filled and results[3].any() == filled


def test_parity_with_the_legacy_implementation(shared_dir):
    stored = np.load(shared_dir / "legacy" / "expected.npz")
    config = make_config(
        IMAGE_MIN_DIM=256, IMAGE_MAX_DIM=256, MEAN_PIXEL=[43.53, 39.56, 48.22]
    )
    image = stored["image"]
    molded, metas, windows = molding.mold_inputs([image], config)
    np.testing.assert_allclose(molded, stored["molded"], atol=1.0)
    assert np.abs(molded - stored["molded"]).mean() < 0.01
    np.testing.assert_allclose(metas, stored["image_meta"])
    np.testing.assert_array_equal(windows, stored["windows"])

    boxes, class_ids, scores, masks = molding.unmold_detections(
        stored["mrcnn_detection"][0], stored["mrcnn_mask"][0], image.shape,
        molded[0].shape, stored["windows"][0], config,
    )
    np.testing.assert_array_equal(boxes, stored["rois"])
    np.testing.assert_array_equal(class_ids, stored["class_ids"])
    np.testing.assert_array_equal(scores, stored["scores"])
    expected = np.unpackbits(stored["masks"], axis=0)[: image.shape[0]].astype(bool)
    np.testing.assert_array_equal(masks, expected)
