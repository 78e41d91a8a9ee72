"""Weight files: reading, matching to layers, downloading, and the configuration that stands beside them."""
