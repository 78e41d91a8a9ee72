import numpy as np
import pytest

from mrcnn.network import anchors


def naive(scales, ratios, shape, stride, step, offset):
    boxes = []
    for row in range(0, shape[0], step):
        for column in range(0, shape[1], step):
            for ratio in ratios:
                for scale in np.atleast_1d(scales):
                    h, w = scale / np.sqrt(ratio), scale * np.sqrt(ratio)
                    y, x = (row + offset) * stride, (column + offset) * stride
                    boxes.append([y - h / 2, x - w / 2, y + h / 2, x + w / 2])
    return np.array(boxes)


@pytest.mark.parametrize("centered, offset", [(False, 0.0), (True, 0.5)])
@pytest.mark.parametrize("step", [1, 2])
def test_one_level_against_oracle(centered, offset, step):
    got = anchors.generate_anchors([16, 32], [0.5, 1, 2], (3, 5), 8, step, centered)
    np.testing.assert_allclose(got, naive([16, 32], [0.5, 1, 2], (3, 5), 8, step, offset))


def test_areas_and_ratios():
    boxes = anchors.generate_anchors(32, [0.5, 1, 2], (1, 1), 4, 1)
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    np.testing.assert_allclose(height * width, 32**2)
    np.testing.assert_allclose(width / height, [0.5, 1, 2])


def test_pyramid_is_its_levels_one_after_another(tiny_config):
    shapes = anchors.compute_backbone_shapes(tiny_config, (64, 128, 3))
    assert shapes.tolist() == [[16, 32], [8, 16], [4, 8], [2, 4], [1, 2]]
    boxes = anchors.image_anchors(tiny_config, (64, 128, 3))
    assert boxes.shape == (3 * (512 + 128 + 32 + 8 + 2), 4) and boxes.dtype == np.float32
    first = anchors.generate_anchors(8, tiny_config.RPN_ANCHOR_RATIOS, (16, 32), 4, 1)
    np.testing.assert_allclose(boxes[: len(first)], first, rtol=1e-6)


def test_exact_anchors_are_symmetric_in_the_image(tiny_config):
    tiny_config.PIXEL_CONVENTION = "exact"
    boxes = anchors.normalized_anchors(tiny_config, (64, 64, 3))
    mirrored = 1 - boxes[:, [2, 3, 0, 1]]
    np.testing.assert_allclose(np.sort(boxes, axis=0), np.sort(mirrored, axis=0), atol=1e-6)


def test_callable_backbone_brings_its_shapes(tiny_config):
    tiny_config.BACKBONE = lambda *a, **k: None
    tiny_config.COMPUTE_BACKBONE_SHAPE = lambda shape: np.array([[shape[0] // 2, 7]])
    assert anchors.compute_backbone_shapes(tiny_config, (64, 64, 3)).tolist() == [[32, 7]]
