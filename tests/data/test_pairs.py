"""Which labels belong to which images."""

import os

import pytest

from mrcnn.data.pairs import find_pairs
from mrcnn.errors import MRCNNWarning, UserError
from tests.support.labelled_files import (
    TRUTH,
    coco_file,
    expected,
    read,
    write_image,
    write_labels,
)


def matched(images, labels):
    """name -> label files, relative to the folder of labels."""
    return {
        pair.name: [str(file.relative_to(labels)) for file in pair.labels.files]
        for pair in find_pairs(images, labels)
    }


@pytest.mark.parametrize(
    "labels",
    [
        "a.png",
        "a.tiff",
        "a_mask.tif",
        "a_masks.png",
        "a_label.tif",
        "A_labels.tif",
        "a_gt.png",
        "a_seg.png",
        "a_cp_masks.png",
        "a_MASK.png",
        "a.zip",
        "a_rois.zip",
        "a.roi",
        "a/1.roi",
        "a_rois/1.roi",
        "a.ome.tif",
    ],
)
def test_customary_names(labels, tmp_path):
    if "roi" in labels or "zip" in labels:
        pytest.importorskip("roifile")
    name = labels[0]
    for there in (tmp_path / "labels" / "x", tmp_path / "images" / "x"):
        there.mkdir(parents=True)
    (tmp_path / "labels" / "x" / labels).parent.mkdir(exist_ok=True)
    (tmp_path / "labels" / "x" / labels).touch()
    for image in (f"{name}.tif", f"{name}_img.PNG", f"{name}.ome.tif", f"{name}_image.jpg"):
        path = tmp_path / "images" / "x" / image
        path.touch()
        found = matched(tmp_path / "images", tmp_path / "labels")
        assert list(found.values()) == [[f"x/{labels}"]]
        path.unlink()


def test_labels_in_the_same_folder(tmp_path):
    pytest.importorskip("roifile")
    for file in (
        "a.tif",
        "a_mask.tif",
        "b.jpg",
        "b_cp_masks.png",
        "b_rois.zip",
        "c.png",
        "c.zip",
        "d.png",
        "d/0001.roi",
        "d/0002.roi",
        "p/a.png",
        "p/a_Label.png",
        ".a.tif",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert matched(tmp_path, tmp_path) == {
        "a": ["a_mask.tif"],
        "b": ["b_cp_masks.png"],
        "c": ["c.zip"],
        "d": ["d/0001.roi", "d/0002.roi"],
        "p/a": ["p/a_Label.png"],
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("images, labels", [("", "labels"), ("images", "labels"), ("images", "")])
def test_folders_inside_each_other(images, labels, tmp_path):
    """Labels inside the folder of images are no images, and the other way round."""
    images, labels = tmp_path / images, tmp_path / labels
    for file in (images / "a.png", labels / "a.png" if labels != tmp_path else labels / "a.tif"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert list(matched(images, labels)) == ["a"]


def test_whole_names_go_before_suffixes(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in ("cell", "cell_seg", "cell_img"):
            (tmp_path / folder / f"{name}.png").touch()
    assert matched(tmp_path / "images", tmp_path / "labels") == {
        name: [f"{name}.png"] for name in ("cell", "cell_img", "cell_seg")
    }


@pytest.mark.parametrize(
    "files", [("a_mask.png", "a_gt.png"), ("a.png", "a.tif"), ("a.zip", "a.roi")]
)
def test_two_labels_of_one_image(files, images, tmp_path):
    (tmp_path / "labels").mkdir()
    for file in files:
        (tmp_path / "labels" / file).touch()
    with pytest.raises(UserError, match="both a.*may be the labels of a.tif; keep one"):
        find_pairs(images, tmp_path / "labels")


def test_two_images_of_one_name(images):
    write_image(images / "b.bmp")
    with pytest.raises(UserError, match="both b.bmp and b.png; keep one"):
        find_pairs(images, images)


def test_what_has_no_partner_is_left_out(images, tmp_path):
    for name in ("b", "x", "plate/y"):
        write_labels(tmp_path / "labels" / f"{name}.tif", TRUTH["b"])
    with pytest.warns(MRCNNWarning) as seen:
        assert read(images, tmp_path / "labels") == expected("b")
    first, second = (str(warning.message) for warning in seen)
    assert first.startswith("Images without labels, left out: 2 (first: ") and "a.tif" in first
    assert second.startswith("Labels without an image, left out: 2 (first: ") and "y.tif" in second


def test_folders_that_may_not_be_listed(images, tmp_path, monkeypatch):
    """As root every folder may be listed: the refusal is made here."""
    write_labels(tmp_path / "labels" / "shut" / "a.png", TRUTH["a"])
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="shut: cannot be read .Permission denied"):
        find_pairs(images, tmp_path / "labels")


def test_nothing_fits(images, tmp_path):
    labels = tmp_path / "labels"
    write_labels(labels / "x.tif", TRUTH["a"])
    with pytest.raises(UserError) as caught:
        find_pairs(images, labels)
    line = str(caught.value)
    assert "3 images" in line and "\n" not in line
    for tried in ("tried for a.tif: a.png", "a.zip", "a/*.roi", "_cp_masks"):
        assert tried in line
    coco_file(labels / "notes.json", {})
    with pytest.raises(UserError, match="It holds notes.json: if that is a COCO file"):
        find_pairs(images, labels)
    (labels / "notes.json").rename(labels / "a_seg.npy")
    with pytest.raises(UserError, match="Cellpose's _seg.npy"):
        find_pairs(images, labels)
    with pytest.raises(UserError, match="first of them is a.tif, and the first of 1 .* is 'x.png'"):
        find_pairs(images, coco_file(tmp_path / "coco.json", {"x.png": TRUTH["a"]}))
    with pytest.raises(UserError, match="lists no images"):
        find_pairs(images, coco_file(tmp_path / "coco.json", {}))


def test_wrong_places(images, tmp_path):
    with pytest.raises(UserError, match="absent: no such folder of images"):
        find_pairs(tmp_path / "absent", images)
    with pytest.raises(UserError, match="absent: no such folder or file of labels"):
        find_pairs(images, tmp_path / "absent")
    with pytest.raises(UserError, match="a.tif: labels must be a folder or a COCO file"):
        find_pairs(images, images / "a.tif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images"):
        find_pairs(tmp_path / "empty", images)
