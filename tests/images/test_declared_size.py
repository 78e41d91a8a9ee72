"""Label images and masks whose headers do not fit their pixels."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrcnn.errors import UserError
from mrcnn.images.declared_size import require_declared_size

PIXELS = np.arange(63 * 50, dtype=np.uint16).reshape(63, 50)
TAGS = {"ImageWidth": 40, "ImageLength": 31, "BitsPerSample": 8, "SamplesPerPixel": 2}


def tiff(pixels=PIXELS, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 7},
        {"tile": (16, 32)},
        {"compression": "zlib"},
        {"imagej": True},
        {"ome": True},
        {"byteorder": ">"},
        {"photometric": "rgb", "pixels": np.zeros((63, 50, 3), np.uint8)},
        {"photometric": "rgb", "pixels": np.zeros((3, 63, 50)), "planarconfig": "separate"},
        {"pixels": PIXELS > 9},
        {"pixels": np.stack([PIXELS] * 3)},
    ],
)
def test_whole_files_pass(options):
    require_declared_size(tiff(**options), "x")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_whole_bitmaps_pass_and_others_do_not(mode):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS.astype(np.uint8)).convert(mode).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    require_declared_size(bytes(data), "x")
    with pytest.raises(UserError, match="x.bmp: damaged: its header claims .* bytes of pixels"):
        require_declared_size(bytes(data[:-9]), "x.bmp")
    data[22] -= 9  # the height
    with pytest.raises(UserError, match="x.bmp: damaged"):
        require_declared_size(bytes(data), "x.bmp")


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 7}])
def test_lies_of_tiff_files(tag, options):
    data = bytearray(tiff(**options))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages[0].tags[tag].valueoffset
    data[offset] = TAGS[tag]
    with pytest.raises(UserError, match="x.tif: damaged: its header claims"):
        require_declared_size(bytes(data), "x.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "rowsperstrip": 7}])
def test_cut_tiff_files(options):
    data = tiff(**options)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        end = file.pages[0].dataoffsets[-1]
    with pytest.raises(UserError, match="x.tif: damaged"):
        require_declared_size(data[:end], "x.tif")


def test_what_is_no_such_file_passes():
    for data in (b"", b"II*\0", b"BM", b"MM\0*" + bytes(99), b"\x89PNG"):
        require_declared_size(data, "x")
