"""The console command `mrcnn`: its parser, and how commands are run and fail."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

from mrcnn.cli.signals import EXIT_CODE, terminable
from mrcnn.console import lasting_streams
from mrcnn.environment import check_keras
from mrcnn.errors import MRCNNWarning, Terminated, UserError

SUMMARIES = {
    "detect": "find objects in images; writes what --format names",
    "train": "train on your own images and labels",
    "evaluate": "score detections against the true masks",
    "compress": "make a weight file with thinner fully connected layers (truncated SVD)",
    "export": "write the network for other runtimes: ONNX, SavedModel",
}
EXAMPLES = {
    "detect": """\
  # your own images: files, folders, patterns
  mrcnn detect images/ more/*.tif --output found
  # the second channel of stacks, pixels of .325 microns, outlines for QuPath and a table
  mrcnn detect stacks/ --channel 2 --mpp .325 --format geojson,measurements""",
    "train": """\
  # label images, COCO annotations or ImageJ ROIs; half an hour from the nucleus weights
  mrcnn train --images images --labels masks --weights nucleus --time-budget 30
  # resume the newest run
  mrcnn train --images images --labels masks --weights last --time-budget 60""",
    "evaluate": """\
  # the images that training has left out
  mrcnn evaluate --images images --labels masks --split logs/.../split.csv --weights last""",
    "compress": """\
  # the class and box head's fully connected layers at rank 64 (paper section 3.8.6)
  mrcnn compress --weights nucleus --rank 64 --output smaller.h5""",
    "export": """\
  # for onnxruntime, images of 512 x 512 pixels; for TensorFlow
  mrcnn export --weights nucleus --format onnx --size 512 --output nucleus.onnx
  mrcnn export --weights last --format saved_model --size 512 --output nucleus_tf""",
}


def build_parser(arguments: Sequence[str] = tuple(SUMMARIES)) -> argparse.ArgumentParser:
    """The parser of `mrcnn`. Only the commands that occur in `arguments` get their flags: what
    these need takes half a second to import, and the list of commands should come at once."""
    parser = new_parser("mrcnn", "Mask R-CNN: instances in images.", EXAMPLES)
    for name, command in add_commands(parser, SUMMARIES, EXAMPLES).items():
        if name in arguments:
            from mrcnn.cli import flags

            flags.add_weight_flags(command)
            flags.add_configuration_flags(command)
            FLAGS[name](flags, command)
    return parser


def _detect_flags(flags: ModuleType, parser: argparse.ArgumentParser) -> None:
    flags.add_precision_flag(parser)
    flags.add_detect_flags(parser, "detect")
    flags.add_report_flags(parser)
    flags.add_result_flags(parser)


def _evaluate_flags(flags: ModuleType, parser: argparse.ArgumentParser) -> None:
    flags.add_precision_flag(parser)
    flags.add_detect_flags(parser, "evaluate")
    flags.add_report_flags(parser)
    flags.add_label_flags(parser)
    flags.add_figure_flag(parser)


def _train_flags(flags: ModuleType, parser: argparse.ArgumentParser) -> None:
    flags.add_precision_flag(parser)
    flags.add_label_flags(parser)
    flags.add_train_flags(parser)


FLAGS = {
    "detect": _detect_flags,
    "train": _train_flags,
    "evaluate": _evaluate_flags,
    "compress": lambda flags, parser: flags.add_compress_flags(parser),
    "export": lambda flags, parser: flags.add_export_flags(parser),
}


def new_parser(prog: str, description: str, examples: dict[str, str]) -> argparse.ArgumentParser:
    """A parser with examples at the end of its help."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="examples:\n" + "\n".join(examples.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_commands(
    parser: argparse.ArgumentParser, summaries: dict[str, str], examples: dict[str, str]
) -> dict[str, argparse.ArgumentParser]:
    """A parser for each command, by its name."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    return {
        name: commands.add_parser(
            name,
            help=summary,
            description=summary.capitalize() + ".",
            epilog="examples:\n" + examples[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, summary in summaries.items()
    }


def run(command: Callable[[], int], prog: str) -> int:
    """The exit code of a command: its own, 2 for errors, 130 after Ctrl-C, 143 after SIGTERM.

    Warnings of the package and errors that the user can mend are one line each.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no start-up notes; errors are raised
    with lasting_streams(), warnings.catch_warnings():
        warnings.simplefilter("always", MRCNNWarning)
        warnings.showwarning = lambda message, *_, **__: print(
            f"Warning: {message}", file=sys.stderr
        )
        try:
            check_keras()
            with terminable():
                return command()
        except (UserError, OSError) as error:  # OSError: no permission, disk full
            print(f"{prog}: {error}", file=sys.stderr)
            return 2
        except Terminated:
            print(f"{prog}: stopped by SIGTERM", file=sys.stderr)
            return EXIT_CODE
        except KeyboardInterrupt:
            print(f"{prog}: interrupted", file=sys.stderr)
            return 130


def main(arguments: list[str] | None = None) -> int:
    """The console command. Returns the exit code; wrong flags exit with 2 from argparse."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser(arguments).parse_args(arguments)
    options.logs = getattr(options, "logs", "logs")
    if options.command != "train":
        options.weights = getattr(options, "weights", "nucleus")

    def command() -> int:
        from mrcnn.cli.application import Application

        commands = importlib.import_module("mrcnn.cli.commands")
        return getattr(commands, options.command)(options, Application())

    return run(command, "mrcnn")
