"""Leica LIF files. No library writes them: these are made here, as the format is described."""

import struct
import sys

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.images.image_files import find_images
from tests.support.image_files import assert_reads, image_of, images_of, random_pixels, reason

DIMENSIONS = {"X": 1, "Y": 2, "Z": 3, "T": 4}


def described(number, name, pixels, axes, channels, tags):
    """The XML of an image whose pixels [axes] follow each other as in memory."""
    strides = dict(zip(axes, pixels.strides, strict=True))
    sizes = dict(zip(axes, pixels.shape, strict=True))
    bits = 8 * pixels.itemsize
    parts = "".join(
        f'<ChannelDescription DataType="0" ChannelTag="{tag}" Resolution="{bits}" '
        f'NameOfMeasuredQuantity="" Min="0" Max="255" Unit="" LUTName="{channel}" '
        f'IsLUTInverted="0" BytesInc="{k * strides.get("C", strides.get("S", 0))}" BitInc="0"/>'
        for k, (channel, tag) in enumerate(zip(channels, tags, strict=True))
    )
    sides = "".join(
        f'<DimensionDescription DimID="{DIMENSIONS[axis]}" NumberOfElements="{sizes[axis]}" '
        f'Origin="0" Length="{(sizes[axis] - 1) * 0.5e-6}" Unit="m" BitInc="0" '
        f'BytesInc="{strides[axis]}"/>'
        for axis in axes
        if axis in DIMENSIONS
    )
    return (
        f'<Element Name="{name}"><Memory MemoryBlockID="B{number}" Size="{pixels.nbytes}"/><Data>'
        f"<Image><ImageDescription><Channels>{parts}</Channels><Dimensions>{sides}</Dimensions>"
        "</ImageDescription></Image></Data></Element>"
    )


def write(path, *images, extra=""):
    """images: (name, pixels, axes, names of channels, their tags)."""
    elements = "".join(described(number, *image) for number, image in enumerate(images))
    xml = (
        f'<LMSDataContainerHeader Version="2"><Element Name="all">{extra}<Children>{elements}'
        "</Children></Element></LMSDataContainerHeader>"
    ).encode("utf-16-le")
    with open(path, "wb") as file:
        file.write(struct.pack("<IIBI", 0x70, len(xml) + 5, 0x2A, len(xml) // 2) + xml)
        for number, (_, pixels, *_) in enumerate(images):
            name = f"B{number}".encode("utf-16-le")
            head = struct.pack("<IIBQBI", 0x70, 0, 0x2A, pixels.nbytes, 0x2A, len(name) // 2)
            file.write(head + name + pixels.tobytes())


@pytest.fixture(autouse=True)
def liffile():
    return pytest.importorskip("liffile")


def test_images_channels_depths_and_colours(tmp_path):
    stack = random_pixels(2, 3, 50, 70, dtype=np.uint16)  # Z C Y X
    colours = random_pixels(40, 60, 3)
    write(
        tmp_path / "a.lif",
        ("nuclei", stack, "ZCYX", ("Blue", "Green", "Red"), (0, 0, 0)),
        ("tissue", colours, "YXS", ("Blue", "Green", "Red"), (3, 2, 1)),
    )
    images = images_of(tmp_path / "a.lif", channel="green")
    assert [p.name for p in images] == ["a_s1_nuclei_z001", "a_s1_nuclei_z002", "a_s2_tissue"]
    assert_reads(images[1], stack[1, 1])
    assert_reads(images[2], colours[..., 1])
    assert images[1].about == ("channel 2 of 3 (Green)", "s1_nuclei_z002", "LIF", ())
    assert images[1].mpp == pytest.approx(0.5)
    # Without a choice, the image of colours is there all the same.
    [image], [left] = find_images([tmp_path / "a.lif"])
    assert_reads(image, colours[..., ::-1])  # blue comes first in the file
    assert left.reason.startswith("s1_nuclei_z001 and 1 others: has 3 channels (1 Blue, 2 Green")


def test_other_files_are_not_opened_and_claims_are_refused(tmp_path):
    pixels = random_pixels(50, 70)
    (tmp_path / "other.xlif").write_text("no XML: opening it would fail")
    reference = "<Children><Reference File='other.xlif'/></Children>"
    write(tmp_path / "a.lif", ("a", pixels, "YX", ("Gray",), (0,)), extra=reference)
    [image], [left] = find_images([tmp_path / "a.lif"])
    assert_reads(image, pixels)
    assert left.reason == "other files that it refers to are not opened: 1"
    write(tmp_path / "a.lif", ("a", pixels, "YX", ("Gray",), (0,)))
    data = (tmp_path / "a.lif").read_bytes()
    many = 'NumberOfElements="70"'.encode("utf-16-le"), 'NumberOfElements="99"'.encode("utf-16-le")
    (tmp_path / "a.lif").write_bytes(data.replace(*many))
    assert reason(tmp_path / "a.lif")
    (tmp_path / "a.lif").write_bytes(data)
    image = image_of(tmp_path / "a.lif")
    (tmp_path / "a.lif").write_bytes(data[:-1000])
    with pytest.raises(UserError, match="a.lif: ends before its pixels do"):
        image.read()


def test_without_the_reader_the_reason_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "a.lif", ("a", random_pixels(5, 7), "YX", ("Gray",), (0,)))
    monkeypatch.setitem(sys.modules, "liffile", None)
    assert reason(tmp_path / "a.lif") == 'is a Leica LIF: pip install "mrcnn-keras[formats]"'
