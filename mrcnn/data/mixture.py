"""Several data sets as one, each with its share of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrcnn.data.dataset import Dataset
from mrcnn.data.sampling import sampling_weights
from mrcnn.errors import UserError

if TYPE_CHECKING:
    from mrcnn.config import Config


class Mixture(Dataset):
    """A prepared data set of the images of others.

        mixture = Mixture(photographs, [(synthetic, 0.2)])

    Of the images that training takes, a share of .2 is synthetic, however many images each data set
    has. Within a data set its own `sampling_weight` counts.
    """

    def __init__(self, main: Dataset, others: Sequence[tuple[Dataset, float]]):
        """
        Args:
            main: prepared; its classes are those of the mixture, and its share is the rest of 1.
            others: prepared, with classes of the same names in the same order, and their shares.

        Raises:
            UserError: a share is not above 0, all together are 1 or more, or classes differ.
        """
        super().__init__()
        shares = [share for _, share in others]
        if not all(share > 0 for share in shares) or sum(shares) >= 1:
            raise UserError(f"shares {shares}: each must be above 0, and all together below 1")
        self.parts = [main, *(part for part, _ in others)]
        self.class_info = [dict(info) for info in main.class_info]
        self._places: list[tuple[Dataset, int]] = []
        self._weights: list[float] = []
        for part, share in zip(self.parts, [1 - sum(shares), *shares], strict=True):
            if part.class_names != main.class_names:
                raise UserError(f"classes {part.class_names} do not match {main.class_names}")
            weights = sampling_weights(part)
            self._weights += (share * weights / weights.sum()).tolist()
            self._places += [(part, int(i)) for i in part.image_ids]
            # Every class is annotated in all parts, whatever their sources are called.
            self.image_info += [
                {**part.image_info[i], "source": main.class_info[-1]["source"]}
                for i in part.image_ids
            ]
        self.prepare()

    def sampling_weight(self, image_id: int) -> float:
        return self._weights[image_id]

    def load_image(self, image_id: int) -> np.ndarray:
        part, number = self._places[image_id]
        return part.load_image(number)

    def open_image(self, image_id: int) -> Any:
        part, number = self._places[image_id]
        return part.open_image(number)

    def load_standardised(self, image_id: int, config: Config) -> np.ndarray:
        part, number = self._places[image_id]
        return part.load_standardised(number, config)

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        part, number = self._places[image_id]
        return part.load_mask(number)

    def load_layers(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        part, number = self._places[image_id]
        return part.load_layers(number)

    def fingerprint(self, image_id: int) -> str | None:
        part, number = self._places[image_id]
        return part.fingerprint(number)

    def image_reference(self, image_id: int) -> str:
        part, number = self._places[image_id]
        return part.image_reference(number)
