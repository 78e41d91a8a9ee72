"""Models from command-line values: which weights, and how they are loaded."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrcnn.config import Config
from mrcnn.environment import import_keras
from mrcnn.errors import MissingFileError, UserError
from mrcnn.files import open_regular
from mrcnn.weights.download import PRETRAINED, PUBLIC_FILES, resolve_weights
from mrcnn.weights.legacy_h5 import ranks_in_file

if TYPE_CHECKING:
    from mrcnn.inference.postprocess import PostProcessing
    from mrcnn.inference.tta import Variant
    from mrcnn.segmenter import Segmenter

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
    """A MaskRCNN with weights loaded; prints the loader's summary.

    mode, weights, logs: see `weight_file`.
    Raises what that raises, and UserError for weights that fill a network for inference only
    partly.
    """
    path = weight_file(mode, weights, logs, config.NAME)
    import_keras()

    from mrcnn.model import MaskRCNN  # Keras: seconds
    from mrcnn.network.precision import explain

    if mode == "training":
        from mrcnn.training import devices

        devices.processes()  # connected before the backend looks for its devices
    print(explain(config.PRECISION))
    # For inference, weights that leave a layer unset are refused below.
    model = MaskRCNN(mode, config, logs, first_values=mode == "training")
    report = _load(model, path, weights)
    if mode == "inference":
        report.demand_all()
    print(report.summary())
    return model


def _load(model, path: str | None, weights: str):
    if path is None and weights.lower() == "coco":
        # 81 classes and other widths: load every layer that fits, report the others.
        from mrcnn.weights.weight_files import load_matching

        return load_matching(model.keras_model, resolve_weights("coco"))
    path = path or model.get_imagenet_weights()
    print(f"Weights: {path}")
    return model.load_weights(path, by_name=True)


@dataclass(frozen=True)
class Recipe:
    """How another process makes a detector from a weight file that it can read as well."""

    weights: str  # a name of PRETRAINED, or an absolute path
    digest: str  # of the file's content, see `digest_of`
    config: Mapping[str, Any]  # every key
    classes: Sequence[str]
    settings: PostProcessing
    variants: Sequence[Variant]
    plural: str

    @classmethod
    def of(cls, weights: str, path: str, config: Config, **others: Any) -> Recipe:
        """weights: a name or the path; path: of the file; others: the rest of the fields."""
        name = weights.lower() if weights.lower() in PRETRAINED else os.path.abspath(path)
        keys = {key: getattr(config, key) for key in config.to_dict()}
        return cls(name, digest_of(path), keys, **others)

    def make(self) -> Segmenter:
        """The detector. Raises UserError if the weights are not those of the first process."""
        import_keras()

        from mrcnn.model import MaskRCNN
        from mrcnn.segmenter import Segmenter

        path = resolve_weights(self.weights)
        if digest_of(path) != self.digest:
            raise UserError(f"{path}: is not the weight file that the run was started with")
        config = Config()
        vars(config).update(self.config)
        config.FPN_CLASSIF_FC_RANKS = ranks_in_file(path)
        # Nothing is written there.
        model = MaskRCNN("inference", config, tempfile.gettempdir(), first_values=False)
        model.load_weights(path, by_name=True).demand_all()
        return Segmenter(model, self.classes, self.settings, self.variants, self.plural)


def digest_of(path: str) -> str:
    """A digest of a file's content."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
