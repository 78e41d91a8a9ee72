"""What files are said to hold."""

import numpy as np
import tifffile

from mrcnn.images.contents import contents_of
from tests.support.image_files import random_pixels


def test_files_say_their_planes_channels_sizes_and_levels(tmp_path):
    pixels = random_pixels(2, 3, 64, 96, dtype=np.uint16)  # T C Y X
    about = {"axes": "TCYX", "PhysicalSizeX": 0.5, "Channel": {"Name": ["DAPI", "GFP", "actin"]}}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        writer.write(pixels, subifds=1, tile=(32, 32), metadata=about)
        writer.write(pixels[..., ::2, ::2], subfiletype=1, tile=(32, 32), metadata=None)
    tifffile.imwrite(tmp_path / "b.tif", random_pixels(20, 30, 4), photometric="rgb")
    (tmp_path / "c.tif").write_text("no image")
    [stack, colours], [broken] = contents_of([tmp_path])
    assert stack.lines == [
        "2 planes t0001 to t0002: 64 x 96 pixels of uint16, 3 channels (1 DAPI, 2 GFP, 3 actin), "
        "0.5 microns per pixel (OME), smaller levels of 32 x 48"
    ]
    assert colours.lines == ["20 x 30 pixels of uint8, RGB, pixel size unknown, alpha"]
    assert broken.path.name == "c.tif" and broken.reason.startswith("is not an image")
