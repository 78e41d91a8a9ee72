"""Weight files in the HDF5 layout of Keras 2, which matterport's Mask_RCNN reads and writes.

The layout: the root (or its group `model_weights`, in files of whole models) has an attribute
`layer_names`; every name is a group whose attribute `weight_names` lists data sets inside it, such
as `conv1/kernel:0`. A nested model is one group: `rpn_model` holds `rpn_conv_shared/kernel:0` and
others. Attributes of more than 64 KB are cut into `layer_names0`, `layer_names1` and so on.

This module knows files and NumPy only; `weights.py` brings them together with models.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from mrcnn.atomic import atomic_path
from mrcnn.errors import UserError

ATTRIBUTE_LIMIT = 64512  # bytes that fit into an object header of HDF5, as in Keras
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

# The public ImageNet file was written by Keras 1, whose `running_std` held the variance.
KERAS1_NAMES = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}
TENSOR_NAMES = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
BATCH_NORM_NAMES = ("gamma", "beta", "moving_mean", "moving_variance")

# matterport nests these three layers in one model; its files have one group for them.
RPN_GROUP = "rpn_model"
RPN_LAYERS = ("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred")


class LegacyFile(NamedTuple):
    """What a weight file holds: {layer: {tensor: array}} in the file's order.

    `groups[layer]` is the group the layer lies in, the layer's own name unless it is nested;
    `names` are all layers listed in the file, those without weights included. `channel_order` is
    "rgb" in files that `write` wrote, else None: unknown.
    """

    path: Path
    layers: dict[str, dict[str, np.ndarray]]
    groups: dict[str, str]
    names: set[str]
    channel_order: str | None


def layer_and_tensor(group: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """Splits the weight names of one group into (layer, tensor) pairs.

    `("rpn_model", ["rpn_conv_shared/kernel:0", "rpn_class_raw/kernel:0"])` gives the two nested
    layers. Where all weights belong to one layer that layer carries the group's name, whatever
    its scope is called (wrappers such as TimeDistributed may put their own in).
    """
    pairs = []
    for name in names:
        parts = name.split(":")[0].split("/")
        tensor = parts[-1]
        for known in (*TENSOR_NAMES, *KERAS1_NAMES):
            # Keras 1 wrote `conv1_W` where Keras 2 writes `conv1/kernel`.
            if tensor == known or (len(parts) == 1 and tensor.endswith("_" + known)):
                tensor = KERAS1_NAMES.get(known, known)
                break
        pairs.append((parts[-2] if len(parts) > 1 else group, tensor))
    if len({layer for layer, _ in pairs}) == 1:
        return [(group, tensor) for _, tensor in pairs]
    return pairs


def read_attribute(group: h5py.Group, name: str) -> list[str]:
    """A list of strings stored as one attribute or, when it is long, as several."""
    if name in group.attrs:
        chunks = [group.attrs[name]]
    else:
        chunks = []
        while f"{name}{len(chunks)}" in group.attrs:
            chunks.append(group.attrs[f"{name}{len(chunks)}"])
    strings = [item for chunk in chunks for item in chunk]
    return [s.decode("utf8") if isinstance(s, bytes) else str(s) for s in strings]


def write_attribute(group: h5py.Group, name: str, strings: Iterable[str]) -> None:
    """Stores strings as an attribute of fixed-length bytes, in chunks below the HDF5 limit."""
    data = np.array([s.encode("utf8") for s in strings], dtype=np.bytes_)
    rows = max(1, ATTRIBUTE_LIMIT // max(1, data.itemsize))
    if len(data) <= rows:
        group.attrs[name] = data
        return
    for number, start in enumerate(range(0, len(data), rows)):
        group.attrs[f"{name}{number}"] = data[start : start + rows]


def open_h5(path: str | os.PathLike) -> h5py.File:
    """Opens an HDF5 file for reading.

    Raises:
        UserError: no such file, not HDF5, or cut short; one line that says which.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such weight file")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a weight file (.h5) in it")
    try:
        with open(path, "rb") as file:
            start = file.read(64)
        if not start.startswith(HDF5_MAGIC):
            raise UserError(f"{path} is not an HDF5 weight file: {_what_is_it(start)}")
        return h5py.File(path, "r")
    except OSError as error:
        raise _damaged(path, error) from error


def _what_is_it(start: bytes) -> str:
    if not start:
        return "it is empty; download or copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the real file with `git lfs pull`"
    if start.startswith(b"PK"):
        return "it is a zip archive (perhaps a .keras model); save the weights as .h5 instead"
    if start.lstrip()[:1] == b"<":
        return "it is a web page; download the file itself"
    return "save the weights with save_weights(\"....h5\")"


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is damaged or incomplete, get it again ({reason})")


