"""Arrays, NumPy only: boxes, masks, resampling, grey levels, object sizes, molding."""
