"""Many images, one after another, in this process or on a cluster; see `Segmenter.map`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mrcnn.errors import UserError, one_line
from mrcnn.images.given import opened
from mrcnn.results.result import Result


def detect_many(segmenter: Any, images: Any, client: Any, errors: str, how: dict[str, Any]) -> Any:
    """`Segmenter.map`."""
    if errors not in ("raise", "return"):
        raise UserError(f'errors = {one_line(repr(errors))} is not allowed: "raise" or "return"')
    if hasattr(images, "__dask_graph__"):
        from mrcnn.distributed.arrays import labels_of

        if client is not None or errors != "raise":
            raise UserError(
                "client and errors are not supported for a dask.array: its scheduler decides"
            )
        return labels_of(segmenter, images, **how)
    return _results(segmenter, images, client, errors, how)


def _results(
    segmenter: Any, images: Iterable[Any], client: Any, errors: str, how: dict[str, Any]
) -> Iterator[Result | Exception]:
    given = (_or_error(opened, image) for image in images)
    if client is None:
        found = (
            image if isinstance(image, Exception) else _or_error(segmenter.detect, image, **how)
            for image in given
        )
    else:
        from mrcnn.distributed.team import results

        found = results(segmenter, given, client, how)
    with contextlib.closing(found):
        for one in found:
            if isinstance(one, Exception) and errors == "raise":
                raise one
            yield one


def _or_error(function: Callable, *arguments: Any, **how: Any) -> Any:
    """What a function returns, or the error that it raises for an image."""
    try:
        return function(*arguments, **how)
    except (UserError, MemoryError) as error:
        return error
