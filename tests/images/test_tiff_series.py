"""Which pages of a TIFF file are images, and which copies of others."""

import numpy as np
import pytest
import tifffile

from mrcnn.images.image_files import find_images
from tests.support.image_files import assert_reads, image_of, images_of, random_pixels


def test_pages_are_planes(tmp_path):
    pixels = random_pixels(12, 50, 70, dtype=np.uint16)
    with tifffile.TiffWriter(tmp_path / "stack.tif") as writer:
        for page in pixels:
            writer.write(page, metadata=None, compression="zlib", rowsperstrip=8)
    images = images_of(tmp_path / "stack.tif")
    assert [image.name for image in images] == [f"stack_p{n:03d}" for n in range(1, 13)]
    for image, page in zip(images, pixels, strict=True):
        assert_reads(image, page)
    tifffile.imwrite(tmp_path / "three.tif", pixels[:3], photometric="minisblack")
    assert len(images_of(tmp_path / "three.tif")) == 3


@pytest.mark.parametrize("bigger", [0, 1])
def test_pages_of_unlike_sizes_are_all_taken_and_copies_are_named(tmp_path, bigger):
    pixels = [random_pixels(50, 70), random_pixels(20, 30)]
    order = pixels[:: -1 if bigger else 1]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for one in order:
            writer.write(one, metadata=None)
    images = images_of(tmp_path / "a.tif")
    assert [image.name for image in images] == ["a_p001", "a_p002"]
    for image, page in zip(images, order, strict=True):
        assert_reads(image, page)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        for one in (pixels[0], pixels[0][::2, ::2]):
            writer.write(one, metadata=None)
    [image], [copy] = find_images([tmp_path / "b.tif"])
    assert_reads(image, pixels[0])
    assert "page 2 (25 x 35) left out: by its size a smaller copy of page 1" in copy.reason


def test_pages_that_differ_in_compression_or_cannot_be_read(tmp_path):
    pixels = random_pixels(4, 50, 70)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page, compression in zip(pixels, (None, "zlib", None, "zlib"), strict=True):
            writer.write(page, metadata=None, compression=compression)
        writer.write(random_pixels(50, 70, 4), photometric="separated", metadata=None)
    images, [left] = find_images([tmp_path / "a.tif"])
    assert [image.name for image in images] == [f"a_p00{n}" for n in (1, 2, 3, 4)]
    for image, page in zip(images, pixels, strict=True):
        assert_reads(image, page)
    assert "page 5 (50 x 70) has colours stored as SEPARATED" in left.reason


@pytest.mark.parametrize("ome", [True, False])
@pytest.mark.parametrize("subifds", [True, False])
def test_of_pyramids_the_full_resolution(tmp_path, ome, subifds):
    pixels = random_pixels(200, 300, 3)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=ome) as writer:
        writer.write(
            pixels,
            tile=(64, 64),
            photometric="rgb",
            compression="zlib",
            subifds=2 if subifds else None,
            metadata=None if not ome else {},
        )
        for step in (2, 4):
            writer.write(
                pixels[::step, ::step],
                tile=(64, 64),
                photometric="rgb",
                subfiletype=1,
                compression="zlib",
                metadata=None,
            )
    image = image_of(tmp_path / "a.ome.tif")
    assert image.name == "a"
    assert_reads(image, pixels)
    if ome and not subifds:  # OME's description does not mention them
        assert image.levels == ((200, 300),)
        return
    assert image.levels == ((200, 300), (100, 150), (50, 75))
    for scale, step in ((0.3, 2), (0.25, 4), (0.1, 4)):
        assert_reads(image.reduced(scale), pixels[::step, ::step])


def test_ome_places_are_images_of_their_own(tmp_path):
    places = random_pixels(3, 50, 70)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        for number, place in enumerate(places):
            writer.write(place, metadata={"PhysicalSizeX": 1 + number, "PhysicalSizeY": 1 + number})
        writer.write(random_pixels(10, 10))
    images = images_of(tmp_path / "a.ome.tif")
    assert [image.name for image in images] == ["a_s1", "a_s2", "a_s3", "a_s4"]
    assert [image.mpp for image in images][:3] == [1, 2, 3]
    for image, place in zip(images, places, strict=False):
        assert_reads(image, place)


def test_slide_scanner(tmp_path):
    """An Aperio slide: a pyramid, a thumbnail, a label; microns in the description."""
    pixels = random_pixels(200, 300, 3)
    head = "Aperio Image Library v11.2.1\r\n"
    with tifffile.TiffWriter(tmp_path / "slide.svs") as writer:
        for part, options in (
            (pixels, {"tile": (64, 64)}),
            (pixels[::8, ::8], {}),
            (pixels[::4, ::4], {"tile": (64, 64)}),
            (pixels[:40, :30], {"subfiletype": 1}),
        ):
            writer.write(
                part,
                photometric="rgb",
                metadata=None,
                **options,
                description=f"{head}300x200 |AppMag = 20|MPP = 0.4990|Left = 25.69",
            )
    image = image_of(tmp_path / "slide.svs")
    assert_reads(image, pixels)
    assert image.mpp == 0.499
