"""A data set made in memory, for the tests of the data pipeline."""

import numpy as np

from mrcnn.data.dataset import Dataset


class SquaresDataset(Dataset):
    """Images made on demand: bright squares on a ground whose brightness tells the image id."""

    def __init__(self, sizes, squares=3, channels=3, source="squares", broken=()):
        super().__init__()
        self.add_class("squares", 1, "square")
        self.add_class("other", 1, "other")
        self.channels, self.squares, self.broken, self.loads = channels, squares, broken, 0
        for i, size in enumerate(sizes):
            name = source[i % len(source)] if isinstance(source, list) else source
            self.add_image(name, f"image{i}", f"image{i}.png", size=size)
        self.prepare()

    def boxes(self, image_id):
        height, width = self.image_info[image_id]["size"]
        rng = np.random.default_rng(image_id)
        corners = rng.integers(0, [height - 12, width - 12], (self.squares, 2))
        return np.concatenate([corners, corners + 12], axis=1)

    def load_image(self, image_id):
        self.loads += 1
        if image_id in self.broken:
            raise OSError("cannot identify image file")
        height, width = self.image_info[image_id]["size"]
        image = np.full((height, width, self.channels), 10 + image_id, np.uint8)
        for y1, x1, y2, x2 in self.boxes(image_id):
            image[y1:y2, x1:x2] = 200
        return image

    def load_mask(self, image_id):
        masks = np.zeros((*self.image_info[image_id]["size"], self.squares), bool)
        for i, (y1, x1, y2, x2) in enumerate(self.boxes(image_id)):
            masks[y1:y2, x1:x2, i] = True
        return masks, np.ones(self.squares, np.int32)
