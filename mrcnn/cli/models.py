"""Models from command-line values: which weights, loaded how."""

from __future__ import annotations

from typing import Any

from mrcnn.config import Config
from mrcnn.environment import import_keras
from mrcnn.errors import MissingFileError, UserError
from mrcnn.weights.download import PRETRAINED, PUBLIC_FILES, resolve_weights

NAMED_WEIGHTS = ", ".join(f"'{name}'" for name in ("last", *PUBLIC_FILES, *PRETRAINED))


def weight_file(mode: str, weights: str, logs: str, name: str | None = None) -> str | None:
    """Path of the weight file that `weights` stands for; None for the public ones.

    mode: "training" or "inference". weights: path of a file, "last" (the newest checkpoint below
    `logs`, of a configuration called `name` or of any), "nucleus" (comes with the package),
    "imagenet" or "coco" (downloaded).
    Raises UserError for weights that do not exist or make no sense.
    """
    word = weights.lower()
    if word in PUBLIC_FILES:
        if mode == "inference":
            raise UserError(
                f"--weights {weights} cannot detect anything yet: train from it first, then "
                "use --weights last"
            )
        return None
    if word == "last":
        import_keras()

        from mrcnn.training.checkpoints import find_last

        return find_last(logs, name and name.lower())
    try:
        return resolve_weights(weights)
    except MissingFileError:
        raise UserError(f"--weights {weights}: no such file, nor one of {NAMED_WEIGHTS}") from None


def build_model(mode: str, config: Config, weights: str, logs: str) -> Any:
    """A MaskRCNN with weights loaded; prints the loader's report.

    mode, weights, logs: see `weight_file`.
    Raises what that raises, and UserError for weights that fill a network for inference only in
    part.
    """
    path = weight_file(mode, weights, logs, config.NAME)
    import_keras()

    from mrcnn.model import MaskRCNN  # Keras: seconds
    from mrcnn.network.precision import explain

    print(explain(config.PRECISION))
    model = MaskRCNN(mode=mode, config=config, model_dir=logs)
    report = _load(model, path, weights)
    if mode == "inference":
        report.demand_all()
    print(report.summary())
    return model


def _load(model, path: str | None, weights: str):
    if path is None and weights.lower() == "coco":
        # 81 classes and other widths: take every layer that fits, report the others.
        from mrcnn.weights.weight_files import load_matching

        return load_matching(model.keras_model, resolve_weights("coco"))
    path = path or model.get_imagenet_weights()
    print(f"Weights: {path}")
    return model.load_weights(path, by_name=True)
