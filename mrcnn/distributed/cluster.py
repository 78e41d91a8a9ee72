"""A Dask cluster to work on: one of local processes, or one that is already running.

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
ATTEMPTS = 8  # to reach all workers, some of which may just have died
# How long a worker that died may take to restart before Dask gives it up: it loads Python and its
# libraries, on a busy machine. Seconds after which those given up are replaced.
LOST, REPLACED = "60s", 5
CLOSING = 4  # seconds for a client or cluster to close
# Where libraries take the number of their threads from.
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
    """Environment variables of one of `workers` workers: together they have one thread per core,
    unless the variables are set already."""
    threads = str(max(1, cores() // workers))
    # The first worker must not take all of a GPU's memory.
    chosen = {name: os.environ.get(name, threads) for name in THREADS}
    return {**chosen, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """A client of `workers` worker processes, which end with the block."""
    require_distributed()
    import dask
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": LOST}))
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # No limit for each worker: as much memory as there is.
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
    """In the block, replace workers that Dask has given up: it restarts one that died, but not once
    a restart has failed (killed while it starts)."""
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

    _silence()  # errors are reported below, and by `Team`
    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"no scheduler answers at {address} ({reason_of(error, 120)}): start one with "
            "`dask scheduler`, and give the address that it prints"
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
    """Close a client or cluster; the results are written, so a failure does no harm: the scheduler
    may have gone, and workers that are slow to end do so with this process."""
    with contextlib.suppress(Exception):
        one.close(timeout=CLOSING)


@contextlib.contextmanager
def detecting(client: Any, detector: Any, own: bool = False) -> Iterator[str]:
    """Tell all workers of a client, in the block, how to make a detector; yields its key.

    detector: a `Segmenter`, or an object with a method `make` that returns one.
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
        except OSError as error:  # a worker died meanwhile; new ones get it anyway
            wrong = error
            time.sleep(0.2 * attempt)
    raise UserError(f"the workers cannot be reached ({reason_of(wrong, 120)})")


def dashboard_of(client: Any) -> str:
    """The address that shows progress, workers and their logs."""
    link = client.dashboard_link or ""
    if importlib.util.find_spec("bokeh") is None:  # without it, only tables of workers and logs
        return link.removesuffix("/status") + "/info/main/workers.html" if link else ""
    return link
