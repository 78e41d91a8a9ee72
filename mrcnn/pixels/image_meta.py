"""Image meta data in the graph: what the network knows of the image beside its pixels.

Layout of a row (matterport `compose_image_meta`): image id, original shape [3], molded shape [3],
window y1 x1 y2 x2 in pixels [4], scale, and one flag a class that says whether the image's data
set has it. The NumPy side is in `molding`.
"""


def parse_image_meta_graph(meta) -> dict:
    """Split meta data [B, M] into its parts, every value a tensor [B, ...]."""
    return {
        "image_id": meta[:, 0],
        "original_image_shape": meta[:, 1:4],
        "image_shape": meta[:, 4:7],
        "window": meta[:, 7:11],
        "scale": meta[:, 11],
        "active_class_ids": meta[:, 12:],
    }
