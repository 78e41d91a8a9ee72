"""COCO files: what they list, and what cannot be read."""

import json
import re
import time

import numpy as np
import pytest

from mrcnn.data.pairs import check_pairs, find_pairs
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.pixels.polygons import decode_run_lengths, fill
from tests.support.labelled_files import (
    TRUTH,
    coco_file,
    expected,
    load,
    read,
    write_image,
)


@pytest.mark.parametrize(
    "names",
    [
        ("a.tif", "b.png", "plate/a.jpg"),
        ("a.png", "b.png", "plate/a.png"),
        ("./a.tif", "/data/b.png", "x\\plate\\a.jpg"),
    ],
)
def test_file_names_of_coco(names, images, tmp_path):
    truth = dict(zip(names, TRUTH.values(), strict=True))
    assert read(images, coco_file(tmp_path / "coco.json", truth)) == expected()


@pytest.mark.filterwarnings("ignore:Images without labels")
def test_file_names_that_fit_no_or_several_images(images, tmp_path):
    write_image(images / "deep" / "b.png")
    write_image(images / "c" / "x.png")
    write_image(images / "d" / "x.png")
    file = tmp_path / "coco.json"
    with pytest.warns(MRCNNWarning, match="Labels without an image, left out: 1 .first: other/a"):
        assert read(
            images,
            coco_file(
                file,
                {
                    "other/a.tif": TRUTH["b"],
                    "a.tif": TRUTH["a"],
                    "b.png": TRUTH["b"],
                },
            ),
        ) == expected("a", "b")
    with pytest.warns(MRCNNWarning, match="Labels without an image, left out: 2 .first: val/a"):
        assert read(
            images,
            coco_file(
                file,
                {
                    "val/a.tif": TRUTH["b"],
                    "train/a.tif": TRUTH["b"],
                    "images/a.tif": TRUTH["a"],
                },
            ),
        ) == expected("a")
    with pytest.raises(UserError, match="x.png may be c/x.png or d/x.png in .*more of its path"):
        find_pairs(images, coco_file(file, {"x.png": TRUTH["a"]}))
    with pytest.raises(UserError, match="lists a.tif twice, as a.tif and as a.png"):
        find_pairs(images, coco_file(file, {"a.tif": TRUTH["a"], "a.png": TRUTH["a"]}))


def one_image(tmp_path, annotations, **entry):
    """A COCO data set of one image of 6 x 8 pixels with these annotations."""
    write_image(tmp_path / "a.png", (6, 8))
    content = {
        "images": [{"id": "p", "file_name": "a.png", **entry}],
        "annotations": [
            {"id": 5, "image_id": "p", "category_id": 1, **annotation} for annotation in annotations
        ],
    }
    (tmp_path / "coco.json").write_text("\ufeff" + json.dumps(content))
    return load(find_pairs(tmp_path, tmp_path / "coco.json"))


