"""Generated content for every parser (Hypothesis).

Right is: it is read, or refused with one UserError in one line. What is generated is nearly right:
the structure of the format with values of all kinds in it. A hang, and more memory than
--megabytes, are wrong too.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.internal.conjecture import providers
from PIL import Image

from tests.campaigns.common import Case, parse, tally_of, verdict
from tests.campaigns.damage import (
    blind_segmenter,
    labelled_image,
    names_of,
    scene,
    use_image,
    use_kaggle,
    use_pair,
    use_sidecar,
    use_submission,
)

SIZE = (32, 32)
# Hypothesis takes constants from whatever modules of ours are imported: a seed would give other
# examples after every change of the code.
providers.is_local_module_file = lambda path: False
set_hypothesis_home_dir(Path(tempfile.gettempdir(), "hypothesis"))  # not into the clone


class Parser(NamedTuple):
    """content: the strategy of what is generated. write: it into an empty folder, and returns the
    file. use: what the product does with the file, see `damage.Kind`; None where `write` does."""

    content: st.SearchStrategy
    write: Callable[[Path, Any], Path | None]
    use: Callable[[Path, Any], str | None]
    prepare: Callable[[], Any] = lambda: None


# ---- Values ------------------------------------------------------------------------------------

words = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "a", "a.png", "../a", "=1+1", "\n", "\x1b[31m", "__init__", "validate",
                     "_keys", "\x00", "x" * 300, "é", "e\u0301", "con", "a/b", "a\\b"]),
)  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 300),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.sampled_from([2**31, 2**32, 2**63, 10**24, 10**400, 1e308, 0.5]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=8,
)


def mostly(right: st.SearchStrategy) -> st.SearchStrategy:
    """A right value, and anything else now and then."""
    return st.one_of(right, right, right, right, anything)


def record(**fields: st.SearchStrategy) -> st.SearchStrategy:
    """A dictionary of these, of which some may be absent or of another type."""
    return st.fixed_dictionaries({}, optional={key: mostly(of) for key, of in fields.items()})


def whole(**fields: st.SearchStrategy) -> st.SearchStrategy:
    """A dictionary with all of these, mostly of the right types."""
    return st.fixed_dictionaries({key: mostly(of) for key, of in fields.items()})


def either(**fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(whole(**fields), whole(**fields), record(**fields))


def as_json(value: Any) -> str:
    """JSON, whole numbers of any length and numbers that are none included."""
    sys.set_int_max_str_digits(0)
    return json.dumps(value)


# ---- COCO --------------------------------------------------------------------------------------

ring = st.lists(st.one_of(st.floats(-5, 70), numbers), min_size=0, max_size=12)
run_lengths = st.one_of(
    st.lists(st.integers(0, 1024), max_size=8),
    st.lists(numbers, max_size=8),
    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20),
    st.just([0, 1024]),
    st.just([10, 4, 1010]),
)
segmentation = st.one_of(
    st.lists(ring, max_size=3),
    ring,
    either(size=st.just(list(SIZE)), counts=run_lengths),
)
annotation = either(
    id=st.integers(1, 9),
    image_id=st.just(1),
    category_id=st.integers(1, 3),
    iscrowd=st.sampled_from([0, 0, 0, 1]),
    segmentation=segmentation,
    bbox=st.lists(numbers, max_size=5),
)
coco = either(
    images=st.lists(
        either(id=st.just(1), file_name=st.just("a.png"), height=st.just(32), width=st.just(32)),
        min_size=1,
        max_size=2,
    ),
    annotations=st.lists(mostly(annotation), max_size=4),
    categories=anything,
)


def write_coco(folder: Path, content: Any) -> Path:
    (folder / "images").mkdir()
    Image.fromarray(scene(np.random.default_rng(0))[0][:32, :32]).save(folder / "images" / "a.png")
    path = folder / "labels.json"
    path.write_text(as_json(content))
    return path


# ---- Submissions -------------------------------------------------------------------------------

runs = st.one_of(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 64)), max_size=6).map(
        lambda pairs: " ".join(f"{start} {length}" for start, length in pairs)
    ),
    st.lists(numbers, max_size=6).map(lambda found: " ".join(map(str, found))),
    words,
)
csv_cell = st.one_of(words, runs, st.sampled_from(["a", '"', '""', '"a\nb"', "\r", "9" * 5000]))
csv_rows = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["a", "b"]), runs), st.lists(csv_cell, max_size=4).map(tuple)
    ),
    max_size=6,
)
submission = st.tuples(
    st.sampled_from(["ImageId,EncodedPixels"] * 6 + ["", "ImageId", "\ufeffImageId,EncodedPixels"]),
    csv_rows,
    st.one_of(st.none(), csv_rows),
)


def write_submission(folder: Path, content: Any) -> Path:
    header, rows, scores = content

    def write(name: str, first: str, rows: list) -> None:
        text = "\n".join([first, *(",".join(map(str, row)) for row in rows)]) + "\n"
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass", newline="")

    sys.set_int_max_str_digits(0)
    write("submit.csv", header, rows)
    if scores is not None:
        write("scores.csv", "ImageId,Score", scores)
    return folder / "submit.csv"


# ---- ImageJ's ROIs -----------------------------------------------------------------------------

shorts = st.one_of(st.integers(0, 64), st.integers(-(2**15), 2**15 - 1))
# Header of a .roi file: magic, version, type, four sides, number of corners, and what follows.
roi = st.builds(
    lambda version, kind, sides, corners, floats, rest, points: (
        b"Iout" + struct.pack(">hBB", version, kind, 0) + struct.pack(">4h", *sides)
        + struct.pack(">h", corners) + struct.pack(">4f", *floats) + bytes(rest)
        + struct.pack(f">{len(points)}h", *points)
    ),
    st.one_of(st.just(227), shorts),
    st.one_of(st.integers(0, 12), st.integers(0, 255)),
    st.tuples(shorts, shorts, shorts, shorts),
    st.one_of(st.integers(0, 8), shorts),
    st.tuples(*[st.floats(width=32)] * 4),
    st.one_of(st.just(bytes(30)), st.binary(min_size=30, max_size=30)),
    st.lists(shorts, max_size=20),
)  # fmt: skip
rois = st.one_of(
    roi.map(lambda data: [("0001.roi", data)]),
    st.lists(st.tuples(st.one_of(words.map(lambda name: name + ".roi"), words), roi), max_size=4),
)


def write_rois(folder: Path, content: Any) -> Path:
    labelled_image(folder, np.random.default_rng(0))
    path = folder / "labels" / "a.zip"
    _write_zip(path, content)
    return path


def _write_zip(path: Path, members: list) -> None:
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members:
            with contextlib.suppress(UnicodeEncodeError):
                archive.writestr(zipfile.ZipInfo(name or "_"), data)


# ---- Names in zip files ------------------------------------------------------------------------

pieces = st.one_of(
    st.sampled_from(
        ["a", "images", "masks", "..", ".", "", "__MACOSX", "a.png", "m.png", "/", "\\"]
    ),
    words,
)
member_names = st.one_of(
    st.sampled_from(["a/images/a.png", "a/masks/m.png", "a/masks/", "top/a/images/a.png"]),
    st.lists(pieces, min_size=1, max_size=5).map("/".join),
)


def write_members(folder: Path, names: list[str]) -> Path:
    image, labels = scene(np.random.default_rng(0))
    path = folder / "stage1_train.zip"
    _write_zip(path, [(name, _png(labels * 100 if "mask" in name else image)) for name in names])
    return path


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


# ---- Descriptions and settings -----------------------------------------------------------------


def keys() -> st.SearchStrategy:
    from mrcnn.config_rules import RULES

    # Those of the training alone would be as good; the sizes of layers are what costs memory.
    return st.one_of(st.sampled_from(sorted(RULES)), st.sampled_from(sorted(RULES)), words)


def sidecars() -> st.SearchStrategy:
    setting = st.builds("{}={}".format, keys(), mostly(numbers))
    return either(
        classes=st.lists(words, min_size=1, max_size=2),
        plural=words,
        config=st.dictionaries(keys(), anything, max_size=3),
        code=st.one_of(st.just([]), st.lists(keys(), max_size=2)),
        postprocessing=st.dictionaries(
            st.one_of(st.sampled_from(["min_score", "min_area", "fill_holes"]), words),
            anything,
            max_size=2,
        ),
        training=either(
            preset=st.sampled_from([None, "paper"]),
            config=st.lists(setting, max_size=2),
            schedule=st.sampled_from([None, "joint"]),
            augment=st.lists(setting, max_size=2),
        ),
    )


def write_sidecar(folder: Path, content: Any) -> Path:
    path = folder / "weights.json"
    path.write_text(as_json(content))
    return path


def config_values() -> st.SearchStrategy:
    value = st.one_of(
        anything.map(repr),
        st.sampled_from(["(" * 500 + ")" * 500, "-" * 3000 + "1", "9" * 30, "1e999", "f()", "{1:[}",
                         "1 if 1 else 2", "0x" + "f" * 400, "b'x'", "...", "[" * 90 + "]" * 90]),
    )  # fmt: skip
    return st.tuples(keys(), value)


def use_config(folder: Path, content: tuple[str, str]) -> None:
    """As `--config KEY=VALUE` does."""
    from mrcnn.cli.settings import Settings
    from mrcnn.presets import MicrographConfig

    key, value = content
    Settings(config=(f"{key}={value}",)).applied_to(MicrographConfig)


def states() -> st.SearchStrategy:
    header = either(
        format=st.just(1),
        paths=st.dictionaries(st.sampled_from(["optimizer", "seed"]), st.lists(words), max_size=2),
        progress=either(epoch=st.integers(0, 9), seconds=numbers, stage=anything),
    )
    return st.one_of(header.map(as_json), words)


def import_keras() -> None:
    """It takes longer than a case may."""
    import mrcnn.training.state  # noqa: F401


def use_state(folder: Path, header: str) -> None:
    """What a training resumes from."""
    from mrcnn.training import state

    path = folder / "state_0001.npz"
    np.savez(path, header=np.array(header))
    state.read_progress(path)


# ---- Images ------------------------------------------------------------------------------------

arrays = st.builds(
    lambda shape, dtype, values: _array(shape, dtype, values),
    st.one_of(
        st.just((64, 64)),
        st.sampled_from([(64, 64, 3), (64, 64, 4), (64, 64, 2), (2, 64, 64), (1, 64), (64, 1), (5,),
                         (1, 1), (64, 64, 1), (3, 2, 64, 64)]),
    ),
    st.sampled_from(["?", "u1", "u2", ">u2", "u4", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8"]),
    st.lists(numbers, min_size=1, max_size=6),
)  # fmt: skip


def _array(shape: tuple, dtype: str, values: list) -> np.ndarray:
    """The values, cast to the type, over and over."""
    with np.errstate(all="ignore"):
        flat = np.resize(np.array([float(value) if abs(value) < 1e300 else np.inf
                                   for value in values]), shape)  # fmt: skip
        return flat.astype(dtype)


def refusing_complex(use: Callable) -> Callable:
    """The use of an array in a file, where complex numbers have to be refused."""

    def used(path: Path, prepared: Any) -> str | None:
        wrong = use(path, prepared)
        if wrong is None and tifffile.imread(path).dtype.kind == "c":
            return "complex values are read without a word"
        return wrong

    return used


def write_label_image(folder: Path, content: np.ndarray) -> Path:
    labelled_image(folder, np.random.default_rng(0))
    path = folder / "labels" / "a.tif"
    tifffile.imwrite(path, content)
    return path


attributes = st.one_of(
    st.integers(0, 5).map(str), st.sampled_from(["1000000", "100000000"]), numbers.map(str), words
)
# Sizes along an axis: what is there, and what a small file may claim to hold.
sizes = st.one_of(st.just("1"), st.just("2"), st.just("1"), attributes)
claimed = st.sampled_from([2, 2, 3, 10_000, 1_000_000, 100_000_000, 2**40])
OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" SizeX="64" SizeY="64" {}>{}</Pixels></Image></OME>"""


