"""How every benchmark command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.workers import WorkerError
from mrcnn.errors import UserError


def exit_code(name: str, work: Callable[[], None], *also: type[Exception]) -> int:
    """Run `work`. Returns 0; 2 after one line with the name of the command, for a `UserError`, what
    a worker or the system cannot do, a missing package and the errors in `also`; 130 after Ctrl-C.
    """
    try:
        work()
    except (UserError, WorkerError, ImportError, OSError, *also) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
