"""Feature pyramid: strong features at strides 4, 8, 16, 32 and 64 (P2 to P6).

Source: Lin et al., "Feature Pyramid Networks"; matterport `MaskRCNN.build`.
"""

from keras import layers

from mrcnn.network.layers import LayerBank


def feature_pyramid(stages, size: int, bank: LayerBank):
    """Merge the backbone's stages top down.

    Args:
        stages: [C2, C3, C4, C5], each [B, H / stride, W / stride, channels].
        size: channels of every pyramid level (`Config.TOP_DOWN_PYRAMID_SIZE`).
        bank: where the layers come from.

    Returns:
        [P2, P3, P4, P5, P6]. P6 serves the region proposals only.
    """
    c2, c3, c4, c5 = stages

    def lateral(features, level):
        return bank(layers.Conv2D, size, (1, 1), name=f"fpn_c{level}p{level}")(features)

    def merge(coarse, features, level):
        above = bank(layers.UpSampling2D, (2, 2), name=f"fpn_p{level + 1}upsampled")(coarse)
        return bank(layers.Add, name=f"fpn_p{level}add")([above, lateral(features, level)])

    p5 = lateral(c5, 5)
    p4 = merge(p5, c4, 4)
    p3 = merge(p4, c3, 3)
    p2 = merge(p3, c2, 2)
    # A 3x3 convolution smooths what upsampling left blocky.
    p2, p3, p4, p5 = (
        bank(layers.Conv2D, size, (3, 3), padding="same", name=f"fpn_p{level}")(features)
        for level, features in zip((2, 3, 4, 5), (p2, p3, p4, p5), strict=True)
    )
    p6 = bank(layers.MaxPooling2D, (1, 1), strides=2, name="fpn_p6")(p5)
    return [p2, p3, p4, p5, p6]
