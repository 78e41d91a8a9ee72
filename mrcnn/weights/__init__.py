"""Weight files: reading, matching to layers, downloading, and the configuration next to them."""
