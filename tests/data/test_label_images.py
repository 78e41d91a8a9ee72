"""Label images of any type of number or colour."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrcnn.data.label_images import number_instances
from mrcnn.data.pairs import find_pairs
from mrcnn.errors import MRCNNWarning, UserError
from tests.support.labelled_files import SIZE, TRUTH, instances, load, write_image

NUMBERS = np.array([[0, 7, 7, 0], [0, 3, 0, 900], [7, 0, 0, 900]])
NUMBERED = [[0, 2, 2, 0], [0, 1, 0, 3], [2, 0, 0, 3]]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.int16, np.int32, np.float32, np.float64])
def test_numbers_of_any_type(kind, tmp_path):
    assert number_instances(NUMBERS.astype(kind), "x")[0].tolist() == NUMBERED
    write_image(tmp_path / "a.png", NUMBERS.shape)
    tifffile.imwrite(tmp_path / "a_mask.tif", NUMBERS.astype(kind))
    layers, class_ids = load(find_pairs(tmp_path, tmp_path)).load_layers(0)
    assert layers[..., 0].tolist() == NUMBERED and len(class_ids) == 3
    assert (number_instances(NUMBERS.astype(kind) + kind(1), "x")[0] > 0).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_colour_is_an_instance(mode, tmp_path):
    """Colours that differ in one channel only; alpha differs everywhere and does not count."""
    colours = np.array([[0, 0, 0], [0, 0, 9], [0, 9, 0], [9, 0, 0]], np.uint8)
    image = colours[np.array(NUMBERED)]
    if mode == "RGBA":
        alpha = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
        image = np.concatenate([image, alpha], axis=2)
    made = Image.fromarray(image)
    made.save(tmp_path / "a_mask.png")
    write_image(tmp_path / "a.png", NUMBERS.shape)
    layers, _ = load(find_pairs(tmp_path, tmp_path)).load_layers(0)
    assert instances(layers[..., 0]) == instances(NUMBERS)


def test_grey_with_alpha_and_deep_colours(tmp_path):
    alpha = np.arange(12).reshape(3, 4)
    Image.fromarray(np.stack([NUMBERS, alpha], -1).astype(np.uint8)).save(tmp_path / "a_mask.png")
    write_image(tmp_path / "a.png", NUMBERS.shape)
    layers, _ = load(find_pairs(tmp_path, tmp_path)).load_layers(0)
    assert instances(layers[..., 0]) == instances(NUMBERS)
    deep = np.stack([NUMBERS * 0, NUMBERS * 70, NUMBERS * 0 + 65535 * (NUMBERS > 0)], -1)
    assert number_instances(deep.astype(np.uint16), "x")[0].tolist() == NUMBERED


@pytest.mark.parametrize("value, word", [(-1, "-1"), (0.5, "0.5"), (np.nan, "nan")])
def test_values_that_are_no_labels(value, word, tmp_path):
    array = NUMBERS.astype(np.float32)
    array[1, 2] = value
    write_image(tmp_path / "a.png", NUMBERS.shape)
    tifffile.imwrite(tmp_path / "a_mask.tif", array)
    with pytest.raises(UserError, match=f"a_mask.tif: holds {word}, but"):
        load(find_pairs(tmp_path, tmp_path)).load_layers(0)


@pytest.mark.parametrize("kind", ["photograph", "complex", "empty"])
def test_images_that_are_no_label_images(kind):
    noise = np.random.default_rng(0).integers(0, 60000, (40, 56))
    array, words = {
        "photograph": (noise, "values in .* pixels cannot be instances"),
        "complex": (NUMBERS.astype(np.complex64), "type complex64"),
        "empty": (np.zeros((0, 5), np.uint8), "no pixels"),
    }[kind]
    with pytest.raises(UserError, match=f"x.tif: .*{words}"):
        number_instances(array, "x.tif")


def test_binary_images_are_taken_apart_with_one_warning(tmp_path):
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
        binary = np.uint8(255) * (TRUTH["a"] > 0) if name != "c" else (TRUTH["a"] == 21)
        Image.fromarray(binary).save(tmp_path / f"{name}_mask.png")
    dataset = load(find_pairs(tmp_path, tmp_path))
    with pytest.warns(MRCNNWarning, match="a_mask.png: holds only one value") as seen:
        counts = [len(dataset.load_layers(i)[1]) for i in (0, 1, 2, 0)]
    assert len(seen) == 1
    from skimage.measure import label

    assert counts == [label(TRUTH["a"] > 0).max()] * 2 + [1, counts[0]]


@pytest.mark.filterwarnings("error")
def test_one_piece_and_none_are_no_reason_to_warn(tmp_path):
    for name, truth in (("a", TRUTH["a"] == 21), ("b", TRUTH["a"] < 0)):
        write_image(tmp_path / f"{name}.png")
        Image.fromarray(truth).save(tmp_path / f"{name}_mask.png")
    dataset = load(find_pairs(tmp_path, tmp_path))
    assert [len(dataset.load_layers(i)[1]) for i in (0, 1)] == [1, 0]
    assert dataset.load_mask(1)[0].shape == (*SIZE, 0)


def test_a_label_image_without_background(tmp_path):
    write_image(tmp_path / "a.png", (3, 4))
    Image.fromarray(np.arange(1, 13, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "a_gt.png")
    with pytest.warns(MRCNNWarning, match="a_gt.png: no pixel is 0"):
        load(find_pairs(tmp_path, tmp_path)).load_layers(0)