def _ome(attributes: dict[str, str], channels: list[str], data: str) -> str:
    head = " ".join(f"{key}={quoteattr(value)}" for key, value in attributes.items())
    named = "".join(f"<Channel Name={quoteattr(name)}/>" for name in channels)
    return OME.format(head, named + data)


ome = st.builds(
    _ome,
    st.fixed_dictionaries(
        {
            "DimensionOrder": st.sampled_from(["XYCZT", "XYZCT", "XYZTC", "CXY", ""]),
            "Type": st.sampled_from(["uint8", "uint8", "uint16", "bit", "nonsense"]),
            "SizeC": sizes,
            "SizeZ": sizes,
            "SizeT": sizes,
            "PhysicalSizeX": attributes,
        }
    ),
    st.lists(words, max_size=3),
    st.sampled_from(
        [
            "<TiffData/>",
            "",
            '<TiffData IFD="99"/>',
            '<TiffData FirstZ="-1" PlaneCount="9"/>',
            '<TiffData><UUID FileName="../other.tif">urn:uuid:1</UUID></TiffData>',
        ]
    ),
)
ome_stack = st.builds(
    lambda axis, count, data: _ome(
        {"DimensionOrder": "XYCZT", "Type": "uint8"}
        | {f"Size{one}": str(count if one == axis else 1) for one in "CZT"},
        [],
        data,
    ),
    st.sampled_from("CZT"),
    claimed,
    st.sampled_from(["<TiffData/>", '<TiffData IFD="0" PlaneCount="2"/>']),
)
IMAGEJ_KEYS = (
    *("images", "slices", "frames", "channels", "hyperstack", "unit", "spacing", "min", "max"),
    *("Labels", "mode"),
)
imagej = st.dictionaries(st.sampled_from(IMAGEJ_KEYS), attributes, max_size=6).map(
    lambda found: "ImageJ=1.53k\n" + "".join(f"{key}={value}\n" for key, value in found.items())
)
imagej_stack = st.builds(
    "ImageJ=1.53k\nimages={0}\n{1}={0}\nhyperstack=true\n".format,
    claimed,
    st.sampled_from(["slices", "frames", "channels"]),
)
shaped_stack = claimed.map(lambda count: as_json({"shape": [count, 64, 64], "axes": "ZYX"}))
shaped = st.builds(
    lambda shape, axes: as_json({"shape": shape, "axes": axes}),
    mostly(st.lists(st.one_of(st.integers(0, 70), numbers), max_size=4)),
    mostly(st.sampled_from(["YX", "ZYX", "CYX", "QQ"])),
)
descriptions = st.one_of(ome, ome_stack, imagej, imagej_stack, shaped, shaped_stack, words)


