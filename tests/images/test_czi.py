"""Zeiss CZI files, written by Zeiss' own library; what that cannot write is patched into them."""

import struct
import sys

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.images import czi
from tests.support.image_files import assert_reads, image_of, images_of, random_pixels, reason

imagecodecs = pytest.importorskip("imagecodecs")
pytest.importorskip("czifile")
writer = pytest.importorskip("pylibCZIrw.czi")

ZSTD = "zstd1:ExplicitLevel=1;PreProcess=HiLoByteUnpack"
MICRONS = {"scale_x": 0.325e-6, "scale_y": 0.325e-6}


def write(path, tiles, compression="uncompressed:", **metadata):
    """tiles: (pixels [h, w, samples], (x, y), {axis: number}, scene)."""
    with writer.create_czi(str(path), compression_options=compression) as file:
        for pixels, corner, place, scene in tiles:
            file.write(pixels, location=corner, plane=place, scene=scene)
        file.write_metadata(**metadata)


def patch(path, change):
    """Let `change(data, number of the block, its place, place of its entry)` alter the bytes of a
    file, for each block of its directory."""
    data = bytearray(path.read_bytes())
    position, number = data.find(b"ZISRAWSUBBLOCK\0"), 0
    while position >= 0:
        entry = data.rfind(struct.pack("<q", position)) - 6
        change(data, number, position, entry)
        position, number = data.find(b"ZISRAWSUBBLOCK\0", position + 1), number + 1
    path.write_bytes(data)


def say_reduced(data, number, position, entry):
    """Of all blocks but the first: each of their pixels stands for 2 x 2."""
    if number:
        data[entry + 22] = 2  # kind of pyramid
        for at in range(entry + 32, entry + 32 + 20 * data[entry + 28], 20):
            if data[at : at + 1] in b"XY":
                struct.pack_into("<i", data, at + 8, 2 * struct.unpack_from("<i", data, at + 8)[0])


@pytest.mark.parametrize("compression", ["uncompressed:", "zstd0:ExplicitLevel=1", ZSTD])
def test_scenes_channels_depths_and_tiles(tmp_path, compression):
    pixels = random_pixels(2, 2, 3, 50, 70, dtype=np.uint16)  # S C Z Y X
    write(
        tmp_path / "a.czi",
        [
            (
                pixels[s, c, z, y : y + 30, x : x + 40, None],
                (x + 900 * s - 300, y),
                {"C": c, "Z": z},
                s,
            )
            for s in range(2)
            for c in range(2)
            for z in range(3)
            for y in (0, 30)
            for x in (0, 40)
        ],
        compression,
        channel_names={0: "DAPI", 1: "GFP"},
        **MICRONS,
    )
    assert "1 DAPI, 2 GFP" in reason(tmp_path / "a.czi")
    images = images_of(tmp_path / "a.czi", channel="gfp")
    assert [p.name for p in images] == [f"a_s{s}_z00{z}" for s in (1, 2) for z in (1, 2, 3)]
    assert_reads(images[5], pixels[1, 1, 2])
    assert images[5].about == ("channel 2 of 2 (GFP)", "s2_z003", "CZI", ())
    assert images[5].mpp == pytest.approx(0.325)


def test_colours_and_uncovered_places(tmp_path):
    truth = np.full((60, 100, 3), 255, np.uint8)
    truth[:40, :50], truth[30:60, 40:100] = random_pixels(40, 50, 3), random_pixels(30, 60, 3)
    tiles = [
        (truth[:40, :50][..., ::-1], (0, 0), {}, 0),
        (truth[30:60, 40:100][..., ::-1], (40, 30), {}, 0),
    ]
    for name, compression in (("a", "uncompressed:"), ("b", ZSTD)):
        write(tmp_path / f"{name}.czi", tiles, compression, **MICRONS)
        image = image_of(tmp_path / f"{name}.czi")
        assert_reads(image, truth)
        assert image.about.channels == "RGB"
        assert image.about.notes == ("areas that were not scanned are filled with white",)


