"""ROIs of ImageJ, each one instance."""

import sys
import zipfile

import numpy as np
import pytest

from mrcnn.data.pairs import find_pairs
from mrcnn.errors import MRCNNWarning, UserError
from tests.support.labelled_files import TRUTH, load, write_image, write_labels


@pytest.fixture
def roi():
    """Makes a ROI of ImageJ, with the attributes that its file has."""
    roifile = pytest.importorskip("roifile")

    def make(kind, box=(0, 0, 0, 0), points=None, **attributes):
        made = roifile.ImagejRoi() if points is None else roifile.ImagejRoi.frompoints(points)
        made.version, made.roitype = 228, roifile.ROI_TYPE[kind]
        if points is None:
            made.top, made.left, made.bottom, made.right = box
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    return make


def roi_set(tmp_path, rois):
    """A data set of one image of 20 x 24 pixels with ROIs by name."""
    write_image(tmp_path / "a.png", (20, 24))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, made in rois.items():
            archive.writestr(f"{name}.roi", made if isinstance(made, bytes) else made.tobytes())
    return load(find_pairs(tmp_path, tmp_path))


def test_kinds_of_roi(roi, tmp_path):
    import roifile

    corners = np.array([[2, 3], [9, 3], [9, 8], [2, 8]])
    path = [0, 1, 1, 1, 9, 1, 1, 9, 9, 1, 1, 9, 4, 0, 3, 3, 1, 6, 3, 1, 6, 6, 1, 3, 6, 4]
    made = {
        "polygon": roi("POLYGON", points=corners),
        "freehand": roi("FREEHAND", points=corners),
        "traced": roi("TRACED", points=corners),
        "fractional": roi("POLYGON", points=corners + 0.3),
        "rectangle": roi("RECT", (3, 2, 8, 9)),
        "moved rectangle": roi(
            "RECT",
            (3, 2, 9, 10),
            xd=2.3,
            yd=3.3,
            widthd=7,
            heightd=5,
            options=roifile.ROI_OPTIONS.SUB_PIXEL_RESOLUTION,
        ),
        "oval": roi("OVAL", (2, 3, 17, 20)),
        "composite": roi(
            "RECT",
            (1, 1, 9, 9),
            shape_roi_size=len(path),
            multi_coordinates=np.array(path, np.float32),
        ),
        "over the edge": roi("RECT", (15, -5, 30, 4)),
    }
    masks, class_ids = roi_set(tmp_path, made).load_mask(0)
    assert len(class_ids) == len(made)
    masks = dict(zip(made, np.moveaxis(masks, -1, 0), strict=True))
    square = np.zeros((20, 24), bool)
    square[3:8, 2:9] = True
    for name in ("polygon", "freehand", "traced", "fractional", "rectangle", "moved rectangle"):
        np.testing.assert_array_equal(masks[name], square, err_msg=name)
    y, x = np.mgrid[:20, :24] + 0.5
    oval = ((y - 9.5) / 7.5) ** 2 + ((x - 11.5) / 8.5) ** 2 < 1
    np.testing.assert_array_equal(masks["oval"], oval)
    ring = np.zeros((20, 24), bool)
    ring[1:9, 1:9] = True
    ring[3:6, 3:6] = False
    np.testing.assert_array_equal(masks["composite"], ring)
    edge = np.zeros((20, 24), bool)
    edge[15:, :4] = True
    np.testing.assert_array_equal(masks["over the edge"], edge)


@pytest.mark.parametrize("kind", ["LINE", "FREELINE", "POLYLINE", "ANGLE", "POINT", "NOROI"])
def test_rois_without_area_are_refused_by_name(kind, roi, tmp_path):
    points = None if kind in ("LINE", "NOROI") else [[1, 1], [5, 5], [9, 2]]
    dataset = roi_set(
        tmp_path, {"fine": roi("RECT", (1, 1, 5, 5)), "mine": roi(kind, points=points)}
    )
    with pytest.raises(UserError, match=f"ROI .?mine.? cannot be used: it is of type {kind}, "):
        dataset.load_layers(0)


def test_other_rois_that_are_no_outlines(roi, tmp_path):
    import roifile

    curve = [0, 1, 1, 2, 1, 9, 1, 1, 4]
    for made, words in (
        (
            roi("POLYGON", points=[[1, 1], [5, 5], [9, 2]], options=roifile.ROI_OPTIONS.SPLINE_FIT),
            "fitted spline",
        ),
        (roi("RECT", (1, 1, 5, 5), subtype=roifile.ROI_SUBTYPE.TEXT), "note of type TEXT"),
        (
            roi(
                "RECT",
                (1, 1, 9, 9),
                shape_roi_size=len(curve),
                multi_coordinates=np.array(curve, np.float32),
            ),
            "not supported",
        ),
        (b"Iout", "too short"),
        (b"x" * 99, "not an ImageJ ROI"),
    ):
        with pytest.raises(UserError, match=f"a.zip: ROI .?mine.? cannot be used: .*{words}"):
            roi_set(tmp_path, {"mine": made}).load_layers(0)
    planes = {str(i): roi("RECT", (1, 1, 5, 5), position=i) for i in range(3)}
    with pytest.raises(UserError, match="a.zip: ROIs of several planes"):
        roi_set(tmp_path, planes).load_layers(0)
    planes.pop("2")
    assert len(roi_set(tmp_path, planes).load_layers(0)[1]) == 2


def test_names_of_rois_merge_nothing(roi, tmp_path):
    """Only the property that this project writes makes pieces: names are anybody's."""
    names = ["0001", "0001-2", "0123-0456", "0123-0456-1", "0002", "0002-0003", "0007-2", "x-2"]
    made = {name: roi("RECT", (i, i, i + 1, i + 1)) for i, name in enumerate(names)}
    made["0002-2"] = roi("RECT", (18, 0, 19, 1), props="mrcnn.piece_of: 0002\n")
    with pytest.warns(MRCNNWarning, match="ROIs 0001-2 .of 1 like it. and 0001 are taken as two"):
        masks, class_ids = roi_set(tmp_path, made).load_mask(0)
    assert masks.sum(axis=(0, 1)).tolist() == [1, 1, 1, 1, 2, 1, 1, 1] and (class_ids == 1).all()


def test_zip_files_that_claim_too_much(roi, tmp_path):
    with pytest.raises(UserError, match="ROI .?bomb.? claims 9000000 bytes"):
        roi_set(tmp_path, {"bomb": bytes(9_000_000)}).load_layers(0)


def test_zip_files_of_other_kinds(roi, tmp_path):
    assert len(roi_set(tmp_path, {}).load_layers(0)[1]) == 0
    with pytest.warns(MRCNNWarning, match="1 of 2 outlines hold no pixel"):
        dataset = roi_set(
            tmp_path, {"a": roi("OVAL", (90, 90, 99, 99)), "b": roi("OVAL", (2, 2, 9, 9))}
        )
        assert len(dataset.load_layers(0)[1]) == 1
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(UserError, match="a.zip: holds no .roi files"):
        dataset.load_layers(0)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="a.zip: not a readable zip file"):
        dataset.load_layers(0)


def test_rois_without_roifile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "roifile", None)
    write_image(tmp_path / "a.png")
    (tmp_path / "a.zip").touch()
    with pytest.raises(UserError, match="pip install roifile"):
        find_pairs(tmp_path, tmp_path)
    write_labels(tmp_path / "a_mask.png", TRUTH["a"])
    assert len(find_pairs(tmp_path, tmp_path)) == 1  # the ROIs are not needed
