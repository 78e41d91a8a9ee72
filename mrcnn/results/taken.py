"""What was used of an image, and how its values were read: nothing is guessed silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrcnn.results.result import Result


@dataclass(frozen=True)
class Taken:
    """What the line, the table and the report say about an image."""

    height: int
    width: int
    dtype: str
    channels: str  # such as "RGB" or "channel 2 of 3 (DAPI)"
    plane: str = ""
    microns: float | None = None  # pixel size
    microns_from: str = ""  # what gives it
    inverted: bool = False
    scale: float | None = None  # of the image, for the network
    notes: tuple[str, ...] = ()  # what was guessed, changed or left out

    @classmethod
    def of(
        cls,
        result: Result,
        channels: str = "",
        plane: str = "",
        microns_from: str = "",
        notes: Sequence[str] = (),
    ) -> Taken:
        """From a result, with what is known about the file: see `images.image_files.About`."""
        count = result.image.shape[2] if len(result.image.shape) == 3 else 1
        by_count = {1: "grey", 2: "grey", 3: "RGB", 4: "RGB"}.get(count, f"{count} channels")
        exposure = result.exposure
        notes = dict.fromkeys((*notes, exposure.warning) if exposure.warning else notes)
        return cls(
            *result.labels.shape,
            str(result.image.dtype),
            channels or by_count,
            plane,
            result.microns,
            microns_from if result.microns is not None else "",
            exposure.inverted,
            result.scale,
            tuple(notes),
        )

    def __str__(self) -> str:
        """One line."""
        size = "pixel size unknown"
        if self.microns is not None:
            source = f" ({self.microns_from})" if self.microns_from else ""
            size = f"{self.microns:.4g} microns per pixel{source}"
        parts = (
            f"{self.height} x {self.width} pixels of {self.dtype}",
            self.channels,
            f"plane {self.plane}" if self.plane else "",
            size,
            "inverted" if self.inverted else "not inverted",
            f"scale {self.scale:.3g}" if self.scale is not None else "",
            *self.notes,
        )
        return ", ".join(filter(None, parts))

    def row(self) -> dict[str, object]:
        """Columns of the table."""
        return {
            "channels": self.channels,
            "microns_per_pixel": self.microns,
            "microns_from": self.microns_from,
            "inverted": self.inverted,
            "scale": self.scale,
        }
