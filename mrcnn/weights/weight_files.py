"""Weight files and models: load by layer name, report, verify, save.

Files are in the HDF5 layout that matterport's Mask_RCNN uses (`legacy_h5.py`).

Colour order: this package feeds RGB. The public ImageNet file expects BGR; its first convolution
has its input channels reversed (BGR to RGB) on loading, which matterport leaves out.
"""

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.weights import legacy_h5
from mrcnn.weights.matching import LoadReport, Plan, in_model_order, is_backbone, shorten

__all__ = [
    "LoadReport", "demand_changed", "is_imagenet_file", "layer_tensors",
    "load_imagenet", "load_matching", "load_weights", "save_weights",
    "values_left",
]  # fmt: skip


def layer_tensors(model: keras.Model) -> dict[str, list[tuple[str, keras.Variable]]]:
    """{layer: [(tensor name, variable), ...]} of all layers with weights, nested ones included.

    Layers come in the order of `model.layers`, tensors in the order of files: kernel, bias, or
    gamma, beta, moving_mean, moving_variance. A model wrapped by `ParallelModel` is unwrapped.

    Raises:
        ValueError: two layers share a name.
    """
    tensors: dict[str, list[tuple[str, keras.Variable]]] = {}
    owners: dict[str, keras.layers.Layer] = {}
    for group in getattr(model, "inner_model", model).layers:
        pairs = legacy_h5.layer_and_tensor(group.name, [v.path for v in group.weights])
        for (layer, tensor), variable in zip(pairs, group.weights, strict=True):
            if owners.setdefault(layer, group) is not group:
                raise ValueError(f"two layers of the model are called {layer}")
            tensors.setdefault(layer, []).append((tensor, variable))
    return tensors


def load_weights(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    by_name: bool = True,
    exclude: Iterable[str] | None = None,
    input_rgb: bool | None = None,
) -> LoadReport:
    """Loads a weight file and verifies that the model then holds what the file holds.

    Nothing is assigned unless everything fits. (matterport: `MaskRCNN.load_weights`.)

    Args:
        model: any model with matterport's layer names.
        path: a legacy .h5 file of weights or of a whole model.
        by_name: True takes the layers that file and model share; False demands that both have the
            same layers.
        exclude: names of layers, or of nested models, to leave as they are; implies `by_name`.
        input_rgb: whether the file's `conv1` expects RGB; None decides by structure: a file that
            has no detector layers, and that `save_weights` did not write, is a Keras ImageNet
            backbone and expects BGR.

    Returns:
        What was loaded and what was not.

    Raises:
        UserError: the file cannot be read or does not fit, or has values that no network can
            use; the message names the layer, both shapes and the `exclude` that would help.
        RuntimeError: a tensor reads back different from the file.
    """
    return _load(model, path, by_name, exclude, input_rgb, skip_misfits=False)


def load_matching(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    exclude: Iterable[str] | None = None,
    input_rgb: bool | None = None,
) -> LoadReport:
    """As `load_weights`, but a layer whose shapes differ is skipped and reported.

    For fine-tuning on other classes: a COCO file gives all but its class-specific layers.
    """
    return _load(model, path, True, exclude, input_rgb, skip_misfits=True)


def load_imagenet(model: keras.Model, path: str | os.PathLike) -> LoadReport:
    """Loads an ImageNet backbone whose `conv1` expects BGR (the public Keras files)."""
    return load_weights(model, path, input_rgb=False)


def is_imagenet_file(path: str | os.PathLike) -> bool:
    """Whether a weight file is a bare backbone: it has `conv1` and none of a detector's layers.

    Raises:
        UserError: the file cannot be read.
    """
    return is_backbone(legacy_h5.read_shapes(path))


def save_weights(model: keras.Model, path: str | os.PathLike, half: bool = False) -> None:
    """Writes the weights in matterport's layout, atomically.

    Args:
        half: float16 kernels, compressed, a bit more than half the size; batch-norm tensors and
            biases stay float32.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {
        layer: {name: keras.ops.convert_to_numpy(variable) for name, variable in pairs}
        for layer, pairs in layer_tensors(model).items()
    }
    legacy_h5.write(path, tensors, keras_version=keras.__version__, half=half)


def _load(model, path, by_name, exclude, input_rgb, skip_misfits) -> LoadReport:
    with legacy_h5.open_weights(path) as file:
        return _load_open(model, file, by_name, exclude, input_rgb, skip_misfits)


def _load_open(model, file, by_name, exclude, input_rgb, skip_misfits) -> LoadReport:
    targets = layer_tensors(model)
    exclude = _check_exclude(exclude, model, targets, file)
    strict = not by_name and not exclude
    if strict:
        file = in_model_order(file, targets)
    plan = Plan(file, targets, exclude)
    if input_rgb is None:
        input_rgb = file.channel_order == "rgb" or not is_backbone(file.layers)
    plan.adapt_first_layer(is_bgr=not input_rgb)
    plan.match(skip_misfits)
    if strict:
        plan.demand_all()
    plan.assign()
    return plan.report()


def _check_exclude(exclude, model, targets, file) -> frozenset[str]:
    """The excluded layers; a name that neither model nor file has is warned about."""
    exclude = [exclude] if isinstance(exclude, str) else list(exclude or ())
    model_names = {layer.name for layer in getattr(model, "inner_model", model).layers}
    known = model_names | set(targets) | file.names
    for name in exclude:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.warn(
                f"exclude={name!r} names no layer of the model or of {file.path}{hint}",
                MRCNNWarning,
                stacklevel=6,
            )
    return frozenset(exclude)


def values_left(
    model: keras.Model, layers: Sequence[str], known: Mapping[str, list[np.ndarray]] | None
) -> dict[str, list[np.ndarray]]:
    """The values of the layers that loading a file has left as they were.

    known: what earlier files had left, so that only those of its layers count; None for the first
    file.
    """
    if known is not None:
        return {name: known[name] for name in known if name in layers}
    tensors = layer_tensors(model)
    return {name: _arrays(tensors[name]) for name in layers}


def demand_changed(model: keras.Model, left: Mapping[str, list[np.ndarray]]) -> None:
    """Raise UserError where layers still have the values that `values_left` gave."""
    tensors = layer_tensors(model) if left else {}
    names = [
        name
        for name, values in left.items()
        if all(map(np.array_equal, values, _arrays(tensors[name])))
    ]
    if names:
        raise UserError(
            f"the weights that were loaded leave {shorten(names)} at random values: load a "
            "file that holds all layers before detecting"
        )


def _arrays(tensors: Sequence[tuple[str, keras.Variable]]) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable) for _, variable in tensors]
