"""What messages quote is short and on one line."""

import pytest

from mrcnn.errors import MissingFileError, MRCNNWarning, UserError, quoted, reason_of


def test_quoted_text_is_one_short_line():
    assert quoted("größe") == "'größe'"
    assert quoted("a\nb\x1b[2J\udc80") == r"'a\nb\x1b[2J\udc80'"
    assert quoted("x" * 100_000) == "'" + "x" * 80 + "'..."
    assert quoted(5) == "'5'"


@pytest.mark.parametrize("kind", [UserError, MissingFileError, MRCNNWarning])
def test_messages_are_shown_without_control_characters(kind):
    assert str(kind("größe.tif: no\r\n such\x7f key \x1b[2J")) == (
        r"größe.tif: no\r\n such\x7f key \x1b[2J"
    )


def test_reason_of_an_error():
    assert reason_of(ValueError("two\n  lines\x07")) == r"two lines\x07"
    assert reason_of(MemoryError()) == "MemoryError"
    assert reason_of(ValueError("x" * 1000)) == "x" * 197 + "..."
