"""`mrcnn export`: the network for other runtimes."""

from __future__ import annotations

import argparse

from mrcnn.cli import detectors
from mrcnn.cli.application import Application
from mrcnn.cli.models import build_model
from mrcnn.cli.summary import Summary


def export(options: argparse.Namespace, app: Application) -> Summary:
    """Write the network for other runtimes."""
    from mrcnn import export as exporting

    config = detectors.inference_config(options, app)
    config.PRECISION = "float32"
    model = build_model("inference", config, options.weights, options.logs)
    path = exporting.export(
        model,
        options.output,
        options.format,
        size=options.size,
        max_instances=options.max_instances,
        classes=app.description(app.weight_file(options, "inference")).classes,
    )
    return Summary(
        f"Written to {path}: images of {options.size} x {options.size} pixels, any number at "
        "once. What goes in and comes out stands at the top of mrcnn/export.py",
        {"format": options.format, "size": options.size, "output": path},
    )
