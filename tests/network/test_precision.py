"""Which number type the convolutions compute in, and what the user is told of it."""

import pytest

from mrcnn.cli import main
from mrcnn.network import precision
from samples.nucleus import nucleus


@pytest.mark.parametrize(
    "fast, policy, line",
    [
        (True, "mixed_bfloat16", "Convolutions in bfloat16: this device has instructions for it"),
        (False, "float32", "Convolutions in float32: this device is no faster in bfloat16"),
    ],
)
def test_auto_follows_the_device(fast, policy, line, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_is_fast", lambda: fast)
    assert precision.dtype_policy("auto") == policy
    assert precision.explain("auto") == line


@pytest.mark.parametrize("name, policy", [("float32", "float32"), ("bfloat16", "mixed_bfloat16")])
def test_a_wish_is_followed_on_every_device(name, policy):
    assert precision.dtype_policy(name) == policy
    assert precision.explain(name) == f"Convolutions in {name}, as asked for"


@pytest.mark.parametrize("flags, expected", [([], "auto"), (["--precision", "float32"], "float32")])
def test_flag_of_the_commands(flags, expected):
    for command in ("train", "detect", "evaluate"):
        for parser in (main.build_parser(), nucleus.build_parser()):
            assert parser.parse_args([command, *flags]).precision == expected
    assert nucleus.NucleusConfig.PRECISION == "auto"
