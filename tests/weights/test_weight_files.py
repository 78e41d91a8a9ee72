"""Weight files: what is read, matched, verified and written."""

import warnings

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.network.layers import BatchNorm
from mrcnn.weights import legacy_h5, weight_files
from mrcnn.weights.matching import LoadReport, adapt_channels, convolution_before, describe
from tests.support.weight_arrays import read_weights

HEAD_LAYERS = ("mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask")


def build_model(*, classes=2, channels=3, stage4="abcdef", heads=True, width=4, seed=0):
    """A model with matterport's layer names, a few numbers in each, all of them random."""
    image = keras.Input((16, 16, channels))
    x = layers.Conv2D(width, 3, name="conv1")(image)
    x = BatchNorm(name="bn_conv1")(x)
    for block in stage4:
        x = layers.Conv2D(width, 1, name=f"res4{block}_branch2a")(x)
        x = BatchNorm(name=f"bn4{block}_branch2a")(x)
    outputs = [x]
    if heads:
        feature = keras.Input((None, None, width))
        shared = layers.Conv2D(width, 3, padding="same", name="rpn_conv_shared")(feature)
        rpn = keras.Model(
            feature,
            [
                layers.Conv2D(6, 1, name="rpn_class_raw")(shared),
                layers.Conv2D(12, 1, name="rpn_bbox_pred")(shared),
            ],
            name="rpn_model",
        )
        outputs += rpn(layers.Conv2D(width, 1, name="fpn_p2")(x))
        pooled = layers.GlobalAveragePooling2D(name="pool_squeeze")(x)
        outputs.append(layers.Dense(classes, name="mrcnn_class_logits")(pooled))
        outputs.append(layers.Dense(4 * classes, name="mrcnn_bbox_fc")(pooled))
        y = layers.Conv2DTranspose(width, 2, strides=2, name="mrcnn_mask_deconv")(x)
        outputs.append(layers.Conv2D(classes, 1, name="mrcnn_mask")(y))
    model = keras.Model(image, outputs)
    randomise(model, seed)
    return model


