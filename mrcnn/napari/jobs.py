"""The search that the widget runs, on arrays and without napari.

Shapes: H, W pixels of a plane; "..." the axes before them that make a stack of planes, often none.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mrcnn
from mrcnn.data.synthetic import bright_ellipses
from mrcnn.segmenter import Segmenter
from mrcnn.weights.download import resolve_weights

if TYPE_CHECKING:
    import pandas as pd

# Planes of more bytes are not read whole but tile by tile.
MOST_BYTES = 2**28


def find(
    data: Any,
    detector: Segmenter,
    *,
    rgb: bool = False,
    plane: Sequence[int] | None = None,
    diameter: float | None = None,
    microns: float | None = None,
    inverted: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, pd.DataFrame, dict[str, Any]]:
    """Find the instances in one plane of a layer, or in all of its planes, each on its own.

    Args:
        data: of an image layer, [..., H, W], or [..., H, W, 3 or 4] if `rgb`: an array, or an
            object that gives one when sliced, such as a Zarr or dask array.
        detector: as `mrcnn.load` returns it.
        plane: the plane's index on the axes "..."; None for all planes.
        diameter, microns, inverted: see `Segmenter.detect`.
        progress: called with the number of tiles done and in all, or of planes where there are no
            tiles.

    Returns:
        labels int32 [..., H, W], "..." being 1, ..., 1 for one plane. Every instance of the stack
        has its own number; 0 is background.
        The features of a label layer, a row per instance: `index`, its number; `axis_0`, ..., the
        index of its plane in a stack; then the columns of `Result.to_dataframe`.
        The layer's metadata: microns, and for every plane its scale and whether it was inverted.

    Raises:
        UserError: the values are not an image's.
    """
    import pandas as pd

    stack = tuple(data.shape[: -3 if rgb else -2])
    planes = list(np.ndindex(*stack)) if plane is None else [tuple(plane)]
    labels = np.zeros((len(planes), *data.shape[len(stack) : len(stack) + 2]), np.int32)
    tables, scales, were_inverted = [], [], []
    for number, index in enumerate(planes):

        def advance(done: int, total: int, number: int = number) -> None:
            if progress:
                progress(number * total + done, len(planes) * total)

        result = detector.detect(
            _image(data, index),
            diameter=diameter,
            microns=microns,
            inverted=inverted,
            progress=advance,
        )
        advance(1, 1)
        first = sum(map(len, tables))
        if len(planes) == 1:
            labels = result.labels[np.newaxis]  # without a copy: it may be a large file
        else:
            labels[number] = np.where(result.labels > 0, result.labels + first, 0)
        table = result.to_dataframe().rename(columns={"label": "index"})
        table["index"] += first
        for axis, place in enumerate(index):
            table.insert(1 + axis, f"axis_{axis}", place)
        tables.append(table)
        scales.append(result.scale)
        were_inverted.append(result.exposure.inverted)
    shape = stack if plane is None else (1,) * len(stack)
    return (
        labels.reshape(*shape, *labels.shape[1:]),
        pd.concat(tables, ignore_index=True),
        {"microns": microns, "scales": scales, "inverted": were_inverted},
    )


class _Plane:
    """A plane of a stack, of which only the requested parts are read."""

    def __init__(self, data: Any, index: tuple[int, ...]):
        self.data, self.index = data, index
        self.shape, self.dtype = tuple(data.shape[len(index) :]), np.dtype(data.dtype)

    def __getitem__(self, window: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self.data[(*self.index, *window)])


def _image(data: Any, index: tuple[int, ...]) -> np.ndarray | _Plane:
    """A plane as `Segmenter.detect` takes it. One that fits into memory is read once: the chunks
    of lazy arrays may be large, and measuring reads around every instance."""
    plane = _Plane(data, index)
    size = int(np.prod(plane.shape, dtype=np.int64)) * plane.dtype.itemsize
    return plane[:, :] if size <= MOST_BYTES else plane


def load_detector(weights: str) -> Segmenter:
    """`mrcnn.load`, which takes seconds; the last detector is kept until its file changes."""
    return _load(weights, Path(resolve_weights(weights)).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load(weights: str, changed: int) -> Segmenter:
    with own_symbols():
        import keras  # noqa: F401 (and with it TensorFlow)
    return mrcnn.load(weights)


@contextlib.contextmanager
def own_symbols() -> Iterator[None]:
    """Libraries that are loaded in the block call their own functions, not those of the same name
    that are loaded already.

    TensorFlow and Mesa, which draws napari's canvas on many Linux systems, both contain LLVM, in
    different versions. Without this Python crashes where TensorFlow is imported after Mesa.
    """
    flags = sys.getdlopenflags() if hasattr(os, "RTLD_DEEPBIND") else None
    if flags is not None:
        sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        yield
    finally:
        if flags is not None:
            sys.setdlopenflags(flags)


def synthetic_nuclei(side: int = 512, seed: int = 0) -> list[tuple[np.ndarray, dict, str]]:
    """Sample data: a fluorescence image uint8 [side, side] of bright blurred ellipses."""
    return [(bright_ellipses(side, seed), {"name": "synthetic nuclei"}, "image")]
