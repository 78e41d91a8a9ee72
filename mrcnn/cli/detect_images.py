"""The loop over images behind `detect`.

Reading, detecting and writing overlap (see pipeline.py). An image that cannot be read is reported
with its name and skipped; the run continues. A full disk ends it. Ctrl-C leaves what has been done
so far and says where it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrcnn.cli.inputs import Input
from mrcnn.cli.pipeline import AHEAD, Outcome, each_image
from mrcnn.cli.summary import Summary, timing, timing_text
from mrcnn.console import Progress
from mrcnn.distributed.far_result import Wanted
from mrcnn.errors import with_warnings
from mrcnn.results.file_names import warn_of_long
from mrcnn.results.run_log import RunLog
from mrcnn.results.taken import Taken
from mrcnn.results.writers import ImageWriter, ResultWriter

if TYPE_CHECKING:
    from mrcnn.distributed.team import Team


def run_detect(
    detecting: Any,
    inputs: Sequence[Input],
    output: Path,
    formats: Sequence[str],
    microns: float | None = None,
    unreadable: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    extra: Sequence[ImageWriter] = (),
    log: RunLog | None = None,
    **how: Any,
) -> Summary:
    """Detect objects in images and write the results into the folder `output`.

    Args:
        detecting: a `mrcnn.segmenter.Segmenter`, or `OnCluster`.
        inputs: the images.
        formats: some of `writers.FORMATS`.
        microns: pixel size in microns, instead of what the files say.
        unreadable: files that are not inputs, with the reasons.
        facts: for the report.
        extra: writers of further formats.
        log: of the folder, for runs that can be resumed: images in it are not processed again.
        how: further arguments of `Segmenter.detect`.

    Returns:
        What was found; the images that failed include those of `unreadable`.
    """
    place = detecting if isinstance(detecting, OnCluster) else Here(detecting)
    writer = ResultWriter(output, formats, facts or {}, microns, place.nouns, extra, log)
    failed, count = dict(unreadable or {}), len(inputs) + len(unreadable or {})
    earlier = len(log.done) if log else 0
    inputs = left_to_do(writer, inputs, failed)
    names = [item.name for item in inputs]
    warn_of_long(names)

    def how_of(number: int) -> dict[str, Any]:
        return {**how, "microns": microns or inputs[number].microns}

    def read(number: int) -> Any:
        return place.begin(inputs[number], formats, how_of(number))

    def work(number: int, begun: Any, progress: Progress) -> Any:
        result, warned = place.result(begun, inputs[number], how_of(number), progress.within)
        taken = taken_of(result, inputs[number], microns, warned)
        progress.message(f"{names[number]}: {taken}")
        return result, taken

    def write(number: int, outcome: Outcome) -> str:
        return write_result(writer, names[number], outcome)

    complete, began = False, time.monotonic()
    try:
        each_image(names, "detect", failed, read, work, write, place.ahead)
        complete = True
    except KeyboardInterrupt:
        again = "; the same command resumes from there" if log else ""
        print(f"Stopped. The results so far are in {writer.partial}{again}", file=sys.stderr)
        raise
    finally:
        writer.close(complete)
    counts = count, len(inputs), earlier
    result = f"{counted(writer.total, writer.nouns)}. Written to {writer.places()}"
    objects, seconds = (writer.total, writer.nouns), time.monotonic() - began
    return detected(result, objects, counts, seconds, output, writer.paths(), failed)


class Here:
    """Detection in this process, for `run_detect`."""

    ahead = AHEAD

    def __init__(self, segmenter: Any):
        self.segmenter, self.nouns = segmenter, segmenter.nouns

    def begin(self, item: Input, formats: Sequence[str], how: Mapping[str, Any]) -> Any:
        """Read an image, in another thread."""
        return item.load()

    def result(
        self, image: Any, item: Input, how: Mapping[str, Any], progress: Callable[[int, int], None]
    ) -> tuple[Any, list[str]]:
        """The result for an image, and the warnings; image: what `begin` returned."""
        return with_warnings(self.segmenter.detect, image, progress=progress, **how)


class OnCluster:
    """Detection by the workers of a cluster, for `run_detect`."""

    def __init__(self, team: Team, nouns: tuple[str, str]):
        self.team, self.nouns = team, nouns
        self.ahead = team.ahead

    def begin(self, item: Input, formats: Sequence[str], how: Mapping[str, Any]) -> Any:
        """Hand an image to the workers."""
        # Extra formats need only labels and scores.
        return self.team.submit(item.load, how, Wanted.of(formats), item.image is not None)

    def result(
        self, given: Any, item: Input, how: Mapping[str, Any], progress: Callable[[int, int], None]
    ) -> tuple[Any, list[str]]:
        """The result for an image, and the warnings; given: what `begin` returned."""
        return self.team.result(given, item.image, progress)


def left_to_do(
    writer: ResultWriter, inputs: Sequence[Input], failed: dict[str, str]
) -> Sequence[Input]:
    """The inputs that are not in the writer's log yet. failed: files that are not inputs, which the
    writer takes first; images that failed before are added to it."""
    done = len(writer.log.done) if writer.log else 0
    for name, reason in list(failed.items())[done:]:
        writer.add_failed(name, reason)
    inputs_done = max(0, done - len(failed))
    if done:
        count = len(failed) + len(inputs)
        print(f"{done} of {count} images are in {writer.output} already")
        failed |= writer.log.failed
    return inputs[inputs_done:]


def taken_of(result: Any, image: Input, microns: float | None, warned: Sequence[str] = ()) -> Taken:
    """What was used of an image. microns: of --mpp; warned: warnings from the detection."""
    if image.about is None:
        return Taken.of(result, microns_from="--mpp" if microns else "", notes=warned)
    channels, plane, source, notes = image.about
    return Taken.of(result, channels, plane, "--mpp" if microns else source, (*notes, *warned))


def write_result(writer: ResultWriter, name: str, outcome: Outcome) -> str:
    """Write the outcome for an image. Returns a note about it."""
    if outcome.error is not None:
        writer.add_failed(name, str(outcome.error or "out of memory"))
        return ""
    result, taken = outcome.result
    writer.add(name, result, taken)
    return counted(len(result), writer.nouns)


def detected(
    result: str,
    objects: tuple[int, tuple[str, str]],
    images: tuple[int, int, int],
    seconds: float,
    output: Path,
    files: Mapping[str, str],
    failed: Mapping[str, str],
) -> Summary:
    """What `detect` has done.

    objects: how many, and what they are called; images: how many in total, in this run, and
    before it; files: see `ResultWriter.paths`.
    """
    number, nouns = objects
    count, now, earlier = images
    facts = {
        "images": count - len(failed),
        "objects": number,
        **timing(seconds, now),
        "images_this_time": now,
        "skipped": failed,
        "output": output,
        "files": files,
    }
    table = {
        "Images": str(count - len(failed)) + (f" ({now} in this run)" if earlier else ""),
        nouns[1].capitalize(): str(number),
        "Seconds": timing_text(seconds, now),
        "Skipped": str(len(failed)),
        **{name if "." in name else name.capitalize(): path for name, path in files.items()},
    }
    return Summary(result, facts, table, failed)


def counted(count: int, nouns: tuple[str, str]) -> str:
    """`1 nucleus`, `2 nuclei`."""
    return f"{count} {nouns[count != 1]}"
