"""From an image of any kind and size to its instances: what `mrcnn.load` returns.

    nuclei = mrcnn.load("nucleus")
    result = nuclei.detect(image)
    result.to_dataframe(), result.to_geojson("cells.geojson"), result.plot()

An image goes through: its exposure (`exposure`), its scale (below), the network in one forward
pass or in tiles (`detector`, `tta`, `tiles`), post-processing (`postprocess`); a `Result` comes
out.

The scale is the factor at which objects have the size that the network knows (OBJECT_SIZE). A
diameter that is given sets it. Otherwise a first forward pass over the image, or over parts of a
large one, finds it; where the size of a pixel is known, the first forward pass is at the scale for
OBJECT_MICRONS, and what it finds counts within MICRONS_RANGE.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrcnn.environment import check_keras, check_process
from mrcnn.errors import MRCNNWarning, UserError, one_line, reason_of
from mrcnn.images.image_files import open_image
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS, Detections, PostProcessing, resolve
from mrcnn.inference.tiles import HALO, TILE, Mosaic, Tile, tiles_of
from mrcnn.pixels.exposure import Exposure, measure
from mrcnn.pixels.molding import adapt_channels
from mrcnn.results.result import Result
from mrcnn.weights.description import beside, nouns_of, own_file

# Scaled and padded images of at most so many pixels are detected as a whole: 2560 x 2560.
WHOLE_PIXELS = 2560**2
# Nuclei of cells: a typical diameter, and the range of the median of an image, in microns.
OBJECT_MICRONS = 9.0
MICRONS_RANGE = (4.0, 24.0)
# The scale of a large image is that of the median of so many parts, the most varied of a grid.
PARTS, GRID, PART_SIDE = 5, 8, 384
# Of an image that is to be made this small or smaller, a smaller level of its pyramid is read.
LARGEST_REDUCED = 0.5
NOTHING = Detections(np.zeros(0), [])
# Labels int32 [h, w] of 1 to n, scores [n] and class ids [n].
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
# Label maps of more pixels are files.
PIXELS_IN_MEMORY = 2**27


def load(
    weights: str | os.PathLike = "nucleus",
    config: Any = None,
    classes: Sequence[str] | None = None,
    precision: str = "auto",
) -> Segmenter:
    """A detector that is ready to use.

    Args:
        weights: "nucleus", which comes with the package, or a weight file.
        config: a `Config` for inference; by default that of the description beside the file.
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
                f"{path}: there is no description {path.stem}.json beside it, so its "
                "network is unknown: pass the Config that it was trained with"
            )
        config = description.make_config(own_file(path))
        config.PRECISION = precision

        from mrcnn.weights.weight_files import ranks_in_file  # Keras: seconds

        config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
    if classes is None:
        classes = (
            description.classes
            if description
            else [f"class {i}" for i in range(1, config.NUM_CLASSES)]
        )

    from mrcnn.model import MaskRCNN  # Keras: seconds

    model = MaskRCNN("inference", config, tempfile.gettempdir())  # writes nothing there
    model.load_weights(path, by_name=True).demand_all()
    settings = PostProcessing.of(description.postprocessing, path) if description else DEFAULTS
    return Segmenter(model, classes, settings, plural=description.plural if description else "")


class Look(NamedTuple):
    """How an image is seen, as `Segmenter.look` has decided."""

    exposure: Exposure
    scale: float | None  # of the level that is looked at; None where it is taken as it is
    of_whole: float | None  # the same, of the image at full size
    reduction: float  # how many times as large the level's pixels are
    microns: float | None  # side of the level's pixels
    tile: int | None  # side of the tiles in pixels of the scaled image; None: one forward pass

    def tiles(self, shape: Sequence[int]) -> list[Tile]:
        """The tiles of the level, of this shape."""
        return tiles_of(shape, self.scale or 1.0, self.tile)

    def level(self, image: Any) -> Any:
        """The level of an image that this is about."""
        return _level(image, self.of_whole)[0]

    def joined(
        self,
        shape: Sequence[int],
        found: Iterable[Found],
        settings: PostProcessing,
        progress: Callable[[int, int], None] | None = None,
    ) -> Found:
        """The instances of the level, of this shape, from those of its tiles in their order.

        settings: of the post-processing; progress: called with the tiles done and their number.
        """
        tiles = self.tiles(shape)
        mosaic = Mosaic(shape, settings, HALO / (self.scale or 1.0), _zeros(shape[:2]))
        for number, (tile, one) in enumerate(zip(tiles, found, strict=True), 1):
            mosaic.add(tile, *one)
            if progress:
                progress(number, len(tiles))
        return mosaic.finish()

    def result(
        self,
        image: Any,
        labels: np.ndarray,
        scores: np.ndarray,
        class_ids: np.ndarray,
        classes: Sequence[str],
    ) -> Result:
        """What was found in the level."""
        return Result(
            labels,
            scores,
            class_ids,
            tuple(classes),
            image,
            self.exposure,
            self.microns,
            self.scale,
            self.reduction,
        )


