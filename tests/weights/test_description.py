"""Descriptions of networks beside their weight files."""

import json
import os
from pathlib import Path

import pytest

from mrcnn.config import Config
from mrcnn.errors import UserError
from mrcnn.inference.postprocess import DEFAULTS, PostProcessing
from mrcnn.weights import description
from mrcnn.weights.description import Description, describe
from tests.support.tiny import TinyConfig, small_backbone

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


def test_a_description_makes_the_configuration_again(tmp_path):
    config, settings = TinyConfig(), PostProcessing(min_score=0.3, min_area=None)
    written = describe(config, ("cell", "dirt"), settings.to_dict())
    description.write(tmp_path / "a.json", written)
    read = description.read(tmp_path / "a.json")
    assert (
        read.classes == ("cell", "dirt") and PostProcessing.of(read.postprocessing, "a") == settings
    )
    assert read.make_config().to_dict() == config.to_dict()
    assert describe(read.make_config(), read.classes, read.postprocessing) == written


def test_only_what_differs_and_nothing_of_the_machine(tmp_path):
    class Changed(Config):
        NAME = "changed"
        CACHE_DIR = str(tmp_path)
        DATA_WORKERS = 7

    assert describe(Changed(), ("thing",)).config == {"NAME": "changed"}


def test_where_it_lies(tmp_path):
    run, weights = tmp_path / "run", tmp_path / "run" / "mask_rcnn_0001.h5"
    run.mkdir()
    assert description.beside(weights) is None
    description.write(run / description.RUN_FILE, Description(("of the run",)))
    assert description.beside(weights).classes == ("of the run",)
    description.write(description.own_file(weights), Description(("its own",)))
    assert description.beside(weights).classes == ("its own",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"classes": 1, "config": {}}',
        json.dumps({"classes": [], "config": {}, "postprocessing": [1]}),
    ],
)
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not the description of a network"):
        description.read(tmp_path / "a.json")


GOOD = {"classes": ["cell"], "config": {}, "postprocessing": {}}
HOSTILE = {
    "a method of Config": {"config": {"validate": None}},
    "a private method": {"config": {"_keys": []}},
    "the constructor": {"config": {"__init__": 3}},
    "a key of no configuration": {"config": {"BACKBONES": "resnet50"}},
    "a key of no description": {"weights": "elsewhere.h5"},
    "a key with line breaks, longer than a screen": {"config": {"A\n" * 10_000: 1}},
    "a list for a dictionary": {"config": [["NUM_CLASSES", 2]]},
    "a word for a list": {"classes": "cell"},
    "numbers for names": {"classes": [1]},
    "code of no such key": {"code": ["\x00"]},
    "no classes": {"classes": []},
    "other classes than the network": {"config": {"NUM_CLASSES": 4}},
    "more than a description": {"plural": "x" * 2**20},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_only_known_keys_with_their_kinds_of_values(tmp_path, kind):
    (tmp_path / "a.json").write_text(json.dumps(GOOD | HOSTILE[kind]))
    with pytest.raises(UserError, match=r"a\.json: not the description of a network") as error:
        description.read(tmp_path / "a.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "value", ["1e999", "-Infinity", "NaN", "9" * 5000, "[" * 100_000 + "]" * 100_000]
)
def test_numbers_that_are_none_and_deep_nesting(tmp_path, value):
    text = json.dumps(GOOD).replace('"config": {}', f'"config": {{"LEARNING_RATE": {value}}}')
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not the description of a network") as error:
        description.read(tmp_path / "a.json")
    assert len(str(error.value)) < 300


def test_a_pipe_beside_the_weights_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UserError, match="not a regular file"):
        description.beside(tmp_path / "a.h5")


def test_keys_of_an_application_of_its_own_are_not_written():
    class Own(TinyConfig):
        MY_THRESHOLD = 3

    with pytest.warns(UserWarning, match="MY_THRESHOLD"):
        config = Own()
    assert describe(config, ("a", "b")) == describe(TinyConfig(), ("a", "b"))


def test_wrong_values_are_errors():
    with pytest.raises(UserError, match="BACKBONE"):
        Description((), {"BACKBONE": 3}).make_config()


def test_the_shipped_weights_are_described_as_the_application_has_them():
    from samples.nucleus import nucleus

    expected = describe(
        nucleus.NucleusInferenceConfig(), nucleus.CLASSES, DEFAULTS.to_dict(), nucleus.PLURAL
    )
    assert description.read(WEIGHTS / "mask_rcnn_nucleus.json") == expected


def test_what_objects_are_called():
    assert Description(("cell",)).nouns == ("cell", "cells")
    assert Description(("nucleus",), plural="nuclei").nouns == ("nucleus", "nuclei")
    assert Description(("cell", "dirt")).nouns == ("object", "objects")


def test_a_network_with_functions_needs_its_application():
    described = describe(SmallBackbone(), ("thing",))
    assert set(described.code) == {"BACKBONE", "COMPUTE_BACKBONE_SHAPE"}
    with pytest.raises(UserError, match="BACKBONE and .* pass its Config"):
        described.make_config()
    with pytest.raises(UserError, match="^a.json: BACKBONE and "):
        described.make_config("a.json")
    made = described.config_class(SmallBackbone)()
    assert made.BACKBONE is small_backbone and made.NAME == "small"


def test_only_the_network_is_taken_over_by_another_recipe():
    class Other(TinyConfig):
        LEARNING_RATE = 0.5
        TOP_DOWN_PYRAMID_SIZE = 64

    described = describe(TinyConfig(), ("thing",))
    made = described.config_class(Other, description.NETWORK)()
    assert made.LEARNING_RATE == 0.5
    assert made.TOP_DOWN_PYRAMID_SIZE == TinyConfig.TOP_DOWN_PYRAMID_SIZE
    plain = Description(("thing",)).config_class(Other, description.NETWORK)()
    assert plain.TOP_DOWN_PYRAMID_SIZE == Config.TOP_DOWN_PYRAMID_SIZE  # what is not written


class SmallBackbone(Config):
    NAME = "small"
    BACKBONE = staticmethod(small_backbone)
    COMPUTE_BACKBONE_SHAPE = staticmethod(lambda shape: shape)