def write_described(folder: Path, description: str) -> Path:
    path = folder / "image.tif"
    grey, _ = scene(np.random.default_rng(0))
    data = description.encode("utf-8", "replace")
    tifffile.imwrite(
        path, np.stack([grey] * 2), photometric="minisblack", metadata=None, description=data
    )
    return path


# ---- The campaign ------------------------------------------------------------------------------


def nothing(folder: Path, content: Any) -> None:
    """What is generated is no file."""


def parsers() -> dict[str, Parser]:
    return {
        "coco": Parser(coco, write_coco, use_pair),
        "submission": Parser(submission, write_submission, use_submission),
        "roi": Parser(rois, write_rois, use_pair),
        "sidecar": Parser(sidecars(), write_sidecar, use_sidecar),
        "config": Parser(config_values(), nothing, use_config),
        "state": Parser(states(), nothing, use_state, import_keras),
        "label": Parser(arrays, write_label_image, refusing_complex(use_pair)),
        "image": Parser(arrays, write_label_image, refusing_complex(use_image), blind_segmenter),
        "zip": Parser(st.lists(member_names, min_size=1, max_size=4), write_members, use_kaggle),
        "tiff": Parser(descriptions, write_described, use_image, blind_segmenter),
    }


KINDS = tuple(parsers())


