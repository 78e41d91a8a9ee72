"""Nikon ND2 files. No library writes them: these are made here, as the package nd2 has them."""

import struct
import sys

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.images.image_files import find_images
from tests.support.image_files import assert_reads, image_of, images_of, random_pixels, reason

MAGIC = 0x0ABECEDA
FRAME_NAME = 4072  # bytes, so that pixels begin 4096 bytes after the chunk and its time


@pytest.fixture(autouse=True)
def nd2():
    return pytest.importorskip("nd2")


def variant(values):
    """The XML of a tree of values."""

    def element(name, value):
        if isinstance(value, dict):
            inner = "".join(element(*item) for item in value.items())
            return f'<{name} runtype="CLxListVariant">{inner}</{name}>'
        kinds = {bool: "bool", int: "lx_int32", float: "double", str: "CLxStringW"}
        return f'<{name} runtype="{kinds[type(value)]}" value="{value}"/>'

    return f'<variant version="1.0">{element("no_name", values)}</variant>'.encode()


def loop(kind, parameters, inner=None):
    found = {"eType": kind, "uLoopPars": parameters}
    return found | ({"ppNextLevelEx": {"i0000000000": inner}} if inner else {})


def write(path, frames, channels=("DAPI", "GFP"), experiment=None, samples=1, planned=None):
    """frames [N, H, W, channels * samples]."""
    count, height, width, components = frames.shape
    bits = 8 * frames.itemsize
    attributes = {
        "uiWidth": width,
        "uiHeight": height,
        "uiWidthBytes": width * components * frames.itemsize,
        "uiComp": components,
        "uiBpcInMemory": bits,
        "uiBpcSignificant": bits,
        "uiSequenceCount": count,
        "eCompression": 2,
    }
    dye = {"m_ExcitationSpectrum": {"uiCount": 0}}
    planes = {
        f"a{number}": {"sDescription": name, "uiCompCount": samples, "pFluorescentProbe": dye}
        for number, name in enumerate(channels)
    }
    metadata = {
        "bCalibrated": True,
        "dCalibration": 0.65,
        "sPicturePlanes": {"uiCount": len(channels), "sPlaneNew": planes},
    }
    chunks = {
        "ImageAttributes!": variant(attributes),
        "ImageMetadataSeq|0!": variant(metadata),
        "ImageMetadata!": variant(experiment or {"eType": 0}),
    }
    places = {}
    with open(path, "wb") as file:
        name = b"ND2 FILE SIGNATURE CHUNK NAME01!"
        file.write(struct.pack("<IIQ", MAGIC, 32, 64) + name + b"Ver2.1".ljust(64, b"\0"))
        for number, frame in enumerate(frames):
            name = f"ImageDataSeq|{number}!".encode()
            places[name] = file.tell(), frame.nbytes + 8
            file.write(struct.pack("<IIQ", MAGIC, FRAME_NAME, frame.nbytes + 8))
            file.write(name.ljust(FRAME_NAME, b"\0") + bytes(8) + frame.tobytes())
        for name, data in chunks.items():
            places[name.encode()] = file.tell(), len(data)
            file.write(
                struct.pack("<IIQ", MAGIC, 32, len(data)) + name.encode().ljust(32, b"\0") + data
            )
        start = file.tell()
        table = b"".join(name + struct.pack("<QQ", *place) for name, place in places.items())
        end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", start)
        name = b"ND2 FILEMAP SIGNATURE NAME 0001!"
        file.write(struct.pack("<IIQ", MAGIC, 32, len(table + end)) + name + table + end)


DEPTHS = {"uiCount": 3, "dZStep": 0.5}
POSITIONS = {
    "Points": {
        f"i000000000{k}": {"dPosName": name, "dPosX": 0.0} for k, name in enumerate(("A1", "B2"))
    }
}


def test_positions_depths_and_channels(tmp_path):
    frames = random_pixels(6, 50, 70, 2, dtype=np.uint16)
    write(tmp_path / "a.nd2", frames, experiment=loop(2, POSITIONS, loop(4, DEPTHS)))
    assert "1 DAPI, 2 GFP" in reason(tmp_path / "a.nd2")
    images = images_of(tmp_path / "a.nd2", channel="GFP")
    assert [p.name for p in images] == [
        f"a_{position}_z00{z}" for position in ("s1_A1", "s2_B2") for z in (1, 2, 3)
    ]
    for image, frame in zip(images, frames, strict=True):
        assert_reads(image, frame[..., 1])
    assert images[0].about == ("channel 2 of 2 (GFP)", "s1_A1_z001", "ND2", ())
    assert images[0].mpp == pytest.approx(0.65)
    # The same file, stopped after four of its frames.
    write(tmp_path / "b.nd2", frames[:4], experiment=loop(2, POSITIONS, loop(4, DEPTHS)))
    images, [left] = find_images([tmp_path / "b.nd2"], 1)
    assert len(images) == 4 and left.reason == "2 of 6 planned planes are missing"


def test_colours_and_one_channel(tmp_path):
    frames = random_pixels(1, 50, 70, 3)
    write(tmp_path / "a.nd2", frames, ("Brightfield",), samples=3)
    image = image_of(tmp_path / "a.nd2")
    assert_reads(image, frames[0])
    assert image.about.channels == "RGB" and "taken as red" in image.about.notes[0]
    write(tmp_path / "b.nd2", frames[..., :1], ("DAPI",))
    assert_reads(image_of(tmp_path / "b.nd2"), frames[0, ..., 0])


def test_files_that_end_too_early(tmp_path):
    write(tmp_path / "a.nd2", random_pixels(1, 50, 70, 1), ("DAPI",))
    data = (tmp_path / "a.nd2").read_bytes()
    (tmp_path / "a.nd2").write_bytes(data[: len(data) // 2])
    assert reason(tmp_path / "a.nd2")
    # The table of the file says that its frame is beyond its end: no plane of zeros.
    place = data.rindex(b"ImageDataSeq|0!") + len(b"ImageDataSeq|0!")
    far = struct.pack("<Q", 10**6)
    (tmp_path / "a.nd2").write_bytes(data[:place] + far + data[place + len(far) :])
    with pytest.raises(UserError, match="a.nd2: has no pixels for this plane"):
        image_of(tmp_path / "a.nd2").read()


def test_without_the_reader_the_reason_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "a.nd2", random_pixels(1, 50, 70, 1), ("DAPI",))
    monkeypatch.setitem(sys.modules, "nd2", None)
    assert reason(tmp_path / "a.nd2") == 'is a Nikon ND2: pip install "mrcnn-keras[formats]"'
