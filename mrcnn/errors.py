"""The two ways this package complains: an error the user can mend, and a warning."""


class UserError(ValueError):
    """Bad input: one line that names what is wrong and what to do about it.

    The command line prints the message alone and exits with code 2.
    """


class MRCNNWarning(UserWarning):
    """Something was dropped, skipped or guessed; the work goes on."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that should be there is not."""
