"""The benchmarks' helpers, and that each command answers --help. Times are not tested."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    compare,
    networks,
    ours,
    precision,
    profile_ops,
    report,
    scaling,
    scenes,
    workers,
)
from mrcnn.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
COMMANDS = ("compare", "precision", "profile_ops", "scaling")


# ---- Scenes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", [scenes.SPARSE, scenes.DENSE, scenes.SMALL])
def test_scene_has_its_objects_apart(scene):
    from scipy.ndimage import binary_dilation

    image, labels = scenes.draw(scene)
    assert image.shape == (scene.side, scene.side, 3) and image.dtype == np.uint8
    assert len(np.unique(labels)) == scene.count + 1
    for label in (1, scene.count):
        around = labels[binary_dilation(labels == label)]
        assert set(np.unique(around)) == {0, label}
    assert image[labels > 0].min() > image[labels == 0].mean() + 30


def test_scene_is_the_same_again_and_survives_json():
    scene = scenes.Scene(64, 5, (3.0, 5.0), 9)
    again = scenes.from_json(scene.to_json())
    assert again == scene
    np.testing.assert_array_equal(scenes.draw(scene)[0], scenes.draw(again)[0])
    np.testing.assert_array_equal(scenes.image_of(scene.to_json()), scenes.draw(scene)[0])


def test_scene_without_room_says_so():
    with pytest.raises(ValueError, match="no room for 2 objects in 32 x 32"):
        scenes.draw(scenes.Scene(32, 9, (9.0, 9.0), 0))


def test_boxes_of_masks():
    labels = np.zeros((6, 8), int)
    labels[1:3, 2:7] = 1
    labels[5, 0] = 2
    masks, boxes = scenes.masks_and_boxes(labels)
    assert masks.shape == (2, 6, 8) and masks[0].sum() == 10
    np.testing.assert_array_equal(boxes, [[2, 1, 7, 3], [0, 5, 1, 6]])


# ---- Multiply-adds -----------------------------------------------------------------------------


def test_backbone_has_the_published_number_of_multiply_adds():
    # ResNet-50 of torchvision at 224 x 224: 4 089 184 256, its classifier included.
    parts = networks.multiply_adds(networks.TORCHVISION, 224, 0, 0)
    assert parts["backbone"] + 2048 * 1000 == 4_089_184_256


def test_multiply_adds_of_the_layers():
    """Backbone and pyramid against the layers that are built, the heads against their products."""
    import keras

    from mrcnn.network.fpn import feature_pyramid
    from mrcnn.network.layers import LayerBank
    from mrcnn.network.resnet import resnet_graph

    network = networks.Network(pyramid=24, rpn=40, box=48, mask=16, classes=3)
    image, bank = keras.Input((64, 64, 3)), LayerBank()
    feature_pyramid(resnet_graph(image, "resnet50", True, False, bank)[1:], 24, bank)
    sums = {"backbone": 0, "pyramid": 0}
    for name, layer in bank.layers.items():
        if isinstance(layer, keras.layers.Conv2D):
            part = "pyramid" if name.startswith("fpn") else "backbone"
            sums[part] += np.prod(layer.output.shape[1:3]) * np.prod(layer.kernel.shape)

    found = networks.multiply_adds(network, 64, rois=7, masks=5)
    assert found["backbone"] == sums["backbone"] and found["pyramid"] == sums["pyramid"]
    cells = 16**2 + 8**2 + 4**2 + 2**2 + 1
    assert found["proposals"] == cells * (3 * 3 * 24 * 40 + 40 * 6 + 40 * 12)
    assert found["box head"] == 7 * (7 * 7 * 24 * 48 + 48 * 48 + 48 * 3 + 48 * 12)
    convolutions = 14 * 14 * 9 * (24 * 16 + 16 * 16 * 3)
    assert found["mask head"] == 5 * (convolutions + 28 * 28 * 16 * 16 + 28 * 28 * 16 * 3)


def test_training_is_three_forward_passes_less_the_first_gradient():
    parts = networks.multiply_adds(networks.OURS, 128, networks.TRAIN_ROIS, 32)
    expected = 2 * (3 * sum(parts.values()) - 64 * 64 * 7 * 7 * 3 * 64)
    assert networks.training_multiply_adds(networks.OURS, 128) == expected


def test_candidates_are_bounded_by_level():
    assert networks.candidates(512) == 1000 + 1000 + 1000 + 16 * 16 * 3 + 8 * 8 * 3


# ---- Configurations ----------------------------------------------------------------------------


def test_comparison_configuration_is_the_counted_network():
    config = ours.configuration("comparison", PRECISION="bfloat16")
    assert ours.network_of(config) == networks.OURS
    assert config.PRECISION == "bfloat16" and config.TRAIN_BN is False


def test_training_batch_of_scenes():
    config = ours.configuration("lesson", **ours.training_overrides(2, 64))
    batch = ours.make_batch(config, [scenes.Scene(64, 3, (4.0, 6.0), 1)])
    assert batch["input_image"].shape == (2, 64, 64, 3)
    assert (batch["input_gt_class_ids"] > 0).sum() == 6


def test_missing_weights_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(ours, "COMPARISON_WEIGHTS", tmp_path / "none.h5")
    with pytest.raises(workers.WorkerError, match="no weights .*--prepare"):
        ours.weights_of("comparison")


# ---- Workers -----------------------------------------------------------------------------------

ECHO = """
import os, sys
from benchmarks import workers
class Echo:
    def threads(self): return {"threads": os.environ["OMP_NUM_THREADS"]}
    def add(self, a, b):
        print("noise on standard output")
        return {"sum": a + b}
    def load(self): import a_module_that_is_not_there
    def die(self): sys.stderr.write("last words\\n"); os._exit(3)
