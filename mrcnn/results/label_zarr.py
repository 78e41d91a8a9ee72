"""Label maps as OME-Zarr (version 0.4): napari, QuPath, Fiji and dask read parts of them.

Made for slides: chunks that are compressed one by one, and smaller levels for viewing.
"""

from __future__ import annotations

import os

import numpy as np

from mrcnn.atomic import atomic_folder
from mrcnn.errors import UserError

# Side of the chunks; levels are halved until their longer side is no longer than that.
CHUNK = 1024


def require_zarr() -> None:
    """Raise UserError unless the package is installed."""
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise UserError(
            '--format zarr needs the package zarr: pip install "mrcnn-keras[zarr]"'
        ) from None


def write_label_zarr(
    path: str | os.PathLike, labels: np.ndarray, microns: float | None = None
) -> None:
    """Write a label map as a folder, whole or not at all; if the map is in a file, only one row of
    chunks at a time is in memory.

    Args:
        path: of the folder, `<name>.ome.zarr`; an existing one is replaced.
        labels: int [H, W], 0 background. Stored with 16 bits, or 32 if there are more labels.
            Every smaller level takes every second row and column of the one before.
        microns: pixel size in microns, None if it is not known.

    Raises:
        UserError: the package zarr is not installed, or the folder cannot be written.
    """
    require_zarr()
    import zarr

    kind = np.uint16 if labels.max(initial=0) < 2**16 else np.uint32
    with atomic_folder(path) as temporary:
        group = zarr.create_group(temporary, zarr_format=2)
        steps = _steps(max(labels.shape))
        for number, step in enumerate(steps):
            level = labels[::step, ::step]
            array = group.create_array(
                str(number),
                shape=level.shape,
                chunks=(CHUNK, CHUNK),
                dtype=kind,
                chunk_key_encoding={"name": "v2", "separator": "/"},
            )
            for top in range(0, len(level), CHUNK):
                array[top : top + CHUNK] = level[top : top + CHUNK].astype(kind)
        group.attrs.update(_metadata(steps, microns))


def _steps(side: int) -> list[int]:
    """1, 2, 4, ... until a map of this longer side, sampled in such steps, fits into one chunk."""
    steps = [1]
    while side > steps[-1] * CHUNK:
        steps.append(2 * steps[-1])
    return steps


def _metadata(steps: list[int], microns: float | None) -> dict:
    """Attributes of the group. No translations: pixel y of a level is the one at step * y."""
    unit = {} if microns is None else {"unit": "micrometer"}
    datasets = []
    for number, step in enumerate(steps):
        scale = {"type": "scale", "scale": [step * (microns or 1.0)] * 2}
        datasets.append({"path": str(number), "coordinateTransformations": [scale]})
    axes = [{"name": name, "type": "space", **unit} for name in "yx"]
    multiscale = {"version": "0.4", "axes": axes, "datasets": datasets, "type": "nearest"}
    return {"multiscales": [multiscale], "image-label": {"version": "0.4"}}
