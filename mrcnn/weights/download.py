"""Weight files by name: those that come with the package, and public ones, which are downloaded.

Downloads are found in the cache or made, resumable, atomic and verified.

The cache is the folder named by the environment variable MRCNN_CACHE, else `~/.cache/mrcnn`.
"""

import os
from pathlib import Path
from typing import NamedTuple

from mrcnn.weights import legacy_h5
from mrcnn.errors import MissingFileError, UserError, one_line
from mrcnn.files import require_regular
from mrcnn.weights.transfer import download

COCO_MODEL_URL = "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/mask_rcnn_coco.h5"
IMAGENET_URL = (
    "https://github.com/fchollet/deep-learning-models/releases/download/v0.2/"
    "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
)


class PublicFile(NamedTuple):
    """A weight file that can be asked for by a short name.

    `md5` and `size` (bytes) are what the file must have, None where nothing is published;
    `classes` is the width of its class head, None for a bare backbone.
    """

    url: str
    md5: str | None
    size: int | None
    classes: int | None


PUBLIC_FILES = {
    # No checksum is published for this one: its size and its 81 classes must do.
    "coco": PublicFile(COCO_MODEL_URL, None, 257557808, 81),
    "imagenet": PublicFile(IMAGENET_URL, "a268eb855778b3df3c7506639542a6af", None, None),
}


# Files that come with the package.
PRETRAINED = {"nucleus": "mask_rcnn_nucleus.h5"}


def pretrained_file(name: str) -> Path:
    """Path of weights that come with the package: an installed one, or a clone."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "pretrained", package.parent / "weights"]
    files = [place / PRETRAINED[name] for place in places]
    return next((file for file in files if file.is_file()), files[-1])


def cache_folder() -> Path:
    """Where downloaded files are kept. Raises UserError for somebody who has no home folder."""
    folder = os.path.expanduser(os.environ.get("MRCNN_CACHE") or "~/.cache/mrcnn")
    if folder.startswith("~"):
        raise UserError(
            "there is no home folder to keep downloads in: set the environment variable MRCNN_CACHE "
            "to a folder"
        )
    return Path(folder)


def resolve_weights(
    name_or_path: str | os.PathLike, cache_dir: str | os.PathLike | None = None
) -> str:
    """The path of a weight file given by name or path.

    Args:
        name_or_path: "nucleus", which comes with the package; "coco" (matterport's detector,
            258 MB) or "imagenet" (the Keras ResNet-50 backbone, 95 MB), both downloaded once; or
            the path of a file.
        cache_dir: instead of `cache_folder()`.

    Raises:
        UserError: no such file, or it cannot be downloaded.
    """
    name = str(name_or_path).lower()
    public = PUBLIC_FILES.get(name)
    if public is None:
        path = Path(os.path.expanduser(name_or_path))
        if name in PRETRAINED:
            path = pretrained_file(name)
        if not os.path.exists(path):
            names = ", ".join((*PRETRAINED, *PUBLIC_FILES))
            raise MissingFileError(
                f"{one_line(path, 300)}: no such weight file; give a path or one of {names}"
            )
        require_regular(path)
        return str(path)
    folder = Path(os.path.expanduser(cache_dir)) if cache_dir is not None else cache_folder()
    return str(_download_public(public, folder / public.url.rpartition("/")[2]))


def download_trained_weights(coco_model_path: str | os.PathLike, verbose: int = 1) -> None:
    """Downloads matterport's COCO weights to a path, unless they are there (matterport utils)."""
    _download_public(PUBLIC_FILES["coco"], Path(coco_model_path), quiet=not verbose)


def _download_public(public: PublicFile, path: Path, quiet: bool = False) -> Path:
    def check(candidate: Path) -> None:
        kernel = legacy_h5.read_shapes(candidate).get("mrcnn_class_logits", {}).get("kernel")
        classes = kernel[-1] if kernel else None
        if classes != public.classes:
            raise UserError(f"it has {classes or 'no'} classes, not {public.classes or 'none'}")

    return download(public.url, path, md5=public.md5, size=public.size, check=check, quiet=quiet)