@pytest.mark.parametrize("samples, dtype", [(3, np.uint8), (1, np.uint8), (1, np.uint16)])
def test_jpeg_xr(tmp_path, samples, dtype):
    slope = np.add.outer(np.arange(48), np.arange(64))[..., np.newaxis]
    pixels = (slope + 20 * np.arange(samples)).astype(dtype)
    write(tmp_path / "a.czi", [(pixels, (0, 0), {}, 0)], **MICRONS)

    def encode(data, number, position, entry):
        encoded = imagecodecs.jpegxr_encode(pixels.squeeze(), level=1.0)  # without loss
        (metadata,) = struct.unpack_from("<i", data, position + 32)
        start = position + 48 + 240 + metadata
        data[start : start + len(encoded)] = encoded
        struct.pack_into("<q", data, position + 40, len(encoded))
        struct.pack_into("<i", data, entry + 18, 4)

    patch(tmp_path / "a.czi", encode)
    assert_reads(image_of(tmp_path / "a.czi"), pixels)


def test_levels(tmp_path):
    pixels = random_pixels(60, 80, 1)
    small = pixels[::2, ::2]
    halves = [(small[:, :20], (0, 0), {}, 0), (small[:, 20:], (40, 0), {}, 0)]
    for name, parts in (("a", halves), ("gaps", halves[:1])):
        write(tmp_path / f"{name}.czi", [(pixels, (0, 0), {}, 0), *parts], **MICRONS)
        patch(tmp_path / f"{name}.czi", say_reduced)
    image = image_of(tmp_path / "a.czi")
    assert image.levels == ((60, 80), (30, 40))
    assert_reads(image, pixels)
    assert_reads(image.reduced(0.5), small)
    assert image_of(tmp_path / "gaps.czi").levels == ((60, 80),)


def test_scenes_have_their_names(tmp_path):
    tiles = [(random_pixels(20, 30, 1), (50 * s, 0), {}, s) for s in range(2)]
    path = tmp_path / "a.czi"
    write(path, tiles, channel_names={0: "DAPI"}, document_name="x" * 400, **MICRONS)
    data = path.read_bytes()
    names = b"<S><Scenes><Scene Index='0' Name='left'/><Scene Index='1' Name='A/1'/></Scenes></S>"
    data = data.replace(b"</Channels>", b"</Channels>" + names)
    path.write_bytes(data.replace(b"x" * len(names), b"", 1))
    assert [image.name for image in images_of(path)] == ["a_s1_left", "a_s2_A_1"]


def test_broken_files_are_one_line_each(tmp_path):
    path = tmp_path / "a.czi"
    write(path, [(random_pixels(200, 300, 1), (0, 0), {}, 0)], ZSTD, **MICRONS)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert reason(path)
    path.write_bytes(good)
    patch(path, lambda data, number, position, entry: data.__setitem__(position, 0))
    with pytest.raises(UserError, match="a.czi: ends before its pixels do, or its directory"):
        image_of(path).read()
    write(
        path := tmp_path / "far.czi", [(random_pixels(9, 9, 1), (c, c), {}, 0) for c in (0, 9000)]
    )
    assert reason(path) == "claims (9009, 9009) pixels, almost none of which are there"
    path = tmp_path / "a.czi"
    path.write_bytes(good)

    def claim(data, number, position, entry):
        for at in range(entry + 32, entry + 32 + 20 * data[entry + 28], 20):
            if data[at : at + 1] in b"XY":
                struct.pack_into("<i", data, at + 8, 10**6)
                struct.pack_into("<i", data, at + 16, 10**6)

    patch(path, claim)
    assert "claims 1000000000000 bytes of pixels in" in reason(path)


def test_without_the_readers_the_reason_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "czifile", None)
    (tmp_path / "a.czi").write_bytes(czi.MAGIC + bytes(100))
    assert reason(tmp_path / "a.czi") == 'is a Zeiss CZI: pip install "mrcnn-keras[formats]"'
