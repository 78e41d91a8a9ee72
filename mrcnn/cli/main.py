"""The console command `mrcnn`: its parser, and how commands are run and fail."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from mrcnn.cli.signals import EXIT_CODE, terminable
from mrcnn.cli.summary import Summary, print_json
from mrcnn.console import lasting_streams, quiet
from mrcnn.environment import check_keras
from mrcnn.errors import MRCNNWarning, Terminated, UserError, one_line

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
  mrcnn train --images images --labels masks --weights last --time-budget 60
  # five minutes on a few images that were corrected by hand
  mrcnn train --fine-tune --images fixed/images --labels fixed/labels --weights nucleus""",
    "evaluate": """\
  # the images that were left out of training
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
    """The parser of `mrcnn`. Only the commands that occur in `arguments` get their flags:
    importing what these need takes half a second, and the list of commands should come at once."""
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


class WrongFlags(Exception):
    """What a parser complains about."""

    def __init__(self, parser: argparse.ArgumentParser, message: str):
        super().__init__(message)
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """A parser that leaves it to `parse` to end the program."""

    def error(self, message: str) -> NoReturn:
        raise WrongFlags(self, message)


def new_parser(prog: str, description: str, examples: dict[str, str]) -> argparse.ArgumentParser:
    """A parser with examples at the end of its help."""
    parser = Parser(
        prog=prog,
        description=description,
        epilog="examples:\n" + "\n".join(examples.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_output_flags(parser)
    parser.add_argument(
        "--version",
        action="store_true",
        help="print the versions of this package, Keras and its backend, and the device",
    )
    return parser


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a flag given before the command must not be reset by the command's default.
    for name, text in (
        ("quiet", "show only warnings, errors and the result"),
        ("json", "like --quiet, with the result as one JSON document on standard output"),
    ):
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options; `command` is None with --version. Wrong flags exit with 2."""
    try:
        options = parser.parse_args(arguments)
        if options.version:
            options.command = None
        elif options.command is None:
            parser.error("the following arguments are required: COMMAND")
        return options
    except WrongFlags as wrong:
        if "--json" in arguments:
            print_json({"error": str(wrong)})
        wrong.parser.print_usage(sys.stderr)
        wrong.parser.exit(2, f"{wrong.parser.prog}: error: {wrong}\n")


def add_commands(
    parser: argparse.ArgumentParser, summaries: dict[str, str], examples: dict[str, str]
) -> dict[str, argparse.ArgumentParser]:
    """A parser for each command, by its name."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    made = {
        name: commands.add_parser(
            name,
            help=summary,
            description=summary.capitalize() + ".",
            epilog="examples:\n" + examples[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, summary in summaries.items()
    }
    for command in made.values():
        add_output_flags(command)
    return made


def command_of(name: str) -> Callable[[argparse.Namespace, Any], Summary]:
    """The function of a command, from its module; it takes the options and the `Application`.

    It raises UserError if its input is wrong. Imports are late because they take seconds.
    """
    return getattr(importlib.import_module(f"mrcnn.cli.{name}"), name)


def run(
    command: Callable[[], Summary], prog: str, options: argparse.Namespace | None = None
) -> int:
    """Run a command and print what it has done. Returns the exit code: 2 for errors, 130 after
    Ctrl-C, 143 after SIGTERM.

    Warnings of the package and errors that the user can fix are one line each. options: --quiet,
    --json, and the name of the command.
    """
    name = getattr(options, "command", None)
    as_json = getattr(options, "json", False)
    silent = as_json or getattr(options, "quiet", False)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no start-up notes; errors are raised
    with lasting_streams(), warnings.catch_warnings():
        warnings.simplefilter("always", MRCNNWarning)
        warnings.showwarning = lambda message, *_, **__: print(
            f"Warning: {message}", file=sys.stderr
        )
        stdout = sys.stdout

        def say(text: str) -> None:
            """Say why a command ended early."""
            if as_json:
                print_json({"error": one_line(text, 1000), "command": name}, stdout)
            print(f"{prog}: {text}", file=sys.stderr, flush=True)

        try:
            with quiet() if silent else contextlib.nullcontext():
                if name is not None:  # --version reports problems itself
                    check_keras()
                with terminable(say):
                    done = command()
            return done.present(name or "version", silent, as_json)
        except (UserError, OSError) as error:  # OSError: no permission, disk full
            say(str(error))
            return 2
        except Terminated:
            say("stopped by SIGTERM")
            return EXIT_CODE
        except KeyboardInterrupt:
            say("interrupted")
            return 130
        except Exception as error:
            if as_json:
                print_json({"error": one_line(repr(error), 1000), "command": name})
            raise


def complete(parser: Callable[[], argparse.ArgumentParser]) -> None:
    """If the shell asks how a command line may be completed, answer it and exit; otherwise do
    nothing."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # an extra

        argcomplete.autocomplete(parser())


def main(arguments: list[str] | None = None) -> int:
    """The console command. Returns the exit code; wrong flags exit with 2 from argparse."""
    complete(build_parser)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(build_parser(arguments), arguments)
    options.logs = getattr(options, "logs", "logs")
    if options.command != "train":
        options.weights = getattr(options, "weights", "nucleus")

    def command() -> Summary:
        if options.command is None:
            from mrcnn.cli.version import version

            return version()
        from mrcnn.cli.application import Application

        return command_of(options.command)(options, Application())

    return run(command, "mrcnn", options)
