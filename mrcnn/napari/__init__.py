"""The plugin of napari: it finds nuclei in image layers and learns from corrections of them."""
