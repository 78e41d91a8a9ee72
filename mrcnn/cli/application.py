"""The program behind a command line: where its data come from, and its defaults.

`Application` is the console command `mrcnn`, which works on users' own files. An application with
data of its own (samples/nucleus) subclasses it and overrides what differs.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mrcnn.cli import settings
from mrcnn.cli.inputs import Input, channel_of, of_files
from mrcnn.cli.models import weight_file
from mrcnn.cli.score_images import Predict
from mrcnn.cli.settings import Settings
from mrcnn.config import Config
from mrcnn.data.dataset import Dataset
from mrcnn.data.labelled import LabelledImages
from mrcnn.data.pairs import Pair, check_pairs, find_pairs
from mrcnn.data.split import read_split, split, write_split
from mrcnn.errors import UserError
from mrcnn.evaluation.evaluation import Kinds
from mrcnn.presets import MicrographConfig, inference_config
from mrcnn.results.writers import DEFAULT_FORMATS, ImageWriter
from mrcnn.weights import description
from mrcnn.weights.description import NETWORK, Description


class Found(NamedTuple):
    """What `detect` works on."""

    inputs: list[Input]
    unreadable: dict[str, str]  # files that are not inputs, with the reasons
    formats: Sequence[str]  # the default ones
    left_out: Sequence[str] = ()  # folders that were left out on purpose, with the reasons


class Application:
    """The console command."""

    results = "results"
    recipe: type[Config] = MicrographConfig  # for training
    run_name: str | None = None  # of the runs that `--weights last` looks for; None for all
    kinds: Kinds | None = None  # by which scores are broken down

    # ---- The network -----------------------------------------------------------------------

    def description(self, path: str | None) -> Description:
        """What is known about a weight file's network; without a file, about a new one."""
        found = None if path is None else description.beside(path)
        return found or self.new_description()

    def new_description(self) -> Description:
        """The description of a network whose weight file has none."""
        return Description(("object",), {}, {}, "objects")

    def training_class(self, path: str | None, chosen: Settings) -> type[Config]:
        """The configuration class for training that starts from a weight file."""
        found = None if path is None else description.beside(path)
        base = self.recipe if found is None else found.config_class(self.recipe, NETWORK)
        return chosen.applied_to(base)

    def inference_class(self, path: str | None, chosen: Settings) -> type[Config]:
        """The configuration class of the network that a weight file belongs to."""
        whole = inference_config(chosen.applied_to(self.recipe))
        found = None if path is None else description.beside(path)
        base = whole if found is None else found.config_class(whole)
        return chosen.applied_to(base, keep=vars(whole))  # training's cropping does not apply here

    def weight_file(self, options: argparse.Namespace, mode: str) -> str | None:
        """Path of the file that --weights names; None for public ones."""
        return weight_file(mode, options.weights, options.logs, self.run_name)

    def settings(self, options: argparse.Namespace, path: str | None) -> Settings:
        """The settings asked for, on top of those that the weights were trained with."""
        asked = Settings(
            options.preset,
            tuple(options.config),
            getattr(options, "schedule", None),
            tuple(getattr(options, "augment", ())),
        )
        return asked.over(settings.beside(path))

    # ---- Data ------------------------------------------------------------------------------

    def check_data_flags(self, options: argparse.Namespace) -> None:
        """Raise UserError unless the flags of `train` and `evaluate` name data."""
        need(options, "images", "labels")

    def find_inputs(self, options: argparse.Namespace) -> Found:
        """What `detect` works on. Raises UserError if there is nothing."""
        if not options.inputs:
            raise UserError("detect needs images: files, folders or patterns; see detect --help")
        left_out: list = []
        inputs, unreadable = of_files(
            options.inputs, channel_of(options.channel), options.output, left_out
        )
        reasons = {str(file.path): file.reason for file in unreadable}
        said = [f"{one.path}: {one.reason}" for one in left_out]
        return Found(inputs, reasons, DEFAULT_FORMATS, said)

    def training_data(self, options: argparse.Namespace, noun: str) -> TrainingData:
        """What `train` learns from; noun: the name of the class."""
        pairs = find_pairs(options.images, options.labels, channel_of(options.channel))
        refuse_wrong_files(pairs)
        return OwnTrainingData(pairs, options, noun)

    def scored_data(self, options: argparse.Namespace, noun: str) -> Dataset:
        """What `evaluate` scores on."""
        pairs = find_pairs(options.images, options.labels, channel_of(options.channel))
        if options.split:
            subsets = read_split(options.split, pairs, 0.0, 0)
            pairs = [pair for pair in pairs if subsets[pair.name] == "val"]
            if not pairs:
                raise UserError(f"--split {options.split}: leaves no image for validation")
        return dataset_of(pairs, noun)

    # ---- Results ---------------------------------------------------------------------------

    def results_folder(self, command: str) -> Path:
        """<results>/<command>_<time>, not created yet."""
        return Path(self.results) / f"{command}_{datetime.datetime.now():%Y%m%dT%H%M%S}"

    def writers(
        self, output: Path, formats: Sequence[str], lengths: Mapping[str, int] | None = None
    ) -> list[ImageWriter]:
        """Writers of formats that only this application has; lengths: see `RunLog.lengths`."""
        return []

    def detects(self, options: argparse.Namespace) -> bool:
        """Whether `evaluate` needs a network."""
        return True

    def given_predictions(
        self, options: argparse.Namespace, dataset: Dataset
    ) -> tuple[Predict, dict[str, Any]] | None:
        """Detections that `evaluate` scores without a network, and what metrics.json says about
        them; None to run the network."""
        return None


class TrainingData(Protocol):
    """Images to learn from."""

    images: int  # their total number

    def datasets(self, folder: Path) -> tuple[Dataset, Dataset | None]:
        """Prepared data sets for training and for validation (or None). folder: of the run."""


class OwnTrainingData:
    """Pairs of images and labels, divided as the run's split.csv says."""

    def __init__(self, pairs: Sequence[Pair], options: argparse.Namespace, noun: str):
        self.pairs, self.options, self.noun = pairs, options, noun
        self.images = len(pairs)

    def datasets(self, folder: Path) -> tuple[Dataset, Dataset | None]:
        share, seed, named = self.options.val_share, self.options.seed, self.options.split
        written = folder / "split.csv"
        if named or written.is_file():
            subsets = read_split(named or written, self.pairs, share, seed)
        else:
            subsets = split(self.pairs, share, seed)
        write_split(written, subsets)
        train, val = (
            [pair for pair in self.pairs if subsets[pair.name] == part] for part in ("train", "val")
        )
        print(f"{len(train)} images for training, {len(val)} for validation: {written}")
        return dataset_of(train, self.noun), dataset_of(val, self.noun) if val else None


def dataset_of(pairs: Sequence[Pair], noun: str) -> LabelledImages:
    """A prepared data set."""
    dataset = LabelledImages()
    dataset.load_pairs(pairs, noun)
    dataset.prepare()
    return dataset


def refuse_wrong_files(pairs: Sequence[Pair]) -> None:
    """Raise UserError if an image and its labels cannot be trained on."""
    wrong = check_pairs(pairs)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}; fix or remove the file")


def need(options: argparse.Namespace, *flags: str) -> None:
    """Raise UserError if one of these flags was not given."""
    for flag in flags:
        if not getattr(options, flag, None):
            raise UserError(f"{options.command} needs --{flag}; see {options.command} --help")
