"""Result files, read back by what their own worlds read them with: the same instances."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import tifffile

from mrcnn.config import Config
from mrcnn.errors import UserError
from mrcnn.pixels.exposure import measure
from mrcnn.results import result_files
from mrcnn.results.result import Result
from mrcnn.results.writers import ResultWriter

SCORES = np.array([0.95, 0.8, 0.75])


@pytest.fixture
def labels():
    """Three instances, the second with a hole, the third of two pieces at the edge; 4 is absent
    from the numbers between."""
    made = np.zeros((20, 30), np.int32)
    made[2:7, 3:9] = 1
    made[8:15, 12:20] = 2
    made[10:12, 14:16] = 0
    made[0:3, 27:30] = 5
    made[16:20, 0:4] = 5
    made[3, 9] = 1
    return made


def same_instances(one, other):
    return np.array_equal(
        np.unique(one, return_inverse=True)[1], np.unique(other, return_inverse=True)[1]
    )


@pytest.mark.parametrize("most, kind", [(5, np.uint16), (65535, np.uint16), (65536, np.uint32)])
def test_label_image(labels, tmp_path, most, kind):
    labels[labels == 5] = most
    result_files.write_label_image(tmp_path / "a.tif", labels)
    found = tifffile.imread(tmp_path / "a.tif")
    assert found.dtype == kind
    np.testing.assert_array_equal(found, labels)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].compression != 1


def rasterised(shapes, shape):
    shapely = pytest.importorskip("shapely")
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    found = np.zeros(shape, int)
    for number, polygon in enumerate(shapes, 1):
        inside = shapely.contains_xy(polygon, x, y)
        assert not found[inside].any()
        found[inside] = number
    return found


def test_geojson_by_shapely(labels, tmp_path):
    shapely = pytest.importorskip("shapely")
    result_files.write_geojson(tmp_path / "a.geojson", labels, SCORES, "nucleus")
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    shapes = [shapely.from_geojson(json.dumps(f["geometry"])) for f in content["features"]]
    assert all(shape.is_valid for shape in shapes)
    assert [shape.area for shape in shapes] == [31, 52, 25]
    np.testing.assert_array_equal(
        rasterised(shapes, labels.shape),
        np.searchsorted([1, 2, 5], labels) * (labels > 0) + (labels > 0),
    )
    properties = [f["properties"] for f in content["features"]]
    assert [p["measurements"]["score"] for p in properties] == SCORES.tolist()
    assert {p["classification"]["name"] for p in properties} == {"nucleus"}
    assert [p["name"] for p in properties] == ["1", "2", "5"]
    for feature in content["features"]:
        rings = feature["geometry"]["coordinates"]
        rings = rings if feature["geometry"]["type"] == "Polygon" else sum(rings, [])
        assert all(ring[0] == ring[-1] for ring in rings)


def decoded(counts, shape):
    """COCO's run lengths by their definition: 0, 1, 0, ... down the columns."""
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    return values.reshape(shape[1], shape[0]).T.astype(bool)


def test_coco(labels):
    found = result_files.coco_annotations(labels, SCORES, 7, 100)
    assert [a["id"] for a in found] == [100, 101, 102]
    for annotation, label, score in zip(found, (1, 2, 5), SCORES, strict=True):
        mask = labels == label
        assert sum(annotation["segmentation"]["counts"]) == mask.size
        np.testing.assert_array_equal(
            decoded(annotation["segmentation"]["counts"], labels.shape), mask
        )
        y, x = np.nonzero(mask)
        assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert annotation["area"] == mask.sum() and annotation["score"] == score
        assert annotation["image_id"] == 7 and annotation["segmentation"]["size"] == [20, 30]
    json.dumps(found)


def test_coco_of_several_classes(labels):
    found = result_files.coco_annotations(labels, SCORES, 1, 1, [2, 1, 3])
    assert [annotation["category_id"] for annotation in found] == [2, 1, 3]


def test_coco_by_pycocotools(labels):
    tools = pytest.importorskip("pycocotools.mask")
    for annotation, label in zip(
        result_files.coco_annotations(labels, SCORES, 1, 1), (1, 2, 5), strict=True
    ):
        packed = tools.frPyObjects(annotation["segmentation"], 20, 30)
        np.testing.assert_array_equal(tools.decode(packed).astype(bool), labels == label)


@pytest.mark.parametrize("corner", [(0, 0), (0, 29), (19, 0), (19, 29)])
def test_coco_of_single_pixels_at_the_corners(corner):
    labels = np.zeros((20, 30), np.int32)
    labels[corner] = 1
    [annotation] = result_files.coco_annotations(labels, None, 1, 1)
    np.testing.assert_array_equal(
        decoded(annotation["segmentation"]["counts"], labels.shape), labels == 1
    )
    assert "score" not in annotation


def test_imagej_rois_by_roifile(labels, tmp_path):
    roifile = pytest.importorskip("roifile")
    shapely = pytest.importorskip("shapely")
    result_files.write_imagej_rois(tmp_path / "a.zip", labels)
    rois = roifile.roiread(tmp_path / "a.zip")
    assert [roi.name for roi in rois] == ["0001", "0002", "0005", "0005-2"]
    found = rasterised([shapely.Polygon(roi.coordinates()) for roi in rois], labels.shape)
    expected = labels.copy()
    expected[10:12, 14:16] = 2  # no holes in ImageJ's polygons
    np.testing.assert_array_equal(found > 0, expected > 0)
    assert same_instances(np.where(found == 4, 3, found), expected)


