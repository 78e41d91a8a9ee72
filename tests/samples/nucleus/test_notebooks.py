"""The notebooks run from top to bottom, and what they draw with does what it says."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mrcnn.data.batches import BatchLoader
from mrcnn.data.examples import make_example
from mrcnn.evaluation import metrics
from mrcnn.inference.postprocess import Detections, PostProcessing
from mrcnn.network.anchors import image_anchors
from mrcnn.pixels.boxes import extract_bboxes
from mrcnn.pixels.exposure import Exposure
from mrcnn.pixels.image_meta import compose_image_meta
from mrcnn.pixels.masks import layers_to_masks
from mrcnn.pixels.molding import mold_inputs
from mrcnn.results.drawing import overlay_instances
from mrcnn.results.result import Result
from samples.nucleus import inspection
from samples.nucleus.nucleus import NucleusConfig, NucleusInferenceConfig

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "samples" / "nucleus"
# Where each is started, and what makes it quick.
RUNS = {
    "inspect_nucleus_data": (FOLDER, "COUNT, SIZE = 4, 128"),
    "inspect_nucleus_model": (ROOT, "COUNT, SIZE, IMAGE = 2, 128, 0"),
}
SMALL_FIGURES = "import matplotlib.pyplot as plt; plt.rcParams['figure.dpi'] = 30"
DRAWS = r"panels\(|subplots\(|plt\.plot\(|result\.plot\(|visualize\.(draw|plot)_"


def cells_of(name, kind="code"):
    book = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def files():
    """Everything in the clone that a notebook could leave something in."""
    found = {
        *ROOT.iterdir(),
        *(ROOT / "logs").rglob("*"),
        *(ROOT / "results").rglob("*"),
        *(ROOT / "weights").rglob("*"),
        *FOLDER.rglob("*"),
    }
    # scripts/test.sh makes environments meanwhile.
    return {
        path
        for path in found
        if "__pycache__" not in path.parts and not path.name.startswith(".venv")
    }


# ---- The files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_what_is_committed_has_no_outputs(name):
    book = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert book["metadata"]["language_info"] == {"name": "python"}
    for cell in book["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", RUNS)
def test_cells_are_short_and_explained(name):
    assert all(len(cell["source"]) <= 20 for cell in cells_of(name))
    texts = "".join("".join(cell["source"]) for cell in cells_of(name, "markdown"))
    assert len(texts.split()) > 500
    for link in re.findall(r"\]\(([^)]+)\)", texts):
        assert (FOLDER / link).is_file(), link
    for path in re.findall(r"`((?:mrcnn|samples)/[\w/]+\.py)`", texts):
        assert (ROOT / path).is_file(), path
    for key in re.findall(r"`([A-Z][A-Z_]+)`", texts):
        assert hasattr(NucleusConfig, key), key


# ---- Running them --------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Name of a kernel of this very Python, which keeps all files of its own in tmp_path."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    folder = tmp_path / "jupyter" / "kernels" / "this"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "this", "language": "python"})
    )
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into the notebook
    return "this"


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_from_top_to_bottom(name, kernel, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    before = files()
    folder, parameters = RUNS[name]
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    place = [cell.metadata.get("tags") for cell in book.cells].index(["parameters"])
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(f"{parameters}\n{SMALL_FIGURES}"))
    NotebookClient(
        book, timeout=300, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}
    ).execute()

    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    for cell in cells:
        figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(figures) == bool(re.search(DRAWS, cell.source)), cell.source
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    # Warnings of Python's name a file and a line; TensorFlow's notes on start-up have no such form.
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not re.search(r"\.py:\d+: \w*Warning|Traceback", said), said
    assert files() == before
    assert os.listdir(tmp_path / "tmp") == []  # the synthetic images are gone, too


# ---- What they draw with -------------------------------------------------------------------------


def test_synthetic_images_go_away_with_their_data_set():
    dataset = inspection.open_data(None, "mine", count=3, size=64, seed=1)
    folder = Path(dataset.image_info[0]["path"]).parents[3]
    assert len(dataset.image_ids) == 3 and os.listdir(folder) == ["mine"]
    table = inspection.list_images(dataset)
    for row in table.itertuples():
        masks, _ = dataset.load_mask(row.Index)
        areas = masks.sum(axis=(0, 1))
        assert (row.height, row.width, row.nuclei) == (64, 64, len(areas))
        assert row.covered == pytest.approx(masks.any(axis=-1).mean())
        assert np.pi * (row.diameter / 2) ** 2 == pytest.approx(np.median(areas))
    again = inspection.open_data(folder, "mine")
    np.testing.assert_array_equal(again.load_image(2), dataset.load_image(2))
    del dataset
    assert not folder.exists()


def test_anchors_of_the_levels():
    config = NucleusConfig()
    levels = inspection.anchors_by_level(config, (128, 192, 3))
    np.testing.assert_array_equal(np.concatenate(levels), image_anchors(config, (128, 192, 3)))
    for anchors, side in zip(levels, config.RPN_ANCHOR_SCALES, strict=True):
        sizes = anchors[:, 2:] - anchors[:, :2]
        np.testing.assert_allclose(sizes.prod(axis=1), side**2, rtol=1e-4)
        middle = inspection.middle_anchors(anchors, (128, 192, 3))
        assert len(middle) == len(config.RPN_ANCHOR_RATIOS)
        places = (middle[:, :2] + middle[:, 2:]) / 2
        np.testing.assert_allclose(places, places[:1].repeat(3, axis=0), atol=0.01)
        distance = np.abs((anchors[:, :2] + anchors[:, 2:]) / 2 - [64, 96]).sum(axis=1)
        assert np.abs(places[0] - [64, 96]).sum() == pytest.approx(distance.min(), abs=0.01)


def test_score_maps_have_the_scores_where_the_anchors_are(rng):
    config = NucleusConfig()
    scores = rng.random(len(image_anchors(config, (128, 192)))).astype(np.float32)
    start = 0
    for found, stride in zip(
        inspection.score_maps(scores, config, (128, 192)), config.BACKBONE_STRIDES, strict=True
    ):
        assert found.shape == (128 // stride, 192 // stride)
        for y in range(found.shape[0]):
            for x in range(found.shape[1]):
                place = start + 3 * (y * found.shape[1] + x)
                assert found[y, x] == scores[place : place + 3].max()
        start += 3 * found.size


def test_boxes_in_the_input_lie_around_the_same_pixels(rng):
    image = np.zeros((50, 70, 3), np.uint8)
    layers = np.zeros((50, 70, 1), np.int32)
    layers[10:30, 20:50] = 1
    image[10:30, 20:50] = 255
    molded, metas, _ = mold_inputs([image], NucleusInferenceConfig(), [2.0])
    [box] = inspection.boxes_in_input(layers, metas[0])
    bright = (molded[0].mean(axis=-1) > molded.mean())[..., None]
    np.testing.assert_allclose(box, extract_bboxes(bright)[0], atol=1)
    assert inspection.boxes_in_input(0 * layers, metas[0]).shape == (0, 4)
    meta = compose_image_meta(0, (10, 20, 3), (64, 64, 3), (4, 2, 34, 62), 3, [0, 0])
    np.testing.assert_allclose(
        inspection.boxes_in_input(np.ones((10, 20, 1), int), meta), [[4, 2, 34, 62]]
    )


@pytest.mark.parametrize("mini", [True, False])
def test_batches_are_drawn_with_their_masks(mini):
    class Whole(NucleusConfig):
        USE_MINI_MASK = mini
        IMAGE_MIN_DIM = IMAGE_MAX_DIM = 64
        IMAGES_PER_GPU = 2
        MINI_MASK_SHAPE = (64, 64)

    dataset = inspection.open_data(None, "mine", count=2, size=64, seed=2)
    [batch] = BatchLoader(dataset, Whole(), steps=1, training=False)[0]
    images = inspection.draw_batch(batch, Whole())
    assert [image.shape for image in images] == [(64, 64, 3)] * 2
    for row, image in enumerate(images):
        plain = batch["input_image"][row] + Whole.MEAN_PIXEL
        outlined = (np.abs(image - plain) > 1).any(axis=-1)
        assert 0 < outlined.mean() < 0.5
        boxes = batch["input_gt_boxes"][row][batch["input_gt_class_ids"][row] > 0]
        inside = np.zeros((64, 64), bool)
        for y1, x1, y2, x2 in np.rint(boxes).astype(int):
            inside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True
        assert not (outlined & ~inside).any()


def test_examples_are_drawn_with_their_masks(rng):
    image, layers = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 1), np.int32)
    layers[20:40, 24:44] = 1
    example = make_example(image, layers, np.ones(1, np.int32), NucleusInferenceConfig(), rng)
    drawn = inspection.draw_example(example)
    assert drawn.shape == example.image.shape
    expected = overlay_instances(np.zeros(drawn.shape, np.uint8), example.whole_masks())
    np.testing.assert_array_equal(drawn, expected)


def test_panels_and_boxes():
    import matplotlib.pyplot as plt

    images = [np.zeros((20, 30)), np.ones((20, 30, 3)), np.eye(20)]
    axes = inspection.panels(images, ["one", "two", "three"], columns=2, cmap="gray")
    assert [place.get_title() for place in axes] == ["one", "two", "three"]
    inspection.draw_boxes(axes[0], np.array([[2, 3, 10, 40], [0, 0, 5, 5]]), ["red", "blue"])
    assert axes[0].get_xlim() == (-0.5, 29.5) and axes[0].get_ylim() == (19.5, -0.5)
    [boxes] = axes[0].collections
    corners = boxes.get_paths()[0].vertices
    assert corners.min(axis=0).tolist() == [2.5, 1.5]
    assert corners.max(axis=0).tolist() == [39.5, 9.5]
    inspection.draw_boxes(axes[1], np.zeros((0, 4)))
    before = plt.get_fignums()
    assert inspection.panels([], [], columns=0) == [] and plt.get_fignums() == before
    plt.close("all")


def test_masks_in_place(rng):
    image = rng.integers(0, 255, (80, 100, 3)).astype(np.uint8)
    patches = [(0, 90, rng.random((12, 10))), (40, 30, rng.random((9, 14)))]
    probabilities, outlined = inspection.masks_in_place(image, patches, side=32)
    for (y, x, patch), found, drawn, corner in zip(
        patches, probabilities, outlined, [(0, 68), (28, 21)], strict=True
    ):
        top, left = corner
        expected = np.zeros((32, 32))
        expected[y - top : y - top + patch.shape[0], x - left : x - left + patch.shape[1]] = patch
        np.testing.assert_array_equal(found, expected)
        part = image[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(
            drawn, overlay_instances(part, expected >= 0.5, (255, 230, 0))
        )
    small, _ = inspection.masks_in_place(image, patches, side=500)
    assert small[0].shape == (80, 100)


def test_channels_that_vary_most(rng):
    values = rng.normal(size=(40, 40, 4)) * [1, 5, 0.1, 2]
    values[3, 3, 2] = 1e6  # a single spot is no variation
    found = inspection.varied_channels(values, 2)
    assert list(found) == [1, 3]
    np.testing.assert_allclose(
        np.clip(values[..., 3], *np.percentile(values[..., 3], [5, 95])), found[3], rtol=1e-4
    )


# ---- Scores --------------------------------------------------------------------------------------


def random_result(rng, size=60):
    """Truth as masks, and a result that finds some of it and something else."""
    truth = np.zeros((size, size), np.int32)
    for number, corner in enumerate([(2, 2), (2, 30), (30, 2), (30, 30)], 1):
        truth[corner[0] : corner[0] + 15, corner[1] : corner[1] + 15] = number
    labels = np.zeros_like(truth)
    for number, source in enumerate(rng.permutation(4)[:3] + 1, 1):
        labels[np.roll(truth == source, rng.integers(-4, 5), axis=1)] = number
    labels[50:58, 50:58] = 4
    scores = np.sort(rng.random(4))[::-1]
    result = Result(labels, scores, np.ones(4, np.int32), ("nucleus",), truth, Exposure(0, 1))
    return layers_to_masks(truth[..., None], 4), result


def test_precision_and_recall_of_one_image_are_those_of_compute_ap(rng):
    for _ in range(5):
        masks, result = random_result(rng)
        ones = np.ones(4, np.int32)
        ap, precisions, recalls, _ = metrics.compute_ap(
            extract_bboxes(masks), ones, masks, result.boxes, ones, result.scores, result.masks
        )
        found = inspection.precision_recall([masks], [result])
        assert found[0] == pytest.approx(ap)
        np.testing.assert_allclose(found[1], precisions)
        np.testing.assert_allclose(found[2], recalls)


def test_precision_and_recall_of_several_images(rng):
    pairs = [random_result(rng) for _ in range(3)]
    masks, results = zip(*pairs, strict=True)
    ap, precisions, recalls = inspection.precision_recall(masks, results, threshold=0.6)
    detections = []
    for truth, result in pairs:
        iou = metrics.iou_matrix(truth, result.labels)
        detections += list(zip(result.scores, iou.max(axis=0) >= 0.6, strict=True))
    detections.sort(key=lambda pair: -pair[0])
    hits = [hit for _, hit in detections]
    points = [(sum(hits[: n + 1]) / (n + 1), sum(hits[: n + 1]) / 12) for n in range(len(hits))]
    np.testing.assert_allclose(recalls, [0, *(recall for _, recall in points), 1])
    best = [max(precision for precision, _ in points[n:]) for n in range(len(points))]
    np.testing.assert_allclose(precisions[1:-1], best)
    assert 0 < ap < 1
    assert inspection.precision_recall([], [])[0] == 0


def test_scores_of_settings():
    truth = np.zeros((40, 40, 1), np.int32)
    truth[5:20, 5:20] = 1
    sure, unsure = (5, 5, np.full((15, 15), 0.9)), (25, 25, np.full((10, 10), 0.9))
    found = [Detections(np.array([0.95, 0.75]), [sure, unsure])] * 2
    settings = {"low": PostProcessing(min_score=0.7), "high": PostProcessing(min_score=0.8)}
    table = inspection.score_settings(settings, found, [truth, truth])
    assert table.loc["low"].tolist() == [0.5] * 3 and table.loc["high"].tolist() == [1.0] * 3
