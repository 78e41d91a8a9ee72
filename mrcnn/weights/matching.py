"""Which tensor of a weight file goes to which variable of a model, and the report about it.

`weight_files.py` is the entry point; this module decides, checks, assigns and verifies.

Shape shorthand: C input channels, K classes.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from mrcnn.errors import UserError, one_line
from mrcnn.weights import legacy_h5

FIRST_LAYER = "conv1"
CLASS_LAYER = "mrcnn_class_logits"
# A file with layers of these kinds is a detector, without them a backbone.
DETECTOR_PREFIXES = ("mrcnn_", "rpn_", "fpn_")
BACKBONE_PATTERN = r"conv1|bn_conv1|(res|bn)\d\w+_branch\w+"

# {layer: [(tensor name, variable), ...]} of a model, see `weight_files.layer_tensors`.
Targets = Mapping[str, list[tuple[str, keras.Variable]]]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What loading a weight file did.

    Attributes:
        path: the file.
        assigned: tensors of the model that took values from the file.
        total: tensors the model has.
        left_over: layers of the file that the model did not use.
        initial: layers of the model that keep the values they had.
        skipped: (layer, reason) for layers that file and model share but were not loaded.
        notes: what else was done, e.g. that conv1 was turned from BGR to RGB.
    """

    path: str
    assigned: int
    total: int
    left_over: tuple[str, ...] = ()
    initial: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def demand_all(self) -> "LoadReport":
        """The report itself. Raises UserError unless every layer of the model was loaded."""
        if not self.initial:
            return self
        raise UserError(
            f"{self.path} fills {self.assigned} of the network's {self.total} tensors, which is "
            f"not enough for detection; it leaves {shorten(self.initial)} at random values: name "
            "the weights of a whole network, or train from these first"
        )

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"Weights from {self.path}: {self.assigned} of {self.total} tensors assigned."]
        lines += [note[0].upper() + note[1:] + "." for note in self.notes]
        reasons: dict[str, list[str]] = {}
        for layer, reason in self.skipped:
            reasons.setdefault(reason, []).append(layer)
        lines += [f"Skipped, {reason}: {shorten(layers)}." for reason, layers in reasons.items()]
        unknown = [name for name in self.left_over if name not in dict(self.skipped)]
        if unknown:
            lines.append(f"In the file, not in the model: {shorten(unknown)}.")
        if self.initial:
            lines.append(f"Left at their initial values: {shorten(self.initial)}.")
        return "\n".join(lines)


def shorten(names: Iterable[str], most: int = 6) -> str:
    """`a, b, c and 7 more`, with the number of names in front when there are many."""
    names = [one_line(name) for name in names]
    if len(names) <= most:
        return ", ".join(names)
    return f"{len(names)} layers ({', '.join(names[: most - 1])} and {len(names) - most + 1} more)"


