"""Images in real files, read back whole and by windows; files found, broken, from elsewhere."""

import os
import pickle
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from mrcnn.errors import MissingFileError, MRCNNWarning, UserError
from mrcnn.images import listing, pillow, tiff_pages
from mrcnn.images.image_files import decode, find_images
from tests.support.image_files import (
    WINDOWS,
    assert_reads,
    image_of,
    images_of,
    random_pixels,
    reason,
)

# --- PNG, JPEG, BMP -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3)])
def test_png_and_bmp(tmp_path, name, shape):
    pixels = random_pixels(*shape)
    Image.fromarray(pixels).save(tmp_path / name)
    image = image_of(tmp_path / name)
    assert_reads(image, pixels)
    assert image.name == "a" and image.path == tmp_path / name and image.mpp is None
    assert image.channels == (("red", "green", "blue") if len(shape) == 3 else ())


def test_png_of_one_bit_sixteen_bits_and_palette(tmp_path):
    bits = random_pixels(50, 70, dtype=bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert_reads(image_of(tmp_path / "bits.png"), bits)
    deep = random_pixels(50, 70, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert_reads(image_of(tmp_path / "deep.png"), deep)
    indices, colours = random_pixels(50, 70), random_pixels(256, 3)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    assert_reads(image_of(tmp_path / "palette.png"), colours[indices])


@pytest.mark.parametrize("channels", [2, 4])
def test_png_alpha_is_dropped(tmp_path, channels):
    pixels = random_pixels(50, 70, channels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert_reads(image_of(tmp_path / "a.png"), pixels[..., :-1])


@pytest.mark.parametrize("channels, kind", [(2, 4), (3, 2), (4, 6)])
def test_png_of_sixteen_bit_colours_is_exact(tmp_path, channels, kind):
    pixels = random_pixels(50, 70, channels, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels, kind))
    assert_reads(image_of(tmp_path / "a.png"), pixels[..., : 1 if channels == 2 else 3])


def png(pixels, kind):
    """A PNG file of 16 bits, by the book: Pillow cannot write those with colours."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = pixels.astype(">u2").reshape(len(pixels), -1).view(np.uint8)
    filtered = np.pad(rows, ((0, 0), (1, 0)))  # filter 0
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(filtered.tobytes()))
        + chunk(b"IEND", b"")
    )


def test_files_in_memory_are_read_as_those_on_disk(tmp_path):
    """Such as the members of a zip file."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    palette = Image.fromarray(colours[..., :3]).quantize(16)
    for name, image in (
        ("a.png", Image.fromarray(colours)),
        ("b.png", palette),
        ("c.tif", Image.fromarray(colours[..., 0])),
        ("d.tif", palette),
        ("e.jpg", Image.fromarray(colours[..., :3])),
    ):
        image.save(tmp_path / name)
        (found,), _ = find_images([tmp_path / name])
        data = (tmp_path / name).read_bytes()
        np.testing.assert_array_equal(decode(data, name), found.read())
        np.testing.assert_array_equal(decode(data, name, labels=True), found.read_labels())
    tifffile.imwrite(
        tmp_path / "stack.tif", np.zeros((3, 6, 5), np.uint8), photometric="minisblack"
    )
    for data, said in (
        ((tmp_path / "stack.tif").read_bytes(), "holds 3 images"),
        ((tmp_path / "a.png").read_bytes()[:60], ""),
        (b"text", "is not an image"),
    ):
        with pytest.raises(UserError, match=f"^name: .*{said}"):
            decode(data, "name")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path, mode):
    Image.fromarray(random_pixels(50, 70, 3)).convert(mode).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        truth = np.asarray(image if mode != "CMYK" else image.convert("RGB"))
    assert_reads(image_of(tmp_path / "a.jpg"), truth)


def test_the_ending_does_not_decide(tmp_path):
    pixels = random_pixels(50, 70)
    Image.fromarray(pixels).save(tmp_path / "a.tif", format="PNG")
    assert_reads(image_of(tmp_path / "a.tif"), pixels)


def test_a_png_that_claims_to_be_huge(tmp_path):
    data = bytearray(png(random_pixels(8, 8, 3, dtype=np.uint16), 2))
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    assert "50000 x 50000 pixels" in reason(tmp_path / "a.png")


def test_windows_of_a_png_decode_it_once(tmp_path, monkeypatch):
    pixels = random_pixels(50, 70)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, decoded = image_of(tmp_path / "a.png"), []
    decode = pillow._decode
    monkeypatch.setattr(pillow, "_decode", lambda path: decoded.append(1) or decode(path))
    for window in WINDOWS[:3]:
        np.testing.assert_array_equal(image.read(window)[..., 0], pixels[window])
    assert len(decoded) == 1
    other = 255 - pixels
    Image.fromarray(other).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", (1, 1))
    np.testing.assert_array_equal(image.read(WINDOWS[1])[..., 0], other[WINDOWS[1]])


# --- TIFF ---------------------------------------------------------------------------------------

LAYOUTS = {
    "one piece": {},
    "strips": {"rowsperstrip": 7},
    "zlib": {"rowsperstrip": 7, "compression": "zlib"},
    "one zlib strip": {"rowsperstrip": 50, "compression": "zlib"},
    "zlib, predictor": {"compression": "zlib", "predictor": True, "rowsperstrip": 16},
    "tiles": {"tile": (16, 32)},
    "zlib tiles, predictor": {"tile": (32, 16), "compression": "zlib", "predictor": True},
    "BigTIFF": {"bigtiff": True, "tile": (16, 16)},
}


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3), (50, 70, 4)])
def test_tiff_layouts(tmp_path, layout, shape, byteorder):
    pixels = random_pixels(*shape, dtype=np.uint16)
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        byteorder=byteorder,
        photometric=photometric,
        metadata=None,
        **LAYOUTS[layout],
    )
    image = image_of(tmp_path / "a.tif")
    assert_reads(image, pixels[..., :3] if len(shape) == 3 else pixels)
    assert image.channels == (("red", "green", "blue") if len(shape) == 3 else ())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_tiff_with_channels_first(tmp_path, layout, photometric):
    pixels = random_pixels(3, 50, 70, dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        photometric=photometric,
        planarconfig="separate",
        **LAYOUTS[layout],
    )
    if photometric == "rgb":
        assert_reads(image_of(tmp_path / "a.tif"), pixels.transpose(1, 2, 0))
    else:
        assert "has 3 channels" in reason(tmp_path / "a.tif")
    for channel in (1, "2", 3):
        chosen = image_of(tmp_path / "a.tif", channel)
        assert_reads(chosen, pixels[int(channel) - 1])


