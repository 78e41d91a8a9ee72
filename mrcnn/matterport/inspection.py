"""Looking inside a model with matterport's methods: find layers and tensors, compute any of them.

Source: matterport `MaskRCNN.ancestor`, `find_trainable_layer`, `get_trainable_layers`,
`run_graph`.
"""

import re

import keras
import numpy as np

from mrcnn.errors import UserError
from mrcnn.matterport.compat import log
from mrcnn.network.defaults import keras_defaults


class Inspection:
    """The methods of `MaskRCNN` for looking inside."""

    def ancestor(self, tensor, name: str, checked=None):
        """The nearest tensor above `tensor` that a layer called `name` made, or None.

        Args:
            tensor: a Keras tensor of a functional model.
            name: a layer's name or a regular expression; what TensorFlow 1 had after a slash or a
                colon ("ROI/rpn_anchors:0") is ignored.
            checked: layers not to check again.
        """
        name = re.sub(r"(\\)?/.*|:\d+$", "", name)
        return _ancestor(tensor, name, set() if checked is None else checked)

    def find_trainable_layer(self, layer):
        """The layer inside a wrapper, or the layer itself."""
        inner = getattr(layer, "layer", None)
        return self.find_trainable_layer(inner) if inner is not None else layer

    def get_trainable_layers(self) -> list:
        """All layers of the model that have weights; nested models count as one."""
        found = (self.find_trainable_layer(layer) for layer in self.keras_model.layers)
        return [layer for layer in found if layer.get_weights()]

    @keras_defaults()
    def run_graph(self, images, outputs, image_metas=None) -> dict[str, np.ndarray]:
        """Compute any tensors of the inference model.

        Args:
            images: list of images, or molded images when `image_metas` is given.
            outputs: list of (name, tensor), the tensors from `keras_model`.
            image_metas: [B, M].

        Returns:
            A dictionary of arrays by name, in the order asked for.

        Raises:
            UserError: the molded images do not have the shape that `keras_model` takes.
        """
        molded, model = images, self.keras_model
        if image_metas is None:
            molded, image_metas, _ = self.mold_inputs(images)
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
        found = dict(zip(names, map(np.asarray, values), strict=True))
        for name, value in found.items():
            log(name, value)
        return found


def _ancestor(tensor, name: str, checked: set[int]):
    history = getattr(tensor, "_keras_history", None)
    if history is None or id(history.operation) in checked:
        return None
    checked.add(id(history.operation))
    # A shared layer has a node for every call: follow only the one that made this tensor.
    for parent in history.operation._inbound_nodes[history.node_index].input_tensors:
        if re.fullmatch(name, parent._keras_history.operation.name):
            return parent
        found = _ancestor(parent, name, checked)
        if found is not None:
            return found
    return None
