"""`mrcnn.load` and `Segmenter`: images of all kinds and sizes to results."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tifffile

import mrcnn
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.images.image_files import open_image
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS, PostProcessing, postprocess
from mrcnn.inference.scale import MICRONS_RANGE, OBJECT_MICRONS, WHOLE_PIXELS
from mrcnn.model import MaskRCNN
from mrcnn.presets import MicrographConfig
from mrcnn.segmenter import Segmenter
from mrcnn.weights import description
from samples.nucleus import nucleus
from samples.nucleus.synthesize import synthesize
from tests.support.sliced_image import SlicedImage
from tests.support.tiny import TinyConfig

SIZE = MicrographConfig.OBJECT_SIZE  # pixels
SETTINGS = PostProcessing(min_area=None, min_typical_area=None)


class SpotFinder:
    """A stand-in for the network where only the way around it is tested: finds bright spots, just
    as they are."""

    config = nucleus.NucleusInferenceConfig()

    def find_scales(self, images, first=None):
        self.first = first
        return [1.0] * len(images)

    def detect_patches(self, images, probabilities=False, scales=None):
        from scipy import ndimage

        results = []
        for image in images:
            labels, count = ndimage.label(image[..., 0] > 127)
            boxes = ndimage.find_objects(labels)
            patches = [
                (b[0].start, b[1].start, (labels[b] == i).astype(np.float32))
                for i, b in enumerate(boxes, 1)
            ]
            results.append(
                {
                    "scores": np.full(count, 0.9),
                    "patches": patches,
                    "class_ids": np.ones(count, np.int32),
                }
            )
        return results


def spots(rng, shape=(300, 400), count=60):
    from scipy import ndimage

    image = np.zeros(shape, np.uint8)
    image[rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)] = 1
    return ndimage.binary_dilation(image, iterations=6).astype(np.uint8) * 150 + 20


def same_objects(one, other):
    pairs = np.unique(np.stack([np.ravel(one), np.ravel(other)]), axis=1)
    return len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


@pytest.fixture
def finder():
    return Segmenter(SpotFinder(), ("spot",), SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: image[..., None],
        lambda image: np.stack([image] * 3, -1),
        lambda image: image.astype(np.uint16) * 40 + 300,
        lambda image: image / 1e4,
        lambda image: 255 - image,
        lambda image: image > 100,
        lambda image: np.stack([image, image, image, np.full_like(image, 255)], -1),
    ],
    ids=["grey", "one channel", "RGB", "16 bits", "float", "light background", "bool", "RGBA"],
)
def test_images_of_all_kinds_give_the_same(rng, finder, change):
    image = spots(rng)
    from scipy import ndimage

    expected, count = ndimage.label(image > 127)
    result = finder.detect(change(image))
    assert len(result) == count and same_objects(result.labels, expected)


def test_tiles_give_the_same(rng, finder):
    image, seen = spots(rng, (700, 900), 300), []
    whole = finder.detect(image)
    tiled = finder.detect(image, tile=256, progress=lambda done, total: seen.append((done, total)))
    assert len(whole) == len(tiled) and same_objects(whole.labels, tiled.labels)
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))] and len(seen) > 12


def test_large_images_are_read_and_kept_in_parts(rng, finder, monkeypatch):
    monkeypatch.setattr("mrcnn.inference.scale.WHOLE_PIXELS", 300 * 300)
    monkeypatch.setattr("mrcnn.inference.tiles.PIXELS_IN_MEMORY", 1000)
    monkeypatch.setattr("mrcnn.inference.view.TILE", 256)
    monkeypatch.setattr("mrcnn.pixels.exposure.BAND_VALUES", 1)
    image = spots(rng, (700, 900), 300)
    file = SlicedImage(image)
    result = finder.detect(file)
    assert file.largest <= 256 * 900 < image.size
    assert isinstance(result.labels, np.memmap)
    expected = Segmenter(SpotFinder(), ("spot",), SETTINGS).detect(image)
    assert same_objects(result.labels, expected.labels)
    assert result.to_dataframe().equals(finder.detect(image).to_dataframe())


def test_diameter_and_pixel_size_set_the_scale(rng, finder):
    image = spots(rng)
    assert finder.detect(image, diameter=SIZE / 4).scale == 4
    assert finder.detect(image, diameter=2 * SIZE).scale == 0.5
    assert finder.detect(image, diameter=1000).scale == 0.25  # the smallest there is
    # SIZE pixels of 1 / SIZE micron a micron of the nucleus.
    for microns in (0.25, 1.0):
        result = finder.detect(image, microns=microns)
        assert finder.model.first == np.clip(SIZE * microns / OBJECT_MICRONS, 0.25, 4)
        low, high = (SIZE * microns / size for size in MICRONS_RANGE[::-1])
        assert result.scale == np.clip(1.0, low, high) and result.microns == microns


def test_the_level_of_a_pyramid_that_the_scale_needs_is_read(rng, finder, tmp_path):
    pixels = np.kron(spots(rng, (160, 200), 20), np.ones((4, 4), np.uint8))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, tile=(64, 64), subifds=2, metadata=None)
        for step in (2, 4):
            part = pixels[::step, ::step]
            writer.write(part, tile=(64, 64), subfiletype=1, metadata=None)
    image = open_image(tmp_path / "a.tif")
    # 4 SIZE pixels of the full size are to become SIZE. The level of that size is read alone.
    microns = OBJECT_MICRONS / (4 * SIZE)
    sizes = {"diameter": 4 * SIZE}, {"diameter": 2 * SIZE}, {"microns": microns}
    for size, read in zip(sizes, (4, 2, 4), strict=True):
        with pytest.warns(MRCNNWarning, match=f"read at 1/{read} of its width and height"):
            result = finder.detect(image, **size)
        assert result.labels.shape == (640 // read, 800 // read) and result.reduction == read
        expected = finder.detect(pixels[::read, ::read])
        assert same_objects(result.labels, expected.labels)
    assert result.microns == pytest.approx(4 * microns)
    polygon = result.to_geojson()["features"][0]["geometry"]["coordinates"][0]
    x, y = np.mean(polygon[:-1], axis=0).astype(int)
    assert pixels[y, x] > 127
    result = finder.detect(image, diameter=SIZE / 0.8)  # 0.8: no level is large enough
    assert result.labels.shape == (640, 800) and result.reduction == 1


@pytest.mark.parametrize("value", [0, -3, float("nan"), float("inf"), "20", True, [20], 1 + 2j])
@pytest.mark.parametrize("name", ["diameter", "microns"])
def test_sizes_are_numbers_above_0(rng, finder, name, value):
    with pytest.raises(UserError, match=f"{name} = .* is not allowed: a number above 0"):
        finder.detect(spots(rng), **{name: value})
    assert len(finder.detect(spots(rng), **{name: np.float32(20)}))


class Lazy:
    """An array of another library, which says what it holds in words of its own."""

    dtype, shape = "lazy.uint8", (300, 400)

    def __init__(self, pixels):
        self.pixels = pixels

    def __array__(self, dtype=None, copy=None):
        if self.pixels is None:
            raise TypeError("it is on a device,\nand has gradients")
        return self.pixels


def test_tensors_of_other_libraries(rng, finder):
    image = spots(rng)
    expected = finder.detect(image)
    for tensor in (keras.ops.convert_to_tensor(image), Lazy(image)):
        found = finder.detect(tensor)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert found.to_dataframe().equals(expected.to_dataframe())
    with pytest.raises(UserError, match=r"a NumPy array \(it is on a device, and has gradients\)"):
        finder.detect(Lazy(None))


def test_what_is_no_image(finder):
    for wrong in ("cells.png", None, 3):
        with pytest.raises(UserError, match="is not an image: an array"):
            finder.detect(wrong)
    for shape in [(5,), (4, 4, 5), (2, 4, 4, 3), (0, 4)]:
        with pytest.raises(UserError, match="is not an image"):
            finder.detect(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="tiles of 100 pixels are too small"):
        finder.detect(np.zeros((500, 500), np.uint8), tile=100)
    with pytest.raises(UserError, match="OBJECT_SIZE"):
        model = SpotFinder()
        model.config = TinyConfig()
        Segmenter(model, ("a", "b")).detect(np.zeros((50, 50), np.uint8), diameter=9)


def test_an_image_without_objects(finder):
    result = finder.detect(np.zeros((50, 60), np.uint8))
    assert len(result) == 0 and result.boxes.shape == (0, 4) and result.masks.shape == (50, 60, 0)
    assert len(result.to_dataframe()) == 0 and result.to_geojson()["features"] == []
    assert finder.detect([]) == []


def test_result(rng, finder, tmp_path):
    image = spots(rng, count=12).astype(np.uint16) * 7
    result = finder.detect(image, microns=0.5)
    assert repr(result) == f"<Result: {len(result)} instances in 300 x 400 pixels>"
    assert result.masks.shape == (300, 400, len(result)) and result.masks.dtype == bool
    for i, (y1, x1, y2, x2) in enumerate(result.boxes):
        mask = result.labels == i + 1
        np.testing.assert_array_equal(result.masks[..., i], mask)
        rows, columns = np.nonzero(mask)
        assert (y1, x1, y2, x2) == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    table = result.to_dataframe()
    assert table["area"].tolist() == np.bincount(result.labels.ravel())[1:].tolist()
    assert (table["mean_intensity"] == 170 * 7).all()  # the file's own values
    np.testing.assert_allclose(table["area_um2"], table["area"] / 4)
    collection = result.to_geojson(tmp_path / "a.geojson")
    assert json.loads((tmp_path / "a.geojson").read_text()) == collection
    assert collection["features"][0]["properties"]["classification"]["name"] == "spot"
    axes = result.plot()
    assert axes.get_title() == f"{len(result)} found"
    shown, labels = result.preview()
    assert shown.shape == (300, 400, 3) and shown.max() == 255
    np.testing.assert_array_equal(labels, result.labels)


def test_several_classes(rng):
    class TwoClasses(SpotFinder):
        config = TinyConfig()

        def detect_patches(self, images, probabilities=False, scales=None):
            found = super().detect_patches(images)
            for one in found:
                one["class_ids"] = np.arange(len(one["scores"])) % 2 + 1
                one["scores"] = np.linspace(0.8, 0.9, len(one["scores"]))
            return found

    result = Segmenter(TwoClasses(), ("round", "square"), SETTINGS).detect(spots(rng))
    assert set(result.class_names) == {"round", "square"} and result.scale is None
    assert result.to_dataframe()["class_name"].tolist() == result.class_names
    names = [f["properties"]["classification"]["name"] for f in result.to_geojson()["features"]]
    assert names == result.class_names


def test_a_threshold_of_none_is_no_threshold():
    model = SpotFinder()
    model.config = TinyConfig()
    model.config.DETECTION_MIN_CONFIDENCE = None
    assert Segmenter(model, ("a", "b")).model.config.DETECTION_MIN_CONFIDENCE == 0


# ---- With the real network ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def nuclei():
    return mrcnn.load("nucleus")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Synthetic images of several sizes."""
    root = tmp_path_factory.mktemp("images")
    synthesize(root, 3, 128, 3, "mine")
    dataset = nucleus.load_dataset(str(root), "mine")
    found = [dataset.load_image(i) for i in dataset.image_ids]
    return [found[0], found[1][:90], found[2][:, :100]]


