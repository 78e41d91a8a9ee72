"""From napari layers to arrays, and back to the layers' places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import napari

# How a layer lies in the world, apart from its translation; older versions of napari lack some.
PLACEMENT = ("scale", "rotate", "shear", "affine", "units", "axis_labels")


def microns_of(layer: napari.layers.Image) -> float | None:
    """The side of a pixel from a layer's scale, where this is in a unit of length; None without
    one, and for pixels that are not square."""
    units = getattr(layer, "units", ())[-2:]
    if not units or not all(unit.is_compatible_with("micrometer") for unit in units):
        return None
    height, width = (
        abs(float(scale)) * float((1 * unit).to("micrometer").magnitude)
        for scale, unit in zip(layer.scale[-2:], units, strict=True)
    )
    return height if np.isclose(height, width, rtol=0.01) else None


def shown_plane(layer: napari.layers.Image, point: Sequence[float]) -> tuple[int, ...]:
    """The index, on the axes of a layer's stack, of the plane that the viewer shows.

    point: `viewer.dims.point`, where the sliders are in the world.
    """
    last = np.array(layer.data.shape if not layer.multiscale else layer.data[0].shape)
    place = np.round(layer.world_to_data(point)).astype(int)[: layer.ndim - 2]
    return tuple(int(i) for i in np.clip(place, 0, last[: layer.ndim - 2] - 1))


def placement(layer: napari.layers.Image, plane: Sequence[int] = ()) -> dict[str, Any]:
    """Keywords for a label layer that is to lie where an image layer, or a plane of it, lies."""
    found = {name: getattr(layer, name) for name in PLACEMENT if hasattr(layer, name)}
    corner = np.zeros(layer.ndim)
    corner[: len(plane)] = plane
    moved = np.subtract(layer.data_to_world(corner), layer.data_to_world(np.zeros(layer.ndim)))
    # In the world the affine transform comes after the translation.
    found["translate"] = layer.translate + np.linalg.solve(layer.affine.linear_matrix, moved)
    return found


def corrected(
    image: napari.layers.Image, labels: napari.layers.Labels, point: Sequence[float]
) -> tuple[str, np.ndarray, np.ndarray]:
    """The plane of a label layer that the viewer shows, and the image plane that it belongs to.

    point: see `shown_plane`.

    Returns:
        A name; the image [H, W] or [H, W, 3 or 4]; the labels [H, W].
    """
    place = shown_plane(labels, point)
    if labels.ndim >= image.ndim:  # labels of a single plane have their place in the world
        point = labels.data_to_world((*place, 0, 0))
    plane = shown_plane(image, point)
    data = image.data[0] if image.multiscale else image.data
    numbers = labels.data[0] if labels.multiscale else labels.data
    name = "_".join([image.name, *(f"{number:03d}" for number in plane)])
    return name, np.asarray(data[plane]), np.asarray(numbers[place])