workers.serve(Echo())
"""


def test_worker_answers_and_fails_in_one_line():
    with workers.Worker("echo", [sys.executable, "-c", ECHO], threads=1) as process:
        assert process.ask("threads")["threads"] == "1"
        answer = process.ask("add", a=2, b=3)
        assert answer["sum"] == 5 and answer["idle_cpu"] >= 0
        with pytest.raises(workers.WorkerError, match="^echo: TypeError"):
            process.ask("add", a=2, b="x")
        with pytest.raises(workers.WorkerError, match="echo: No module named 'a_module"):
            process.ask("load")
        with pytest.raises(workers.WorkerError, match="echo: ended with code 3: last words"):
            process.ask("die")


# ---- Reports -----------------------------------------------------------------------------------


def test_timing_and_table():
    timing = report.Timing.of([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (timing.low, timing.median, timing.high) == (2.0, 3.0, 4.0)
    assert str(report.Timing.of([2.0])) == "2.000 (2.000 to 2.000)"
    assert report.markdown_table(["a", "b"], [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_comparison_table_has_ratios_and_multiples_of_the_limit():
    def row(who, kind, seconds):
        return ("image", (who, kind), 50, report.Timing.of([seconds]), 10**9)

    part = {
        "rates": {
            "matrix product": {
                ("mrcnn", "float32"): 2e9,
                ("torchvision", "float32"): 4e9,
                ("mrcnn", "bfloat16"): 8e9,
                ("torchvision", "bfloat16"): 1e9,
            }
        },
        "rows": [
            row("mrcnn", "float32", 1.0),
            row("torchvision", "float32", 2.0),
            row("mrcnn", "bfloat16", 0.5),
            row("torchvision", "bfloat16", 4.0),
        ],
    }
    lines = compare.table_of(part).splitlines()
    # 1e9 multiply-adds are 2e9 FLOP: .5 s at the better float32 rate, .25 s at that of bfloat16.
    assert lines[2].endswith("| 1.000 (1.000 to 1.000) | 0.50 | 0.25 | 1.0 | 2.00 |")
    assert lines[4].endswith("| 0.500 (0.500 to 0.500) | 0.25 | 0.12 | 1.0 | 2.00 |")


def test_machine_facts_name_processor_and_threads():
    facts = dict(report.machine_facts(3))
    assert "3 threads used" in facts["Processor"]
    assert "avx512_bf16" in facts["Instructions"]


def test_counts_close_to_the_truth():
    assert compare.close(46, 50) and not compare.close(44, 50) and not compare.close(56, 50)


def test_scaling_series():
    setup = scaling.parse(["--sides", "64", "128", "--batches", "3"])
    assert [scene.side for _, scene in scaling.points("sides", setup)] == [64, 128]
    assert [value for value, _ in scaling.points("batches", setup)] == [3]
    for value, scene in scaling.points("detections", setup):
        assert len(np.unique(scenes.draw(scene)[1])) == value + 1


def test_scaling_report_and_plot(tmp_path):
    timing = report.Timing.of([0.5])
    point = {
        "value": 64,
        "widths": "nucleus",
        "precision": "float32",
        "found": 3,
        "timing": timing,
        "peak": 10 * report.MIB,
    }
    text = scaling.write_report(scaling.parse([]), {"sides": [point]})
    assert "| 64 | nucleus | float32 | 3 | 0.500 (0.500 to 0.500) | 10 |" in text
    scaling.plot({"sides": [point]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_profile_totals():
    events = [("a/b:Conv2D", 2.0), ("c:Conv2D", 3.0), ("d:MatMul", 4.0)]
    assert profile_ops.by_kind(events) == [("Conv2D", 2, 5.0), ("MatMul", 1, 4.0)]
    text = profile_ops.show(events, top=1)
    assert "55.6%" in text and "d:MatMul" in text and "a/b" not in text


def test_calls_around_operations_are_left_out():
    names = [
        "a/Conv2D:Conv2D",
        "map/while:While",
        "EagerLocalExecute: __inference_f_7",
        "a::b:C",
        "ThreadpoolListener::Record",
        "MatMul",
    ]
    assert [profile_ops.is_operation(name) for name in names] == [True] + 5 * [False]


def test_evenly_spread_choice():
    assert precision.evenly(list("abcdefg"), 3) == ["a", "d", "g"]
    assert precision.evenly([1, 2], 5) == [1, 2] == precision.evenly([1, 2], None)


# ---- Commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, tmp_path):
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"python benchmarks/{name}.py" in done.stdout


def test_peer_that_cannot_be_used_is_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere/python cannot import torchvision"):
        compare.peer_python(str(tmp_path / "nowhere" / "python"))


def test_missing_dataset_is_one_line(tmp_path, capsys):
    assert precision.main(["--dataset", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("precision.py: ") and error.count("\n") == 1
