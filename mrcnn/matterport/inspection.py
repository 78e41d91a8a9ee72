"""Looking inside a model: find layers and tensors, compute any of them.

Source: matterport `MaskRCNN.ancestor`, `find_trainable_layer`, `get_trainable_layers`,
`run_graph`.
"""

import re

import keras
import numpy as np

from mrcnn.errors import UserError


def ancestor(tensor, name: str, checked=None):
    """The nearest tensor above `tensor` that a layer called `name` made, or None.

    Args:
        tensor: a Keras tensor of a functional model.
        name: a layer's name or a regular expression; what TensorFlow 1 had behind a slash or a
            colon ("ROI/rpn_anchors:0") is ignored.
        checked: layers not to look at again.
    """
    checked = set() if checked is None else checked
    history = getattr(tensor, "_keras_history", None)
    if history is None or id(history.operation) in checked:
        return None
    checked.add(id(history.operation))
    name = re.sub(r"(\\)?/.*|:\d+$", "", name)
    # A shared layer has a node for every call: only the one that made this tensor.
    for parent in history.operation._inbound_nodes[history.node_index].input_tensors:
        if re.fullmatch(name, parent._keras_history.operation.name):
            return parent
        found = ancestor(parent, name, checked)
        if found is not None:
            return found
    return None


def find_trainable_layer(layer):
    """The layer inside a wrapper, or the layer itself."""
    inner = getattr(layer, "layer", None)
    return find_trainable_layer(inner) if inner is not None else layer


def get_trainable_layers(model: keras.Model) -> list:
    """All layers of a model that have weights; nested models count as one."""
    found = (find_trainable_layer(layer) for layer in model.layers)
    return [layer for layer in found if layer.get_weights()]


def run_graph(model: keras.Model, molded, image_metas, outputs) -> dict[str, np.ndarray]:
    """Compute tensors of an inference model.

    Args:
        model: as `network.inference_model` builds it.
        molded: [B, H, W, C] of the model's shape.
        image_metas: [B, M].
        outputs: list of (name, Keras tensor of the model).

    Raises:
        UserError: the images have another shape.
    """
    molded = np.asarray(molded, np.float32)
    expected = tuple(model.inputs[0].shape[1:])
    if molded.shape[1:] != expected:
        raise UserError(
            f"run_graph: the molded images are {molded.shape[1:]}, keras_model takes {expected}"
        )
    names, tensors = zip(*outputs, strict=True)
    part = keras.Model(model.inputs, list(tensors))
    part.jit_compile = model.jit_compile
    values = part.predict_on_batch([molded, np.asarray(image_metas, np.float32)])
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
