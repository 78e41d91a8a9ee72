"""A weight file written by a matterport port on Keras 2, and everything it computed from it."""

import h5py
import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.model import MaskRCNN
from mrcnn.pixels import unmolding


class LegacyConfig(Config):
    """The configuration that the reference outputs were made with."""

    NAME = "legacy"
    IMAGES_PER_GPU = 1
    BACKBONE = "resnet50"
    NUM_CLASSES = 2
    IMAGE_RESIZE_MODE = "square"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 256
    IMAGE_MIN_SCALE = 0
    MEAN_PIXEL = np.array([43.53, 39.56, 48.22])
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    RPN_NMS_THRESHOLD = 0.7
    TOP_DOWN_PYRAMID_SIZE = 64
    FPN_CLASSIF_FC_LAYERS_SIZE = 128
    PRE_NMS_LIMIT = 2000
    POST_NMS_ROIS_INFERENCE = 200
    DETECTION_MAX_INSTANCES = 50
    DETECTION_MIN_CONFIDENCE = 0.5
    DETECTION_NMS_THRESHOLD = 0.3


@pytest.fixture(scope="module")
def expected(shared_dir):
    return dict(np.load(shared_dir / "legacy" / "expected.npz"))


@pytest.fixture(scope="module")
def model(shared_dir, tmp_path_factory):
    model = MaskRCNN("inference", LegacyConfig(), str(tmp_path_factory.mktemp("logs")))
    report = model.load_weights(shared_dir / "legacy" / "mask_rcnn_legacy.h5", by_name=True)
    assert not report.left_over and not report.initial
    return model


@pytest.fixture(scope="module")
def computed(model, expected):
    layers = {
        "mrcnn_detection": "mrcnn_detection",
        "mrcnn_class": "mrcnn_class",
        "mrcnn_bbox": "mrcnn_bbox",
        "mrcnn_mask": "mrcnn_mask",
        "ROI": "ROI",
        "rpn_class": "rpn_class",
        "rpn_bbox": "rpn_bbox",
        "fpn_p2": "fpn_p2",
        "fpn_p3": "fpn_p3",
        "fpn_p4": "fpn_p4",
        "fpn_p5": "fpn_p5",
        "fpn_p6": "fpn_p6",
    }
    outputs = [(name, model.keras_model.get_layer(layer).output) for name, layer in layers.items()]
    return model.run_graph(expected["molded"], outputs, expected["image_meta"])


def test_molding_and_anchors(model, expected):
    molded, metas, windows = model.mold_inputs([expected["image"]])
    np.testing.assert_allclose(molded, expected["molded"], atol=0.01)
    np.testing.assert_array_equal(metas, expected["image_meta"])
    np.testing.assert_array_equal(windows, expected["windows"])
    anchors = model.get_anchors((256, 256, 3))
    np.testing.assert_allclose(anchors, expected["anchors"][0], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "fpn_p2",
        "fpn_p3",
        "fpn_p4",
        "fpn_p5",
        "fpn_p6",
        "rpn_class",
        "rpn_bbox",
        "mrcnn_class",
        "mrcnn_bbox",
    ],
)
def test_features_and_raw_outputs(name, computed, expected):
    got, wanted = computed[name], expected[name]
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-3 * wanted.std()


def test_proposals_as_sets(computed, expected):
    # Scores of a few are tied: they may come in another order.
    def rows(a):
        return a[0][np.lexsort(np.round(a[0], 4).T)]

    np.testing.assert_allclose(rows(computed["ROI"]), rows(expected["ROI"]), atol=1e-3)


def test_detections_and_masks(computed, expected):
    got, wanted = computed["mrcnn_detection"][0], expected["mrcnn_detection"][0]
    np.testing.assert_allclose(got, wanted, atol=1e-3)
    for d in range(50):
        k = int(wanted[d, 4])
        ours = computed["mrcnn_mask"][0, d, ..., k] >= 0.5
        theirs = expected["mrcnn_mask"][0, d, ..., k] >= 0.5
        assert (ours & theirs).sum() > 0.99 * (ours | theirs).sum()


def test_detect(model, expected):
    image = expected["image"]
    small = image[:200, :300]
    result, other, again = model.detect([image, small, image])  # any number, any sizes
    np.testing.assert_array_equal(result["rois"], expected["rois"])
    np.testing.assert_array_equal(result["class_ids"], expected["class_ids"])
    np.testing.assert_allclose(result["scores"], expected["scores"], atol=1e-3)
    masks = np.unpackbits(expected["masks"], axis=0)[: image.shape[0]].astype(bool)
    assert result["masks"].shape == masks.shape and result["masks"].dtype == bool
    overlap = (result["masks"] & masks).sum((0, 1)) / (result["masks"] | masks).sum((0, 1))
    assert overlap.min() > 0.99
    assert other["masks"].shape[:2] == (200, 300)
    for key in result:
        np.testing.assert_array_equal(result[key], again[key])


def test_detect_molded(model, expected):
    [result] = model.detect_molded(expected["molded"], expected["image_meta"])
    assert result["masks"].shape == (256, 256, 50)
    wanted = unmolding.unmold_detections(
        expected["mrcnn_detection"][0],
        expected["mrcnn_mask"][0],
        (256, 256, 3),
        (256, 256, 3),
        (0, 0, 256, 256),
        model.config,
    )
    np.testing.assert_array_equal(result["rois"], wanted[0])


def test_written_file_has_the_same_layers_and_tensors(model, shared_dir, tmp_path):
    path = tmp_path / "again.h5"
    model.save_weights(path)

    def tensors(file):
        with h5py.File(file) as h5:
            return {
                (layer, name.decode() if isinstance(name, bytes) else name): h5[layer][name][()]
                for layer in h5
                for name in h5[layer].attrs["weight_names"]
            }

    old, new = tensors(shared_dir / "legacy" / "mask_rcnn_legacy.h5"), tensors(path)
    assert set(old) == set(new)
    for key, value in old.items():
        np.testing.assert_array_equal(value, new[key])
