"""Weight files in the HDF5 layout of Keras 2, which matterport's Mask_RCNN reads and writes.

The layout: the root (or its group `model_weights`, in files of whole models) has an attribute
`layer_names`; every name is a group whose attribute `weight_names` lists data sets inside it, such
as `conv1/kernel:0`. A nested model is one group: `rpn_model` holds `rpn_conv_shared/kernel:0` and
others. Attributes of more than 64 KB are split into `layer_names0`, `layer_names1` and so on.

This module deals with files and NumPy only; `weight_files.py` connects them to models.
"""

import contextlib
import glob
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from mrcnn.atomic import atomic_path
from mrcnn.errors import UserError, one_line, reason_of
from mrcnn.files import require_regular

ATTRIBUTE_LIMIT = 64512  # bytes that fit into an object header of HDF5, as in Keras
MOST_NAMES = 10_000  # of layers, or of a layer's tensors
SMALL_CHUNK = 2**16  # numbers
# Of our own runs; the last number is the epoch.
CHECKPOINT_NAME = re.compile(r"(mask_rcnn_.*_)\d{4}\.h5")
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

# The fully connected layers that compression splits, in the order of Config.FPN_CLASSIF_FC_RANKS,
# and the name of the first, thin part behind the name of the whole layer.
COMPRESSIBLE = ("mrcnn_class_conv1", "mrcnn_class_conv2")
THIN = "_svd"

# matterport nests these three layers in one model; its files have one group for them.
RPN_GROUP = "rpn_model"
RPN_LAYERS = ("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred")


class LegacyFile(NamedTuple):
    """What an open weight file holds: {layer: {tensor: data set}} in the file's order.

    No data set is read before `values` asks for it: an untrusted file may declare terabytes in
    layers that no model has.

    `groups[layer]` is the group the layer lies in, the layer's own name unless it is nested;
    `names` are all layers listed in the file, those without weights included. `channel_order` is
    "rgb" in files that `write` wrote, else None: unknown.
    """

    path: Path
    layers: dict[str, dict[str, h5py.Dataset | np.ndarray]]
    groups: dict[str, str]
    names: set[str]
    channel_order: str | None


