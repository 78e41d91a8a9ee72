"""Unmolding: nothing moves on the way out."""

import numpy as np
import pytest

from mrcnn.pixels import molding, unmolding
from tests.support.reference import scale_box
from tests.support.reference_shapes import centroid, disc, make_config, soft_disc


def paste_full(mask, box, shape, threshold=0.5):
    full = np.zeros(shape, bool)
    y, x, patch = unmolding.paste_mask(mask, box, shape, threshold)
    full[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return full


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
    [
        ((2, 3, 5, 7), (2, 5), (3, 7)),
        ((2.4, 3.4, 5.4, 7.4), (2, 5), (3, 7)),
        ((2.6, 3.6, 5.6, 7.6), (3, 6), (4, 8)),
        ((-3.0, -2, 4, 2), (0, 4), (0, 2)),
        ((6, 8, 40, 50), (6, 10), (8, 12)),
        ((2.6, 3, 3.4, 9), (3, 3), (3, 9)),
        ((20, 20, 30, 30), (20, 20), (20, 20)),
        ((-9, -9, -1, -1), (0, 0), (0, 0)),
    ],
)
def test_a_full_mask_covers_the_pixel_centres_inside_its_box(box, rows, columns):
    y, x, patch = unmolding.paste_mask(np.ones((28, 28)), box, (10, 12))
    assert (y, y + patch.shape[0]) == rows and (x, x + patch.shape[1]) == columns
    assert patch.dtype == bool and patch.all()


def interpolated(mask, box, y, x):
    """Bilinear interpolation between the cells' centres at the centre of one pixel."""
    places = []
    for axis, pixel in enumerate((y, x)):
        cell = (pixel + 0.5 - box[axis]) * mask.shape[axis] / (box[axis + 2] - box[axis]) - 0.5
        cell = min(max(cell, 0), mask.shape[axis] - 1)
        low = min(int(cell), mask.shape[axis] - 2)
        places.append(((low, 1 - cell + low), (low + 1, cell - low)))
    return sum(mask[row, column] * a * b for row, a in places[0] for column, b in places[1])


@pytest.mark.parametrize("seed", range(4))
def test_many_masks_are_pasted_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    centres, halves = rng.uniform(-5, 45, (12, 2)), rng.uniform(0.2, 12, (12, 2))
    boxes, masks = np.hstack([centres - halves, centres + halves]), rng.random((12, 7, 9))
    patches = unmolding.paste_masks(masks, boxes, (40, 44))
    assert len(patches) == 12 and any(patch.any() for *_, patch in patches)
    for mask, box, (top, left, patch) in zip(masks, boxes, patches, strict=True):
        inside = [
            [p for p in range(size) if box[axis] <= p + 0.5 < box[axis + 2]]
            for axis, size in enumerate((40, 44))
        ]
        assert patch.shape == (len(inside[0]), len(inside[1]))
        expected = [[interpolated(mask, box, y, x) >= 0.5 for x in inside[1]] for y in inside[0]]
        np.testing.assert_array_equal(patch, np.array(expected, bool).reshape(patch.shape))
        if patch.size:
            assert (top, left) == (inside[0][0], inside[1][0])
        y, x, alone = unmolding.paste_mask(mask, box, (40, 44))
        assert (y, x) == (top, left)
        np.testing.assert_array_equal(alone, patch)


def test_mask_cells_map_to_their_own_pixels():
    mask = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    y, x, patch = unmolding.paste_mask(mask, (2, 3, 8, 8), (20, 20), 0.5)
    assert (y, x) == (2, 3)
    np.testing.assert_array_equal(patch, mask >= 0.5)


def test_unmold_mask_pastes_into_whole_pixels():
    mask = np.zeros((28, 28), np.float32)
    mask[:, :14] = 1
    full = unmolding.unmold_mask(mask, (2, 4, 8, 12), (10, 20, 3))
    expected = np.zeros((10, 20), bool)
    expected[2:8, 4:8] = True
    np.testing.assert_array_equal(full, expected)


