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


def test_of_settings_with_one_key_the_last_is_kept():
    older = Settings("paper", ("POOL_SIZE=7", "SEED=1"), None, ("stain=.5",))
    newer = Settings(None, ("POOL_SIZE=8", "POOL_SIZE=9"), "joint", ("haze=.1",))
    expected = Settings("paper", ("POOL_SIZE=9", "SEED=1"), "joint", ("stain=.5", "haze=.1"))
    assert newer.over(older) == expected
    assert newer.over(expected) == expected  # resumed again and again
