"""What messages quote is short and on one line."""

from mrcnn.errors import quoted


def test_quoted_text_is_one_short_line():
    assert quoted("größe") == "'größe'"
    assert quoted("a\nb\x1b[2J\udc80") == r"'a\nb\x1b[2J\udc80'"
    assert quoted("x" * 100_000) == "'" + "x" * 80 + "'..."
    assert quoted(5) == "'5'"
