"""Names of channels and sizes of pixels in TIFF files of all kinds."""

import numpy as np
import pytest
import tifffile

from tests.support.image_files import assert_reads, image_of, images_of, random_pixels, reason


def test_ome_axes_channels_and_microns(tmp_path):
    pixels = random_pixels(2, 3, 4, 50, 70, dtype=np.uint16)  # T C Z Y X
    tifffile.imwrite(
        tmp_path / "movie.ome.tif",
        pixels,
        ome=True,
        tile=(16, 32),
        compression="zlib",
        metadata={
            "axes": "TCZYX",
            "PhysicalSizeX": 325,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.325,
            "PhysicalSizeYUnit": "µm",
            "Channel": {"Name": ["DAPI", "actin", "488"]},
        },
    )
    assert "choose one with --channel" in reason(tmp_path / "movie.ome.tif")
    images = images_of(tmp_path / "movie.ome.tif", channel=1)
    assert [image.name for image in images] == [
        f"movie_t{t:04d}_z{z:03d}" for t in (1, 2) for z in (1, 2, 3, 4)
    ]
    assert all(image.mpp == pytest.approx(0.325) for image in images)
    assert images[0].about == ("channel 1 of 3 (DAPI)", "t0001_z001", "OME", ())
    for channel, index in ((2, 1), ("Dapi", 0), ("488", 2), ("ACTIN", 1)):
        chosen = images_of(tmp_path / "movie.ome.tif", channel=channel)[5]
        assert_reads(chosen, pixels[1, index, 1])
        assert chosen.channels == (("DAPI", "actin", "488")[index],)
    for channel in ("GFP", 4, 0, "-1"):
        assert reason(tmp_path / "movie.ome.tif", channel) == (
            f"has no channel {channel}, only 1 DAPI, 2 actin, 3 488"
        )


@pytest.mark.parametrize(
    "sizes, mpp",
    [
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.504}, 0.502),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.51}, None),
        ({"PhysicalSizeX": 2, "PhysicalSizeXUnit": "pixel"}, None),
        ({"PhysicalSizeX": -1, "PhysicalSizeY": -1}, None),
        ({}, None),
    ],
)
def test_ome_pixels_that_are_not_square(tmp_path, sizes, mpp):
    tifffile.imwrite(tmp_path / "a.ome.tif", random_pixels(50, 70), metadata=sizes)
    found = image_of(tmp_path / "a.ome.tif").mpp
    assert found == (None if mpp is None else pytest.approx(mpp))


def test_wrong_metadata_does_not_matter(tmp_path):
    pixels = random_pixels(50, 70)
    for name, description in (
        ("a", "ImageJ=1.54\nimages=1\nchannels=x\nunit=um"),
        ("b", "ImageJ=1.54\nimages=9\nslices=9"),
        ("c", '<OME><Image><Pixels SizeX="70"'),
        ("d", '{"shape": [1, 2, 3]}'),
    ):
        tifffile.imwrite(
            tmp_path / f"{name}.tif",
            pixels,
            metadata=None,
            description=description,
            compression="zlib",
        )
        assert_reads(image_of(tmp_path / f"{name}.tif"), pixels)


def test_imagej_hyperstack(tmp_path):
    pixels = random_pixels(2, 4, 3, 50, 70, dtype=np.uint16)  # T Z C Y X
    labels = [
        f"c:{c + 1}/3 z:{z + 1}/4 t:{t + 1}/2 - {name}"
        for t in range(2)
        for z in range(4)
        for c, name in enumerate(("DNA", "GFP", "TRITC"))
    ]
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        imagej=True,
        resolution=(2, 2),
        metadata={"axes": "TZCYX", "unit": "um", "Labels": labels},
    )
    assert "1 DNA, 2 GFP, 3 TRITC" in reason(tmp_path / "a.tif")
    images = images_of(tmp_path / "a.tif", channel=1)
    assert [p.name for p in images][:2] == ["a_t0001_z001", "a_t0001_z002"]
    for index, image in enumerate(images):
        assert_reads(image, pixels[index // 4, index % 4, 0])
        assert image.channels == ("DNA",) and image.mpp == 0.5
    assert_reads(images_of(tmp_path / "a.tif", channel="gfp")[6], pixels[1, 2, 1])


@pytest.mark.parametrize(
    "unit, resolution, mpp",
    [
        ("micron", 4, 0.25),
        ("\\u00B5m", 4, 0.25),
        ("nm", 0.01, 0.1),
        ("cm", 20_000, 0.5),
        ("inch", 72, None),
        ("pixel", 4, None),
        ("furlong", 4, None),
    ],
)
def test_imagej_units(tmp_path, unit, resolution, mpp):
    tifffile.imwrite(
        tmp_path / "a.tif",
        random_pixels(50, 70),
        imagej=True,
        resolution=(resolution, resolution),
        metadata={"unit": unit},
    )
    found = image_of(tmp_path / "a.tif").mpp
    assert found == (None if mpp is None else pytest.approx(mpp))


@pytest.mark.parametrize(
    "unit, resolution, mpp",
    [
        ("INCH", (72, 72), None),
        ("INCH", (96, 96), None),
        ("INCH", (300, 300), None),
        ("INCH", (600, 600), None),
        ("INCH", (1200, 1200), None),
        ("INCH", (2400, 2400), None),
        ("CENTIMETER", (472, 472), None),
        ("CENTIMETER", (1889.76, 1889.76), None),
        ("INCH", (39078, 39078), 25400 / 39078),
        ("CENTIMETER", (118, 118), None),
        ("INCH", (50800, 50800), 0.5),
        ("CENTIMETER", (10000, 10000), 1),
        ("CENTIMETER", (10000, 5000), None),
        ("CENTIMETER", (0, 0), None),
        ("CENTIMETER", (10**8, 10**8), None),
        ("NONE", (10000, 10000), None),
    ],
)
def test_tiff_resolution(tmp_path, unit, resolution, mpp):
    tifffile.imwrite(
        tmp_path / "a.tif", random_pixels(50, 70), resolution=resolution, resolutionunit=unit
    )
    found = image_of(tmp_path / "a.tif").mpp
    assert found == (None if mpp is None else pytest.approx(mpp))


def test_sizes_of_pixels_that_are_implausible_are_said(tmp_path):
    sizes = {"PhysicalSizeX": 40, "PhysicalSizeY": 40}
    tifffile.imwrite(tmp_path / "a.ome.tif", random_pixels(50, 70), metadata=sizes)
    tifffile.imwrite(
        tmp_path / "b.tif", random_pixels(50, 70), resolution=(600, 600), resolutionunit="INCH"
    )
    for name, said in (("a.ome.tif", "40 microns per pixel"), ("b.tif", "600 dpi")):
        image = image_of(tmp_path / name)
        assert image.mpp is None and said in image.about.notes[0]
