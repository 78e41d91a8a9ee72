"""RoIPool against loops, its gradient, and RoIAlign with several samples per bin."""

import keras
import numpy as np
import pytest
from keras import ops

from mrcnn.network import roi_align, roi_pool
from tests.network.test_roi_align import metas, pyramid
from tests.support import reference

pytestmark = pytest.mark.backend


def naive_cells(start, end, count, size):
    """[(first, stop)] of every bin, from the definition in Fast R-CNN."""
    first = int(np.floor(start + 0.5))
    stop = max(int(np.floor(end + 0.5)), first + 1)
    bins = []
    for i in range(count):
        low = first + (i * (stop - first)) // count
        high = first - ((-(i + 1) * (stop - first)) // count)
        bins.append((min(max(low, 0), size), min(max(high, 0), size)))
    return bins


def naive_pool(features, box, shape):
    """Maxima of features [H, W, C] over the bins of a box given in cells."""
    out = np.zeros((*shape, features.shape[-1]))
    rows = naive_cells(box[0], box[2], shape[0], features.shape[0])
    columns = naive_cells(box[1], box[3], shape[1], features.shape[1])
    for r, (y1, y2) in enumerate(rows):
        for c, (x1, x2) in enumerate(columns):
            if y2 > y1 and x2 > x1:
                out[r, c] = features[y1:y2, x1:x2].max(axis=(0, 1))
    return out


def to_cells(box, side, stride, exact):
    """A normalised box in cells of a map with `stride` pixels per cell."""
    pixels = box * side if exact else box * (side - 1) + np.array([0, 0, 1, 1])
    return pixels / stride


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("pool", [(7, 7), (4, 6)])
def test_against_loops_on_all_levels(exact, pool, rng):
    features = pyramid(rng, side=512)
    boxes = np.stack([reference.random_boxes(rng, 14, smallest=0.01) for _ in range(2)])
    boxes[0, 0] = [0, 0, 1, 1]
    boxes[0, 1] = [0.9, 0.95, 1.1, 1.2]  # reaches out of the image
    boxes[0, 2] = [0.4, 0.0, 0.44, 1.0]  # long and thin
    boxes[1, 0] = [-0.2, 0.5, -0.1, 0.6]  # outside
    layer = roi_pool.PyramidROIPool(pool, exact=exact)
    got = ops.convert_to_numpy(layer([boxes, metas(512), *features]))
    levels = ops.convert_to_numpy(
        roi_align.roi_levels(boxes, np.full((2, 1), 512.0**2, "float32"), 4)
    )
    assert len(set(levels.ravel())) >= 3
    for image in range(2):
        for region in range(14):
            level = levels[image, region]
            box = to_cells(boxes[image, region].astype("float64"), 512, 4 * 2**level, exact)
            expected = naive_pool(features[level][image], box, pool)
            np.testing.assert_allclose(got[image, region], expected, atol=1e-6)


def test_long_bins_within_the_windows_are_seen_completely(rng):
    # One bin of 32 cells: the largest that two windows of 16 cover.
    features = [rng.normal(size=(1, 64, 64, 2)).astype("float32")]
    box = np.array([[[0, 0.25, 0.5, 0.75]]], "float32")
    got = ops.convert_to_numpy(
        roi_pool.PyramidROIPool((1, 1), exact=True)([box, metas(256, 1), *features])
    )
    np.testing.assert_allclose(got[0, 0, 0, 0], features[0][0, :32, 16:48].max(axis=(0, 1)))


def test_window_maxima(rng):
    features = rng.normal(size=(1, 5, 20, 1)).astype("float32")
    maxima = ops.convert_to_numpy(roi_pool.window_maxima(ops.convert_to_tensor(features)))
    assert maxima.shape == (1, 5, 5, 5, 20, 1)
    for i, height in enumerate(roi_pool.WINDOW_SIZES):
        for j, width in enumerate(roi_pool.WINDOW_SIZES):
            for y in range(5):
                for x in range(20):
                    window = features[0, y : y + height, x : x + width]
                    assert maxima[0, i, j, y, x, 0] == window.max()


def test_batch_equals_singles(rng):
    features = pyramid(rng)
    boxes = np.stack([reference.random_boxes(rng, 5) for _ in range(2)])
    layer = roi_pool.PyramidROIPool((3, 3))
    both = ops.convert_to_numpy(layer([boxes, metas(), *features]))
    for i in range(2):
        one = layer([boxes[i : i + 1], metas(batch=1), *(f[i : i + 1] for f in features)])
        np.testing.assert_array_equal(ops.convert_to_numpy(one)[0], both[i])


def gradient(layer, boxes, image_meta, features, upstream):
    """Gradient of sum(upstream * layer(...)) with respect to the first feature map."""
    first, *others = features
    upstream = ops.convert_to_tensor(upstream)

    def total(values):
        return ops.sum(layer([boxes, image_meta, values, *others], training=True) * upstream)

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(total)(ops.convert_to_tensor(first)))
    if backend == "torch":
        import torch

        values = torch.tensor(first, requires_grad=True)
        total(values).backward()
        return values.grad.numpy()
    import tensorflow as tf

    values = tf.Variable(first)
    with tf.GradientTape() as tape:
        result = total(values)
    return tf.convert_to_tensor(tape.gradient(result, values)).numpy()


def test_gradient_goes_to_the_maxima(rng):
    # Paper equation 14: every output's gradient is added at the cell that holds its maximum.
    features = [rng.permutation(32 * 32).reshape(1, 32, 32, 1).astype("float32")]
    boxes = reference.random_boxes(rng, 6, smallest=0.1)[None]
    upstream = rng.normal(size=(1, 6, 3, 3, 1)).astype("float32")
    got = gradient(
        roi_pool.PyramidROIPool((3, 3), exact=True), boxes, metas(128, 1), features, upstream
    )
    expected = np.zeros((32, 32))
    for box, rows in zip(boxes[0].astype("float64"), upstream[0], strict=True):
        cells = to_cells(box, 128, 4, exact=True)
        ys, xs = (naive_cells(cells[a], cells[a + 2], 3, 32) for a in (0, 1))
        for r, (y1, y2) in enumerate(ys):
            for c, (x1, x2) in enumerate(xs):
                part = features[0][0, y1:y2, x1:x2, 0]
                y, x = np.unravel_index(np.argmax(part), part.shape)
                expected[y1 + y, x1 + x] += rows[r, c, 0]
    np.testing.assert_allclose(got[0, ..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("join", ["average", "max"])
def test_align_with_four_samples_a_bin(exact, join, rng):
    features = pyramid(rng, side=256)
    boxes = np.stack([reference.random_boxes(rng, 6) for _ in range(2)])
    layer = roi_align.PyramidROIAlign((3, 2), exact=exact, samples=4, join=join)
    got = ops.convert_to_numpy(layer([boxes, metas(256), *features]))
    levels = ops.convert_to_numpy(
        roi_align.roi_levels(boxes, np.full((2, 1), 256.0**2, "float32"), 4)
    )
    for image in range(2):
        for region in range(6):
            source = features[levels[image, region]][image].astype("float64")
            fine = reference.crop_and_resize(source, boxes[image, region], (6, 4), exact)
            expected = np.array(
                [
                    [
                        getattr(np, {"average": "mean", "max": "max"}[join])(
                            fine[2 * r : 2 * r + 2, 2 * c : 2 * c + 2], axis=(0, 1)
                        )
                        for c in range(2)
                    ]
                    for r in range(3)
                ]
            )
            np.testing.assert_allclose(got[image, region], expected, atol=2e-4)
