"""`mrcnn evaluate`: scores of detections against true masks."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrcnn.atomic import locked
from mrcnn.cli import detectors
from mrcnn.cli.application import Application
from mrcnn.cli.score_images import predictions_of, run_evaluate, ways_of
from mrcnn.cli.summary import Summary
from mrcnn.inference.postprocess import DEFAULTS
from mrcnn.results.run_log import forget


def evaluate(options: argparse.Namespace, app: Application) -> Summary:
    """Score detections against true masks."""
    DEFAULTS.changed(options.set)
    app.check_data_flags(options)
    path = app.weight_file(options, "inference") if app.detects(options) else None
    known = app.description(path)
    dataset = app.scored_data(options, known.classes[0])
    output = Path(options.output or app.results_folder("evaluate"))
    with locked(output):
        given = app.given_predictions(options, dataset)
        if given is None:
            detector = detectors.segmenter(options, app)
            predict, ways = predictions_of(detector), ways_of(detector, options.weights)
            extra = app.writers(output, ("submission",))
            said = detectors.facts(options, detector.settings)
        else:
            predict, ways = given
            extra, said = [], {**detectors.facts(options, None), "Detections": ways["detections"]}
        forget(output)
        return run_evaluate(
            dataset,
            output,
            predict,
            nouns=known.nouns,
            kinds=app.kinds,
            extra=extra,
            limit=options.limit,
            pictures=not options.no_pictures,
            figures=options.figures,
            facts=said,
            ways=ways,
        )
