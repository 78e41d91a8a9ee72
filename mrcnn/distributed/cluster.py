"""A Dask cluster to work on: one of this machine's own processes, or one that is running.

Dask's own errors become one line each: see `WorkerError`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from mrcnn.errors import UserError, reason_of

PATIENCE = 20  # seconds in which a scheduler has to answer
ATTEMPTS = 8  # to reach all workers, of which some may just have died
# How long a worker that died may take to start again, before Dask gives it up; it loads Python and
# its libraries, on a machine that is busy. Seconds after which those given up are replaced.
LOST, REPLACED = "60s", 5
CLOSING = 4  # seconds for a client or cluster to close
# What libraries take the number of their threads from.
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def require_distributed() -> None:
    """Raise UserError unless the package is installed."""
    if importlib.util.find_spec("distributed") is None:
        raise UserError(
            "a cluster needs the package distributed: pip install 'mrcnn-keras[distributed]'"
        )


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment_of(workers: int) -> dict[str, str]:
    """Environment variables of one of so many workers: together they have a thread a core, unless
    the variables say otherwise already."""
    threads = str(max(1, cores() // workers))
    # A GPU's memory is not to be taken by the first worker alone.
    chosen = {name: os.environ.get(name, threads) for name in THREADS}
    return {**chosen, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """A client of so many worker processes, which end with the block."""
    require_distributed()
    import dask
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": LOST}))
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # Without a limit of its own for each: as much memory as there is.
            memory_limit=None,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            env=environment_of(workers),
        )
        stack.callback(_close, cluster)
        stack.enter_context(_replaced(cluster, workers))
        client = Client(cluster)
        stack.callback(_close, client)
        yield client


@contextlib.contextmanager
def _replaced(cluster: Any, workers: int) -> Iterator[None]:
    """In the block, have new workers take the place of those that Dask has given up: it starts one
    that died again, but once that fails (killed while it starts), no more."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(REPLACED):
            with contextlib.suppress(Exception):
                cluster.scale(workers)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextlib.contextmanager
def running_cluster(address: str) -> Iterator[Any]:
    """A client of the scheduler at an address. Raises UserError where none answers."""
    require_distributed()
    from distributed import Client

    _silence()  # what is wrong is said below, and by `Team`
    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"no scheduler answers at {address} ({reason_of(error, 120)}): start one with "
            "`dask scheduler`, and name the address that it prints"
        ) from None
    try:
        yield client
    finally:
        _close(client)


def _silence() -> None:
    """Keep Dask's tracebacks off the screen; its loggers have levels of their own."""
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _close(one: Any) -> None:
    """Close a client or cluster; the results are written, so nothing is wrong where that fails:
    the scheduler may have gone, and workers that are slow to end do so with this process."""
    with contextlib.suppress(Exception):
        one.close(timeout=CLOSING)


@contextlib.contextmanager
def detecting(client: Any, detector: Any, own: bool = False) -> Iterator[str]:
    """Tell all workers of a client, in the block, how a detector is made; gives its key.

    detector: a `Segmenter`, or what has a method `make` that gives one.
    own: see `worker.Detecting`.
    """
    import cloudpickle

    from mrcnn.distributed.worker import Detecting

    key = uuid.uuid4().hex
    plugin = Detecting(key, cloudpickle.dumps(detector), own)
    _register(client, plugin)
    try:
        yield key
    finally:
        with contextlib.suppress(Exception):  # the scheduler may have gone
            client.unregister_worker_plugin(plugin.name)


def _register(client: Any, plugin: Any) -> None:
    """Send a plugin to all workers. Raises UserError where the scheduler is gone."""
    for attempt in range(ATTEMPTS):
        try:
            client.register_plugin(plugin)
            return
        except OSError as error:  # a worker died meanwhile; those that come have it anyway
            wrong = error
            time.sleep(0.2 * attempt)
    raise UserError(f"the workers cannot be reached ({reason_of(wrong, 120)})")


def dashboard_of(client: Any) -> str:
    """Where progress, workers and their logs are to be seen."""
    link = client.dashboard_link or ""
    if importlib.util.find_spec("bokeh") is None:  # without it, tables of workers and logs alone
        return link.removesuffix("/status") + "/info/main/workers.html" if link else ""
    return link
