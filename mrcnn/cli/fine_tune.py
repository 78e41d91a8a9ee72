"""`mrcnn train --fine-tune`: a few minutes on a few images."""

from __future__ import annotations

import argparse
import time

from mrcnn.cli.application import Application, need
from mrcnn.cli.inputs import channel_of
from mrcnn.cli.summary import Summary
from mrcnn.environment import import_keras
from mrcnn.errors import UserError
from mrcnn.presets import FINE_TUNE_MINUTES, FINE_TUNE_STEPS

# What fine-tuning decides itself: the flags by name, with their values when not given.
NO_EFFECT = {
    "preset": None,
    "config": [],
    "augment": [],
    "schedule": None,
    "epochs": None,
    "batch_size": None,
    "devices": 1,
    "cache": None,
    "split": None,
    "val_share": 0.2,
}


def fine_tune(options: argparse.Namespace, app: Application) -> Summary:
    """Train a network a little further on a few images."""
    if not options.fine_tune:
        raise UserError("--rehearse needs --fine-tune")
    need(options, "images", "labels")
    for name, default in NO_EFFECT.items():
        if getattr(options, name) != default:
            raise UserError(f"--{name.replace('_', '-')} has no effect with --fine-tune: remove it")
    path = app.weight_file(options, "training")
    if path is None:
        raise UserError(
            f"--weights {options.weights} cannot be fine-tuned: name a network that detects"
        )

    import_keras()

    from mrcnn.fine_tuning import fine_tune

    began, steps = time.monotonic(), 0

    def count(done: int, total: int) -> None:
        nonlocal steps
        steps = done

    written = fine_tune(
        options.images,
        options.labels,
        path,
        channel=channel_of(options.channel),
        rehearse=options.rehearse,
        steps=options.steps or FINE_TUNE_STEPS,
        # With --steps alone there is no time limit.
        minutes=options.time_budget or (None if options.steps else FINE_TUNE_MINUTES),
        logs=options.logs,
        seed=options.seed,
        workers=options.workers,
        precision=options.precision,
        progress=count,
    )
    seconds = time.monotonic() - began
    facts = {
        "steps": steps,
        "seconds": round(seconds, 3),
        "checkpoint": written,
        "output": written.parent,
    }
    table = {
        "Steps": f"{steps}",
        "Seconds": f"{seconds:.1f}",
        "Weights": f"{written} (--weights last)",
        "Loss curve": f"{written.parent / 'loss_curve.png'}",
    }
    return Summary(f"{steps} steps of fine-tuning. Weights: {written}", facts, table)