class Segmenter:
    """Finds the instances in images. May be used from several threads at once.

    Attributes:
        model: a `MaskRCNN` with the same weights as the one it was made from.
        classes: names of the class ids 1, 2, ...
        settings: of the post-processing.
        variants: of test-time augmentation, see `tta`.
        exposure_config: the configuration by which images are standardised; the model's own no
            longer asks for that.
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
        # Images are standardised before they are cut into tiles, not by the network again.
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
                or what gives one when it is sliced (a memory map, a Zarr array, a
                `image_files.Picture`), of any size; a list of such images, of any sizes. Of a
                `Picture` with a pyramid, the level that the scale needs is read: its pixels are
                those of the result, whose `reduction` says how many times as large they are.
            diameter: of a typical instance, in pixels: sets the scale.
            microns: side of a pixel, for the scale and for measurements.
            inverted: True for dark objects on a light background, False for light ones; by default
                the image's own median tells.
            tile: side of the tiles in pixels of the scaled image; by default images of more
                than WHOLE_PIXELS are cut into tiles of TILE.
            progress: called with the tiles done and their number.

        Raises:
            UserError: what was given is no image, or no size; this process was forked from one
                with a network.
        """
        if isinstance(image, list | tuple):
            return [
                self.detect(
                    one,
                    diameter=diameter,
                    microns=microns,
                    inverted=inverted,
                    tile=tile,
                    progress=progress,
                )
                for one in image
            ]
        level, look = self.look(
            image, diameter=diameter, microns=microns, inverted=inverted, tile=tile
        )
        return self.find(level, look, progress)

    def map(self, images: Any, *, client: Any = None, errors: str = "raise", **how: Any) -> Any:
        """Find the instances of many images, one after the other.

        Args:
            images: a `dask.array`, or images as `detect` takes them or paths of image files, as
                many as there may be: few are in memory.
            client: a `distributed.Client`, whose workers detect; by default this process does.
                Files are read by the workers, arrays go there through the scheduler.
            errors: "raise", or "return" to get the UserError or MemoryError of an image in the
                place of its result, and go on.
            how: diameter, microns, inverted and tile, as for `detect`.

        Returns:
            An iterator of `Result`s in the order of the images. Of a `dask.array`, a lazy one of
            labels, see `mrcnn.distributed.arrays.labels_of`.

        Raises:
            UserError: errors is none of these; when a result is asked for, what `detect` raises.
            OSError: the cluster is gone, or a worker cannot detect.
        """
        if errors not in ("raise", "return"):
            raise UserError(
                f'errors = {one_line(repr(errors))} is not allowed: "raise" or "return"'
            )
        if hasattr(images, "__dask_graph__"):
            from mrcnn.distributed.arrays import labels_of

            if client is not None or errors != "raise":
                raise UserError(
                    "client and errors are not for a dask.array: what computes it decides"
                )
            return labels_of(self, images, **how)
        return self._results(images, client, errors, how)

    def _results(
        self, images: Iterable[Any], client: Any, errors: str, how: dict[str, Any]
    ) -> Iterator[Result | Exception]:
        opened = (_or_error(_opened, image) for image in images)
        if client is None:
            found = (
                image if isinstance(image, Exception) else _or_error(self.detect, image, **how)
                for image in opened
            )
        else:
            from mrcnn.distributed.team import results

            found = results(self, opened, client, how)
        with contextlib.closing(found):
            for one in found:
                if isinstance(one, Exception) and errors == "raise":
                    raise one
                yield one

    def look(
        self,
        image: Any,
        *,
        diameter: float | None = None,
        microns: float | None = None,
        inverted: bool | None = None,
        tile: int | None = None,
    ) -> tuple[Any, Look]:
        """The first half of `detect`: how one image is going to be seen. Arguments as there.

        Returns the image, or the level of its pyramid that is needed, and the rest.
        """
        check_process()
        for name, value in (("diameter", diameter), ("microns", microns)):
            _check_size(name, value)
        whole = _array(image)
        image, reduction = _level(whole, self._expected_scale(diameter, microns))
        exposure = measure(image, self.exposure_config, inverted)
        if exposure.warning:
            warnings.warn(exposure.warning, MRCNNWarning, stacklevel=3)
        scale = self._scale_of(
            image, exposure, diameter and diameter / reduction, microns and microns * reduction
        )
        of_whole = None
        if scale is not None:
            of_whole = scale / reduction
            image, reduction = _level(whole, of_whole)
            scale = of_whole * reduction
        if image is not whole:
            _say_level(reduction)
        if tile is None and scale is not None and _padded_pixels(image.shape, scale) > WHOLE_PIXELS:
            tile = TILE
        if tile is not None and tile <= 2 * HALO:
            raise UserError(f"tiles of {tile} pixels are too small: more than {2 * HALO} needed")
        microns = microns and microns * reduction
        return image, Look(exposure, scale, of_whole, reduction, microns, tile)

    def find(
        self, image: Any, look: Look, progress: Callable[[int, int], None] | None = None
    ) -> Result:
        """The second half of `detect`: the instances of what `look` has returned."""
        if look.tile is None:
            found = self._forward(self._pixels(image, look.exposure), look.scale)
            shape = tuple(int(side) for side in image.shape[:2])
            labels, chosen = resolve(found, shape, self.settings)
            scores, class_ids = (
                np.asarray(found.scores, np.float64)[chosen],
                _classes(found)[chosen],
            )
        else:
            found = self.find_tiles(image, look, look.tiles(image.shape))
            labels, scores, class_ids = look.joined(image.shape, found, self.settings, progress)
        return look.result(image, labels, scores, class_ids, self.classes)

    def _pixels(self, image: Any, exposure: Exposure, window: tuple = ()) -> np.ndarray:
        """uint8 [h, w, C] of a window of an image, as the network takes it."""
        pixels = np.asarray(image[window] if window else image[:, :])
        pixels = adapt_channels(pixels, self.model.config.IMAGE_CHANNEL_COUNT)
        return exposure.apply(pixels)

    def _forward(self, pixels: np.ndarray, scale: float | None) -> Detections:
        with self._lock:
            return tta.detect(self.model, pixels, self.variants, scale)

    # ---- Scale --------------------------------------------------------------------------------

    def _expected_scale(self, diameter: float | None, microns: float | None) -> float | None:
        """The scale as far as it is known before an image is looked at."""
        config = self.model.config
        takes_any = not config.OBJECT_SIZE or config.IMAGE_RESIZE_MODE != "pad64"
        if takes_any or (diameter is None and microns is None):
            return None
        if diameter is None:
            diameter = OBJECT_MICRONS / microns
        return float(np.clip(config.OBJECT_SIZE / diameter, *config.SCALE_LIMITS))

    def _scale_of(
        self, image: Any, exposure: Exposure, diameter: float | None, microns: float | None
    ) -> float | None:
        """The factor of enlargement; None where the network takes images as they are."""
        config = self.model.config
        if not config.OBJECT_SIZE or config.IMAGE_RESIZE_MODE != "pad64":
            if diameter is not None:
                raise UserError(
                    "a diameter needs a network of one OBJECT_SIZE and "
                    'IMAGE_RESIZE_MODE = "pad64", which this one is not'
                )
            return None
        if diameter is not None:
            return float(np.clip(config.OBJECT_SIZE / diameter, *config.SCALE_LIMITS))
        first = self._expected_scale(None, microns)
        seen = _padded_pixels(image.shape, first or config.IMAGE_MIN_SCALE or 1)
        # A few parts tell the scale of a long strip as well.
        is_strip = min(image.shape[:2]) < PART_SIDE and max(image.shape[:2]) > GRID * PART_SIDE
        is_whole = seen <= WHOLE_PIXELS and not is_strip
        parts = [()] if is_whole else varied_parts(image, exposure)
        with self._lock:
            scales = [
                scale
                for part in parts
                for scale in self.model.find_scales([self._pixels(image, exposure, part)], first)
            ]
        scale = float(np.median(scales))
        if microns is not None:
            lowest, highest = (config.OBJECT_SIZE * microns / size for size in MICRONS_RANGE[::-1])
            scale = float(np.clip(np.clip(scale, lowest, highest), *config.SCALE_LIMITS))
        return scale

    # ---- Tiles -------------------------------------------------------------------------------

    def find_tiles(self, image: Any, look: Look, tiles: Sequence[Tile]) -> Iterator[Found]:
        """What is in each of some tiles of an image, in their order; see `Look.joined`."""
        # What is small is judged on the whole image.
        settings = dataclasses.replace(self.settings, min_typical_area=None, min_area=None)

        def read(tile: Tile) -> np.ndarray:
            y1, x1, y2, x2 = tile.window
            return self._pixels(image, look.exposure, (slice(y1, y2), slice(x1, x2)))

        # The next tile is read during the forward pass of one.
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(read, tiles[0])
            for number, tile in enumerate(tiles, 1):
                pixels = coming.result()
                if number < len(tiles):
                    coming = reader.submit(read, tiles[number])
                found = NOTHING  # on the glass around a slide
                if pixels.any():
                    found = self._forward(pixels, look.scale or 1.0)
                labels, chosen = resolve(found, tile.shape, settings)
                yield labels, np.asarray(found.scores)[chosen], _classes(found)[chosen]


