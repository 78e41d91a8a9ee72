"""What detects, by the flags: a network with its weights, settings of the post-processing.

Keras is imported by what needs it: it takes seconds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mrcnn.cli.application import Application
from mrcnn.cli.models import Recipe, build_model
from mrcnn.config import Config
from mrcnn.environment import import_keras
from mrcnn.inference import tta
from mrcnn.inference.postprocess import DEFAULTS, PostProcessing
from mrcnn.segmenter import Segmenter
from mrcnn.weights.description import Description, describe
from mrcnn.weights.legacy_h5 import ranks_in_file


def segmenter(options: argparse.Namespace, app: Application) -> Segmenter:
    """What detect and evaluate detect with."""
    known = app.description(app.weight_file(options, "inference"))
    chosen = postprocessing(options, known)
    return Segmenter(
        inference_model(options, app, chosen),
        known.classes,
        chosen,
        tta.variants_of(options.tta),
        known.plural,
    )


def postprocessing(options: argparse.Namespace, known: Description) -> PostProcessing:
    """That of the network, with the changes asked for."""
    own = PostProcessing.of(known.postprocessing, options.weights)
    chosen = PostProcessing.plain() if options.plain else own
    if getattr(options, "min_confidence", None) is not None:
        chosen = replace(chosen, min_score=options.min_confidence)
    return chosen.changed(options.set)


def inference_model(options: argparse.Namespace, app: Application, chosen: PostProcessing) -> Any:
    """A `MaskRCNN` that detects."""
    config = inference_config(options, app)
    configure(options, config, chosen)
    return build_model("inference", config, options.weights, options.logs)


def inference_config(options: argparse.Namespace, app: Application) -> Config:
    """The configuration of the network that the weights belong to."""
    path = app.weight_file(options, "inference")
    config = app.inference_class(path, app.settings(options, path))()
    import_keras()
    config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
    return config


def configure(options: argparse.Namespace, config: Config, chosen: PostProcessing) -> None:
    """Set what the flags of a detection ask for."""
    config.PRECISION = options.precision
    # The post-processing has the last word, and merging variants needs the less sure ones too.
    config.DETECTION_MIN_CONFIDENCE = min(config.DETECTION_MIN_CONFIDENCE or 0.0, chosen.min_score)


def described_detector(options: argparse.Namespace, app: Application) -> tuple[Description, Recipe]:
    """What is known of the network, and how workers make the detector that `segmenter` gives."""
    path = app.weight_file(options, "inference")
    known = app.description(path)
    chosen = postprocessing(options, known)
    config = app.inference_class(path, app.settings(options, path))()
    configure(options, config, chosen)
    return known, Recipe.of(
        options.weights,
        path,
        config,
        classes=known.classes,
        settings=chosen,
        variants=tta.variants_of(options.tta),
        plural=known.plural,
    )


def described(config: Config, known: Description, chosen: Any) -> Description:
    """The description of a network that was made from a described one."""
    how = known.postprocessing or DEFAULTS.to_dict()
    return describe(config, known.classes, how, known.plural, chosen.to_dict())


def facts(options: argparse.Namespace, settings: PostProcessing | None) -> dict[str, str]:
    """What a report says about how it was made."""
    try:
        known = {"Version": version("mrcnn-keras")}
    except PackageNotFoundError:  # run from a folder, without installation
        known = {}
    if settings is None:
        return known
    return {
        **known,
        "Weights": options.weights,
        "Post-processing": str(settings),
        **({"Test-time augmentation": options.tta} if options.tta else {}),
    }
