"""The two ways this package complains: an error the user can fix, and a warning."""

import warnings
from collections.abc import Callable
from typing import Any


class UserError(ValueError):
    """Bad input: one line that names what is wrong and what to do about it.

    The command line prints the message alone and exits with code 2. Messages quote files and
    flags: whatever control characters and line breaks come with them are shown escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class MRCNNWarning(UserWarning):
    """Something was dropped, skipped or guessed; the work continues. Shown as `UserError` is."""

    def __str__(self) -> str:
        return printable(super().__str__())


def with_warnings(function: Callable, *arguments: Any, **options: Any) -> tuple[Any, list[str]]:
    """What a function returns, and the texts of this package's warnings that it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MRCNNWarning)
        result = function(*arguments, **options)
    for one in caught:
        if not issubclass(one.category, MRCNNWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return result, [str(one.message) for one in caught if issubclass(one.category, MRCNNWarning)]


class MissingFileError(UserError, FileNotFoundError):
    """A file that should be there is not."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: the program is asked to end (docker stop, SLURM, Kubernetes), as by Ctrl-C.

    Exit code 143.
    """


def quoted(text: object, longest: int = 80) -> str:
    """External text for a message: in quotes, on one line, of at most `longest` characters.

    Line breaks, control characters and lone surrogates are escaped; dots mark where text was cut
    off.
    """
    shown = str(text)
    return repr(shown[:longest]) + ("..." if len(shown) > longest else "")


def one_line(text: object, longest: int = 80) -> str:
    """External text in a form fit for a message: one line, without control characters.

    longest: characters kept; "..." marks longer text.
    """
    # Not much more than is kept: escapes only lengthen, and texts may have millions of characters.
    escaped = printable(str(text)[: longest + 1])
    return escaped if len(escaped) <= longest else escaped[: longest - 3] + "..."


def reason_of(error: BaseException, longest: int = 200) -> str:
    """What a library's error says, on one line; its type where it says nothing."""
    return one_line(" ".join(str(error).split()) or type(error).__name__, longest)


def printable(text: str) -> str:
    """The text with control characters and line breaks escaped as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