class Plan:
    """Which tensor of the file goes to which variable, made and checked before any assignment."""

    def __init__(self, file: legacy_h5.LegacyFile, targets: Targets, exclude: Iterable[str]):
        self.file, self.targets, self.exclude = file, targets, exclude
        self.layers = dict(file.layers)  # data sets, until `match` reads those that fit
        self.matches: dict[str, list[tuple[str, keras.Variable, np.ndarray]]] = {}
        self.skipped: list[tuple[str, str]] = []
        self.misfits: dict[str, str] = {}
        self.notes: list[str] = []

    def adapt_first_layer(self, is_bgr: bool) -> None:
        """Converts `conv1` to RGB and to the model's number of channels."""
        kernel = self.layers.get(FIRST_LAYER, {}).get("kernel")
        variable = dict(self.targets.get(FIRST_LAYER, ())).get("kernel")
        if kernel is None or variable is None or len(kernel.shape) != 4:
            return
        height, width, channels, filters = variable.shape
        if kernel.shape != (height, width, 3, filters):
            return
        kernel = legacy_h5.values(self.file, FIRST_LAYER, "kernel")
        if is_bgr:
            kernel = np.ascontiguousarray(kernel[:, :, ::-1])
            self.notes.append(f"turned {FIRST_LAYER} from BGR to RGB")
        if channels != 3:
            kernel = adapt_channels(kernel, channels)
            self.notes.append(f"adapted {FIRST_LAYER} from 3 to {channels} channels")
        self.layers[FIRST_LAYER] = {**self.layers[FIRST_LAYER], "kernel": kernel}

    def match(self, skip_misfits: bool) -> None:
        """Finds the layers that file and model share.

        Raises:
            UserError: shapes differ (unless `skip_misfits`), values are not ones that a network
                can use, or there is no common layer.
        """
        for layer, pairs in self.targets.items():
            if layer not in self.layers:
                continue
            if layer in self.exclude or self.file.groups[layer] in self.exclude:
                self.skipped.append((layer, "excluded"))
            elif difference := _difference(pairs, self.layers[layer]):
                self.misfits[layer] = difference
                self.skipped.append((layer, "different shape in the file"))
            else:
                self.matches[layer] = [(n, v, self._read(layer, n, v)) for n, v in pairs]
        self._drop_lone_batch_norms()
        if self.misfits and not skip_misfits:
            raise UserError(self._misfit_message())
        if not self.matches:
            raise UserError(
                f"{self.file.path} has no layer for this model (it holds "
                f"{shorten(self.layers) or 'nothing'}); it is a file of another network"
            )

    def demand_all(self) -> None:
        """Raises UserError unless file and model have the same layers."""
        absent = [name for name in self.targets if name not in self.layers]
        surplus = self._left_over()
        if absent or surplus:
            raise UserError(
                f"{self.file.path} does not hold the model's layers "
                f"(absent: {shorten(absent) or 'none'}; surplus: {shorten(surplus) or 'none'}); "
                "load what they share with by_name=True"
            )

    def _read(self, layer: str, name: str, variable: keras.Variable) -> np.ndarray:
        """A tensor in its variable's type, checked."""
        array = self.layers[layer][name]
        if not isinstance(array, np.ndarray):  # not read yet
            array = legacy_h5.values(self.file, layer, name)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            array = array.astype(keras.backend.standardize_dtype(variable.dtype), copy=False)
        wrong = None
        if not np.isfinite(array).all():
            wrong = f"holds values that are not finite in {array.dtype}"
        elif name == "moving_variance" and (array < 0).any():
            wrong = "holds negative variances"
        if wrong:
            raise UserError(f"{self.file.path}: {layer}/{name} {wrong}; use an earlier checkpoint")
        return array

    def _drop_lone_batch_norms(self) -> None:
        # Statistics of activations other than its kernel's do harm, all the more when frozen.
        for layer in list(self.matches):
            kernel = convolution_before(layer)
            absent = kernel in self.targets and kernel not in self.file.layers
            if kernel and (absent or kernel in self.misfits):
                del self.matches[layer]
                reason = "batch norm of a kernel that is " + ("absent" if absent else "skipped")
                self.skipped.append((layer, reason))

    def _misfit_message(self) -> str:
        """One line: what fits, what does not, which option to use."""
        ours = describe({name: dict(pairs) for name, pairs in self.targets.items()})
        theirs = describe(self.layers)
        left_over = self._left_over()
        fits = sum(map(len, self.matches.values()))
        total = sum(map(len, self.targets.values()))
        parts = [f"{self.file.path} ({theirs}) does not fit the model ({ours})"]
        parts.append(f"{fits} of {total} tensors fit")
        shapes = [f"{layer} has {text}" for layer, text in self.misfits.items()]
        more = f" and {len(shapes) - 4} more layers" if len(shapes) > 4 else ""
        parts.append("but " + ", ".join(shapes[:4]) + more)
        if left_over:
            parts.append(f"the model has no place for {shorten(left_over, 3)}")
        names = ", ".join(repr(layer) for layer in self.misfits)
        advice = f"load the rest with exclude=[{names}]"
        if theirs.endswith("81 classes"):
            advice += " (command line: --weights coco)"
        depth = theirs.split(",")[0]
        if depth.startswith("ResNet") and depth != ours.split(",")[0]:
            backbone = depth.lower().replace("-", "")
            advice += f', and set BACKBONE = "{backbone}" in the configuration to use all of it'
        return "; ".join([*parts, advice])

    def assign(self) -> None:
        """Copies the tensors and reads every one back.

        Raises:
            RuntimeError: a variable differs from the file.
        """
        for layer, tensors in self.matches.items():
            for name, variable, array in tensors:
                variable.assign(array)
                _verify(f"{layer}/{name}", variable, array, self.file.path)

    def _left_over(self) -> list[str]:
        return [layer for layer in self.layers if layer not in self.targets]

    def _absent_note(self) -> list[str]:
        """A note of backbone layers that the file should have but does not."""
        ours = [n for n in self.targets if re.fullmatch(BACKBONE_PATTERN, n)]
        absent = [n for n in ours if n not in self.layers]
        if not absent or len(absent) == len(ours):
            return []
        return [f"the file lacks {len(absent)} backbone layers: {', '.join(absent)}"]

    def report(self) -> LoadReport:
        """What was loaded and what was not."""
        skipped = [layer for layer, _ in self.skipped]
        return LoadReport(
            path=str(self.file.path),
            assigned=sum(map(len, self.matches.values())),
            total=sum(map(len, self.targets.values())),
            left_over=tuple(n for n in self.layers if n not in self.targets or n in skipped),
            initial=tuple(n for n in self.targets if n not in self.matches),
            skipped=tuple(self.skipped),
            notes=(*self.notes, *self._absent_note()),
        )