@pytest.mark.parametrize(
    "dtype",
    [bool, np.int8, np.int16, np.uint32, np.int32, np.uint64, np.float16, np.float32, np.float64],
)
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"byteorder": ">"},
        {"tile": (16, 16), "byteorder": ">"},
        {"compression": "zlib", "rowsperstrip": 9},
    ],
)
def test_tiff_types(tmp_path, dtype, layout):
    pixels = random_pixels(50, 70, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **layout)
    assert_reads(image_of(tmp_path / "a.tif"), pixels)


@pytest.mark.parametrize("compression", ["lzw", "zstd", "packbits", "jpeg", "jpeg2000"])
def test_tiff_codecs_of_imagecodecs(tmp_path, compression):
    pytest.importorskip("imagecodecs")
    rgb = compression in ("jpeg", "jpeg2000")
    pixels = random_pixels(50, 70, *([3] if rgb else []))
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        compression=compression,
        tile=(16, 32),
        photometric="rgb" if rgb else "minisblack",
    )
    assert_reads(image_of(tmp_path / "a.tif"), tifffile.imread(tmp_path / "a.tif"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_tiff_of_jpegs_that_share_their_tables(tmp_path, mode):
    pytest.importorskip("imagecodecs")
    image = Image.fromarray(random_pixels(50, 70, 3)).convert(mode)
    image.save(tmp_path / "a.tif", compression="jpeg", quality=60)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].jpegtables
        truth = tiff.pages[0].asarray()
    found = image_of(tmp_path / "a.tif")
    assert_reads(found, truth)
    assert found.channels == (("red", "green", "blue") if mode == "RGB" else ())


def test_tiff_strips_that_are_left_out(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", random_pixels(50, 70))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        for tag in ("StripOffsets", "StripByteCounts"):
            tiff.pages[0].tags[tag].overwrite(0)
    assert_reads(image_of(tmp_path / "a.tif"), np.zeros((50, 70), np.uint8))


@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 8}])
def test_tiff_float_predictor(tmp_path, layout):
    pytest.importorskip("imagecodecs")
    pixels = random_pixels(50, 70, dtype=np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="zlib", predictor=3, **layout)
    assert_reads(image_of(tmp_path / "a.tif"), pixels)


def test_without_imagecodecs_the_reason_says_what_to_install(tmp_path):
    Image.fromarray(random_pixels(50, 70)).save(tmp_path / "a.tif", compression="tiff_lzw")
    Image.fromarray(random_pixels(50, 70)).save(tmp_path / "b.tif", compression="tiff_deflate")
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from mrcnn.images.image_files import find_images\n"
        "images, [unreadable] = find_images([sys.argv[1]])\n"
        "print(images[0].read().shape, unreadable.path.name, unreadable.reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        '(50, 70, 1) a.tif is compressed with LZW: pip install "mrcnn-keras[formats]"'
    )
    assert done.stderr == ""


