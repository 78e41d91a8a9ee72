"""Models from command-line values: which weights, loaded how."""

from __future__ import annotations

import os

from mrcnn.errors import UserError
from samples.nucleus.nucleus import DEFAULT_LOGS_DIR, SHIPPED_WEIGHTS

NAMED_WEIGHTS = "'last', 'imagenet', 'coco', 'nucleus'"


def build_model(mode: str, config, weights: str, logs: str = DEFAULT_LOGS_DIR):
    """A MaskRCNN with weights loaded; prints the loader's report.

    mode: "training" or "inference". weights: path of a file, "last" (the newest checkpoint below
    `logs`), "nucleus" (the file that comes with the project), "imagenet" or "coco" (downloaded).
    Raises UserError for weights that do not exist or make no sense.
    """
    name = weights.lower()
    if name in ("imagenet", "coco") and mode == "inference":
        raise UserError(f"--weights {weights} cannot detect nuclei: train from it first, then use "
                        "--weights last")
    if name == "nucleus" and not os.path.isfile(SHIPPED_WEIGHTS):
        raise UserError(f"--weights nucleus: there is no {SHIPPED_WEIGHTS}; train first")
    if name not in ("last", "imagenet", "coco", "nucleus") and not os.path.isfile(weights):
        raise UserError(f"--weights {weights}: no such file, nor one of {NAMED_WEIGHTS}")

    from mrcnn.model import MaskRCNN  # Keras: seconds
    from mrcnn.precision import explain

    print(explain(config.PRECISION))
    model = MaskRCNN(mode=mode, config=config, model_dir=logs)
    print(_load(model, name, weights).summary())
    return model


def _load(model, name: str, weights: str):
    if name == "coco":
        # 81 classes and other widths: take every layer that fits, report the others.
        from mrcnn.download import resolve_weights
        from mrcnn.weights import load_matching

        return load_matching(model.keras_model, resolve_weights("coco"))
    path = {"last": model.find_last, "imagenet": model.get_imagenet_weights,
            "nucleus": lambda: SHIPPED_WEIGHTS}.get(name, lambda: weights)()
    print(f"Weights: {path}")
    return model.load_weights(path, by_name=True)
