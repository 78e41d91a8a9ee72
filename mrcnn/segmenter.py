"""From an image of any kind and size to its instances: what `mrcnn.load` returns.

    nuclei = mrcnn.load("nucleus")
    result = nuclei.detect(image)
    result.to_dataframe(), result.to_geojson("cells.geojson"), result.plot()

An image goes through: its exposure (`exposure`), its scale (`scale`), the network in one forward
pass or in tiles (`detector`, `tta`, `tiles`), post-processing (`postprocess`); a `Result` comes
out.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn.environment import check_keras, check_process
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.images.given import as_image
from mrcnn.inference import tta
from mrcnn.inference.many import detect_many
from mrcnn.inference.postprocess import (
    DEFAULTS,
    Detections,
    Instances,
    PostProcessing,
    instances_of,
)
from mrcnn.inference.scale import expected_scale, scale_of
from mrcnn.inference.tiles import Tile
from mrcnn.inference.view import View, ViewOptions, level_note, level_of, tile_side
from mrcnn.pixels.exposure import Exposure, measure
from mrcnn.pixels.molding import adapt_channels
from mrcnn.results.result import Result
from mrcnn.weights.description import beside, nouns_of, own_file
from mrcnn.weights.legacy_h5 import ranks_in_file

NOTHING = Detections(np.zeros(0), [])


def load(
    weights: str | os.PathLike = "nucleus",
    config: Any = None,
    classes: Sequence[str] | None = None,
    precision: str = "auto",
) -> Segmenter:
    """A detector that is ready to use.

    Args:
        weights: "nucleus", which comes with the package, or a weight file.
        config: a `Config` for inference; by default that of the description next to the file.
        classes: names of class ids 1, 2, ...; by default those of the description.
        precision: of the convolutions: "auto", "float32" or "bfloat16".

    Raises:
        UserError: there is no such file, it is damaged, does not fit or does not fill the whole
            network, or it lacks a description; Keras has nothing to run on.
    """
    from mrcnn.weights.download import resolve_weights

    check_keras()
    path = Path(resolve_weights(weights))
    description = beside(path)
    if config is None:
        if description is None:
            raise UserError(
                f"{path}: there is no description {path.stem}.json next to it, so its "
                "network is unknown: pass the Config that it was trained with"
            )
        config = description.make_config(own_file(path))
        config.PRECISION = precision
        config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
    if classes is None:
        classes = (
            description.classes
            if description
            else [f"class {i}" for i in range(1, config.NUM_CLASSES)]
        )

    from mrcnn.model import MaskRCNN  # Keras: seconds

    # Writes nothing there.
    model = MaskRCNN("inference", config, tempfile.gettempdir(), first_values=False)
    model.load_weights(path, by_name=True).demand_all()
    settings = PostProcessing.of(description.postprocessing, path) if description else DEFAULTS
    return Segmenter(model, classes, settings, plural=description.plural if description else "")


class Segmenter:
    """Finds the instances in images. May be used from several threads at once.

    Attributes:
        model: a `MaskRCNN` with the same weights as the one it was made from.
        classes: names of the class ids 1, 2, ...
        settings: of the post-processing.
        variants: of test-time augmentation, see `tta`.
        exposure_config: the configuration by which images are standardised; the model's own does
            not ask for that.
    """

    def __init__(
        self,
        model: Any,
        classes: Sequence[str],
        settings: PostProcessing = DEFAULTS,
        variants: Sequence[tta.Variant] = tta.NONE,
        plural: str = "",
    ):
        """model: a `MaskRCNN` in "inference" mode; plural: what several objects are called."""
        self.plural = plural
        self.classes, self.settings, self.variants = tuple(classes), settings, tuple(variants)
        self.exposure_config = model.config
        # Images are standardised before they are cut into tiles, and not again by the network.
        config = copy.copy(model.config)
        config.INTENSITY_PERCENTILES, config.DARK_GROUND = None, False
        # The post-processing has the last word.
        config.DETECTION_MIN_CONFIDENCE = min(
            config.DETECTION_MIN_CONFIDENCE or 0.0, settings.min_score
        )
        self.model = copy.copy(model)
        self.model.config = config
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """For pickle and deepcopy; see `MaskRCNN.__reduce__`."""
        model = copy.copy(self.model)
        model.config = self.exposure_config
        return Segmenter, (model, self.classes, self.settings, self.variants, self.plural)

    @property
    def nouns(self) -> tuple[str, str]:
        """What one and several of the objects are called."""
        return nouns_of(self.classes, self.plural)

    def detect(
        self,
        image: Any,
        *,
        diameter: float | None = None,
        microns: float | None = None,
        inverted: bool | None = None,
        tile: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Result | list[Result]:
        """Find the instances of an image, or of every image of a list.

        Args:
            image: [H, W] or [H, W, C] of any numbers: grey, RGB, with or without alpha; an array,
                or an object that gives one when sliced (a memory map, a Zarr array, a
                `image_files.LazyImage`), of any size; a list of such images, of any sizes. Of a
                `LazyImage` with a pyramid, the level that the scale needs is read: its pixels are
                those of the result, whose `reduction` says how many times as large they are.
            diameter: of a typical instance, in pixels: sets the scale.
            microns: side of a pixel, for the scale and for measurements.
            inverted: True for dark objects on a light background, False for light ones; by default
                the image's own median decides.
            tile: side of the tiles in pixels of the scaled image; by default images of more
                than `scale.WHOLE_PIXELS` are cut into tiles of `tiles.TILE`.
            progress: called with the number of tiles done and in all.

        Raises:
            UserError: the image is not an image, or a size is not allowed; this process was forked
                from one with a network.
        """
        how = {"diameter": diameter, "microns": microns, "inverted": inverted, "tile": tile}
        if isinstance(image, list | tuple):
            return [self.detect(one, **how, progress=progress) for one in image]
        level, view = self.choose_view(image, **how)
        return self.find(level, view, progress)

    def choose_view(self, image: Any, **how: Any) -> tuple[Any, View]:
        """The first half of `detect`: how the network will see one image.

        how: fields of `ViewOptions`.
        Returns the image, or the level of its pyramid that is needed, and the `View`.
        """
        check_process()
        config, asked, whole = self.model.config, ViewOptions(**how), as_image(image)
        image, reduction = level_of(whole, expected_scale(config, asked.diameter, asked.microns))
        exposure = measure(image, self.exposure_config, asked.inverted)
        if exposure.warning:
            warnings.warn(exposure.warning, MRCNNWarning, stacklevel=3)
        here, find = asked.of_level(reduction), partial(self._find_scale, image, exposure)
        scale = scale_of(image, exposure, config, here.diameter, here.microns, find)
        of_whole = None
        if scale is not None:
            of_whole = scale / reduction
            image, reduction = level_of(whole, of_whole)
            scale = of_whole * reduction
        if image is not whole:
            warnings.warn(level_note(reduction), MRCNNWarning, stacklevel=3)
        tile = tile_side(asked.tile, image.shape, scale)
        microns = asked.of_level(reduction).microns
        return image, View(exposure, scale, of_whole, reduction, microns, tile)

    def find(
        self, image: Any, view: View, progress: Callable[[int, int], None] | None = None
    ) -> Result:
        """The second half of `detect`: the instances of what `choose_view` has returned."""
        if view.tile is None:
            found = self._forward(self._pixels(image, view.exposure), view.scale)
            instances = instances_of(found, image.shape, self.settings)
        else:
            parts = self.find_tiles(image, view, view.tiles(image.shape))
            instances = view.joined(image.shape, parts, self.settings, progress)
        return view.result(image, instances, self.classes)

    def find_tiles(self, image: Any, view: View, tiles: Sequence[Tile]) -> Iterator[Instances]:
        """The instances in each of some tiles of an image, in order; see `View.joined`."""
        # Which instances are too small is decided on the whole image.
        settings = dataclasses.replace(self.settings, min_typical_area=None, min_area=None)

        def read(tile: Tile) -> np.ndarray:
            y1, x1, y2, x2 = tile.window
            return self._pixels(image, view.exposure, (slice(y1, y2), slice(x1, x2)))

        # The next tile is read during the forward pass of the current one.
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(read, tiles[0])
            for number, tile in enumerate(tiles, 1):
                pixels = coming.result()
                if number < len(tiles):
                    coming = reader.submit(read, tiles[number])
                found = NOTHING  # on the empty glass of a slide
                if pixels.any():
                    found = self._forward(pixels, view.scale or 1.0)
                yield instances_of(found, tile.shape, settings)

    def _pixels(self, image: Any, exposure: Exposure, window: tuple = ()) -> np.ndarray:
        """uint8 [h, w, C] of a window of an image, as the network takes it."""
        pixels = np.asarray(image[window] if window else image[:, :])
        pixels = adapt_channels(pixels, self.model.config.IMAGE_CHANNEL_COUNT)
        return exposure.apply(pixels)

    def _forward(self, pixels: np.ndarray, scale: float | None) -> Detections:
        with self._lock:
            return tta.detect(self.model, pixels, self.variants, scale)

    def _find_scale(
        self, image: Any, exposure: Exposure, window: tuple[slice, ...], first: float | None
    ) -> float:
        """The scale that the objects in a window ask for, found at a first scale."""
        pixels = self._pixels(image, exposure, window)
        with self._lock:
            [scale] = self.model.find_scales([pixels], first)
        return scale

    def map(self, images: Any, *, client: Any = None, errors: str = "raise", **how: Any) -> Any:
        """Find the instances of many images, one after another.

        Args:
            images: a `dask.array`, or any number of images as `detect` takes them or paths of
                image files: only a few are in memory.
            client: a `distributed.Client`, whose workers detect; by default this process does.
                Files are read by the workers, arrays go there through the scheduler.
            errors: "raise", or "return" to get the UserError or MemoryError of an image in place
                of its result, and continue.
            how: diameter, microns, inverted and tile, as for `detect`.

        Returns:
            An iterator of `Result`s in the order of the images. For a `dask.array`, a lazy one of
            labels, see `mrcnn.distributed.arrays.labels_of`.

        Raises:
            UserError: errors is neither of these; when a result is requested, as `detect`.
            OSError: the cluster is gone, or a worker cannot detect.
        """
        return detect_many(self, images, client, errors, how)
