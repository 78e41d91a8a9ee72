"""The network for other runtimes: an ONNX file, or a folder with a TensorFlow SavedModel. ::

    export(mrcnn.load("nucleus"), "nucleus.onnx", size=512)

What is written needs neither this package nor Keras. One tensor goes in, four come out; mean
subtraction and anchors are inside. B images (any number), H W the size chosen at export, D rows::

    image      float32 [B, H, W, C]   0 to 255, RGB
    boxes      float32 [B, D, 4]      y1 x1 y2 x2 in pixels of the image, ends exclusive
    class_ids  int32   [B, D]         1, 2, ...; 0 and zeros in all outputs: no detection
    scores     float32 [B, D]         descending
    masks      float32 [B, D, h, w]   probabilities of the row's class

What goes in. The metadata (JSON texts in ONNX's `metadata_props`, `metadata.json` in the folder)
say how images were prepared for training; the graph does not do it. INTENSITY_PERCENTILES of the
image become 0 and 255, and with DARK_GROUND an image whose median is then above the middle is
inverted (`mrcnn/pixels/exposure.py`). With an OBJECT_SIZE it is then scaled until its
typical object is that many pixels wide. It is padded with 0 to H x W.

How masks are pasted. The h x w cells of a mask divide a region evenly: the row's box, stretched
about its centre by MASK_ROI_SCALE. The pixel (y, x) has its centre at (y + .5, x + .5). Where that
lies in the region (y1, x1, y2, x2), its probability is the bilinear sample of the mask at the row
(y + .5 - y1) / (y2 - y1) * h - .5, clamped to 0 and h - 1, and at the column likewise. It belongs
to the object from MASK_THRESHOLD on. `unmolding.paste_masks` does this. With PIXEL_CONVENTION
"matterport" boxes are whole pixels and `unmolding.unmold_mask` pastes.

TensorFlow does the conversion, so the backend must be TensorFlow; weights are float32, with batch
norms folded into the convolutions.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mrcnn.atomic import atomic_folder, atomic_path
from mrcnn.errors import UserError, one_line
from mrcnn.pixels.image_meta import compose_image_meta
from mrcnn.segmenter import Segmenter

if TYPE_CHECKING:
    import keras

    from mrcnn.model import MaskRCNN

FORMATS = ("onnx", "saved_model")
# The newest that tf2onnx writes; onnxruntime reads it from version 1.14 on.
ONNX_OPSET = 18
METADATA_FILE = "metadata.json"
# Keys of the configuration that users of the file need to know.
DESCRIBED = (
    "PIXEL_CONVENTION",
    "INTENSITY_PERCENTILES",
    "DARK_GROUND",
    "OBJECT_SIZE",
    "MASK_ROI_SCALE",
    "MASK_THRESHOLD",
    "DETECTION_MIN_CONFIDENCE",
)


def export(
    model: MaskRCNN | Segmenter,
    path: str | os.PathLike,
    format: str = "onnx",
    *,
    size: int | tuple[int, int] | None = None,
    max_instances: int | None = None,
    classes: Sequence[str] | None = None,
) -> Path:
    """Write the network of a model with its weights, whole or not at all.

    Args:
        model: a `MaskRCNN` in "inference" mode, or what `mrcnn.load` returns. (Not the latter's
            `model`, whose configuration lacks the exposure: that is the `Segmenter`'s.)
        path: of the file ("onnx"; its name ends in .onnx, and a file of that name is replaced) or
            of the folder ("saved_model"; a new one, an empty one, or an earlier export to replace).
        format: one of `FORMATS`.
        size: side of the images in pixels, or (height, width); by default `config.IMAGE_SHAPE`.
        max_instances: D; by default `config.DETECTION_MAX_INSTANCES`.
        classes: names of class ids 1, 2, ...; by default the `Segmenter`'s.

    Returns:
        path.

    Raises:
        UserError: an argument is not allowed, a package is missing, or path cannot be written.
    """
    path = Path(path)
    if isinstance(model, Segmenter):
        classes, prepared = classes or model.classes, model.exposure_config
        model = model.model
    else:
        prepared = model.config
    _check_format(format)
    if model.mode != "inference":
        raise UserError('only a MaskRCNN(mode="inference", ...) can be exported')
    model.check_weights()
    shape = _image_shape(model.config, size)
    if max_instances is not None and not (_is_integer(max_instances) and max_instances > 0):
        raise UserError(f"max_instances = {max_instances!r} is not allowed: 1 or more")
    metadata = _metadata(prepared, model.config, shape, classes)

    from mrcnn.network.defaults import keras_defaults  # Keras: seconds

    with keras_defaults():
        if format == "onnx":
            _check_onnx_path(path)
            _import_tf2onnx()
            with atomic_path(path) as temporary:
                _write_onnx(image_network(model, shape, max_instances), shape, metadata, temporary)
        else:
            _check_folder(path)
            with atomic_folder(path) as temporary:
                network = image_network(model, shape, max_instances)
                _write_saved_model(network, shape, metadata, temporary)
    return path


class ImageNetwork(NamedTuple):
    """A network from images to outputs, both as the module describes them."""

    layers: keras.Model  # holds the weights
    call: Callable  # images [B, H, W, C] -> the outputs by name


def image_network(
    model: MaskRCNN, shape: tuple[int, int, int], max_instances: int | None = None
) -> ImageNetwork:
    """The network of a model for images as the module describes them, with a copy of its weights.

    Args:
        model: in "inference" mode.
        shape: H, W, C.
        max_instances: D.
    """
    from keras import ops

    from mrcnn.inference.folding import FoldedBank, fold
    from mrcnn.network.anchors import normalized_anchors
    from mrcnn.network.boxes import constant, denorm_boxes_graph
    from mrcnn.network.models import detect, feature_maps, inference_model, segment

    config = copy.copy(model.config)
    config.DETECTION_MAX_INSTANCES = int(max_instances or config.DETECTION_MAX_INSTANCES)
    bank = FoldedBank("float32")
    layers = inference_model(config, bank, shape)
    fold(model.bank, bank)
    anchors = normalized_anchors(config, shape)[None]
    window, active = (0, 0, *shape[:2]), np.ones(config.NUM_CLASSES)
    meta = compose_image_meta(0, shape, shape, window, 1, active)[None]

    def call(image):
        metas = ops.tile(constant(meta), (ops.shape(image)[0], 1))
        features = feature_maps(image - constant(config.MEAN_PIXEL), config, bank)
        detections = detect(features, constant(anchors), metas, config, bank).detections
        class_ids = ops.cast(detections[..., 4], "int32")
        there = class_ids > 0

        # Masks of the rows that any image uses; the rows after them repeat the last of these.
        rows = ops.arange(config.DETECTION_MAX_INSTANCES, dtype="int32")
        last = ops.max(ops.where(there, rows, 0))
        masks = segment(detections[:, : last + 1, :4], features, metas, config, bank)
        masks = ops.take(masks, ops.minimum(rows, last), axis=1)
        masks = ops.take_along_axis(masks, class_ids[:, :, None, None, None], axis=-1)[..., 0]
        boxes = denorm_boxes_graph(detections[..., :4], shape[:2], exact=config.exact_pixels)
        return {
            "boxes": ops.where(there[..., None], ops.cast(boxes, "float32"), 0.0),
            "class_ids": class_ids,
            "scores": detections[..., 5],
            "masks": ops.where(there[..., None, None], masks, 0.0),
        }

    return ImageNetwork(layers, call)


# ---- Arguments and metadata ------------------------------------------------------------------


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise UserError(f"format = {format!r} is not allowed: " + " or ".join(FORMATS))

    import keras

    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"the backend {keras.backend.backend()} cannot export: set "
            "KERAS_BACKEND=tensorflow; weight files are the same for all backends"
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _image_shape(config: Any, size: Any) -> tuple[int, int, int]:
    """H, W, C of the images."""
    if size is None:
        size = config.IMAGE_SHAPE[:2]
    sides = tuple(size) if isinstance(size, tuple | list | np.ndarray) else (size, size)
    if len(sides) != 2 or not all(_is_integer(n) and n > 0 and n % 64 == 0 for n in sides):
        text = "x".join(map(str, sides))
        raise UserError(
            f"images of size {text} cannot be exported: height and width must be "
            "multiples of 64, such as 512"
        )
    return int(sides[0]), int(sides[1]), int(config.IMAGE_CHANNEL_COUNT)


def _metadata(prepared: Any, config: Any, shape: tuple, classes: Sequence[str] | None) -> dict:
    """What users of the file need to know, as values for JSON.

    prepared: the configuration that says how images are prepared; config: that of the network.
    """
    if classes is None:
        classes = [f"class {i}" for i in range(1, config.NUM_CLASSES)]
    if isinstance(classes, str) or len(classes) != config.NUM_CLASSES - 1:
        raise UserError(
            f"classes = {classes!r} is not allowed: a list of the "
            f"{config.NUM_CLASSES - 1} names of the network's classes is needed"
        )
    try:
        package = "mrcnn-keras " + version("mrcnn-keras")
    except PackageNotFoundError:  # used from a clone that is not installed
        package = "mrcnn-keras"
    values = prepared.to_dict() | {"DETECTION_MIN_CONFIDENCE": config.DETECTION_MIN_CONFIDENCE}
    return {
        "package": package,
        "classes": list(classes),
        "image_shape": list(shape),
        **{key: values[key] for key in DESCRIBED},
    }


# ---- Files -----------------------------------------------------------------------------------


def _tensor_spec(shape: tuple[int, int, int]):
    import tensorflow as tf

    return tf.TensorSpec((None, *shape), tf.float32, name="image")


def _write_saved_model(network: ImageNetwork, shape: tuple, metadata: dict, folder: Path) -> None:
    import tensorflow as tf

    # Not Keras's own export, which stores every weight twice.
    module = tf.Module()
    module.weights = [variable.value for variable in network.layers.variables]
    module.serve = tf.function(network.call, [_tensor_spec(shape)], autograph=False)
    try:
        tf.saved_model.save(module, str(folder), {"serving_default": module.serve})
    except tf.errors.OpError as error:  # TensorFlow's error for a full disk
        reason = error.message.splitlines()[0].split("; ")[-1].split(" [Op:")[0]
        raise OSError(one_line(reason)) from error
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n")


def _check_onnx_path(path: Path) -> None:
    if path.suffix.lower() != ".onnx" or path.is_dir():
        raise UserError(f"{path}: is not the name of an ONNX file: NAME.onnx is needed")


def _import_tf2onnx():
    try:
        import tf2onnx
    except ImportError:
        raise UserError("ONNX files need the package tf2onnx: pip install tf2onnx") from None
    return tf2onnx


def _write_onnx(network: ImageNetwork, shape: tuple, metadata: dict, path: Path) -> None:
    import onnx
    import tensorflow as tf

    model, _ = _import_tf2onnx().convert.from_function(
        tf.function(network.call, autograph=False),
        [_tensor_spec(shape)],
        opset=ONNX_OPSET,
        custom_op_handlers={"Bitcast": (_sign_bits, [])},
    )
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, {key: json.dumps(v) for key, v in metadata.items()})
    onnx.checker.check_model(model)  # tf2onnx only logs what it cannot convert
    path.write_bytes(model.SerializeToString())


def _sign_bits(graph, node, _name, _arguments) -> None:
    """`keras.ops.argmax` reads float32 numbers as integers and uses only their sign bit, to tell 0
    from -0. ONNX has no such operation: the sign of 1 / x is the same bit."""
    from tf2onnx.utils import make_name

    [number], [output] = node.input, node.output
    shape, dtype = graph.get_shape(output), graph.get_dtype(output)
    graph.remove_node(node.name)
    zero = graph.make_const(make_name("zero"), np.float32(0)).output[0]
    sign = graph.make_const(make_name("sign"), np.int32(-(2**31))).output[0]
    inverse = graph.make_node("Reciprocal", [number]).output[0]
    negative = graph.make_node("Less", [inverse, zero]).output[0]
    bit = graph.make_node("Cast", [negative], attr={"to": dtype}).output[0]
    graph.make_node("Mul", [bit, sign], outputs=[output], shapes=[shape], dtypes=[dtype])


# ---- Folders ---------------------------------------------------------------------------------


def _check_folder(path: Path) -> None:
    """Raise UserError where something other than an earlier export is in the way."""
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if not names or {"saved_model.pb", METADATA_FILE} <= names:
            return
        raise UserError(f"{path}: is a folder with other files: name a new one")
    if path.exists():
        raise UserError(f"{path}: is a file: name a folder for the SavedModel")
