"""Exported networks, run without the package, give what the package gives."""

import json
import resource
import sys

import keras
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from mrcnn import export as exporting
from mrcnn.errors import UserError
from mrcnn.export import export, image_network
from mrcnn.inference.fast_network import FastNetwork
from mrcnn.model import MaskRCNN
from mrcnn.pixels.boxes import denorm_boxes
from mrcnn.pixels.image_meta import compose_image_meta
from mrcnn.pixels.molding import mold_image
from mrcnn.segmenter import Segmenter
from tests.network.test_models import set_weights
from tests.support.tiny import TinyConfig, small_backbone

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
tf = pytest.importorskip("tensorflow")

SHAPE = (64, 128, 3)
ROWS = 8
NAMES = {"boxes", "class_ids", "scores", "masks"}


class SmallConfig(TinyConfig):
    BACKBONE = staticmethod(small_backbone)
    COMPUTE_BACKBONE_SHAPE = staticmethod(
        lambda shape: np.array([[shape[0] // s, shape[1] // s] for s in (4, 8, 16, 32, 64)])
    )
    PIXEL_CONVENTION = "exact"
    MASK_ROI_SCALE = 1.2
    DETECTION_NMS_THRESHOLD = 0.1
    DETECTION_MIN_CONFIDENCE = 0.4
    INTENSITY_PERCENTILES = (1, 99.8)
    DARK_GROUND = True


class C4Config(TinyConfig):
    ARCHITECTURE = "c4"


def make_model(config, seed):
    model = MaskRCNN("inference", config, "logs")
    set_weights(model.keras_model, seed)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model(SmallConfig(), seed=3)


@pytest.fixture(scope="module")
def images():
    """[3, H, W, C]: with these weights many detections, a few, none."""
    images = np.zeros((3, *SHAPE), np.float32)
    images[0] = np.random.default_rng(0).uniform(0, 255, SHAPE)
    images[2] = SmallConfig.MEAN_PIXEL
    return images


def metas(config, shape, count):
    """Meta data [count, M] of images that are not padded."""
    window, active = (0, 0, *shape[:2]), np.ones(config.NUM_CLASSES)
    meta = compose_image_meta(0, shape, shape, window, 1, active)
    return np.tile(meta.astype(np.float32), (count, 1))


def outputs_of(detections, masks, config, shape=SHAPE):
    """The four outputs, from the network's own [B, D, 6] and [B, D or less, h, w, K]."""
    class_ids = detections[..., 4].astype(int)
    chosen = np.zeros((*class_ids.shape, *config.MASK_SHAPE), np.float32)
    for b, d in np.argwhere(class_ids):
        chosen[b, d] = masks[b, d, :, :, class_ids[b, d]]
    boxes = denorm_boxes(detections[..., :4], shape, exact=config.exact_pixels)
    boxes = np.where(class_ids[..., None] > 0, boxes, 0)
    return {"boxes": boxes, "class_ids": class_ids, "scores": detections[..., 5], "masks": chosen}


def assert_same(outputs, wanted):
    assert outputs.keys() == wanted.keys() == NAMES
    assert outputs["class_ids"].dtype == np.int32
    assert all(outputs[name].dtype == np.float32 for name in NAMES - {"class_ids"})
    for name, tolerance in (("class_ids", 0), ("boxes", 0.01), ("scores", 1e-4), ("masks", 1e-3)):
        assert outputs[name].shape == wanted[name].shape
        np.testing.assert_allclose(outputs[name], wanted[name], rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Path by format: from a MaskRCNN, and from a Segmenter."""
    folder = tmp_path_factory.mktemp("exported")
    size = {"size": SHAPE[:2], "max_instances": ROWS}
    paths = {
        "onnx": export(model, folder / "tiny.onnx", **size, classes=["round", "long"]),
        "saved_model": export(
            Segmenter(model, ("round", "long")), folder / "new" / "tiny", "saved_model", **size
        ),
    }
    assert {path.name for path in folder.iterdir()} == {"tiny.onnx", "new"}
    assert [path.name for path in (folder / "new").iterdir()] == ["tiny"]
    return paths


@pytest.fixture(scope="module")
def run(exported):
    """Functions from images to outputs by name, by format; nothing of the package in them."""
    session = onnxruntime.InferenceSession(
        str(exported["onnx"]), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    loaded = tf.saved_model.load(str(exported["saved_model"]))

    def run_onnx(images):
        return dict(zip(names, session.run(None, {"image": images}), strict=True))

    def run_saved_model(images):
        outputs = loaded.signatures["serving_default"](image=tf.constant(images))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return {"onnx": run_onnx, "saved_model": run_saved_model}


@pytest.fixture(scope="module")
def wanted(model, images):
    """The four outputs, from the package's own network."""
    network = FastNetwork(model.config, model.bank)
    found = network(mold_image(images, model.config), metas(model.config, SHAPE, len(images)))
    return outputs_of(found.detections[:, :ROWS], found.masks, model.config)


def test_the_images_have_many_few_and_no_detections(wanted):
    class_ids = wanted["class_ids"]
    assert np.count_nonzero(class_ids, axis=1).tolist() == [8, 3, 0]
    assert set(class_ids[0]) == {1, 2}


@pytest.mark.parametrize("format", exporting.FORMATS)
def test_same_detections_for_any_batch_size(run, images, wanted, format):
    assert_same(run[format](images), wanted)
    for i in range(3):
        alone = run[format](images[i : i + 1])
        assert_same(alone, {name: array[i : i + 1] for name, array in wanted.items()})


def test_suppression_is_an_operation_of_onnx(exported):
    graph = onnx.load(exported["onnx"])
    onnx.checker.check_model(graph, full_check=True)
    inner = [
        node.op_type
        for outer in graph.graph.node
        if outer.op_type == "Loop"
        for attribute in outer.attribute
        for node in attribute.g.node
    ]
    assert inner.count("NonMaxSuppression") == 2
    [image] = graph.graph.input
    sides = image.type.tensor_type.shape.dim
    assert image.name == "image" and sides[0].dim_param == "batch"
    assert [side.dim_value for side in sides[1:]] == list(SHAPE)


def test_metadata(exported):
    properties = onnx.load(exported["onnx"]).metadata_props
    found = {entry.key: json.loads(entry.value) for entry in properties}
    assert found.pop("package").startswith("mrcnn-keras")
    assert found == {
        "classes": ["round", "long"],
        "image_shape": [64, 128, 3],
        "PIXEL_CONVENTION": "exact",
        "INTENSITY_PERCENTILES": [1, 99.8],
        "DARK_GROUND": True,
        "OBJECT_SIZE": None,
        "MASK_ROI_SCALE": 1.2,
        "MASK_THRESHOLD": 0.5,
        "DETECTION_MIN_CONFIDENCE": 0.4,
    }
    beside = json.loads((exported["saved_model"] / "metadata.json").read_text())
    assert beside == found | {"package": beside["package"]}


def paste(mask, box, metadata):
    """A mask as the documentation says, pixel by pixel."""
    centre, half = (box[:2] + box[2:]) / 2, metadata["MASK_ROI_SCALE"] * (box[2:] - box[:2]) / 2
    (y1, x1), (y2, x2) = centre - half, centre + half
    full = np.zeros(metadata["image_shape"][:2], bool)
    for y, x in np.ndindex(full.shape):
        if y1 <= y + 0.5 < y2 and x1 <= x + 0.5 < x2:
            row = (y + 0.5 - y1) / (y2 - y1) * mask.shape[0] - 0.5
            column = (x + 0.5 - x1) / (x2 - x1) * mask.shape[1] - 0.5
            value = map_coordinates(mask, [[row], [column]], order=1, mode="nearest")[0]
            full[y, x] = value >= metadata["MASK_THRESHOLD"]
    return full


def test_pasted_as_documented_masks_are_those_of_the_package(exported, run, model, images):
    metadata = json.loads((exported["saved_model"] / "metadata.json").read_text())
    outputs = {name: array[0] for name, array in run["onnx"](images[1:2]).items()}
    molded = mold_image(images[1:2], model.config)
    [result] = model.detect_molded(molded, metas(model.config, SHAPE, 1))
    count = len(result["scores"])
    assert count == 3
    np.testing.assert_array_equal(np.rint(outputs["boxes"][:count]), result["rois"])
    for i in range(count):
        pasted = paste(outputs["masks"][i], outputs["boxes"][i], metadata)
        assert pasted.any() and np.count_nonzero(pasted != result["masks"][..., i]) <= 1


def test_c4_and_matterports_pixels(images):
    config, shape = C4Config(), (64, 64, 3)
    model = make_model(config, seed=0)
    images = images[:2, :, :64]
    plain = model.keras_model([mold_image(images, config), metas(config, shape, 2)])
    wanted = outputs_of(plain[0].numpy(), plain[3].numpy(), config, shape)
    assert wanted["class_ids"].any() and wanted["boxes"].dtype.kind == "i"
    outputs = image_network(model, shape).call(images)
    assert_same({name: tensor.numpy() for name, tensor in outputs.items()}, wanted)


def test_earlier_exports_may_be_replaced_and_nothing_else(tmp_path):
    earlier, other, file = tmp_path / "earlier", tmp_path / "other", tmp_path / "file"
    earlier.mkdir()
    for name in ("saved_model.pb", "metadata.json"):
        (earlier / name).write_text("old")
    other.mkdir()
    (other / "image.png").write_text("mine")
    file.write_text("mine")
    for path, message in ((other, "folder with other files"), (file, "is a file")):
        with pytest.raises(UserError, match=message):
            exporting._check_folder(path)
    exporting._check_folder(earlier)
    assert {path.name for path in tmp_path.iterdir()} == {"earlier", "other", "file"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "'tflite' is not allowed: onnx or saved_model"),
        ({"size": 500}, "500x500.*multiples of 64"),
        ({"size": (512, 0)}, "512x0.*multiples of 64"),
        ({"size": (64, 64, 3)}, "64x64x3.*multiples of 64"),
        ({"size": 64.0}, "multiples of 64"),
        ({"max_instances": 0}, "max_instances = 0 is not allowed"),
        ({"classes": ["one"]}, "the 2 names"),
        ({"path": "network.pb"}, "NAME.onnx is needed"),
        ({"path": "other", "format": "saved_model"}, "folder with other files"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(model, tmp_path, options, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    options = {"path": "tiny.onnx", **options}
    with pytest.raises(UserError, match=message) as caught:
        export(model, tmp_path / options.pop("path"), **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "notes.txt"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    layers = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(9000, 3)])
    network = exporting.ImageNetwork(layers, lambda image: {"out": layers(image)})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # as good as a full disk
    try:
        with pytest.raises(UserError, match="tiny: could not be written: ") as error:
            with exporting.atomic_folder(tmp_path / "tiny") as folder:
                exporting._write_saved_model(network, (8, 8, 3), {}, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert list(tmp_path.iterdir()) == []


def test_only_inference_networks(tmp_path, model, monkeypatch):
    monkeypatch.setattr(model, "mode", "training")
    with pytest.raises(UserError, match='mode="inference"'):
        export(model, tmp_path / "tiny.onnx")


def test_missing_package(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match="pip install tf2onnx"):
        export(model, tmp_path / "tiny.onnx", size=64)


def test_other_backends(model, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
        export(model, tmp_path / "tiny.onnx", size=64)