@pytest.fixture(scope="module")
def results(nuclei, images):
    """What each image gives."""
    return [nuclei.detect(image) for image in images]


def test_load_gives_what_the_application_gives(images, results):
    model = MaskRCNN("inference", nucleus.NucleusInferenceConfig(), "logs")
    model.load_weights(nucleus.SHIPPED_WEIGHTS)
    for image, result in zip(images, results, strict=True):
        labels, scores = postprocess(tta.detect(model, image), image.shape, DEFAULTS)
        np.testing.assert_array_equal(result.labels, labels)
        np.testing.assert_array_equal(result.scores, scores)
    assert sum(map(len, results)) > 5


def test_a_list_of_mixed_sizes_gives_what_each_gives(nuclei, images, results):
    for one, result in zip(nuclei.detect(images), results, strict=True):
        np.testing.assert_array_equal(one.labels, result.labels)


def test_threads_do_not_disturb_each_other(nuclei, images, results):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(nuclei.detect, images * 2))
    for result, reference in zip(found, results * 2, strict=True):
        np.testing.assert_array_equal(result.labels, reference.labels)
        np.testing.assert_array_equal(result.scores, reference.scores)


def test_a_model_that_has_detected_takes_a_lower_threshold(tmp_path):
    class PickyConfig(TinyConfig):
        IMAGE_RESIZE_MODE = "pad64"
        PIXEL_CONVENTION = "exact"
        DETECTION_MIN_CONFIDENCE = 1.0

    model = MaskRCNN("inference", PickyConfig(), str(tmp_path))
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert not len(model.detect([image])[0]["scores"])
    settings = dataclasses.replace(SETTINGS, min_score=0.0, max_covered=None)
    found = Segmenter(model, ("a", "b"), settings).model.detect([image])[0]
    assert len(found["scores"])
    assert not len(model.detect([image])[0]["scores"])  # the model itself stays as it was