def randomise(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.standard_normal(variable.shape)
        variable.assign(abs(values) if variable.path.endswith("variance") else values)


def values(model):
    """{variable path: array}."""
    return {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def copy_layers(source, target, edit):
    """Copies a weight file; `edit(layers)` changes {layer: {tensor: array}} on the way."""
    contents = read_weights(source).layers
    edit(contents)
    legacy_h5.write(target, contents, keras_version="2.2.4")


def strip_channel_order(path):
    """Makes a file of ours look like one that somebody else wrote."""
    with h5py.File(path, "r+") as file:
        del file.attrs["channel_order"]


@pytest.fixture
def saved(tmp_path):
    """A model and the file it was saved to."""
    model = build_model(seed=1)
    path = tmp_path / "mask_rcnn_toy_0001.h5"
    weight_files.save_weights(model, path)
    return model, path


# --- names -------------------------------------------------------------------------------------


def test_layer_tensors_are_flat_and_in_file_order():
    tensors = weight_files.layer_tensors(build_model())
    assert list(tensors)[:3] == ["conv1", "bn_conv1", "res4a_branch2a"]
    assert [name for name, _ in tensors["bn_conv1"]] == list(legacy_h5.BATCH_NORM_NAMES)
    assert [name for name, _ in tensors["rpn_class_raw"]] == ["kernel", "bias"]
    assert "rpn_model" not in tensors and "pool_squeeze" not in tensors


@pytest.mark.parametrize(
    "group, names, expected",
    [
        ("conv1", ["conv1/kernel:0"], [("conv1", "kernel")]),
        ("conv1", ["conv1_W:0", "conv1_b:0"], [("conv1", "kernel"), ("conv1", "bias")]),
        (
            "bn_conv1",
            ["bn_conv1_running_mean:0", "bn_conv1_running_std:0"],
            [("bn_conv1", "moving_mean"), ("bn_conv1", "moving_variance")],
        ),
        ("mrcnn_mask", ["time_distributed_9/mrcnn_mask/kernel:0"], [("mrcnn_mask", "kernel")]),
        ("mrcnn_mask", ["conv2d_7/kernel:0"], [("mrcnn_mask", "kernel")]),
        (
            "rpn_model",
            ["rpn_model/rpn_conv_shared/kernel:0", "rpn_class_raw/bias:0"],
            [("rpn_conv_shared", "kernel"), ("rpn_class_raw", "bias")],
        ),
        ("add_1", [], []),
    ],
)
def test_layer_and_tensor(group, names, expected):
    assert legacy_h5.layer_and_tensor(group, names) == expected


def test_convolution_before_a_batch_norm():
    assert convolution_before("bn_conv1") == "conv1"
    assert convolution_before("bn5c_branch2b") == "res5c_branch2b"
    assert convolution_before("mrcnn_class_bn2") == "mrcnn_class_conv2"
    assert convolution_before("res5c_branch2b") is None
    assert convolution_before("mrcnn_bbox_fc") is None


def test_describe_names_depth_and_classes():
    def network(letters, classes):
        layers_ = {f"res4{letter}_branch2a": {} for letter in letters}
        return layers_ | {"mrcnn_class_logits": {"kernel": np.zeros((4, classes))}}

    assert describe(network("abcdef", 2)) == "ResNet-50, 2 classes"
    assert describe(network("abcdefghijklmnopqrstuvw", 81)) == "ResNet-101, 81 classes"
    assert describe({}) == "other backbone, no class head"


# --- save and load -----------------------------------------------------------------------------


@pytest.mark.backend
def test_saved_weights_load_into_another_model_exactly(saved):
    source, path = saved
    target = build_model(seed=2)
    report = weight_files.load_weights(target, path)
    assert_same(values(target), values(source))
    assert report == LoadReport(str(path), len(source.weights), len(source.weights))
    count = len(source.weights)
    assert report.summary() == f"Weights from {path}: {count} of {count} tensors assigned."


def test_written_file_has_the_layout_of_keras_2(saved):
    model, path = saved
    with h5py.File(path) as file:
        names = list(file.attrs["layer_names"])
        assert all(isinstance(name, bytes) for name in names)  # Keras 2 calls .decode on them
        assert file.attrs["backend"].decode() == "tensorflow"
        assert names[:2] == [b"conv1", b"bn_conv1"]
        assert list(file["conv1"].attrs["weight_names"]) == [b"conv1/kernel:0", b"conv1/bias:0"]
        rpn = [name.decode() for name in file["rpn_model"].attrs["weight_names"]]
        assert rpn[:2] == ["rpn_conv_shared/kernel:0", "rpn_conv_shared/bias:0"]
        kernel = np.asarray(file["conv1"]["conv1/kernel:0"])
    np.testing.assert_array_equal(kernel, values(model)["conv1/kernel"])


def test_keras_itself_reads_our_file_by_name(saved):
    source, path = saved
    target = build_model(seed=2)
    target.load_weights(path, by_name=True)
    ours, theirs = values(target), values(source)
    for name in ours:
        if not name.startswith("rpn"):  # Keras orders a nested model's tensors its own way
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_flat_rpn_layers_are_written_as_the_nested_model_they_are_in_matterport(tmp_path):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="rpn_conv_shared")(image)
    flat = keras.Model(image, layers.Conv2D(6, 1, name="rpn_class_raw")(x))
    weight_files.save_weights(flat, tmp_path / "flat.h5")
    with h5py.File(tmp_path / "flat.h5") as file:
        assert list(file.attrs["layer_names"]) == [b"rpn_model"]
        assert "rpn_class_raw/bias:0" in file["rpn_model"]


def test_a_keras_file_of_a_whole_model_is_read_from_its_model_weights_group(tmp_path):
    source, target = build_model(seed=1), build_model(seed=2)
    source.save(tmp_path / "whole.h5")
    weight_files.load_weights(target, tmp_path / "whole.h5")
    assert_same(values(target), values(source))


@pytest.mark.backend
def test_half_precision_keeps_batch_norms_and_biases_in_float32(tmp_path):
    model = build_model(seed=1)
    variance = model.get_layer("bn_conv1").moving_variance
    variance.assign(np.full(variance.shape, 83615.0))  # more than float16 can hold
    path = tmp_path / "half.h5"
    weight_files.save_weights(model, path, half=True)
    stored = read_weights(path).layers
    for tensors in stored.values():
        for name, array in tensors.items():
            assert array.dtype == (np.float16 if name == "kernel" else np.float32)

    target = build_model(seed=2)
    weight_files.load_weights(target, path)
    assert np.all(values(target)["bn_conv1/moving_variance"] == 83615.0)
    for name, array in values(target).items():
        original = values(model)[name]
        if name.endswith("/kernel"):
            np.testing.assert_allclose(array, original, rtol=2**-11, atol=1e-7)
        else:
            np.testing.assert_array_equal(array, original)


def test_half_precision_leaves_kernels_that_float16_cannot_hold(tmp_path):
    arrays = {"conv1": {"kernel": np.array([1.0, 70000.0], np.float32)}}
    legacy_h5.write(tmp_path / "x.h5", arrays, keras_version="3", half=True)
    kernel = read_weights(tmp_path / "x.h5").layers["conv1"]["kernel"]
    assert kernel.dtype == np.float32 and kernel[1] == 70000.0


def test_half_precision_file_is_about_half_the_size(tmp_path):
    model = build_model(width=256, stage4="ab")
    for half in (False, True):
        weight_files.save_weights(model, tmp_path / f"{half}.h5", half=half)
    full, half = ((tmp_path / f"{h}.h5").stat().st_size for h in (False, True))
    assert half < 0.7 * full


def test_long_attributes_are_cut_and_read_back(tmp_path):
    names = [f"layer_with_a_long_name_{i:06d}" for i in range(5000)]
    with h5py.File(tmp_path / "long.h5", "w") as file:
        legacy_h5.write_attribute(file, "layer_names", names)
        assert "layer_names0" in file.attrs and "layer_names1" in file.attrs
        assert "layer_names" not in file.attrs
        assert legacy_h5.read_attribute(file, "layer_names") == names
        legacy_h5.write_attribute(file, "weight_names", [])
        assert legacy_h5.read_attribute(file, "weight_names") == []


def test_a_file_with_cut_layer_names_is_read(tmp_path):
    arrays = {f"layer_{i:060d}": {"bias": np.float32([i])} for i in range(1200)}
    legacy_h5.write(tmp_path / "long.h5", arrays, keras_version="3")
    with h5py.File(tmp_path / "long.h5") as file:
        assert "layer_names1" in file.attrs
    assert list(read_weights(tmp_path / "long.h5").layers) == list(arrays)


def test_interrupted_save_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    _, path = saved
    before = path.read_bytes()
    original = h5py.Group.create_dataset

    def interrupted(self, name, *args, **kwargs):
        if "mrcnn" in name:
            raise KeyboardInterrupt
        return original(self, name, *args, **kwargs)

    monkeypatch.setattr(h5py.Group, "create_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weight_files.save_weights(build_model(seed=3), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_save_into_something_that_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written") as error:
        weight_files.save_weights(build_model(heads=False), tmp_path / "file" / "x.h5")
    assert "\n" not in str(error.value)


# --- matching ----------------------------------------------------------------------------------


def test_report_of_layers_left_over_and_left_initial(saved, tmp_path):
    source, path = saved
    copy_layers(path, tmp_path / "edited.h5", lambda ls: ls.update(old=ls.pop("fpn_p2")))
    target = build_model(seed=2)
    before = values(target)
    report = weight_files.load_weights(target, tmp_path / "edited.h5")
    assert report.left_over == ("old",)
    assert report.initial == ("fpn_p2",)
    assert report.assigned == len(source.weights) - 2
    np.testing.assert_array_equal(values(target)["fpn_p2/kernel"], before["fpn_p2/kernel"])
    assert "not in the model: old" in report.summary()
    assert "initial values: fpn_p2" in report.summary()


def test_exclude_leaves_layers_and_nested_models(saved):
    source, path = saved
    target = build_model(seed=2)
    before = values(target)
    report = weight_files.load_weights(target, path, exclude=["mrcnn_class_logits", "rpn_model"])
    assert set(report.initial) == {"mrcnn_class_logits", *legacy_h5.RPN_LAYERS}
    for name, array in values(target).items():
        kept = name.startswith(("rpn_", "mrcnn_class_logits"))
        expected = before[name] if kept else values(source)[name]
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_exclude_of_one_layer_inside_a_nested_model(saved):
    _, path = saved
    report = weight_files.load_weights(build_model(seed=2), path, exclude=["rpn_bbox_pred"])
    assert report.initial == ("rpn_bbox_pred",)


def test_exclude_of_an_unknown_name_warns_with_the_nearest(saved):
    _, path = saved
    with pytest.warns(MRCNNWarning, match="did you mean mrcnn_mask"):
        weight_files.load_weights(build_model(), path, exclude=["mrcnn_maks"])


def test_exclude_of_a_layer_without_weights_does_not_warn(saved):
    _, path = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error", MRCNNWarning)
        weight_files.load_weights(build_model(), path, exclude=["pool_squeeze"])


def test_shape_mismatch_names_layer_shapes_and_exclude_and_changes_nothing(saved):
    _, path = saved
    target = build_model(classes=5, seed=2)
    before = values(target)
    with pytest.raises(UserError) as error:
        weight_files.load_weights(target, path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    assert "mrcnn_class_logits has kernel (4, 2) in the file, (4, 5) in the model" in text
    assert "exclude=['mrcnn_class_logits', 'mrcnn_bbox_fc', 'mrcnn_mask']" in text
    assert_same(values(target), before)
    report = weight_files.load_weights(target, path, exclude=HEAD_LAYERS)
    assert report.initial == HEAD_LAYERS


def test_load_matching_skips_what_does_not_fit(saved):
    source, path = saved
    target = build_model(classes=5, seed=2)
    report = weight_files.load_matching(target, path)
    assert report.initial == HEAD_LAYERS
    assert {reason for _, reason in report.skipped} == {"different shape in the file"}
    np.testing.assert_array_equal(values(target)["fpn_p2/bias"], values(source)["fpn_p2/bias"])


def test_a_layer_with_other_tensors_is_a_mismatch(saved, tmp_path):
    _, path = saved
    copy_layers(path, tmp_path / "edited.h5", lambda ls: ls["fpn_p2"].pop("bias"))
    with pytest.raises(UserError, match=r"kernel in the file, kernel\+bias in the model"):
        weight_files.load_weights(build_model(), tmp_path / "edited.h5")


def test_batch_norm_of_an_absent_or_other_kernel_is_skipped(saved, tmp_path):
    _, path = saved

    def edit(contents):
        contents.pop("res4b_branch2a")
        contents["res4c_branch2a"]["kernel"] = np.zeros((3, 3, 4, 4), np.float32)

    copy_layers(path, tmp_path / "edited.h5", edit)
    target = build_model(seed=2)
    before = values(target)
    report = weight_files.load_matching(target, tmp_path / "edited.h5")
    assert set(report.initial) == {
        "res4b_branch2a",
        "bn4b_branch2a",
        "res4c_branch2a",
        "bn4c_branch2a",
    }
    assert ("bn4b_branch2a", "batch norm of a kernel that is absent") in report.skipped
    assert "lacks 1 backbone layers: res4b_branch2a" in report.summary()
    for name in ("bn4b_branch2a/moving_mean", "bn4c_branch2a/gamma"):
        np.testing.assert_array_equal(values(target)[name], before[name])


@pytest.mark.parametrize("by_name", [True, False])
def test_coco_like_file_into_a_smaller_model_says_it_in_one_line(tmp_path, by_name):
    coco = build_model(classes=81, stage4="abcdefghijklmnopqrstuvw", seed=1)
    path = tmp_path / "mask_rcnn_coco.h5"
    weight_files.save_weights(coco, path)
    nucleus = build_model(classes=2, seed=2)
    with pytest.raises(UserError) as error:
        weight_files.load_weights(nucleus, path, by_name=by_name)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "ResNet-101, 81 classes",
        "ResNet-50, 2 classes",
        "tensors fit",
        "(4, 81)",
        "(4, 2)",
        "34 layers",
        "exclude=[",
        "--weights coco",
        'BACKBONE = "resnet101"',
    ):
        assert part in text, part
    report = weight_files.load_weights(nucleus, path, exclude=HEAD_LAYERS)
    assert report.assigned == len(nucleus.weights) - 6
    assert len([name for name in report.left_over if name.startswith(("res4", "bn4"))]) == 34


def test_by_name_false_demands_all_layers(saved, tmp_path):
    source, path = saved
    target = build_model(seed=2)
    weight_files.load_weights(target, path, by_name=False)
    assert_same(values(target), values(source))
    copy_layers(path, tmp_path / "short.h5", lambda contents: contents.pop("fpn_p2"))
    with pytest.raises(UserError, match=r"absent: fpn_p2.*by_name=True"):
        weight_files.load_weights(target, tmp_path / "short.h5", by_name=False)


def test_by_name_false_takes_other_names_in_order(tmp_path):
    source, target = build_model(heads=False, seed=1), build_model(heads=False, seed=2)
    contents = {
        f"renamed_{i}": {name: keras.ops.convert_to_numpy(v) for name, v in pairs}
        for i, pairs in enumerate(weight_files.layer_tensors(source).values())
    }
    legacy_h5.write(tmp_path / "renamed.h5", contents, keras_version="2.2.4")
    weight_files.load_weights(target, tmp_path / "renamed.h5", by_name=False)
    assert_same(values(target), values(source))


def test_values_that_are_not_finite_are_refused(saved, tmp_path):
    _, path = saved
    target = build_model(seed=2)
    before = values(target)
    copy_layers(path, tmp_path / "bad.h5", lambda c: c["mrcnn_mask"]["bias"].fill(np.nan))
    with pytest.raises(UserError, match="mrcnn_mask/bias holds values that are not finite"):
        weight_files.load_weights(target, tmp_path / "bad.h5")
    assert_same(values(target), before)


def test_a_file_of_another_network_is_refused(tmp_path):
    legacy_h5.write(
        tmp_path / "vgg.h5", {"block1": {"bias": np.zeros(3, np.float32)}}, keras_version="2"
    )
    with pytest.raises(UserError, match=r"no layer for this model \(it holds block1\)"):
        weight_files.load_weights(build_model(), tmp_path / "vgg.h5")


# --- ImageNet and colour channels --------------------------------------------------------------


@pytest.mark.backend
def test_a_bare_backbone_is_turned_from_bgr_to_rgb(tmp_path):
    source = build_model(heads=False, seed=1)
    path = tmp_path / "imagenet.h5"
    weight_files.save_weights(source, path)
    strip_channel_order(path)
    target = build_model(seed=2)
    assert weight_files.is_imagenet_file(path)
    report = weight_files.load_weights(target, path)
    stored, loaded = values(source)["conv1/kernel"], values(target)["conv1/kernel"]
    np.testing.assert_array_equal(loaded, stored[:, :, ::-1])
    assert "turned conv1 from BGR to RGB" in report.notes
    assert "fpn_p2" in report.initial

    weight_files.load_weights(target, path, input_rgb=True)
    np.testing.assert_array_equal(values(target)["conv1/kernel"], stored)


def test_a_backbone_that_we_saved_is_rgb_already(tmp_path):
    source = build_model(heads=False, seed=1)
    weight_files.save_weights(source, tmp_path / "backbone.h5")
    target = build_model(seed=2)
    report = weight_files.load_weights(target, tmp_path / "backbone.h5")
    assert report.notes == ()
    loaded = values(target)["conv1/kernel"]
    np.testing.assert_array_equal(loaded, values(source)["conv1/kernel"])


def test_a_detector_file_is_not_an_imagenet_file(saved):
    _, path = saved
    strip_channel_order(path)
    assert not weight_files.is_imagenet_file(path)
    assert weight_files.load_weights(build_model(seed=2), path).notes == ()


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_adapted_kernel_gives_alike_channels_the_same_activations(channels):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 3, 5)).astype(np.float32)
    grey = rng.standard_normal((3, 3, 1))
    adapted = adapt_channels(kernel, channels)
    assert adapted.shape == (3, 3, channels, 5) and adapted.dtype == np.float32
    before = np.einsum("hwc,hwcn->n", np.repeat(grey, 3, 2), kernel)
    after = np.einsum("hwc,hwcn->n", np.repeat(grey, channels, 2), adapted)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_rgb_file_loads_into_a_model_with_other_channels(saved, channels):
    source, path = saved
    target = build_model(channels=channels, seed=2)
    report = weight_files.load_weights(target, path)
    assert f"adapted conv1 from 3 to {channels} channels" in report.notes
    assert report.assigned == report.total
    loaded = values(target)["conv1/kernel"]
    if channels == 1:
        expected = values(source)["conv1/kernel"].sum(axis=2, keepdims=True)
        np.testing.assert_allclose(loaded, expected, rtol=1e-5, atol=1e-6)
    else:  # the colours of RGB keep their order
        rgb = values(source)["conv1/kernel"] * 0.75
        np.testing.assert_allclose(loaded[:, :, :3], rgb, rtol=1e-5, atol=1e-6)


