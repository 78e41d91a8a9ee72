"""Slides of scanners: pyramids with each maker's tags and descriptions, written with tifffile; but
NDPI, which is a TIFF of its own kind, by hand."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrcnn.images.image_files import find_images
from tests.support.image_files import assert_reads, image_of, images_of, random_pixels

pytest.importorskip("imagecodecs")


def smooth(height, width):
    """Colours that JPEG hardly changes."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 200, columns % 200, (rows + columns) % 200], axis=-1).astype(np.uint8)


def assert_close(image, truth, most=12):
    for window in ((slice(0, 90), slice(10, 75)), (slice(None), slice(None))):
        difference = image.read(window).astype(int) - truth[window].astype(int)
        assert np.abs(difference).mean() < most


def test_aperio_svs(tmp_path):
    pixels = smooth(480, 720)
    said = "Aperio Image Library v11.2.1\r\n720x480 (240x240) JPEG/RGB|AppMag = 40|MPP = 0.2528"
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        for part, options in (
            (pixels, {"tile": (240, 240), "compression": "jpeg"}),
            (pixels[::8, ::8], {}),
            (pixels[::4, ::4], {"tile": (240, 240), "compression": "jpeg"}),
            (pixels[:60, :50], {"subfiletype": 1}),
            (pixels[:60, :90], {"subfiletype": 9}),
        ):
            writer.write(part, photometric="rgb", metadata=None, description=said, **options)
    image = image_of(tmp_path / "a.svs")
    assert image.levels == ((480, 720), (120, 180)) and image.mpp == 0.2528
    assert_close(image, pixels)
    assert_close(image.reduced(0.2), pixels[::4, ::4])
    assert image.about.notes == ("labels, overviews and other copies in the file left out: 3",)


def test_leica_scn(tmp_path):
    """An overview of the slide, and two areas, each of two levels."""
    areas = [random_pixels(200, 300, 3, seed=1), random_pixels(160, 240, 3, seed=2)]
    parts = [random_pixels(50, 150, 3), *(p for a in areas for p in (a, a[::4, ::4]))]

    def image(number, nanometres, *sides):
        dimensions = "".join(
            f"<dimension sizeX='{w}' sizeY='{h}' r='{r}' ifd='{ifd}'/>"
            for r, (h, w, ifd) in enumerate(sides)
        )
        height, width, _ = sides[0]
        view = f"<view sizeX='{width * nanometres}' sizeY='{height * nanometres}'/>"
        pixels = f"<pixels sizeX='{width}' sizeY='{height}'>{dimensions}</pixels>"
        return f"<image name='image_{number}'>{pixels}{view}</image>"

    xml = (
        "<scn><collection>"
        + image(0, 16000, (50, 150, 0))
        + image(1, 500, (200, 300, 1), (50, 75, 2))
        + image(2, 500, (160, 240, 3), (40, 60, 4))
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(tmp_path / "a.scn", bigtiff=True) as writer:
        for number, part in enumerate(parts):
            said = xml if number == 0 else None
            writer.write(part, photometric="rgb", tile=(64, 64), metadata=None, description=said)
    images = images_of(tmp_path / "a.scn")
    assert [lazy.name for lazy in images] == ["a_s1", "a_s2"]
    for lazy, area in zip(images, areas, strict=True):
        assert_reads(lazy, area)
        assert lazy.mpp == 0.5 and lazy.about.mpp_from == "slide scanner"
        assert_reads(lazy.reduced(0.25), area[::4, ::4])


def test_akoya_qptiff(tmp_path):
    pixels = random_pixels(2, 256, 384)
    with tifffile.TiffWriter(tmp_path / "a.qptiff", bigtiff=True) as writer:

        def write(part, name):
            said = f"<PerkinElmer-QPI-ImageDescription><Name>{name}</Name>"
            writer.write(
                part,
                tile=(64, 64),
                metadata=None,
                compression="lzw",
                photometric="minisblack",
                description=f"{said}</PerkinElmer-QPI-ImageDescription>",
                software="PerkinElmer-QPI",
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
            )

        for part, name in zip(pixels, ("DAPI", "CD8"), strict=True):
            write(part, name)
        write(random_pixels(30, 40), "thumbnail")
        for part in pixels[:, ::2, ::2]:
            write(part, "")
    images, _ = find_images([tmp_path / "a.qptiff"], "cd8")
    [image] = images
    assert_reads(image, pixels[1])
    assert image.mpp == 0.5 and image.levels == ((256, 384), (128, 192))
    assert_reads(image.reduced(0.5), pixels[1, ::2, ::2])


def ndpi_page(pixels, microns, magnification, start):
    """Data, and the tags {code: (type, values)}, of a page whose JPEG is one strip with marks at
    which decoding can begin; start: where in the file the data will be."""
    height, width, _ = pixels.shape
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=95, subsampling=0, restart_marker_blocks=8)
    data = stream.getvalue()
    begin = data.index(b"\xff\xda")
    begin += 2 + struct.unpack(">H", data[begin + 2 : begin + 4])[0]
    marks = [begin]
    for at in range(begin, len(data) - 1):
        if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7:
            marks.append(at + 2)
    per_cm = round(1e4 / microns)
    return data, {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8, 8, 8]),
        259: ("H", [7]),
        262: ("H", [6]),
        271: ("s", b"Hamamatsu\0"),
        273: ("I", [start]),
        277: ("H", [3]),
        278: ("I", [height]),
        279: ("I", [len(data)]),
        282: ("R", [per_cm, 1]),
        283: ("R", [per_cm, 1]),
        296: ("H", [3]),
        65420: ("I", [1]),
        65421: ("f", [magnification]),
        65426: ("I", marks),
    }


def write_ndpi(path, *pages):
    """pages: (pixels, microns, magnification). Offsets have 8 bytes, whose high ones follow the
    tags."""
    kinds = {"H": 3, "I": 4, "s": 2, "R": 5, "f": 11}
    out = bytearray(b"II*\0" + bytes(8))
    link = 4  # where the place of the next directory goes
    for page in pages:
        data, tags = ndpi_page(*page, start=len(out))
        out += data
        entries = b""
        for code, (kind, values) in sorted(tags.items()):
            packed = (
                values
                if kind == "s"
                else struct.pack(f"<{len(values)}{'I' if kind == 'R' else kind}", *values)
            )
            count = len(packed) if kind == "s" else len(values) // (2 if kind == "R" else 1)
            if len(packed) > 4:
                place = len(out)
                out += packed
                packed = struct.pack("<I", place)
            entries += struct.pack("<HHI", code, kinds[kind], count) + packed.ljust(4, b"\0")
        struct.pack_into("<Q", out, link, len(out))
        out += struct.pack("<H", len(tags)) + entries
        link = len(out)
        out += bytes(8) + bytes(4 * len(tags))
    path.write_bytes(out)


def test_hamamatsu_ndpi(tmp_path):
    pixels = smooth(480, 768)
    pages = [(pixels[::step, ::step], 0.25 * step, 40 / step) for step in (1, 2, 4)]
    write_ndpi(tmp_path / "a.ndpi", *pages, (pixels[:64, :192], 10, -1.0))
    image = image_of(tmp_path / "a.ndpi")
    assert image.mpp == pytest.approx(0.25)
    assert image.levels == ((480, 768), (240, 384), (120, 192))
    assert_close(image, pixels)
    assert_close(image.reduced(0.5), pixels[::2, ::2])
