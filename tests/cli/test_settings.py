"""--config KEY=VALUE, whatever the value."""

import pytest

from mrcnn.cli.settings import Settings
from mrcnn.config import Config
from mrcnn.errors import UserError


@pytest.mark.parametrize(
    "setting",
    [
        "LEARNING_RATE=" + "9" * 24,
        "LEARNING_RATE=" + "9" * 5000,
        "LEARNING_RATE=1e999",
        "LEARNING_RATE=nan",
        "LEARNING_RATE=1j",
        "LEARNING_RATE=" + "(" * 300 + ")" * 300,
        "LEARNING_RATE=" + "[" * 100_000,
        "LEARNING_RATE=a\nb",
        "LEARNING_RATE=\0",
        "LEARNING_RATE",
        "x" * 100_000 + "=1",
        "SEED=" + "x" * 100_000,
        "IMAGE_CHANNEL_COUNT=99999999999",
    ],
)
def test_absurd_values_are_one_short_line(setting):
    with pytest.raises(UserError) as caught:
        Settings(config=(setting,)).applied_to(Config)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 400
    assert setting.partition("=")[0][:20] in text