def layer_and_tensor(group: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """Splits the weight names of one group into (layer, tensor) pairs.

    `("rpn_model", ["rpn_conv_shared/kernel:0", "rpn_class_raw/kernel:0"])` gives the two nested
    layers. Where all weights belong to one layer, that layer carries the group's name, whatever
    its scope is called (wrappers such as TimeDistributed may insert their own).
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
    chunks = (f"{name}{number}" for number in count())
    parts = [name] if name in group.attrs else takewhile(group.attrs.__contains__, chunks)
    strings: list[str] = []
    for part in parts:
        # Before reading: a small file may repeat one long name any number of times.
        if len(strings) + math.prod(group.attrs.get_id(part).shape) > MOST_NAMES:
            raise ValueError(f"more than {MOST_NAMES} names in {part}")
        found = group.attrs[part]
        strings += [s.decode("utf8") if isinstance(s, bytes) else str(s) for s in found]
    return strings


def write_attribute(group: h5py.Group, name: str, strings: Iterable[str]) -> None:
    """Stores strings as an attribute of fixed-length bytes, in chunks below the HDF5 limit."""
    data = np.array([s.encode("utf8") for s in strings], dtype=np.bytes_)
    rows = max(1, ATTRIBUTE_LIMIT // max(1, data.itemsize))
    if len(data) <= rows:
        group.attrs[name] = data
        return
    for number, start in enumerate(range(0, len(data), rows)):
        group.attrs[f"{name}{number}"] = data[start : start + rows]


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[LegacyFile]:
    """A weight file, or the weights in a file of a whole model, open within the block.

    Raises:
        UserError: no such file, not HDF5, cut short, damaged, in another layout, or with links to
            other files; one line that says which.
    """
    path = Path(path)
    with _opened(path) as file:
        with _damage_named(path):
            listed = _listed(file, path)
        yield listed


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file. Raises UserError where it is not one."""
    _check_start(path)
    with _damage_named(path):
        # Without locks, which network file systems refuse; weight files are replaced, not changed.
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file


def values(file: LegacyFile, layer: str, tensor: str) -> np.ndarray:
    """The numbers of a tensor. Raises UserError where they are damaged."""
    with _damage_named(file.path):
        return np.asarray(file.layers[layer][tensor])


def read_shapes(path: str | os.PathLike) -> dict[str, dict[str, tuple[int, ...]]]:
    """{layer: {tensor: shape}} of a weight file. Raises as `open_weights`."""
    with open_weights(path) as file:
        return {
            layer: {tensor: data.shape for tensor, data in tensors.items()}
            for layer, tensors in file.layers.items()
        }


def ranks_in_file(path: str | os.PathLike) -> tuple[int, int]:
    """FPN_CLASSIF_FC_RANKS of the model that wrote a weight file; (0, 0) for whole layers.

    Raises:
        UserError: the file cannot be read.
    """
    with _opened(Path(path)) as file, _damage_named(Path(path)):
        names = read_attribute(_weights_root(file, Path(path)), "layer_names")
    if not any(name + THIN in names for name in COMPRESSIBLE):
        return 0, 0  # without reading hundreds of other layers
    shapes = read_shapes(path)
    thin = (shapes.get(name + THIN, {}).get("kernel") for name in COMPRESSIBLE)
    first, second = (0 if shape is None else int(shape[-1]) for shape in thin)
    return first, second


def _check_start(path: Path) -> None:
    """Raise UserError unless there is a regular file that begins as HDF5 does."""
    if not os.path.lexists(path):
        raise UserError(f"{one_line(path, 300)}: there is no such weight file")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a weight file (.h5) in it")
    require_regular(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror or error}") from error
    if start.startswith(HDF5_MAGIC):
        return
    if what := _what_is_it(start):
        raise UserError(f"{path} is not an HDF5 weight file: {what}")
    if CHECKPOINT_NAME.fullmatch(path.name):
        raise _damaged(path, "it is empty" if not start else "it is not an HDF5 weight file")
    what = (
        'save the weights with save_weights("....h5")'
        if start
        else ("it is empty; download or copy it again")
    )
    raise UserError(f"{path} is not an HDF5 weight file: {what}")


def _what_is_it(start: bytes) -> str | None:
    """What kind of file begins with these bytes; None if unknown."""
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the real file with `git lfs pull`"
    if start.startswith(b"PK"):
        return "it is a zip archive (perhaps a .keras model); save the weights as .h5 instead"
    if start.lstrip()[:1] == b"<":
        return "it is a web page; download the file itself"
    return None


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Damage that is found within the block becomes one line about the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Whatever the type: HDF5 and h5py report damage as OSError, KeyError, RuntimeError,
        # TypeError, UnicodeDecodeError, MemoryError and others.
        raise _damaged(path, reason_of(error)) from error


def _damaged(path: Path, reason: str) -> UserError:
    """What is wrong with a file, and which one to use instead."""
    reason = one_line(reason)
    checkpoint = CHECKPOINT_NAME.fullmatch(path.name)
    if checkpoint is None:
        return UserError(f"{path} is damaged or incomplete, get it again ({reason})")
    whole = _newest_whole(path, checkpoint[1])
    remedy = (
        f"resume from {whole}, the newest intact one next to it"
        if whole
        else "there is no intact one next to it, so train from other weights"
    )
    return UserError(f"{path} is a checkpoint that is damaged or incomplete ({reason}): {remedy}")


def _newest_whole(path: Path, stem: str) -> Path | None:
    """The newest other checkpoint of a run that can be opened."""
    with contextlib.suppress(OSError):
        for other in sorted(path.parent.glob(f"{glob.escape(stem)}[0-9]*.h5"), reverse=True):
            with contextlib.suppress(Exception):
                if other == path or not CHECKPOINT_NAME.fullmatch(other.name):
                    continue
                require_regular(other)
                with h5py.File(other, "r", locking=False) as file:
                    if _listed(file, other).layers:
                        return other
    return None


def _lists_layers(group: h5py.Group) -> bool:
    return "layer_names" in group.attrs or "layer_names0" in group.attrs


def _weights_root(file: h5py.File, path: Path) -> h5py.Group:
    if _lists_layers(file):
        return file
    if "model_weights" in file:
        root = _member(file, "model_weights", h5py.Group, path)
        if _lists_layers(root):
            return root
    if "layers" in file:
        raise UserError(
            f"{path} is a Keras 3 .weights.h5 file, which does not name its layers: load it with "
            "keras_model.load_weights into the model that wrote it, and save that with save_weights"
        )
    raise UserError(f"{path} is an HDF5 file but holds no Keras weights (no layer_names)")


def _member(group: h5py.Group, name: str, kind: type, path: Path) -> Any:
    """The group or data set at a path below a group.

    Only hard links are followed: Keras writes no others, and external ones lead to other files of
    the user who opens this one.
    """
    for part in filter(None, name.split("/")):
        link = group.get(part, getlink=True)
        if link is None:
            raise KeyError(f"{one_line(name)} is listed but missing")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path}: {one_line(name)} is a link elsewhere: links are not followed")
        group = group[part]
    if not isinstance(group, kind):
        raise TypeError(f"{one_line(name)} is of another kind")
    return group


