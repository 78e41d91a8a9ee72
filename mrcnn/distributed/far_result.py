"""What a worker sends back for an image: all that the writers of results need, and no more."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mrcnn.results.result import Result

if TYPE_CHECKING:
    import pandas as pd


class Wanted(NamedTuple):
    """What is needed of a result besides labels, scores and classes."""

    table: bool = False  # measurements
    shown: bool = False  # the image as `Result.preview` shows it

    @classmethod
    def of(cls, formats: Any) -> Wanted:
        """For these formats of `results.writers`."""
        chosen = set(formats)
        return cls(bool(chosen & {"report", "measurements"}), bool(chosen & {"report", "pictures"}))


class Gone(NamedTuple):
    """The shape and type of an image that stays with the worker."""

    shape: tuple[int, ...]
    dtype: np.dtype


class PackedLabels(NamedTuple):
    """Labels int [H, W], compressed about fiftyfold."""

    shape: tuple[int, int]
    kind: str
    data: bytes

    @classmethod
    def of(cls, labels: np.ndarray) -> PackedLabels:
        kind = np.uint16 if labels.max(initial=0) < 2**16 else np.int32
        data = zlib.compress(np.ascontiguousarray(labels, kind).tobytes(), 1)
        return cls(labels.shape, np.dtype(kind).str, data)

    def unpacked(self) -> np.ndarray:
        """int32 [H, W]."""
        flat = np.frombuffer(zlib.decompress(self.data), self.kind)
        return flat.reshape(self.shape).astype(np.int32)


@dataclass(frozen=True, repr=False)
class FarResult(Result):
    """A `Result` whose image is elsewhere: measured and drawn there, as far as was requested."""

    table: pd.DataFrame | None = None
    shown: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of(cls, result: Result, wanted: Wanted) -> FarResult:
        """From a result whose image is here."""
        known = {name: getattr(result, name) for name in Result.__dataclass_fields__}
        known["image"] = Gone(tuple(result.image.shape), np.dtype(result.image.dtype))
        table = result.to_dataframe() if wanted.table else None
        return cls(**known, table=table, shown=result.preview() if wanted.shown else None)

    def beside(self, image: Any) -> Result:
        """The result with its image. image: all of it, as the file has it."""
        known = {name: getattr(self, name) for name in Result.__dataclass_fields__}
        if self.reduction != 1:
            # The level that was used; a little less, as the quotient is rounded.
            image = image.reduced(self.scale / self.reduction * (1 - 1e-9))
        return Result(**{**known, "image": image})

    def to_dataframe(self) -> pd.DataFrame:
        if self.table is None:
            raise RuntimeError("the table was not requested")
        return self.table

    def preview(self) -> tuple[np.ndarray, np.ndarray]:
        if self.shown is None:
            raise RuntimeError("the image was not requested")
        return self.shown

    def __reduce__(self) -> tuple:
        known = {name: getattr(self, name) for name in self.__dataclass_fields__}
        known["labels"] = PackedLabels.of(self.labels)
        if self.shown is not None:
            known["shown"] = _packed_preview(*self.shown)
        return _unpacked, (known,)


def _unpacked(known: dict[str, Any]) -> FarResult:
    known = {**known, "labels": known["labels"].unpacked()}
    if known["shown"] is not None:
        image, labels = known["shown"]
        image = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        known["shown"] = image, labels.unpacked()
    return FarResult(**known)


def _packed_preview(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, PackedLabels]:
    """A grey image with one channel only, and packed labels."""
    if (image == image[..., :1]).all():
        image = np.ascontiguousarray(image[..., :1])
    return image, PackedLabels.of(labels)
