"""Weight files by name: those that come with the package, and public ones, which are downloaded.

Downloads are found in the cache or made by pooch: whole and with the right checksum, or not at all.

The cache is the folder named by the environment variable MRCNN_CACHE, else `~/.cache/mrcnn`.
"""

import contextlib
import logging
import math
import os
from pathlib import Path
from typing import NamedTuple

import pooch

from mrcnn.atomic import file_system_errors
from mrcnn.console import Progress
from mrcnn.errors import MissingFileError, UserError, one_line
from mrcnn.files import require_regular

COCO_MODEL_URL = "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/mask_rcnn_coco.h5"
IMAGENET_URL = (
    "https://github.com/fchollet/deep-learning-models/releases/download/v0.2/"
    "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
)

TIMEOUT = 30  # seconds without a byte after which the connection counts as broken
RETRIES = 2  # attempts after the first, each from the beginning


class PublicFile(NamedTuple):
    """A weight file that can be requested by a short name, and the MD5 that it must have."""

    url: str
    md5: str


PUBLIC_FILES = {
    "coco": PublicFile(COCO_MODEL_URL, "e98aaff6f99e307b5e2a8a3ff741a518"),
    "imagenet": PublicFile(IMAGENET_URL, "a268eb855778b3df3c7506639542a6af"),
}

# Files that come with the package.
PRETRAINED = {"nucleus": "mask_rcnn_nucleus.h5"}


def pretrained_file(name: str) -> Path:
    """Path of weights that come with the package, which is installed or a clone."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "pretrained", package.parent / "weights"]
    files = [place / PRETRAINED[name] for place in places]
    return next((file for file in files if file.is_file()), files[-1])


def cache_folder() -> Path:
    """Where downloaded files are kept. Raises UserError where the user has no home folder."""
    folder = os.path.expanduser(os.environ.get("MRCNN_CACHE") or "~/.cache/mrcnn")
    if folder.startswith("~"):
        raise UserError(
            "there is no home folder to keep downloads in: set the environment variable "
            "MRCNN_CACHE to a folder"
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
    return str(fetch(*public, folder / public.url.rpartition("/")[2]))


def download_trained_weights(coco_model_path: str | os.PathLike, verbose: int = 1) -> None:
    """Downloads matterport's COCO weights to a path, unless they are there (matterport utils)."""
    fetch(*PUBLIC_FILES["coco"], coco_model_path, quiet=not verbose)


def fetch(url: str, md5: str, path: str | os.PathLike, quiet: bool = False) -> Path:
    """Downloads a file, unless it is there already; either way its checksum is verified.

    The file appears under its name when it is whole and right. Two processes that want the same
    file both download it.

    Args:
        md5: hexadecimal digest that the file must have.
        quiet: show no progress.

    Returns:
        The path.

    Raises:
        UserError: offline, refused, interrupted, or not the right file; one line that says where
            to put the file by hand.
    """
    # Imported here, as pooch does, so that what needs no network does not wait for it.
    from requests.exceptions import HTTPError, RequestException

    path = Path(os.path.expanduser(path))
    pooch.get_logger().setLevel(logging.WARNING)  # the progress line says what it would say
    files = pooch.create(
        path.parent,
        base_url="",
        registry={path.name: f"md5:{md5}"},
        urls={path.name: url},
        retry_if_failed=RETRIES,
        allow_updates=False,
    )

    def attempt(*arguments) -> None:
        with contextlib.closing(_Megabytes(path.name)) as line:
            progress = False if quiet else line
            pooch.HTTPDownloader(progress, chunk_size=1 << 16, timeout=TIMEOUT)(*arguments)

    by_hand = f"get the file elsewhere and put it at {path}"
    with file_system_errors(path):
        try:
            return Path(files.fetch(path.name, downloader=attempt))
        except HTTPError as error:
            answer = f"{error.response.status_code} {one_line(error.response.reason)}"
            raise UserError(f"{url} answers {answer}; try again, or {by_hand}") from error
        except RequestException as error:
            raise UserError(
                f"cannot download {url} ({_reason(error)}): connect to the network, or {by_hand}"
            ) from error
        except ValueError as error:
            if path.exists():
                raise UserError(
                    f"{path} is not the file from {url}: its MD5 is not {md5}; delete it to "
                    "download it again"
                ) from error
            raise UserError(
                f"{url}: the download is not the right file and was removed: its MD5 is not "
                f"{md5}; try again, or {by_hand}"
            ) from error


def _reason(error: BaseException) -> str:
    """The first cause of an error of requests: it and urllib3 wrap what the system said."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return one_line(getattr(error, "strerror", None) or error or type(error).__name__)


class _Megabytes:
    """The progress bar that pooch asks for, as the project's own line."""

    def __init__(self, name: str):
        self.total = 0  # bytes; pooch sets it before the first update
        self._name, self._received = name, 0
        self._line: Progress | None = None

    def update(self, count: int) -> None:
        """Count the bytes that have been received."""
        if self._line is None:
            self._line = Progress(max(1, math.ceil(self.total / 1e6)), f"{self._name}, MB")
        self._received += count
        while self._line.done < min(math.ceil(self._received / 1e6), self._line.total):
            self._line.step()

    def reset(self) -> None:
        """Count from zero again; a line that is drawn stays as it is."""
        self._received = 0

    def close(self) -> None:
        """Called also where the download broke off: the line stays as it is."""
        if self._line:
            self._line.close()
