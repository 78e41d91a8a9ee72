"""`mrcnn detect`: write the objects found in images to files."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mrcnn.atomic import locked
from mrcnn.cli import detectors
from mrcnn.cli.application import Application, Found
from mrcnn.cli.detect_images import OnCluster, detected, run_detect
from mrcnn.cli.inputs import Input
from mrcnn.cli.summary import Summary
from mrcnn.errors import UserError, one_line
from mrcnn.files import open_regular
from mrcnn.images.contents import contents_of
from mrcnn.images.listing import RUN_LOG
from mrcnn.inference.postprocess import DEFAULTS, PostProcessing
from mrcnn.results.run_log import RunLog
from mrcnn.results.writers import paths_of

# Options that do not affect the results, or whose content is what `RunLog` compares.
NO_SETTINGS = {"command", "output", "overwrite", "logs", "weights", "inputs", "limit", "list",
               "dataset", "subset", "images", "labels", "no_pictures", "quiet", "json",
               "version", "workers", "scheduler", "resume"}  # fmt: skip


def detect(options: argparse.Namespace, app: Application) -> Summary:
    """Find the objects in images, and write the formats that --format names."""
    if options.list:
        return list_contents(options)
    DEFAULTS.changed(options.set)  # a wrong setting is an error before anything is read
    found = app.find_inputs(options)
    for path, reason in found.unreadable.items():
        print(f"{path}: skipped: {reason}", file=sys.stderr)
    for said in found.left_out:
        print(said, file=sys.stderr)
    formats = [
        name
        for name in options.format or found.formats
        if not (options.no_pictures and name == "pictures")
    ]
    output = Path(options.output or app.results_folder("detect"))
    inputs = found.inputs[: options.limit]
    left_out = {"Left out": "; ".join(found.left_out)} if found.left_out else {}
    with locked(output):
        about = {"settings": settings_of(options, formats), "weights": weights_of(options, app)}
        if options.resume:
            require_begun(output, options)
        log = RunLog(output, about | {"images": states_of(found, inputs)}, options.overwrite)
        if log.complete:
            return found_before(options, app, log, formats)
        with detecting(options, app) as (detector, settings):
            return run_detect(
                detector,
                inputs,
                output,
                formats,
                options.mpp,
                found.unreadable,
                detectors.facts(options, settings) | left_out,
                app.writers(output, formats, log.lengths),
                log,
                diameter=options.diameter,
                tile=options.tile,
                inverted={"auto": None, "yes": True, "no": False}[options.invert],
            )


@contextlib.contextmanager
def detecting(
    options: argparse.Namespace, app: Application
) -> Iterator[tuple[Any, PostProcessing]]:
    """What `run_detect` detects with, and its settings: a network in this process or, with
    --workers or --scheduler, those of a cluster."""
    if not (options.workers or options.scheduler):
        detector = detectors.segmenter(options, app)
        yield detector, detector.settings
        return
    from mrcnn.distributed import cluster, team

    known, recipe = detectors.described_detector(options, app)
    own = options.scheduler is None
    with contextlib.ExitStack() as stack:
        where = (
            cluster.local_cluster(options.workers)
            if own
            else cluster.running_cluster(options.scheduler)
        )
        client = stack.enter_context(where)
        print(f"Dashboard: {cluster.dashboard_of(client) or 'none'}")
        found = team.team_of(client, recipe, recipe.settings, recipe.classes, own)
        workers = stack.enter_context(found)
        workers.wait_until_ready(print)
        yield OnCluster(workers, known.nouns), recipe.settings


def require_begun(output: Path, options: argparse.Namespace) -> None:
    """Raise UserError unless --resume finds a run; `RunLog` checks that it is this one."""
    if options.overwrite:
        raise UserError("--resume and --overwrite cannot be used together")
    if options.output is None:
        raise UserError("--resume needs --output, the folder of the run")
    if not (output / RUN_LOG).is_file():
        raise UserError(f"{output}: no run to resume here; to start one, leave out --resume")


def settings_of(options: argparse.Namespace, formats: Sequence[str]) -> dict[str, Any]:
    """What the results of a detection depend on besides images and weights, by flag name."""
    chosen = {**vars(options), "format": list(formats)}
    named = {f"--{k.replace('_', '-')}": v for k, v in chosen.items() if k not in NO_SETTINGS}
    return named | detectors.facts(options, None)


def weights_of(options: argparse.Namespace, app: Application) -> str:
    """A digest of a weight file and of what is known about its network."""
    path = app.weight_file(options, "inference")
    if path is None:  # a public file: the name determines its content
        return options.weights
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr((app.description(path), app.settings(options, path))).encode())
    return digest.hexdigest()


def states_of(found: Found, inputs: Sequence[Input]) -> dict[str, str]:
    """For every image and every file that is not one, by name, a text that changes when it does."""

    def state(item: Input) -> str:
        with contextlib.suppress(UserError):  # the file is gone: reading it reports that
            return hashlib.sha256(item.state().encode(errors="replace")).hexdigest()[:16]
        return ""

    return {**found.unreadable, **{item.name: state(item) for item in inputs}}


def found_before(
    options: argparse.Namespace, app: Application, log: RunLog, formats: Sequence[str]
) -> Summary:
    """What a run that was already complete has found."""
    nouns = app.description(app.weight_file(options, "inference")).nouns
    count, output = len(log.done), log.folder
    result = f"detect {count}/{count}: all are in {output} already; to detect again: --overwrite"
    print(result)
    files = paths_of(output, formats, log.files)
    return detected(result, (log.objects, nouns), (count, 0, count), 0.0, output, files, log.failed)


def list_contents(options: argparse.Namespace) -> Summary:
    """List what is in files; this needs no network."""
    if not options.inputs:
        raise UserError("detect --list needs files, folders or patterns; see detect --help")
    found, unreadable = contents_of(options.inputs)
    lines = []
    for one in found:
        lines.append(one_line(one.path, 300))
        lines += [f"  {one_line(line, 1000)}" for line in one.lines]
        lines += [f"  left out: {one_line(reason, 1000)}" for reason in one.left_out]
    files = [{"path": f.path, "contents": f.lines, "left_out": f.left_out} for f in found]
    failed = {str(one.path): one.reason for one in unreadable}
    return Summary("\n".join(lines), {"files": files}, failed=failed)