# --- files that are something else -------------------------------------------------------------


def damage(path, kind):
    contents = path.read_bytes()
    path.write_bytes(
        {
            "truncated": contents[: len(contents) // 2],
            "empty": b"",
            "page": b"<!DOCTYPE html><html>Not here</html>",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            "zip": b"PK\x03\x04 and so on",
            "text": b"weights, weights, weights",
        }[kind]
    )


@pytest.mark.parametrize(
    "kind, message",
    [
        ("truncated", "damaged or incomplete"),
        ("empty", "it is empty"),
        ("page", "it is a web page"),
        ("pointer", "git lfs pull"),
        ("zip", "zip archive"),
        ("text", "is not an HDF5 weight file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(saved, kind, message):
    model, path = saved
    damage(path, kind)
    with pytest.raises(UserError, match=message) as error:
        weight_files.load_weights(model, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "layer, name, value, message",
    [
        ("conv1", "kernel", 1e300, "conv1/kernel holds values that are not finite in float32"),
        ("fpn_p2", "bias", np.nan, "fpn_p2/bias holds values that are not finite"),
        ("bn_conv1", "moving_variance", -0.5, "moving_variance holds negative variances"),
    ],
)
def test_values_that_no_network_can_use(saved, tmp_path, layer, name, value, message):
    def edit(contents):
        array = contents[layer][name].astype(np.float64)
        array.flat[0] = value
        contents[layer][name] = array

    copy_layers(saved[1], tmp_path / "edited.h5", edit)
    before = values(saved[0])
    with pytest.raises(UserError, match=message):
        weight_files.load_weights(saved[0], tmp_path / "edited.h5")
    assert_same(values(saved[0]), before)


def test_layers_that_the_model_has_not_are_not_read(saved):
    model, path = saved
    with h5py.File(path, "r+") as file:
        names = [*file.attrs["layer_names"], b"bomb"]
        del file.attrs["layer_names"]
        file.attrs["layer_names"] = np.array(names)
        group = file.create_group("bomb")
        group.attrs["weight_names"] = np.array([b"bomb/kernel:0"])
        group.create_dataset("bomb/kernel:0", (10**6, 10**6), "f4", chunks=(1000, 1000))  # 4 TB
    report = weight_files.load_weights(model, path)
    assert report.left_over == ("bomb",) and report.assigned == report.total


def test_no_file_a_folder_and_hdf5_without_weights(tmp_path):
    with pytest.raises(UserError, match="no such weight file"):
        weight_files.load_weights(build_model(), tmp_path / "none.h5")
    with pytest.raises(UserError, match="is a folder"):
        weight_files.load_weights(build_model(), tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["table"] = np.arange(3)
    with pytest.raises(UserError, match="holds no Keras weights"):
        weight_files.load_weights(build_model(), tmp_path / "other.h5")


def test_a_listed_tensor_that_is_absent_is_damage(saved):
    model, path = saved
    with h5py.File(path, "r+") as file:
        del file["fpn_p2"]["fpn_p2/bias:0"]
    with pytest.raises(UserError, match="damaged or incomplete"):
        weight_files.load_weights(model, path)


def test_keras_3_weight_files_say_how_to_convert_them(tmp_path):
    path = tmp_path / "toy.weights.h5"
    model = build_model(seed=1)
    model.save_weights(path)
    for read in (weight_files.is_imagenet_file, legacy_h5.ranks_in_file):
        with pytest.raises(UserError, match="does not name its layers: load it with"):
            read(path)
    with pytest.raises(UserError, match="does not name its layers: load it with") as error:
        weight_files.load_weights(model, path)
    assert "\n" not in str(error.value)


# --- the real files ----------------------------------------------------------------------------


def model_of_shapes(shapes):
    """A model that has exactly these layers: {layer: {tensor: shape}}, as plain weights."""

    class Holder(keras.layers.Layer):
        def __init__(self, tensors, name):
            super().__init__(name=name)
            for tensor, shape in tensors.items():
                setattr(self, tensor, self.add_weight(shape=shape, name=tensor))
            self.built = True

        def call(self, inputs):
            return inputs

    inputs = keras.Input((1,))
    outputs = inputs
    for layer, tensors in shapes.items():
        holder = Holder(tensors, layer)
        with keras.name_scope(layer):
            outputs = holder(outputs)
    return keras.Model(inputs, outputs)


def test_legacy_file_survives_a_round_trip(shared_dir, tmp_path):
    path = shared_dir / "legacy" / "mask_rcnn_legacy.h5"
    contents = read_weights(path)
    assert contents.groups["rpn_class_raw"] == "rpn_model"
    assert "mrcnn_detection" in contents.names and "mrcnn_detection" not in contents.layers
    assert describe(contents.layers) == "ResNet-50, 2 classes"
    assert not weight_files.is_imagenet_file(path)
    legacy_h5.write(tmp_path / "copy.h5", contents.layers, keras_version="3", half=True)
    with h5py.File(path) as theirs, h5py.File(tmp_path / "copy.h5") as ours:
        for group in legacy_h5.read_attribute(ours, "layer_names"):
            names = legacy_h5.read_attribute(theirs[group], "weight_names")
            assert legacy_h5.read_attribute(ours[group], "weight_names") == names
            for name in names:
                np.testing.assert_allclose(
                    ours[group][name][...], theirs[group][name][...], rtol=1e-3, atol=1e-6
                )
    copied = read_weights(tmp_path / "copy.h5").layers
    assert copied.keys() == contents.layers.keys()
    for layer, tensors in copied.items():
        for name in set(tensors) & set(legacy_h5.BATCH_NORM_NAMES):
            np.testing.assert_array_equal(tensors[name], contents.layers[layer][name])


def test_imagenet_file_loads_with_its_absent_kernels_reported(shared_dir):
    path = shared_dir / "imagenet" / "resnet50_imagenet_stages1to4.h5"
    assert weight_files.is_imagenet_file(path)
    stored = read_weights(path).layers
    shapes = {layer: {t: a.shape for t, a in tensors.items()} for layer, tensors in stored.items()}
    absent = ["res5a_branch1", "res5a_branch2b", "res5a_branch2c"]
    absent += [f"res5{block}_branch2{layer}" for block in "bc" for layer in "abc"]
    model = model_of_shapes(shapes | {name: {"kernel": (1,), "bias": (1,)} for name in absent})
    report = weight_files.load_imagenet(model, path)

    batch_norms = ["bn" + name[3:] for name in absent]
    assert set(report.initial) == set(absent) | set(batch_norms)
    assert {layer for layer, _ in report.skipped} == set(batch_norms)
    assert all(name in report.summary() for name in absent)
    for layer, pairs in weight_files.layer_tensors(model).items():
        for name, variable in pairs:
            array = keras.ops.convert_to_numpy(variable)
            if layer in report.initial:
                continue
            expected = stored[layer][name]
            if (layer, name) == ("conv1", "kernel"):
                expected = expected[:, :, ::-1]
            np.testing.assert_array_equal(array, expected, err_msg=f"{layer}/{name}")