def _difference(pairs, arrays: dict[str, np.ndarray]) -> str | None:
    """What differs between a layer's variables and a file's arrays, in words; None if nothing."""
    variables = dict(pairs)
    if variables.keys() != arrays.keys():
        return f"{'+'.join(arrays)} in the file, {'+'.join(variables)} in the model"
    for name, variable in variables.items():
        theirs, ours = arrays[name].shape, tuple(variable.shape)
        if theirs != ours:
            return f"{name} {theirs} in the file, {ours} in the model"
    return None


def _verify(name: str, variable: keras.Variable, array: np.ndarray, path: Path) -> None:
    held = keras.ops.convert_to_numpy(variable)
    if not np.array_equal(held, array.astype(held.dtype)):
        raise RuntimeError(f"{name} reads back different from what {path} holds")


def convolution_before(batch_norm: str) -> str | None:
    """The layer that a batch norm with such a name normalises; None for other layers.

    `bn_conv1` -> `conv1`, `bn2a_branch1` -> `res2a_branch1`, `mrcnn_mask_bn3` ->
    `mrcnn_mask_conv3`.
    """
    if batch_norm == "bn_conv1":
        return FIRST_LAYER
    if re.fullmatch(r"bn\d\w+_branch\w+", batch_norm):
        return "res" + batch_norm[2:]
    if re.fullmatch(r"mrcnn_(class|mask)_bn\d", batch_norm):
        return batch_norm.replace("_bn", "_conv")
    return None


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution for RGB [h, w, 3, n] turned into one for C channels [h, w, C, n].

    An image whose channels are all alike gives the same activations before and after: one or two
    channels share the sum of the three; of more than three, the first three keep the RGB kernels
    and the others get their mean, all scaled by 3 / C.
    """
    mean = kernel.astype(np.float32).mean(axis=2, keepdims=True)
    if channels < 3:
        adapted = np.repeat(mean, channels, axis=2)
    else:
        adapted = np.concatenate([kernel, np.repeat(mean, channels - 3, axis=2)], axis=2)
    return (adapted * (3 / channels)).astype(np.float32)


def describe(layers: Mapping[str, Mapping]) -> str:
    """A network in a few words, e.g. `ResNet-101, 81 classes`, from {layer: {tensor: array}}."""
    blocks = len([layer for layer in layers if re.fullmatch(r"res4\w_branch2a", layer)])
    words = [{6: "ResNet-50", 23: "ResNet-101"}.get(blocks, "other backbone")]
    kernel = layers.get(CLASS_LAYER, {}).get("kernel")
    words.append("no class head" if kernel is None else f"{kernel.shape[-1]} classes")
    return ", ".join(words)


def is_backbone(layers: Iterable[str]) -> bool:
    """Whether a file with these layers is a bare backbone."""
    layers = list(layers)
    return FIRST_LAYER in layers and not any(n.startswith(DETECTOR_PREFIXES) for n in layers)


def in_model_order(file: legacy_h5.LegacyFile, targets: Targets) -> legacy_h5.LegacyFile:
    """The open file under the model's layer names, where order and shapes of all tensors agree.

    Files with the same set of names are returned as they are, because Keras versions order the
    layers of a graph differently; so are files that do not agree.
    """
    ours = [[tuple(v.shape) for _, v in pairs] for pairs in targets.values()]
    theirs = [[a.shape for a in tensors.values()] for tensors in file.layers.values()]
    if set(file.layers) == set(targets) or ours != theirs:
        return file
    renamed = {
        layer: dict(zip([name for name, _ in pairs], tensors.values(), strict=True))
        for (layer, pairs), tensors in zip(targets.items(), file.layers.values(), strict=True)
    }
    return file._replace(layers=renamed, groups={layer: layer for layer in renamed})