def test_tiff_palettes(tmp_path):
    """Colours where it has them; ImageJ's lookup tables only show grey values in colour."""
    indices, colours = random_pixels(50, 70), random_pixels(256, 3)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "colours.tif")
    assert_reads(image_of(tmp_path / "colours.tif"), colours[indices])
    blue = np.zeros((3, 256), np.uint16)
    blue[2] = np.arange(256) * 257
    tifffile.imwrite(tmp_path / "blue.tif", indices, photometric="palette", colormap=blue)
    assert_reads(image_of(tmp_path / "blue.tif"), indices)
    tifffile.imwrite(
        tmp_path / "imagej.tif",
        indices,
        imagej=True,
        photometric="palette",
        colormap=colours.T.astype(np.uint16) * 257,
    )
    assert_reads(image_of(tmp_path / "imagej.tif"), indices)


def test_grey_with_alpha_and_two_other_samples(tmp_path):
    pixels = random_pixels(50, 70, 2)
    for extra in ("unassalpha", "unspecified"):
        tifffile.imwrite(
            tmp_path / f"{extra}.tif",
            pixels,
            photometric="minisblack",
            planarconfig="contig",
            extrasamples=[extra],
        )
    assert_reads(image_of(tmp_path / "unassalpha.tif"), pixels[..., 0])
    assert reason(tmp_path / "unspecified.tif") == (
        "has 2 channels (1 to 2): choose one with --channel"
    )
    assert_reads(image_of(tmp_path / "unspecified.tif", 2), pixels[..., 1])


def multi_file_set(folder, pixels):
    """An OME-TIFF of one time a file, each of which describes all."""
    names = [f"set_{number}.ome.tif" for number in range(len(pixels))]
    parts = "".join(
        f'<TiffData FirstT="{number}" IFD="0" PlaneCount="1"><UUID FileName="{name}">'
        f"urn:uuid:{number:08d}-0000-0000-0000-000000000000</UUID></TiffData>"
        for number, name in enumerate(names)
    )
    for number, name in enumerate(names):
        xml = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{number:08d}-0000-0000-0000-000000000000">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
            f'SizeX="70" SizeY="50" SizeC="1" SizeZ="1" SizeT="{len(names)}">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{parts}</Pixels></Image></OME>'
        )
        tifffile.imwrite(
            folder / name, pixels[number], description=xml, metadata=None, compression="zlib"
        )
    return names


def test_ome_sets_of_files_are_found_once(tmp_path):
    pixels = random_pixels(3, 50, 70)
    names = multi_file_set(tmp_path, pixels)
    images = images_of(tmp_path)
    assert [image.name for image in images] == [f"set_0_t{t:04d}" for t in (1, 2, 3)]
    for image, page in zip(images, pixels, strict=True):
        assert_reads(image, page)
    os.remove(tmp_path / names[1])
    images, [absent] = find_images([tmp_path / names[2]])
    assert "1 of 3 planes are missing" in absent.reason
    assert [image.name for image in images] == ["set_2_t0001", "set_2_t0003"]
    assert_reads(images[1], pixels[2])


def test_ome_sets_that_a_companion_describes(tmp_path):
    pixels = random_pixels(2, 50, 70)
    names = ["a.tif", "b.tif"]
    parts = "".join(
        f'<TiffData FirstC="{number}" IFD="0" PlaneCount="1"><UUID FileName="{name}">'
        f"urn:uuid:{number:08d}-0000-0000-0000-000000000000</UUID></TiffData>"
        for number, name in enumerate(names)
    )
    channels = "".join(f'<Channel ID="Channel:0:{c}" Name="{c}"/>' for c in ("DAPI", "GFP"))
    (tmp_path / "set.companion.ome").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><OME '
        'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="70" SizeY="50" SizeC="2" '
        f'SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5">{channels}{parts}</Pixels>'
        "</Image></OME>"
    )

    def write(companion):
        for number, name in enumerate(names):
            xml = (
                '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
                f'UUID="urn:uuid:{number:08d}-0000-0000-0000-000000000000"><BinaryOnly '
                f'MetadataFile="{companion}" UUID="urn:uuid:1"/></OME>'
            )
            tifffile.imwrite(tmp_path / name, pixels[number], description=xml, metadata=None)

    write("set.companion.ome")
    [image] = images_of(tmp_path, channel="gfp")
    assert image.mpp == 0.5
    assert_reads(image, pixels[1])
    write("gone.companion.ome")
    images = images_of(tmp_path)
    assert len(images) == 2 and "'gone.companion.ome', which desc" in images[0].about.notes[0]
    write("../elsewhere.companion.ome")
    assert "outside its own folder" in reason(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_imagej_files_that_describe_the_first_page_only(tmp_path, compression):
    pixels = random_pixels(5, 2, 50, 70, dtype=np.uint16)  # Z C Y X
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        imagej=True,
        metadata={"axes": "ZCYX"},
        **({"truncate": True} if compression is None else {"compression": compression}),
    )
    for channel in (1, 2):
        images = images_of(tmp_path / "a.tif", channel=channel)
        assert len(images) == 5
        for image, plane in zip(images, pixels, strict=True):
            assert_reads(image, plane[channel - 1])