def _opened(image: Any) -> Any:
    """An image for `Segmenter.map`: a file's without its pixels, or an array."""
    if isinstance(image, str | os.PathLike):
        return open_image(Path(image))
    return _array(image)


def _or_error(function: Callable, *arguments: Any, **options: Any) -> Any:
    """What a function returns, or the error of an image that it raises."""
    try:
        return function(*arguments, **options)
    except (UserError, MemoryError) as error:
        return error


def _level(image: Any, scale: float | None) -> tuple[Any, float]:
    """The level of a pyramid that a scale needs, and how many times as large its pixels are; the
    image itself, and 1, where the scale is above LARGEST_REDUCED or there is no pyramid."""
    if scale is None or scale > LARGEST_REDUCED or not hasattr(image, "reduced"):
        return image, 1.0
    level = image.reduced(scale)
    return level, math.sqrt(math.prod(image.shape[:2]) / math.prod(level.shape[:2]))


def _say_level(reduction: float) -> None:
    warnings.warn(
        f"read at 1/{reduction:.4g} of its sides, the level of its pyramid that the scale needs: "
        "results are in pixels of that level, GeoJSON in those of the full size",
        MRCNNWarning,
        stacklevel=3,
    )


def _check_size(name: str, value: Any) -> None:
    """Raise UserError unless `value` is None or a finite number above 0."""
    number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if value is not None and not (number and math.isfinite(value) and value > 0):
        raise UserError(f"{name} = {one_line(repr(value))} is not allowed: a number above 0")