SQUARE = {"segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}


def test_overlapping_annotations_and_several_polygons(tmp_path):
    two = {"segmentation": [[0, 0, 2, 0, 2, 2, 0, 2], [6, 4, 8, 4, 8, 6, 6, 6]]}
    dataset = one_image(tmp_path, [SQUARE, two])
    masks, class_ids = dataset.load_mask(0)
    assert dataset.load_layers(0)[0].shape == (6, 8, 2) and class_ids.tolist() == [1, 1]
    truth = np.zeros((6, 8, 2), bool)
    truth[1:4, 1:4, 0] = truth[:2, :2, 1] = truth[4:, 6:, 1] = True
    np.testing.assert_array_equal(masks, truth)


def test_what_coco_files_have_besides(tmp_path):
    away = {"segmentation": [[90, 90, 99, 90, 99, 99]]}
    with pytest.warns(MRCNNWarning) as seen:
        dataset = one_image(
            tmp_path,
            [
                SQUARE,
                {**SQUARE, "iscrowd": 1},
                {**SQUARE, "image_id": "q"},
                {**SQUARE, "category_id": 2},
                away,
            ],
        )
        for _ in range(3):
            assert dataset.load_layers(0)[1].tolist() == [1, -1, 1]
    texts = [str(warning.message) for warning in seen]
    assert len(texts) == 4
    for text, words in zip(
        texts,
        (
            "1 of 5 annotations are crowds .iscrowd 1.: their pixels are neither",
            "1 annotations belong to no image of the file and are left out .first: of image .q",
            "2 categories, all taken as nuclei",
            "a.png: 1 of 4 outlines hold no pixel",
        ),
        strict=True,
    ):
        assert re.search(words, text)
    with pytest.warns(MRCNNWarning, match="without any annotation, taken as .* without nuclei: 1"):
        layers, class_ids = one_image(tmp_path, []).load_layers(0)
    assert layers.shape == (6, 8, 1) and not layers.any() and not len(class_ids)


@pytest.mark.parametrize(
    "segmentation, words",
    [
        ([], "no outline"),
        (None, "no outline"),
        ([[1, 2, 3]], "reshape"),
        ([[1, 2, 3, 4, 5, "x"]], "could not convert"),
        ([[1, 2, float("nan"), 4, 5, 6]], "not numbers"),
        ({"size": [6, 8], "counts": [5]}, "do not add up"),
        ({"size": [6, 8], "counts": "P"}, "cut short"),
        ({"size": [8, 6], "counts": [48]}, r"for \[8, 6\] pixels, its image has \[6, 8\]"),
        ({"counts": [48]}, "size"),
        ({"size": [6, 8], "counts": [2**99]}, ""),
        ({"size": [6, 8], "counts": [20.5, 27.5]}, "not all whole numbers"),
        ({"size": [6, 8], "counts": "P" * 99}, "too many digits"),
        (3, ""),
    ],
)
def test_annotations_that_cannot_be_read(segmentation, words, tmp_path):
    dataset = one_image(tmp_path, [{"segmentation": segmentation}])
    with pytest.raises(UserError, match=f"annotation .?5.? of .?a.png.? cannot be read: .*{words}"):
        dataset.load_layers(0)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "not a JSON file"),
        ("[]", "not a COCO file"),
        ("{}", "not a COCO file"),
        ('{"images": [{}], "annotations": []}', "not a COCO file"),
        ('{"images": [], "annotations": [{}]}', "not a COCO file"),
        ('{"images": 1, "annotations": []}', "not a COCO file"),
        ("\x80", "not a JSON file"),
        ("[" * 100_000, "not a JSON file of labels: too deeply nested"),
        ("9" * 5000, "not a JSON file"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 1e999, "width": 9}]}', "not a COCO"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"iscrowd": "x"}]}', "not a"),
        ('{"images": [{"id": 1, "file_name": ["a"]}], "annotations": []}', "not a COCO"),
        ('{"images": [{"id": 1, "file_name": "a\\nb"}], "annotations": []}', "not a COCO"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], '
            '"annotations": []}',
            "several images have the id",
        ),
    ],
)
def test_files_that_are_no_coco(text, words, images, tmp_path):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"x.json: {words}"):
        find_pairs(images, tmp_path / "x.json")


@pytest.mark.parametrize("kind", ["run lengths", "polygons"])
def test_where_all_are_crowds_they_are_nuclei(kind, tmp_path):
    """CVAT's brush writes every mask so; real crowds lie among nuclei."""
    runs = {"segmentation": {"size": [6, 8], "counts": [7, 3, 38]}}
    one = runs if kind == "run lengths" else SQUARE
    with pytest.warns(MRCNNWarning, match="all 2 annotations are crowds .* taken as one nucleus"):
        dataset = one_image(tmp_path, [{**one, "iscrowd": 1}] * 2)
    layers, class_ids = dataset.load_layers(0)
    assert class_ids.tolist() == [1, 1] and layers.any()


def test_work_follows_the_size_of_the_image():
    """Many corners, and long strings, neither fill the memory nor take for ever."""
    corners = np.zeros((200_000, 2))
    corners[:, 0] = np.arange(200_000) / 20_000
    corners[::2, 1] = 4000
    start = time.monotonic()
    with pytest.raises(ValueError, match="200000 corners .* simplify"):
        fill([corners], (4000, 4000))
    with pytest.raises(ValueError, match="too many digits"):
        decode_run_lengths("P" * 3_000_000)
    assert time.monotonic() - start < 5
    few = corners[:2000] * [100, 1]  # eight times what is looked at together
    _, inside = fill([few], (4000, 4000))
    assert abs(inside.sum() / (4000 * 10 / 2) - 1) < 0.01


def test_coco_for_images_of_another_size(tmp_path):
    (pair,) = [info["pair"] for info in one_image(tmp_path, [SQUARE], height=6, width=9).image_info]
    (line,) = check_pairs([pair])
    assert "labels of 6 x 9 pixels" in line and "a.png, which has 6 x 8" in line
    assert check_pairs([one_image(tmp_path, [SQUARE]).image_info[0]["pair"]]) == []