def test_imagej_rois_without_roifile(labels, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "roifile", None)
    with pytest.raises(UserError, match="pip install roifile"):
        result_files.write_imagej_rois(tmp_path / "a.zip", labels)
    assert not list(tmp_path.iterdir())


def test_measurements(labels, rng):
    image = rng.integers(0, 255, (20, 30, 3))
    table = result_files.measurements(labels, SCORES, image, microns=0.5)
    assert table["label"].tolist() == [1, 2, 5] and table["score"].tolist() == SCORES.tolist()
    for _, row in table.iterrows():
        mask = labels == row["label"]
        y, x = np.nonzero(mask)
        values = image.mean(axis=-1)[mask]
        assert row["area"] == mask.sum() and row["area_um2"] == mask.sum() / 4
        np.testing.assert_allclose([row["centroid_y"], row["centroid_x"]], [y.mean(), x.mean()])
        np.testing.assert_allclose(
            [row["mean_intensity"], row["min_intensity"], row["max_intensity"]],
            [values.mean(), values.min(), values.max()],
        )
        assert row["touches_edge"] == (row["label"] == 5)
    np.testing.assert_allclose(table["perimeter_um"], table["perimeter"] / 2)


def test_a_disc_measures_as_a_disc():
    y, x = np.mgrid[:101, :101] - 50
    table = result_files.measurements((y**2 + x**2 <= 30**2).astype(np.int32), None, x * 0.0)
    assert table["area"][0] == pytest.approx(np.pi * 900, rel=0.01)
    assert table["perimeter"][0] == pytest.approx(2 * np.pi * 30, rel=0.03)
    assert table["eccentricity"][0] < 0.05 and table["solidity"][0] > 0.97
    assert np.isnan(table["score"][0])


@pytest.mark.parametrize("gap, expected", [(0, 1), (1, 1), (2, 1), (3, 0)])
def test_neighbours(gap, expected):
    labels = np.zeros((10, 20), np.int32)
    labels[2:8, 2:6] = 1
    labels[2:8, 6 + gap : 10 + gap] = 2
    table = result_files.measurements(labels, None, labels)
    assert table["neighbours"].tolist() == [expected] * 2


def test_nothing_found(tmp_path):
    empty = np.zeros((8, 9), np.int32)
    result_files.write_label_image(tmp_path / "a.tif", empty)
    assert not tifffile.imread(tmp_path / "a.tif").any()
    assert result_files.geojson(empty, np.zeros(0), "nucleus")["features"] == []
    assert result_files.coco_annotations(empty, np.zeros(0), 1, 1) == []
    table = result_files.measurements(empty, np.zeros(0), empty)
    assert isinstance(table, pd.DataFrame) and len(table) == 0 and "neighbours" in table


def test_intensities_of_finite_values_only():
    from mrcnn.results.result_files import intensities

    labels = np.array([[1, 1, 1, 2, 0]])
    found = intensities(labels, np.array([[np.nan, 2.0, 4.0, np.inf, 1.0]]))
    assert [found[f"{name}_intensity"][1] for name in ("mean", "min", "max")] == [3, 2, 4]
    assert all(np.isnan(values[2]) for values in found.values())


def test_large_label_images_are_strips(tmp_path, monkeypatch):
    import tifffile

    monkeypatch.setattr(result_files, "STRIPS_ABOVE", 1000)
    labels = np.arange(150 * 130).reshape(150, 130) % 70_000
    result_files.write_label_image(tmp_path / "a.tif", labels)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert not file.pages[0].is_tiled and len(file.pages) == 1
        np.testing.assert_array_equal(file.asarray(), labels)


def test_cells_that_spreadsheets_would_run_are_text():
    for text in ("=1+1", "@a", "-2+3", "+cmd|' /C calc'!A0", "-SUM(A1)", "\t=1"):
        assert result_files.guarded(text) == f"'{text}"
    for text in ("a=1", "-dash", "+plus 2.png", "", "7"):
        assert result_files.guarded(text) == text


def test_a_report_of_a_smaller_level_is_in_the_microns_that_were_given(tmp_path):
    image = np.zeros((30, 40), np.uint8)
    image[5:9, 5:9] = 200
    found = Result(
        (image > 0).astype(np.int32),
        np.ones(1),
        np.ones(1, np.int32),
        ("object",),
        image,
        measure(image, Config()),
        microns=0.5,
        reduction=2.0,
    )
    writer = ResultWriter(tmp_path, ["report", "measurements"], {}, microns=0.25)
    writer.add("a", found)
    writer.close(True)
    page = (tmp_path / "index.html").read_text()
    assert float(re.search(r'"median_area": ?([0-9.]+)', page)[1]) == 64  # of the full size
    assert re.search(r'"height": ?60, ?"width": ?80', page)
    table = pd.read_csv(tmp_path / "measurements.csv")
    assert table["area"][0] == 16 and table["area_um2"][0] == 4 == 64 * 0.25**2
