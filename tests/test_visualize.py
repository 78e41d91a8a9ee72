"""Drawing: array functions against exact pixels, figures by what is on their axes."""

import os
import random
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Polygon, Rectangle

from mrcnn import visualize
from mrcnn.errors import UserError
from mrcnn.results import drawing

NAMES = ["BG", "square", "circle"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def scene():
    """A dark image with two rectangles: boxes, masks, class ids."""
    image = np.full((40, 60, 3), 20, np.uint8)
    boxes = np.array([[5, 5, 15, 20], [20, 30, 38, 50]], np.int32)
    masks = np.zeros((40, 60, 2), bool)
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        masks[y1:y2, x1:x2, i] = True
    return image, boxes, masks, np.array([1, 2])


def texts(ax):
    return [text.get_text() for text in ax.texts]


def rectangles(ax):
    return [p for p in ax.patches if isinstance(p, Rectangle)]


def shown_image(ax):
    (image,) = ax.images
    return np.asarray(image.get_array())


# --- colours, masks, boxes ----------------------------------------------------------------


def test_random_colors():
    random.seed(3)
    colors = visualize.random_colors(6)
    random.seed(3)
    assert visualize.random_colors(6) == colors
    assert len(set(colors)) == 6 and all(max(c) == 1.0 for c in colors)
    assert all(max(c) == pytest.approx(0.7) for c in visualize.random_colors(4, bright=False))
    assert visualize.random_colors(0) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_apply_mask_blends_in_place(dtype):
    image, _, masks, _ = scene()
    image = image.astype(dtype)
    result = visualize.apply_mask(image, masks[:, :, 0].astype(int), (1.0, 0.0, 0.5), alpha=0.25)
    assert result is image
    inside = [int(20 * 0.75 + 0.25 * 255), 15, int(20 * 0.75 + 0.25 * 127.5)]
    assert (image[masks[:, :, 0]] == inside).all()
    assert (image[~masks[:, :, 0]] == 20).all()


def test_draw_box_is_a_frame_inside_the_box():
    image = np.zeros((20, 30, 3), np.uint8)
    assert visualize.draw_box(image, (4, 6, 14, 16), [9, 8, 7]) is image
    drawn = (image == [9, 8, 7]).all(axis=-1)
    expected = np.zeros((20, 30), bool)
    expected[4:14, 6:16] = True
    expected[6:12, 8:14] = False
    np.testing.assert_array_equal(drawn, expected)


def test_draw_box_outside_the_image_is_cut():
    image = np.zeros((10, 10, 3), np.uint8)
    visualize.draw_box(image, (-5, -5, 4, 4), [1, 1, 1])
    drawn = image.any(axis=-1)
    assert drawn[2:4, :4].all() and drawn[:4, 2:4].all() and drawn.sum() == 12


# --- instances ----------------------------------------------------------------------------


def test_display_instances():
    image, boxes, masks, class_ids = scene()
    _, ax = plt.subplots()
    visualize.display_instances(
        image,
        boxes,
        masks,
        class_ids,
        NAMES,
        scores=[0.91, 0.5],
        title="two",
        ax=ax,
        colors=[(1, 0, 0), (0, 0, 1)],
    )
    assert texts(ax) == ["square 0.910", "circle 0.500"] and ax.get_title() == "two"
    assert len(rectangles(ax)) == 2
    # Pixel 5 covers 4.5 to 5.5 on the axes of an image.
    assert rectangles(ax)[0].get_bbox().extents == pytest.approx([4.5, 4.5, 19.5, 14.5])
    outlines = [p for p in ax.patches if isinstance(p, Polygon)]
    assert outlines[0].get_xy().min(axis=0) == pytest.approx([4.5, 4.5])
    assert outlines[0].get_xy().max(axis=0) == pytest.approx([19.5, 14.5])
    shown = shown_image(ax)
    assert (shown[masks[:, :, 0]] == [137, 10, 10]).all()
    assert (image == 20).all(), "the caller's image is left alone"


def test_display_instances_options():
    image, boxes, masks, class_ids = scene()
    boxes[0] = 0  # cropped away
    _, ax = plt.subplots()
    visualize.display_instances(
        image,
        boxes,
        masks,
        class_ids,
        NAMES,
        ax=ax,
        show_mask=False,
        show_bbox=False,
        captions=["a", "b"],
    )
    assert texts(ax) == ["b"] and rectangles(ax) == []
    assert (shown_image(ax) == 20).all()


def test_display_instances_makes_a_figure_of_its_own():
    image, boxes, masks, class_ids = scene()
    visualize.display_instances(image[:, :, 0], boxes, masks, class_ids, NAMES, figsize=(3, 2))
    figure = plt.gcf()
    assert tuple(figure.get_size_inches()) == (3, 2)
    assert texts(figure.axes[0]) == ["square", "circle"]


def test_display_nothing(capsys):
    image = np.zeros((20, 20, 3), np.uint8)
    visualize.display_instances(image, np.zeros((0, 4)), np.zeros((20, 20, 0)), np.zeros(0), NAMES)
    assert "No instances" in capsys.readouterr().out
    assert shown_image(plt.gca()).shape == (20, 20, 3)


@pytest.mark.parametrize("draw", ["display_instances", "draw_boxes"])
def test_mini_masks_are_not_drawn_over_whole_images(draw):
    image, boxes, masks, class_ids = scene()
    arguments = {"masks": masks[::2, ::2], "boxes": boxes}
    if draw == "display_instances":
        arguments |= {"class_ids": class_ids, "class_names": NAMES}
    with pytest.raises(UserError, match="the masks are .* mini masks .*utils.expand_mask"):
        getattr(visualize, draw)(image, **arguments)


def test_display_instances_counts_must_agree():
    image, boxes, masks, class_ids = scene()
    with pytest.raises(UserError, match="2 boxes, 1 masks and 2 class ids"):
        visualize.display_instances(image, boxes, masks[:, :, :1], class_ids, NAMES)


def test_display_differences_captions_follow_the_scores():
    image, boxes, masks, class_ids = scene()
    half = masks.copy()
    half[:, 40:, 1] = False
    half_boxes = boxes.copy()
    half_boxes[1, 3] = 40
    _, ax = plt.subplots()
    # The worse scored prediction comes first, the truth has a row of padding.
    visualize.display_differences(
        image, np.vstack([boxes, np.zeros((1, 4), int)]), np.array([1, 2, 0]),
        np.dstack([masks, np.zeros((40, 60, 1), bool)]),
        half_boxes[::-1], class_ids[::-1], np.array([0.6, 0.9]), half[:, :, ::-1], NAMES, ax=ax,
    )  # fmt: skip
    assert texts(ax) == ["", "", "0.90 / 1.00", "0.60 / 0.50"]
    edges = [p.get_edgecolor()[:3] for p in rectangles(ax)]
    assert edges == [(0, 1, 0)] * 2 + [(1, 0, 0)] * 2


def test_display_differences_without_truth_or_without_predictions():
    image, boxes, masks, class_ids = scene()
    none = np.zeros((0, 4), np.int32), np.zeros(0, int), np.zeros((40, 60, 0), bool)
    _, (first, second) = plt.subplots(1, 2)
    visualize.display_differences(
        image, *none, boxes, class_ids, np.array([0.9, 0.8]), masks, NAMES, ax=first
    )
    assert texts(first) == ["0.90 / 0.00", "0.80 / 0.00"]
    visualize.display_differences(
        image, boxes, class_ids, masks, none[0], none[1], np.zeros(0), none[2], NAMES, ax=second
    )
    assert texts(second) == ["", ""]


def test_draw_rois(capsys):
    image, boxes, _, _ = scene()
    np.random.seed(0)
    visualize.draw_rois(image, boxes, boxes + 1, np.ones((2, 7, 7)), np.array([1, 0]), NAMES)
    ax = plt.gca()
    assert len(rectangles(ax)) == 3 and texts(ax) == ["square"] and len(ax.lines) == 1
    assert (shown_image(ax)[6:14, 6:19] != 20).any(axis=-1).all()
    assert (shown_image(ax)[20:38, 30:50] == 20).all()
    assert capsys.readouterr().out.splitlines() == [
        "Positive ROIs: 1",
        "Negative ROIs: 1",
        "Positive ratio: 0.50",
    ]


def test_draw_rois_limit():
    image, boxes, _, _ = scene()
    many = np.tile(boxes, (10, 1))
    visualize.draw_rois(image, many, many, np.ones((20, 7, 7)), np.zeros(20, int), NAMES, limit=3)
    assert len(rectangles(plt.gca())) == 3
    assert plt.gca().get_title() == "3 of 20 ROIs, chosen at random"


def test_draw_boxes():
    image, boxes, masks, _ = scene()
    _, ax = plt.subplots()
    visualize.draw_boxes(
        image,
        boxes,
        boxes + 2,
        masks=masks,
        captions=["p", "q"],
        visibilities=[0, 2],
        title="t",
        ax=ax,
    )
    # The first is grey and has no refined box; the second has both and a line between them.
    assert len(rectangles(ax)) == 3 and len(ax.lines) == 1 and texts(ax) == ["p", "q"]
    assert ax.texts[0].get_position() == (5, 5) and ax.texts[1].get_position() == (32, 22)
    assert (shown_image(ax)[masks.any(axis=-1)] != 20).any(axis=-1).all()


def test_draw_boxes_of_one_kind():
    image, boxes, _, _ = scene()
    visualize.draw_boxes(image, boxes)
    assert len(rectangles(plt.gca())) == 2
    visualize.draw_boxes(image, refined_boxes=boxes, captions=["a", "b"])
    assert len(rectangles(plt.gca())) == 2
    with pytest.raises(UserError, match="boxes or refined_boxes"):
        visualize.draw_boxes(image)


# --- galleries, plots, tables -------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_display_images(count):
    image = scene()[0]
    visualize.display_images([image] * count, titles=[str(i) for i in range(count)], cols=4)
    axes = plt.gcf().axes
    assert [a.get_title() for a in axes] == [str(i) for i in range(count)]


def test_display_images_grey_with_colour_map():
    visualize.display_images([np.ones((4, 5)), np.ones((4, 5, 1))], cmap="Blues")
    assert [a.images[0].get_array().shape for a in plt.gcf().axes] == [(4, 5)] * 2


def test_display_top_masks_orders_classes_by_area():
    image, _, masks, class_ids = scene()
    visualize.display_top_masks(image, masks, class_ids, NAMES, limit=3)
    axes = plt.gcf().axes
    assert [a.get_title() for a in axes] == ["H x W = 40 x 60", "circle", "square", "-"]
    assert axes[1].images[0].get_array().sum() == masks[:, :, 1].sum()
    assert axes[3].images[0].get_array().sum() == 0


def test_plot_precision_recall():
    visualize.plot_precision_recall(0.5, [1, 0.5], [0.2, 1])
    ax = plt.gca()
    assert "0.500" in ax.get_title()
    assert ax.lines[0].get_xydata().tolist() == [[0.2, 1], [1, 0.5]]


def test_plot_overlaps():
    overlaps = np.array([[0.9, 0.0], [0.1, 0.7]])
    visualize.plot_overlaps(np.array([1, 2, 0]), np.array([1, 1]), [0.95, 0.85], overlaps, NAMES)
    ax = plt.gca()
    assert texts(ax) == ["0.900\nmatch", "0.000\n", "0.100\n", "0.700\nwrong"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["square (0.95)", "square (0.85)"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["square", "circle"]
    visualize.plot_overlaps(np.array([1]), np.zeros(0, int), [], np.zeros((0, 1)), NAMES)


def test_display_table_as_text(capsys):
    visualize.display_table([["NAME", "N"], ["kernel", 12], ["b"]])
    assert capsys.readouterr().out.splitlines() == ["NAME    N", "kernel  12", "b"]
    visualize.display_table([])


def test_display_weight_stats(capsys):
    keras = pytest.importorskip("keras")

    class Facade:
        model = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                keras.layers.Conv2D(2, 3, name="conv"),
                keras.layers.Dense(2, name="dense"),
            ]
        )

        def get_trainable_layers(self):
            return self.model.layers

    Facade.model.get_layer("dense").kernel.assign(np.full((2, 2), 2000.0))
    visualize.display_weight_stats(Facade())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["WEIGHT", "NAME", "SHAPE", "MIN", "MAX", "STD"]
    by_name = {line.split()[0]: line for line in lines[1:]}
    assert "***" not in by_name["conv/kernel"] + by_name["conv/bias"]
    assert "dead?" in by_name["dense/kernel"] and "overflow?" in by_name["dense/kernel"]
    assert "dead?" in by_name["dense/bias"] and "(2, 2)" in by_name["dense/kernel"]


def test_imports_without_a_display_and_without_matplotlib_loaded(tmp_path):
    code = (
        "import sys; from mrcnn import visualize; assert 'matplotlib.pyplot' not in sys.modules\n"
        "import numpy as np; visualize.display_images([np.zeros((4, 4, 3))])\n"
        "visualize.plt.savefig('image.png'); assert 'IPython' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(visualize.__file__))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")


# --- overlays -----------------------------------------------------------------------------


def edges_by_hand(label):
    """Pixels of an instance with a neighbour (of four) that is not of it, or outside."""
    padded = np.pad(label, 1)
    out = np.zeros(label.shape, bool)
    for y, x in np.ndindex(*label.shape):
        around = padded[[y, y + 2, y + 1, y + 1], [x + 1, x + 1, x, x + 2]]
        out[y, x] = label[y, x] > 0 and (around != label[y, x]).any()
    return out


def test_outlines_against_a_loop():
    label = np.random.default_rng(0).integers(0, 3, (6, 7)).repeat(4, 0).repeat(3, 1)
    np.testing.assert_array_equal(drawing.outline(label), edges_by_hand(label))
    assert (drawing.outline(label, 2) | ~drawing.outline(label)).all()


@pytest.mark.parametrize("form", ["label map", "layers", "masks"])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_overlay_of_every_form_is_the_same(form, channels):
    _, _, masks, _ = scene()
    label = masks[:, :, 0] + 2 * masks[:, :, 1]
    instances = {"label map": label, "layers": label[..., None], "masks": masks}[form]
    image = np.full((40, 60, channels) if channels else (40, 60), 50, np.uint8)
    result = drawing.overlay_instances(image, instances, [(255, 0, 0), (0, 255, 0)])
    assert result.shape == (40, 60, 3) and result.dtype == np.uint8
    edge = edges_by_hand(label.astype(int))
    assert (result[edge & (label == 1)] == (255, 0, 0)).all()
    assert (result[edge & (label == 2)] == (0, 255, 0)).all()
    assert (result[~edge] == 50).all() and (image == 50).all()


def test_overlay_fill_and_default_colors():
    image, _, masks, _ = scene()
    result = drawing.overlay_instances(image, masks, fill=0.5)
    color = drawing.instance_colors(2)
    np.testing.assert_array_equal(result[10, 10], np.rint(0.5 * 20 + 0.5 * color[0].astype(float)))
    one = drawing.overlay_instances(image, masks, (1, 2, 3))
    assert (one[5, 5] == (1, 2, 3)).all() and (one[20, 30] == (1, 2, 3)).all()


def test_overlay_of_overlapping_and_of_no_instances():
    image = scene()[0]
    masks = np.zeros((40, 60, 2), bool)
    masks[5:20, 5:20, 0] = masks[10:30, 10:30, 1] = True
    result = drawing.overlay_instances(image, masks, [(255, 0, 0), (0, 255, 0)])
    assert (result[5, 5:20] == (255, 0, 0)).all() and (result[29, 10:30] == (0, 255, 0)).all()
    for nothing in (masks[:, :, :0], np.zeros((40, 60), int)):
        np.testing.assert_array_equal(drawing.overlay_instances(image, nothing), image)


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match="do not fit"):
        drawing.overlay_instances(scene()[0], np.zeros((40, 61), int))


def test_instance_colors_are_bright_and_distinct():
    colors = drawing.instance_colors(50)
    assert colors.shape == (50, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 50
    assert (colors.max(axis=1) == 255).all() and drawing.instance_colors(0).shape == (0, 3)
