import numpy as np
import pytest
from keras import ops

from mrcnn.network import boxes
from mrcnn.pixels.boxes import scale_boxes
from tests.support import reference

pytestmark = pytest.mark.backend


def test_deltas_against_oracle_and_back(rng):
    source = reference.random_boxes(rng, 20)
    target = reference.random_boxes(rng, 20)
    deltas = ops.convert_to_numpy(boxes.box_refinement_graph(source, target))
    expected = [reference.refinement(a, b) for a, b in zip(source, target, strict=True)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-3, atol=1e-5)
    moved = boxes.apply_box_deltas_graph(ops.convert_to_tensor(source), deltas)
    np.testing.assert_allclose(ops.convert_to_numpy(moved), target, atol=1e-5)
    oracle = [reference.apply_deltas(a, d) for a, d in zip(source, deltas, strict=True)]
    np.testing.assert_allclose(oracle, target, atol=1e-5)


def test_refinement_of_padding_is_finite():
    zero = np.zeros((3, 4), "float32")
    assert np.isfinite(ops.convert_to_numpy(boxes.box_refinement_graph(zero, zero))).all()


def test_overlaps_against_oracle_with_and_without_batch(rng):
    one, two = reference.random_boxes(rng, 7), reference.random_boxes(rng, 5)
    two[1] = 0  # no area: overlaps nothing, not even itself
    got = ops.convert_to_numpy(boxes.overlaps_graph(one, two))
    np.testing.assert_allclose(got, reference.iou_matrix(one, two), atol=1e-5)
    batched = ops.convert_to_numpy(boxes.overlaps_graph(one[None], two[None]))
    np.testing.assert_array_equal(batched[0], got)
    assert ops.convert_to_numpy(boxes.overlaps_graph(two, two))[1, 1] == 0


def test_scaled_boxes(rng):
    source = reference.random_boxes(rng, 6)
    scaled = ops.convert_to_numpy(boxes.scale_boxes_graph(source, 1.3))
    expected = [reference.scale_box(box, 1.3) for box in source]
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    np.testing.assert_allclose(scale_boxes(source, 1.3), expected, atol=1e-6)
    np.testing.assert_array_equal(scale_boxes(source, 1.0), source)


def test_clip():
    clipped = boxes.clip_boxes_graph(
        np.array([[-1.0, 0.2, 0.5, 2.0], [0.3, 0.3, 0.4, 0.4]], "float32"),
        np.array([0.0, 0.25, 1.0, 1.0], "float32"),
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(clipped), [[0, 0.25, 0.5, 1], [0.3, 0.3, 0.4, 0.4]]
    )


@pytest.mark.parametrize("exact", [False, True])
def test_normalising_goes_back_and_forth(exact):
    pixels = np.array([[0, 0, 100, 200], [10, 20, 30, 41]], "float32")
    normal = boxes.norm_boxes_graph(pixels, (100, 200), exact=exact)
    np.testing.assert_allclose(ops.convert_to_numpy(normal)[0], [0, 0, 1, 1], atol=1e-6)
    back = ops.convert_to_numpy(boxes.denorm_boxes_graph(normal, (100, 200), exact=exact))
    np.testing.assert_allclose(back, pixels, atol=1e-4)
    assert back.dtype == ("float32" if exact else "int32")
