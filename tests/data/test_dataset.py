"""Dataset: numbering, look-up tables, images and masks from files."""

import os

import numpy as np
import pytest
import tifffile
from skimage.io import imsave

from mrcnn.data.dataset import Dataset
from mrcnn.errors import UserError


class Squares(Dataset):
    """Two overlapping squares and an empty instance on every image."""

    def load_mask(self, image_id):
        masks = np.zeros((8, 10, 3), bool)
        masks[1:5, 1:5, 0] = masks[3:7, 3:7, 1] = True
        return masks, np.array([1, 2, 1])


def two_sources():
    dataset = Dataset()
    dataset.add_class("shapes", 1, "square, box")
    dataset.add_class("coco", 12, "stop sign")
    dataset.add_class("shapes", 1, "square again")
    dataset.add_image("coco", "a", path="a.png", height=5)
    dataset.add_image("shapes", 0, path=None)
    dataset.prepare()
    return dataset


def test_prepare_numbers_classes_and_images():
    dataset = two_sources()
    assert dataset.num_classes == 3 and dataset.num_images == 2
    assert dataset.class_names == ["BG", "square", "stop sign"]
    assert dataset.class_ids.tolist() == [0, 1, 2] and dataset.image_ids.tolist() == [0, 1]
    assert dataset.class_from_source_map == {".0": 0, "shapes.1": 1, "coco.12": 2}
    assert dataset.image_from_source_map == {"coco.a": 0, "shapes.0": 1}
    assert sorted(dataset.sources) == ["", "coco", "shapes"]
    assert dataset.source_class_ids == {"": [0], "shapes": [0, 1], "coco": [0, 2]}
    assert dataset.image_info[0] == {"id": "a", "source": "coco", "path": "a.png", "height": 5}


def test_class_ids_of_sources():
    dataset = two_sources()
    assert dataset.map_source_class_id("coco.12") == 2
    assert dataset.get_source_class_id(2, "coco") == 12
    with pytest.raises(UserError, match='"coco", not "shapes"'):
        dataset.get_source_class_id(2, "shapes")
    with pytest.raises(UserError, match="dot"):
        dataset.add_class("a.b", 1, "c")


def test_append_data_maps_external_ids():
    dataset = two_sources()
    dataset.class_info[1]["map"] = [("x", 3)]
    dataset.image_info[1]["ds"] = "x"
    dataset.append_data(None, None)
    assert dataset.external_to_class_id == {"x3": 1}
    assert dataset.external_to_image_id == {"x0": 1}


def test_references():
    dataset = two_sources()
    assert dataset.image_reference(0) == ""
    assert dataset.source_image_link(0) == "a.png"


def test_an_empty_dataset():
    dataset = Dataset()
    assert len(dataset.image_ids) == 0
    dataset.prepare()
    assert dataset.num_images == 0 and dataset.class_names == ["BG"]


@pytest.mark.parametrize("channels", [None, 3, 4])
def test_load_image_gives_rgb(tmp_path, channels):
    shape = (6, 7) if channels is None else (6, 7, channels)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    imsave(tmp_path / "a.png", image, check_contrast=False)
    dataset = Dataset()
    dataset.add_image("files", 0, path=tmp_path / "a.png")
    dataset.prepare()
    expected = np.repeat(image[..., None], 3, axis=-1) if channels is None else image[..., :3]
    np.testing.assert_array_equal(dataset.load_image(0), expected)


@pytest.mark.parametrize("content", [None, b"no image"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    dataset = Dataset()
    dataset.add_image("files", 0, path=path)
    with pytest.raises(UserError, match="^cannot read image .*broken.png: ") as caught:
        dataset.load_image(0)
    assert "\n" not in str(caught.value)


def test_images_that_are_no_regular_files_or_no_images(tmp_path):
    dataset = Dataset()
    os.mkfifo(tmp_path / "pipe.png")
    np.save(tmp_path / "stack.npy", np.zeros((2, 3, 4, 5), np.uint8))
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((9, 3, 40, 50), np.uint8))
    tifffile.imwrite(tmp_path / "complex.tif", np.zeros((40, 50), np.complex64))
    for name in ("pipe.png", "stack.npy", "stack.tif", "complex.tif", "."):
        dataset.add_image("files", name, path=tmp_path / name)
    for number in range(5):
        with pytest.raises(UserError, match="^cannot read image ") as caught:
            dataset.load_image(number)
        assert "\n" not in str(caught.value)


def test_masks_of_nan_are_refused():
    dataset = Dataset()
    dataset.load_mask = lambda image_id: (np.full((4, 5, 1), np.nan), [1])
    with pytest.raises(UserError, match="values that are not finite"):
        dataset.load_layers(0)


def test_load_layers_converts_masks():
    dataset = Squares()
    dataset.add_image("squares", 0, path=None)
    dataset.prepare()
    layers, class_ids = dataset.load_layers(0)
    assert layers.shape == (8, 10, 2) and layers.dtype == np.int32
    assert class_ids.tolist() == [1, 2, 1] and class_ids.dtype == np.int32
    masks, _ = dataset.load_mask(0)
    for i in range(3):
        np.testing.assert_array_equal((layers == i + 1).any(axis=-1), masks[..., i])


def test_an_image_without_masks_has_empty_layers_of_its_size(tmp_path):
    imsave(tmp_path / "a.png", np.zeros((6, 7), np.uint8), check_contrast=False)
    dataset = Dataset()
    dataset.add_image("files", 0, path=tmp_path / "a.png")
    dataset.prepare()
    masks, class_ids = dataset.load_mask(0)
    assert masks.shape == (0, 0, 0) and len(class_ids) == 0
    layers, class_ids = dataset.load_layers(0)
    assert layers.shape == (6, 7, 1) and not layers.any() and class_ids.shape == (0,)


def test_masks_and_class_ids_must_match():
    class Wrong(Squares):
        def load_mask(self, image_id):
            return super().load_mask(image_id)[0], np.array([1])

    with pytest.raises(UserError, match=r"load_mask\(0\).*3\).*1 class ids"):
        Wrong().load_layers(0)