def _lists_layers(group: h5py.Group) -> bool:
    return "layer_names" in group.attrs or "layer_names0" in group.attrs


def _weights_root(file: h5py.File, path: Path) -> h5py.Group:
    if _lists_layers(file):
        return file
    if "model_weights" in file and _lists_layers(file["model_weights"]):
        return file["model_weights"]
    if "layers" in file:
        raise UserError(
            f"{path} is a Keras 3 .weights.h5 file, which does not name its layers: load it with "
            "keras_model.load_weights into the model that wrote it, and save that with save_weights"
        )
    raise UserError(f"{path} is an HDF5 file but holds no Keras weights (no layer_names)")


def _data_sets(
    file: h5py.File, path: Path
) -> Iterator[tuple[str, list[tuple[str, str, h5py.Dataset]]]]:
    """Yields (group, [(layer, tensor, data set), ...]) for every group that the file lists."""
    root = _weights_root(file, path)
    for group in read_attribute(root, "layer_names"):
        names = read_attribute(root[group], "weight_names")
        pairs = layer_and_tensor(group, names)
        yield group, [
            (layer, tensor, root[group][name])
            for (layer, tensor), name in zip(pairs, names, strict=True)
        ]


def read_shapes(path: str | os.PathLike) -> dict[str, dict[str, tuple[int, ...]]]:
    """{layer: {tensor: shape}} of a weight file, without reading the tensors. Raises as `read`."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    with open_h5(path) as file:
        try:
            for _, data_sets in _data_sets(file, Path(path)):
                for layer, tensor, data in data_sets:
                    shapes.setdefault(layer, {})[tensor] = data.shape
        except (OSError, KeyError, RuntimeError) as error:
            raise _damaged(Path(path), error) from error
    return shapes


def read(path: str | os.PathLike) -> LegacyFile:
    """Reads a weight file, or the weights in a file of a whole model.

    Raises:
        UserError: the file is absent, not HDF5, damaged, or in another layout.
    """
    with open_h5(path) as file:
        order = file.attrs.get("channel_order")
        order = order.decode() if isinstance(order, bytes) else order
        result = LegacyFile(Path(path), {}, {}, set(), order)
        try:
            for group, data_sets in _data_sets(file, result.path):
                result.names.add(group)
                for layer, tensor, data in data_sets:
                    result.layers.setdefault(layer, {})[tensor] = np.asarray(data)
                    result.groups[layer] = group
                    result.names.add(layer)
        except (OSError, KeyError, RuntimeError) as error:
            raise _damaged(result.path, error) from error
    return result


def write(
    path: str | os.PathLike,
    layers: Mapping[str, Mapping[str, np.ndarray]],
    *,
    keras_version: str,
    half: bool = False,
) -> None:
    """Writes {layer: {tensor: array}}, atomically, so that Keras 2 and matterport read it.

    Args:
        half: kernels become float16, compressed; everything else, and any kernel with values that
            float16 cannot hold, stays as it is. (One moving variance of ImageNet's `bn_conv1` is
            83,615, above float16's largest number 65,504.)

    Raises:
        UserError: the file cannot be written.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for layer, tensors in layers.items():
        group = RPN_GROUP if layer in RPN_LAYERS else layer
        for tensor, array in tensors.items():
            groups.setdefault(group, {})[f"{layer}/{tensor}:0"] = _storage(tensor, array, half)
    options = {"compression": "gzip", "shuffle": True} if half else {}
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        write_attribute(file, "layer_names", groups)
        # Kernels have TensorFlow's layout on every backend of Keras 3. Keras 2 decodes these
        # attributes, which works on fixed-length bytes only.
        file.attrs["backend"] = np.bytes_("tensorflow")
        file.attrs["keras_version"] = np.bytes_(keras_version)
        file.attrs["channel_order"] = np.bytes_("rgb")  # ours; other readers ignore it
        for group, tensors in groups.items():
            write_attribute(file.create_group(group), "weight_names", tensors)
            for name, array in tensors.items():
                file[group].create_dataset(name, data=array, **(options if array.ndim > 1 else {}))


def _storage(tensor: str, array: np.ndarray, half: bool) -> np.ndarray:
    if array.dtype.name == "bfloat16":  # HDF5 has no such type
        array = array.astype(np.float32)
    if not half or tensor != "kernel":
        return array
    largest = np.abs(array).max(initial=0)
    return array.astype(np.float16) if largest <= np.finfo(np.float16).max else array