def test_imagej_colours(tmp_path):
    pixels = random_pixels(2, 50, 70, 3)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TYXS"})
    for image, page in zip(images_of(tmp_path / "a.tif"), pixels, strict=True):
        assert_reads(image, page)


def test_five_channels_need_a_choice(tmp_path):
    pixels = random_pixels(5, 50, 70, dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        pixels,
        metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC", "Cy3", "Cy5", "Cy7"]}},
    )
    assert reason(tmp_path / "a.ome.tif") == (
        "has 5 channels (1 DAPI, 2 FITC, 3 Cy3, 4 Cy5, 5 Cy7): choose one with --channel"
    )
    assert_reads(image_of(tmp_path / "a.ome.tif", "cy5"), pixels[3])
    tifffile.imwrite(
        tmp_path / "b.tif", pixels[:4], metadata={"axes": "CYX"}, photometric="minisblack"
    )
    assert reason(tmp_path / "b.tif") == "has 4 channels (1 to 4): choose one with --channel"
    assert_reads(image_of(tmp_path / "b.tif", 4), pixels[3])


def test_channels_of_colours_and_grey(tmp_path):
    pixels = random_pixels(50, 70, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for channel, index in (("red", 0), ("Green", 1), ("BLUE", 2), (3, 2)):
        assert_reads(image_of(tmp_path / "a.png", channel), pixels[..., index])
    assert reason(tmp_path / "a.png", 4) == "has no channel 4, only 1 red, 2 green, 3 blue"
    Image.fromarray(pixels[..., 0]).save(tmp_path / "b.png")
    assert_reads(image_of(tmp_path / "b.png", 1), pixels[..., 0])
    assert reason(tmp_path / "b.png", "red") == "has no channel red, only 1"


def test_tiffs_that_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "complex.tif", random_pixels(50, 70, dtype=np.float32) * 1j)
    assert "complex" in reason(tmp_path / "complex.tif")
    tifffile.imwrite(tmp_path / "cmyk.tif", random_pixels(50, 70, 4), photometric="separated")
    assert "SEPARATED" in reason(tmp_path / "cmyk.tif")
    tifffile.imwrite(
        tmp_path / "axes.tif",
        random_pixels(5, 50, 70),
        photometric="minisblack",
        metadata={"axes": "TZX"},
    )
    assert "has no image" in reason(tmp_path / "axes.tif")
    tifffile.imwrite(
        tmp_path / "both.tif",
        random_pixels(2, 50, 70, 3),
        photometric="rgb",
        metadata={"axes": "CYXS"},
    )
    assert "2 channels of 3 samples" in reason(tmp_path / "both.tif")
    tifffile.imwrite(
        tmp_path / "deep.tif",
        random_pixels(32, 64, 64),
        volumetric=True,
        tile=(16, 16, 16),
        photometric="minisblack",
    )
    assert "depth" in reason(tmp_path / "deep.tif")


def test_images_of_one_row_or_column(tmp_path):
    for shape in ((1, 70), (50, 1), (1, 1)):
        pixels = random_pixels(*shape)
        tifffile.imwrite(tmp_path / "a.tif", pixels)
        assert_reads(image_of(tmp_path / "a.tif"), pixels)


# --- memory and threads -------------------------------------------------------------------------


