"""`mrcnn compress`: a weight file with thinner fully connected layers."""

from __future__ import annotations

import argparse

from mrcnn.cli import detectors
from mrcnn.cli.application import Application
from mrcnn.cli.models import build_model
from mrcnn.cli.summary import Summary
from mrcnn.weights import description


def compress(options: argparse.Namespace, app: Application) -> Summary:
    """Make a weight file with thinner fully connected layers."""
    config = detectors.inference_config(options, app)
    config.PRECISION = "float32"

    from mrcnn.compression import compress

    whole = build_model("inference", config, options.weights, options.logs)
    smaller = compress(whole, options.rank, options.energy)
    smaller.save_weights(options.output, half=True)
    path = app.weight_file(options, "inference")
    known, chosen = app.description(path), app.settings(options, path)
    description.write(
        description.own_file(options.output), detectors.described(smaller.config, known, chosen)
    )
    ranks = " and ".join(map(str, smaller.config.FPN_CLASSIF_FC_RANKS))
    before, after = (m.keras_model.count_params() for m in (whole, smaller))
    return Summary(
        f"Ranks {ranks}: {after:,} parameters instead of {before:,}. Written to "
        f"{options.output}; use it with --weights",
        {
            "ranks": smaller.config.FPN_CLASSIF_FC_RANKS,
            "parameters": after,
            "parameters_before": before,
            "output": options.output,
        },
    )