def _array(image: Any) -> Any:
    """`image`, or an array of it where it is a tensor of another library.

    Raises UserError unless it is an image.
    """
    if not isinstance(getattr(image, "dtype", None), np.dtype) and hasattr(image, "__array__"):
        try:
            image = np.asarray(image)
        except Exception as error:  # of whatever type: on a GPU, with gradients, of other numbers
            reason = reason_of(error, 80)
            raise UserError(
                f"{type(image).__name__} gives no NumPy array ({reason}): convert it first"
            ) from error
    shape = getattr(image, "shape", None)
    if shape is None or not hasattr(image, "dtype"):
        raise UserError(
            f"{type(image).__name__} is no image: an array [height, width] or "
            "[height, width, channels] is needed"
        )
    if len(shape) not in (2, 3) or not all(shape) or (len(shape) == 3 and shape[2] > 4):
        raise UserError(
            f"an array of shape {tuple(shape)} is no image: [height, width] or "
            "[height, width, 1, 3 or 4 channels] is needed"
        )
    return image


def _classes(found: Detections) -> np.ndarray:
    ids = found.class_ids
    return np.ones(len(found.scores), np.int32) if ids is None else np.asarray(ids, np.int32)


def _zeros(shape: tuple[int, int]) -> np.ndarray:
    """int32 zeros; a file that goes away with the array where there are very many."""
    if math.prod(shape) <= PIXELS_IN_MEMORY:
        return np.zeros(shape, np.int32)
    with tempfile.TemporaryFile(prefix="mrcnn_labels_") as file:
        return np.memmap(file, np.int32, "w+", shape=tuple(shape))


def _padded_pixels(shape: Sequence[int], scale: float) -> float:
    """Pixels of the network's input for an image: a strip is padded to many times its own."""
    return math.prod(max(64, side * scale) for side in shape[:2])


def varied_parts(image: Any, exposure: Exposure) -> list[tuple[slice, slice]]:
    """The windows of a large image where there is most to see: PARTS of a grid."""
    rows, columns = (
        sorted({int((i + 0.5) / GRID * max(0, size - PART_SIDE)) for i in range(GRID)})
        for size in image.shape[:2]
    )
    parts = []
    for top, left in itertools.product(rows, columns):
        part = slice(top, top + PART_SIDE), slice(left, left + PART_SIDE)
        parts.append((float(exposure.apply(np.asarray(image[part])).std()), part))
    parts.sort(key=lambda pair: -pair[0])
    return [part for _, part in parts[:PARTS]]