def test_windows_of_a_huge_tiled_tiff_take_little_memory(tmp_path):
    """20000 x 20000 pixels of 16 bits, 800 MB, of which three tiles are in the file."""
    tile = random_pixels(256, 256, dtype=np.uint16)
    across = -(-20_000 // 256)
    wanted = {0, 40 * across + 50, 40 * across + 51}
    tifffile.imwrite(
        tmp_path / "a.tif",
        shape=(20_000, 20_000),
        dtype=np.uint16,
        tile=(256, 256),
        data=(tile if index in wanted else None for index in range(across**2)),
        compression="zlib",
        metadata=None,
    )
    assert os.path.getsize(tmp_path / "a.tif") < 2e6
    y, x = 40 * 256, 50 * 256
    tracemalloc.start()
    try:
        image = image_of(tmp_path / "a.tif")
        found = image.read((slice(y - 10, y + 300), slice(x - 10, x + 520)))[..., 0]
        corner = image.read((slice(19_990, None), slice(19_990, None)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6
    assert image.shape == (20_000, 20_000, 1)
    truth = np.pad(np.tile(tile, (1, 2)), ((10, 44), (10, 8)))
    np.testing.assert_array_equal(found, truth)
    assert corner.shape == (10, 10, 1) and not corner.any()


def test_windows_of_a_huge_file_in_one_piece_take_little_memory(tmp_path):
    pixels = tifffile.memmap(tmp_path / "a.tif", shape=(20_000, 20_000), dtype=np.uint8)
    pixels[700, 10_000:10_003] = 1, 2, 3
    pixels.flush()
    del pixels
    image = image_of(tmp_path / "a.tif")
    tracemalloc.start()
    try:
        found = image.read((slice(500, 900), slice(9_900, 10_200)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6
    assert found[200, 100:103, 0].tolist() == [1, 2, 3] and found.sum() == 6


def test_a_large_compressed_strip_is_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_pages, "LARGE_SEGMENT", 1000)
    pixels = random_pixels(50, 70, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="zlib", rowsperstrip=50)
    image = image_of(tmp_path / "a.tif")
    before = tiff_pages._last._block
    image.read()
    assert tiff_pages._last._block is before  # of a whole image nothing is kept
    assert_reads(image, pixels)
    block = tiff_pages._last._block
    assert block is not before
    image.read(WINDOWS[1])
    assert tiff_pages._last._block is block


def test_what_a_tiff_claims_takes_no_memory(tmp_path):
    pixels = random_pixels(64, 64)
    tifffile.imwrite(tmp_path / "a.tif", pixels, bigtiff=True, compression="zlib", rowsperstrip=64)
    for code, value, said in (
        (279, 2**60, "ends before its pixels do"),  # StripByteCounts
        (257, 2**23, "lacks some of its tiles or strips"),  # ImageLength
    ):
        path = tmp_path / f"{code}.tif"
        path.write_bytes((tmp_path / "a.tif").read_bytes())
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tag = tiff.pages[0].tags[code]
            tag.overwrite(value, dtype="Q")
        tracemalloc.start()
        with pytest.raises(UserError, match=said):
            image_of(path).read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24


def test_threads_read_at_the_same_time(tmp_path):
    pixels = random_pixels(300, 400, 3)
    tifffile.imwrite(
        tmp_path / "tiles.tif", pixels, tile=(32, 32), compression="zlib", photometric="rgb"
    )
    tifffile.imwrite(tmp_path / "whole.tif", pixels, photometric="rgb")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.png")
    images, wrong = images_of(tmp_path), []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            image = images[rng.integers(4)]
            y, x = rng.integers(0, 250, 2)
            window = slice(y, y + 40), slice(x, x + 70)
            if not np.array_equal(image.read(window), pixels[window]):
                wrong.append((image.name, window))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_slices_of_an_image(tmp_path):
    pixels = random_pixels(50, 70)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = image_of(tmp_path / "a.png")
    np.testing.assert_array_equal(image[3:9, 10:].squeeze(), pixels[3:9, 10:])
    np.testing.assert_array_equal(image[3:9].squeeze(), pixels[3:9])
    with pytest.raises(ValueError, match="step"):
        image.read((slice(0, 9, 2), slice(None)))


# --- broken files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.png", {}),
        ("a.jpg", {}),
        ("a.bmp", {}),
        ("whole.tif", {}),
        ("strips.tif", {"rowsperstrip": 5, "compression": "zlib"}),
        ("tiles.tif", {"tile": (16, 16)}),
    ],
)
def test_truncated_files_name_themselves(tmp_path, name, options):
    pixels, path = random_pixels(50, 70), tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    image = image_of(path)
    with pytest.raises(UserError, match=f"{name}: (is broken|ends before)") as caught:
        image.read()
    assert "\n" not in str(caught.value)


def test_garbage_inside_files(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, random_pixels(50, 70), compression="zlib", rowsperstrip=10)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[2]
    data = bytearray(path.read_bytes())
    data[offset : offset + 50] = bytes(50)
    path.write_bytes(data)
    image = image_of(path)
    image.read((slice(0, 20), slice(None)))
    with pytest.raises(UserError, match="a.tif: is broken"):
        image.read((slice(15, 25), slice(None)))


def test_files_that_change_or_vanish(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(random_pixels(50, 70)).save(path)
    image = image_of(path)
    Image.fromarray(random_pixels(40, 70)).save(path)
    with pytest.raises(UserError, match="a.png: has changed"):
        image.read()
    path.unlink()
    with pytest.raises(UserError, match="a.png: no such file"):
        image.read()


def test_unreadable_files_do_not_stop_the_rest(tmp_path):
    Image.fromarray(random_pixels(50, 70)).save(tmp_path / "good.png")
    (tmp_path / "text.tif").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "head.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "head.tif").write_bytes(b"II*\0\x08\0\0\0")
    (tmp_path / "away.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "notes.txt").write_text("left out")
    images, unreadable = find_images([tmp_path])
    assert [image.name for image in images] == ["good"]
    assert {one.path.name: one.reason for one in unreadable}.keys() == {
        "text.tif",
        "empty.png",
        "head.png",
        "head.tif",
        "away.jpg",
    }
    reasons = {one.path.name: one.reason for one in unreadable}
    assert reasons["text.tif"] == "is not an image (PNG, JPEG, BMP, TIFF, Zarr, CZI, ND2 or LIF)"
    assert reasons["empty.png"] == "is empty"
    assert reasons["away.jpg"] == "no such file"
    assert all(reasons.values()) and "\n" not in "".join(reasons.values())
    assert "is not an image" in reason(tmp_path / "notes.txt")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a.png", "b.png", "inner/c.png"):
        Image.fromarray(random_pixels(50, 70)).save(tmp_path / name)
    (tmp_path / "b.png").chmod(0)
    (tmp_path / "inner").chmod(0)
    try:
        images, unreadable = find_images([tmp_path])
    finally:
        (tmp_path / "inner").chmod(0o700)
    assert [image.name for image in images] == ["a"]
    assert {(one.path.name, one.reason) for one in unreadable} == {
        ("b.png", "cannot be read (Permission denied)"),
        ("inner", "cannot be read (Permission denied)"),
    }


# --- what the user names ------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A function that makes files of one pixel, and the folders they are in."""

    def plant(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = "PNG" if path.suffix.lower() != ".tif" else "TIFF"
            Image.new("L", (1, 1)).save(path, format=kind)
        return tmp_path

    return plant


def test_folders_are_searched_in_natural_order(tree):
    root = tree(
        "well10/a.png",
        "well2/b10.PNG",
        "well2/b9.png",
        "well2/deep/er/c.tif",
        ".hidden/d.png",
        "well2/.e.png",
        "__MACOSX/well2/._b9.png",
        "__MACOSX/f.png",
    )
    (root / "well2" / "readme.md").write_text("")
    names = [image.name for image in images_of(root)]
    assert names == ["well2_b9", "well2_b10", "well2_deep_er_c", "well10_a"]
    assert [image.name for image in images_of(root / "well2")] == ["b9", "b10", "deep_er_c"]
    assert image_of(root / ".hidden" / "d.png").name == "d"


def test_patterns(tree):
    root = tree("a/x1.png", "a/x2.png", "a/y.tif", "b/c/x3.png", "__MACOSX/x4.png", "w[1].png")

    def names(*patterns):
        return [image.name for image in images_of(*(str(root / one) for one in patterns))]

    assert names("a/x*.png") == ["x1", "x2"]
    assert names("**/x*.png") == ["a_x1", "a_x2", "b_c_x3"]
    assert names("a/*", "b") == ["a_x1", "a_x2", "a_y", "b_c_x3"]
    assert names("[ab]") == ["a_x1", "a_x2", "a_y", "b_c_x3"]
    assert names("w[1].png") == ["w[1]"]  # a file of that very name
    with pytest.raises(UserError, match=r"z\*.png: no images there"):
        names("z*.png")


def test_inputs_without_images(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere.png: no such file or folder"):
        find_images([tmp_path / "nowhere.png"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="no images there") as caught:
        find_images([tmp_path])
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert find_images([]) == ([], [])


def test_duplicates_are_found_once(tree, monkeypatch):
    root = tree("a/x.png", "a/y.png")
    (root / "link.png").symlink_to(root / "a" / "x.png")
    monkeypatch.chdir(root)
    images = images_of("a", root / "a" / "x.png", "a/../a/y.png", "a/*.png", root, "./a")
    assert sorted(image.name for image in images) == ["x", "y"]


def test_kaggle_layout(tree):
    root = tree(
        *(f"stage1/{name}/images/{name}.png" for name in ("id2", "id10")),
        *(f"stage1/id2/masks/m{number}.png" for number in range(3)),
        "stage1/odd/images/photo.png",
        "stage1/odd/masks/m.png",
        "masks/own.png",
    )
    assert [image.name for image in images_of(root / "stage1")] == [
        "id2",
        "id10",
        "odd_photo",
    ]
    assert [image.name for image in images_of(str(root / "stage1" / "**" / "*.png"))] == [
        "id2",
        "id10",
        "odd_photo",
    ]
    assert image_of(root / "stage1" / "id10").name == "id10"
    assert len(images_of(root / "stage1" / "id2" / "masks")) == 3  # named itself
    assert image_of(root / "masks").name == "own"


def test_names_are_unlike_and_safe(tree):
    root = tree(
        "a.png",
        "A.tif",
        "a.jpg",
        "b/c.png",
        "b_c.png",
        "d e/ä µ.png",
        "f;g.png",
        "con.png",
        "h.ome.tif",
        "h.png",
        "i:j?.png",
        "  .x. .png",
    )
    names = [image.name for image in images_of(root)]
    assert len({name.casefold() for name in names}) == len(names) == 12
    assert {
        "a_png",
        "A_tif",
        "a_jpg",
        "b_c_png",
        "b_c_png_2",
        "d e_ä µ",
        "f;g",
        "con_",
        "h_ome_tif",
        "h_png",
        "i_j_",
    } <= set(names)
    for name in names:
        (root / "out").mkdir(exist_ok=True)
        (root / "out" / f"{name}.csv").write_text("")
        assert name == name.strip(" .") and not set(name) & set('/\\:*?"<>|')
    assert len(list((root / "out").iterdir())) == 12


def test_names_of_planes_are_unlike_those_of_files(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        random_pixels(2, 5, 5),
        metadata={"axes": "ZYX"},
        photometric="minisblack",
    )
    Image.new("L", (5, 5)).save(tmp_path / "a_z002.png")
    assert [image.name for image in images_of(tmp_path)] == [
        "a_tif_z001",
        "a_tif_z002",
        "a_z002_png",
    ]


def test_long_names_keep_their_end():
    images = [(Path("/root", "ä" * 100, f"{'x' * 100}{number}.png"), "z001") for number in (1, 2)]
    names = listing.image_names([*images, (Path("/root/b.png"), "")])
    assert all(len(name.encode()) <= 160 for name in names)
    assert names[0].endswith("x1_z001") and len(set(names)) == 3


def test_zarr_folders_are_images_and_not_searched(tree, zarr):
    root = tree("z.zarr/inner.png", "a.png")
    array = zarr.create_array(root / "b.zarr", shape=(5, 5), dtype="u1")
    array[:] = 7
    tree("b.zarr/c/stray.png")
    images, [unreadable] = find_images([root])
    assert [image.name for image in images] == ["a", "b"]
    assert unreadable.path.name == "z.zarr"
    assert image_of(str(root / "b*")).name == "b"
    assert {p.name for p in find_images([str(root / "**")])[0]} == {"a", "b"}


def test_looking_for_images_reads_no_pixels(tmp_path):
    """The pixels are missing from these files, which is seen when they are read."""
    pixels = random_pixels(500, 700)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    assert [image.shape for image in images_of(tmp_path)] == [(500, 700, 1)] * 2


# --- what a file says wrongly, or from elsewhere --------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_orientation_tags_are_obeyed_and_said(tmp_path, name, orientation):
    pixels = random_pixels(24, 40) // 64 * 64
    pixels[:12, :20] = 255
    exif = Image.Exif()
    exif[274] = orientation
    other = "b.jpg" if name == "a.jpg" else "b.png"
    Image.fromarray(pixels).save(tmp_path / other, exif=exif)
    with Image.open(tmp_path / other) as opened:
        truth = np.asarray(ImageOps.exif_transpose(opened))
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, pixels, extratags=[(274, 3, 1, orientation, True)])
    else:
        (tmp_path / other).rename(tmp_path / name)
    image = image_of(tmp_path / name)
    assert_reads(image, truth)
    assert any("orientation" in note for note in image.about.notes) == (orientation > 1)


def test_rows_columns_and_channels_are_not_taken_for_planes(tmp_path, zarr):
    tifffile.imwrite(tmp_path / "a.tif", random_pixels(50, 40, 5), photometric="minisblack")
    zarr.create_array(tmp_path / "a.zarr", shape=(50, 40, 5), dtype="u1", chunks=(50, 40, 5))
    for name in ("a.tif", "a.zarr"):
        assert "look like 50 x 40 pixels of 5 channels" in reason(tmp_path / name)


@pytest.mark.timeout(60)
def test_claims_of_small_files_are_refused(tmp_path, zarr):
    pixels = random_pixels(50, 70)
    for name, description in (
        ("shaped", '{"shape": [1000000, 50, 70]}'),
        ("imagej", "ImageJ=1.54\nimages=1000000\nslices=1000000\nhyperstack=true"),
        ("ome", OME.format(z=100000000, data='<TiffData IFD="0" PlaneCount="1"/>')),
        ("count", OME.format(z=1, data='<TiffData IFD="0" PlaneCount="100000000"/>')),
    ):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, metadata=None, description=description)
    zarr.create_array(tmp_path / "a.zarr", shape=(10**7, 8, 8), dtype="u1", chunks=(1, 8, 8))
    images, unreadable = find_images([tmp_path])
    assert {one.path.name for one in unreadable} >= {"shaped.tif", "ome.tif", "count.tif", "a.zarr"}
    assert [image.path.name for image in images] == ["imagej.tif"]
    assert all("claims" in one.reason for one in unreadable)


OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="70" SizeY="50" SizeC="1" '
    'SizeZ="{z}" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels>'
    "</Image></OME>"
)


@pytest.mark.timeout(60)
def test_what_lies_elsewhere_is_not_read(tmp_path, zarr):
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, random_pixels(50, 70))
    os.mkfifo(tmp_path / "in" / "pipe.png")
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / "zero.tif").symlink_to("/dev/zero")
    (tmp_path / "in" / "link").symlink_to(secret)
    for number, named in enumerate(("../secret.tif", str(secret), "link", "pipe")):
        uuid = f'<UUID FileName="{named}">urn:uuid:1</UUID>'
        data = f'<TiffData IFD="0" PlaneCount="1">{uuid}</TiffData>'
        tifffile.imwrite(
            tmp_path / "in" / f"ome{number}.tif",
            random_pixels(50, 70),
            metadata=None,
            description=OME.format(z=1, data=data),
        )
    pixels = random_pixels(32, 32)
    for name in ("out.zarr", "pipe.zarr"):
        array = zarr.create_array(
            tmp_path / "in" / name, shape=(32, 32), chunks=(16, 16), dtype="u1"
        )
        array[:] = pixels
    chunks = tmp_path / "in" / "out.zarr" / "c" / "0"
    (chunks / "0").rename(tmp_path / "chunk")
    (chunks / "0").symlink_to(tmp_path / "chunk")
    chunks = tmp_path / "in" / "pipe.zarr" / "c" / "0"
    (chunks / "0").unlink()
    os.mkfifo(chunks / "0")
    images, unreadable = find_images([tmp_path / "in"])
    reasons = {one.path.name: one.reason for one in unreadable}
    assert reasons["pipe.png"] == "not a regular file, but a named pipe"
    assert reasons["zero.tif"] == "not a regular file, but a device"
    assert all("outside its own folder" in reasons[f"ome{number}.tif"] for number in range(3))
    assert "named pipe" in reasons["ome3.tif"]
    for image, said in zip(images, ("outside its own folder", "a named pipe"), strict=True):
        with pytest.raises(UserError, match=said):
            image.read()


@pytest.mark.timeout(60)
def test_linked_folders_are_searched_and_loops_are_walked_once(tree, tmp_path):
    tree("data/a.png", "server/plate/b.png", "server/plate/c/d.png")
    (tmp_path / "data" / "plate").symlink_to(tmp_path / "server" / "plate")
    for name in ("loop", "again"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "data")
    for pattern in ("data", "data/**/*.png", "data/**"):
        found = {path.name for path in listing.image_paths([tmp_path / pattern])[0]}
        assert found == {"a.png", "b.png", "d.png"}, pattern


def test_results_are_not_taken_for_images(tree, tmp_path):
    tree("data/a.png", "data/found/a.png", "data/found/labels/a.png", "data/old/a.png")
    (tmp_path / "data" / "old" / "measurements.csv").write_text("image_id,label,score,area\n")
    for pattern in ("data", "data/**/*.png", "data/*"):
        left_out = []
        paths, closed = listing.image_paths(
            [tmp_path / pattern], tmp_path / "data" / "found", left_out
        )
        assert paths == [tmp_path / "data" / "a.png"] and not closed
        assert {path.name for path, _ in left_out} == {"found", "old"}
    for named in ("data/found", "data/found/a.png"):
        with pytest.raises(UserError, match="choose another folder for --output"):
            listing.image_paths([tmp_path / named], tmp_path / "data" / "found")
    with pytest.warns(MRCNNWarning, match="old: left out: results"):
        find_images([tmp_path / "data"])


def test_images_are_sent_to_other_processes_by_a_few_words(tmp_path):
    pixels = random_pixels(3, 2, 64, 96)
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as writer:
        writer.write(pixels, subifds=1, metadata={"axes": "ZCYX"})
        writer.write(pixels[:, :, ::2, ::2], subfiletype=1)
    image = find_images([tmp_path], channel=2)[0][1]
    for sent, expected in (
        (image, pixels[1, 1]),
        (image.reduced(0.5), pixels[1, 1, ::2, ::2]),
        (image.read, None),
    ):
        packed = pickle.dumps(sent)
        assert len(packed) < 1000
        got = pickle.loads(packed)
        np.testing.assert_array_equal(
            *((got(), image.read()) if expected is None else (got[:, :][..., 0], expected))
        )
    packed = pickle.dumps(image)
    tifffile.imwrite(tmp_path / "a.tif", pixels[0, 0])
    with pytest.raises(UserError, match="a.tif: has changed since its header was read"):
        pickle.loads(packed)
