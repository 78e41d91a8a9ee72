"""The napari plugin: it finds nuclei in image layers and learns from corrected labels."""
