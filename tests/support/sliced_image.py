"""An image that need not fit into memory, as exposure and tiles take it."""


class SlicedImage:
    """Gives slices only, and remembers the size of the largest."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __getitem__(self, window):
        part = self.array[window]
        self.largest = max(self.largest, part.size)
        return part
