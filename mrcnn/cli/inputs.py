"""What `detect` works on: a subset of a data set, or image files of any kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mrcnn.errors import UserError

if TYPE_CHECKING:
    from mrcnn.images.image_files import About, Unreadable

# Images of more bytes are not loaded as a whole: they are read tile by tile.
MOST_BYTES = 2**28


class Input(NamedTuple):
    """One image to process."""

    name: str  # of its result files
    load: Callable[
        [], Any
    ]  # can be pickled; returns an image for `Segmenter.detect`, or raises UserError
    microns: float | None = None  # pixel size in microns, if the file gives it
    about: About | None = None  # which part of its file it is
    state: Callable[[], str] = str  # returns a text that changes when the file does
    image: Any = None  # the image itself, if it need not be read as a whole


def of_dataset(dataset) -> list[Input]:
    """The images of a prepared data set, in its order."""

    def loader(number: int) -> Callable[[], Any]:
        return partial(dataset.open_image, number)

    def state(number: int) -> Callable[[], str]:
        return lambda: str(dataset.fingerprint(number))

    return [Input(dataset.image_reference(i), loader(i), state=state(i)) for i in dataset.image_ids]


def channel_of(named: str | None) -> int | str | None:
    """--channel as `image_files.find_images` takes it: a number from 1, a name, or None."""
    return int(named) if named is not None and named.isdecimal() else named


def of_files(
    paths: Sequence[str],
    channel: int | str | None = None,
    output: str | os.PathLike | None = None,
    left_out: list[Unreadable] | None = None,
) -> tuple[list[Input], list[Unreadable]]:
    """The images in files, folders and patterns, and what cannot be read, with the reasons.

    channel: number, from 1, or name of the channel to take; output, left_out: see `find_images`.
    Raises UserError if no image can be read.
    """
    from mrcnn.images.image_files import find_images

    images, unreadable = find_images(paths, channel, output, left_out)
    if not images and not unreadable:
        raise UserError("no images: everything that was found was left out")
    if not images:
        first = unreadable[0]
        raise UserError(
            f"none of {len(unreadable)} files can be read; {first.path}: {first.reason}"
        )

    def loader(image: Any) -> Callable[[], Any]:
        size = image.dtype.itemsize * image.shape[0] * image.shape[1] * image.shape[2]
        # How much of a pyramid is needed depends on the scale, which is not known yet.
        is_lazy = size > MOST_BYTES or len(image.levels) > 1
        return partial(_itself, image) if is_lazy else image.read

    return [Input(p.name, loader(p), p.mpp, p.about, p.state, p) for p in images], unreadable


def _itself(image: Any) -> Any:
    return image