# ---- Results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, seen", [(0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 1.4)])
def test_exact_results_come_back_to_the_original_pixels(scale, seen):
    config = make_config(PIXEL_CONVENTION="exact", MASK_ROI_SCALE=seen)
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
        masks[i, ..., 1] = soft_disc(scale_box(boxes[i], seen), centres[i], radii[i])
    found, class_ids, scores, full = unmolding.unmold_detections(
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
    results = unmolding.unmold_detections(
        np.zeros((3, 6)),
        np.zeros((3, 28, 28, 2)),
        (20, 30, 3),
        (64, 64, 3),
        (0, 0, 64, 64),
        make_config(PIXEL_CONVENTION=convention),
    )
    assert [result.shape for result in results] == [(0, 4), (0,), (0,), (20, 30, 0)]


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_patches_are_the_masks(convention):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (6, 2))
    detections = np.hstack([low, low + rng.uniform(0.1, 0.5, (6, 2)), np.ones((6, 2))])
    arguments = (
        detections,
        rng.random((6, 28, 28, 2)),
        (50, 70),
        (64, 64),
        (8, 0, 56, 64),
        make_config(PIXEL_CONVENTION=convention),
    )
    boxes, class_ids, scores, masks = unmolding.unmold_detections(*arguments)
    *same, patches = unmolding.unmold_patches(*arguments)
    for first, second in zip((boxes, class_ids, scores), same, strict=True):
        np.testing.assert_array_equal(first, second)
    assert len(patches) == masks.shape[-1] == 6
    for i, (y, x, patch) in enumerate(patches):
        assert patch.any() and patch.sum() == masks[..., i].sum()
        found = masks[y : y + patch.shape[0], x : x + patch.shape[1], i]
        np.testing.assert_array_equal(found, patch)
    *_, probabilities = unmolding.unmold_patches(*arguments, probabilities=True)
    for (y, x, patch), (top, left, soft) in zip(patches, probabilities, strict=True):
        assert (y, x) == (top, left) and soft.dtype == np.float32
        assert 0 <= soft.min() < soft.max() <= 1
        np.testing.assert_array_equal(soft >= 0.5, patch)


@pytest.mark.parametrize("convention", ["matterport", "exact"])
def test_boxes_without_area_are_left_out(convention):
    detections = np.array(
        [
            [0.5, 0.5, 0.5, 0.9, 1, 0.9],
            [0.2, 0.2, 0.6, 0.6, 1, 0.8],
            [0.6, 0.6, 0.2, 0.2, 1, 0.7],
        ]
    )
    boxes, class_ids, scores, masks = unmolding.unmold_detections(
        detections,
        np.ones((3, 28, 28, 2)),
        (64, 64),
        (64, 64),
        (0, 0, 64, 64),
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
        results = unmolding.unmold_detections(
            detections, masks, (9, 9), (64, 64), (0, 0, 64, 64), config
        )
        assert results[3].all() == filled and results[3].any() == filled


def test_parity_with_the_legacy_implementation(shared_dir):
    stored = np.load(shared_dir / "legacy" / "expected.npz")
    config = make_config(IMAGE_MIN_DIM=256, IMAGE_MAX_DIM=256, MEAN_PIXEL=[43.53, 39.56, 48.22])
    image = stored["image"]
    molded, metas, windows = molding.mold_inputs([image], config)
    np.testing.assert_allclose(molded, stored["molded"], atol=1.0)
    assert np.abs(molded - stored["molded"]).mean() < 0.01
    np.testing.assert_allclose(metas, stored["image_meta"])
    np.testing.assert_array_equal(windows, stored["windows"])

    boxes, class_ids, scores, masks = unmolding.unmold_detections(
        stored["mrcnn_detection"][0],
        stored["mrcnn_mask"][0],
        image.shape,
        molded[0].shape,
        stored["windows"][0],
        config,
    )
    np.testing.assert_array_equal(boxes, stored["rois"])
    np.testing.assert_array_equal(class_ids, stored["class_ids"])
    np.testing.assert_array_equal(scores, stored["scores"])
    expected = np.unpackbits(stored["masks"], axis=0)[: image.shape[0]].astype(bool)
    np.testing.assert_array_equal(masks, expected)