def examples(parser: Parser, number: int, count: int) -> list:
    """Some examples, the same for the same number."""
    found: list = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(parser.content)
    def collect(example):
        found.append(example)

    collect()
    return found


# Examples come in lots: one can be repeated without all before it, and a child begins anywhere.
LOT = 50


def cases(kind: str, seed_of_all: int, first: int, end: int) -> Iterator[Case]:
    """The cases of a parser by number; generated in the process that judges them."""
    parser = parsers()[kind]
    prepared = parser.prepare()
    lot: list = []
    for number in range(first, end):
        if number == first or number % LOT == 0:
            lot = examples(parser, 1000 * seed_of_all + number // LOT, LOT)
        if number % LOT >= len(lot):  # there are no more than these
            yield Case("nothing new", lambda: None)
            continue
        example = lot[number % LOT]
        with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
            yield Case(
                ascii(example)[:200],
                lambda name=name, example=example: _judge(parser, Path(name), example, prepared),
            )


def _judge(parser: Parser, folder: Path, example: Any, prepared: Any) -> str | None:
    path = parser.write(folder, example)
    said: list[str | None] = []

    def act() -> None:
        if path is None:  # it is no file
            said.append(parser.use(folder, example))
        else:
            said.append(parser.use(path, prepared))

    with contextlib.redirect_stdout(io.StringIO()):
        return verdict(act, *(names_of(path) if path else ())) or (said[0] if said else None)


def main(arguments: list[str] | None = None) -> int:
    options = parse("fuzz", __doc__.split("\n\n")[0], KINDS, 5000, arguments, in_process=True)
    return tally_of(options, cases)


if __name__ == "__main__":
    sys.exit(main())