def test_loading_other_files(tmp_path):
    with pytest.raises(UserError, match="no such weight file; give a path or one of nucleus, "):
        mrcnn.load(tmp_path / "absent.h5")
    config = TinyConfig()
    path = tmp_path / "mask_rcnn_tiny.h5"
    MaskRCNN("inference", config, str(tmp_path)).save_weights(path)
    with pytest.raises(UserError, match=r"no description mask_rcnn_tiny\.json next to it"):
        mrcnn.load(path)
    assert mrcnn.load(path, config=config).classes == ("class 1", "class 2")
    description.write(tmp_path / "mask_rcnn_tiny.json", description.describe(config, ("a", "b")))
    loaded = mrcnn.load(str(path), precision="float32")
    assert loaded.classes == ("a", "b")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    assert set(loaded.detect(image).class_ids.tolist()) <= {1, 2}


@pytest.mark.parametrize("shape", [(1, 300_000), (200_000, 3)])
def test_a_strip_is_tiled_by_what_it_is_padded_to(shape, finder, rng, monkeypatch):
    padded = []

    def detect_patches(self, images, probabilities=False, scales=None):
        padded.extend(
            np.prod([max(64, side * scale) for side in image.shape[:2]])
            for image, scale in zip(images, scales, strict=True)
        )
        return [{"scores": [], "patches": [], "class_ids": []} for _ in images]

    monkeypatch.setattr(SpotFinder, "detect_patches", detect_patches)
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    finder.detect(image, diameter=8)  # scale 4
    assert len(padded) > 1 and max(padded) <= WHOLE_PIXELS