def _listed(file: h5py.File, path: Path) -> LegacyFile:
    """All data sets that the file lists, none of them read."""
    order = file.attrs.get("channel_order")
    order = order.decode() if isinstance(order, bytes) else order
    result = LegacyFile(path, {}, {}, set(), order if isinstance(order, str) else None)
    root = _weights_root(file, path)
    for group in read_attribute(root, "layer_names"):
        inside = _member(root, group, h5py.Group, path)
        names = read_attribute(inside, "weight_names")
        result.names.add(group)
        for (layer, tensor), name in zip(layer_and_tensor(group, names), names, strict=True):
            data = _member(inside, name, h5py.Dataset, path)
            _check_data_set(data, f"{layer}/{tensor}", path)
            result.layers.setdefault(layer, {})[tensor] = data
            result.groups[layer] = group
            result.names.add(layer)
    return result


def _check_data_set(data: h5py.Dataset, name: str, path: Path) -> None:
    """Raise UserError for values that lie in other files, are not numbers, or are packed so that
    reading them takes far more memory than they need."""
    if data.is_virtual or data.external:
        raise UserError(f"{path}: the values of {one_line(name)} lie in other files: not read")
    if data.shape is None or data.dtype.kind not in "fiu":
        raise UserError(f"{path}: {one_line(name)} holds no numbers")
    if data.chunks and math.prod(data.chunks) > max(math.prod(data.shape), SMALL_CHUNK):
        raise UserError(f"{path}: {one_line(name)} is stored in chunks larger than itself")


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
    image = _file_image(groups, keras_version, half)
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)


def _file_image(groups: Mapping[str, Mapping[str, np.ndarray]], keras_version: str, half: bool):
    """The bytes of the file. HDF5 never touches the disk: where that is full, it ends the whole
    process with a segmentation fault when its file is closed."""
    options = {"compression": "gzip", "shuffle": True} if half else {}
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
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
    return image.getbuffer()


def _storage(tensor: str, array: np.ndarray, half: bool) -> np.ndarray:
    if array.dtype.name == "bfloat16":  # HDF5 has no such type
        array = array.astype(np.float32)
    if not half or tensor != "kernel":
        return array
    largest = np.abs(array).max(initial=0)
    return array.astype(np.float16) if largest <= np.finfo(np.float16).max else array
