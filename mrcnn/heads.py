"""The second stage: class and box of every region, and its mask.

Source: report sections 3.7 and 4.1; matterport `fpn_classifier_graph`, `build_fpn_mask_graph`.
Shape shorthand: B images, R regions, K classes, C channels.
"""

from keras import layers, ops

from .layers import BatchNorm, FullWindowConv2D, LayerBank, RoiConv2D
from .roi_align import PyramidROIAlign


def fpn_classifier_graph(
    rois, feature_maps, image_meta, pool_size, num_classes, train_bn=True, fc_layers_size=1024,
    exact=False, bank=None,
):
    """Classify regions and refine their boxes.

    Args:
        rois: [B, R, 4] normalised.
        feature_maps: [P2, P3, P4, P5].
        image_meta: [B, M].
        pool_size: side of the pooled features in cells.
        num_classes: K, background included.
        train_bn: passed to `BatchNorm`.
        fc_layers_size: width of the two fully connected layers.
        exact: pixel convention, see `roi_align.sample_positions`.
        bank: where the layers come from; None makes new ones.

    Returns:
        logits [B, R, K], probabilities [B, R, K], deltas [B, R, K, 4], all float32.
    """
    bank = bank or LayerBank()
    regions = rois.shape[1]
    align = bank(PyramidROIAlign, (pool_size, pool_size), exact=exact, name="roi_align_classifier")
    x = align([rois, image_meta, *feature_maps])
    x = ops.reshape(x, (-1, *x.shape[2:]))
    # Two fully connected layers, written as convolutions as in the weight files.
    for number, window in ((1, pool_size), (2, 1)):
        name = f"mrcnn_class_conv{number}"
        x = bank(FullWindowConv2D, fc_layers_size, window, name=name)(x)
        x = bank(BatchNorm, name=f"mrcnn_class_bn{number}")(x, training=train_bn)
        x = bank(layers.Activation, "relu", name=f"mrcnn_class_relu{number}")(x)
    shared = bank(layers.Reshape, (fc_layers_size,), name="pool_squeeze")(x)
    shared = ops.reshape(shared, (-1, regions, fc_layers_size))

    logits = bank(layers.Dense, num_classes, name="mrcnn_class_logits")(shared)
    logits = ops.cast(logits, "float32")
    probabilities = bank(layers.Softmax, name="mrcnn_class", dtype="float32")(logits)
    deltas = bank(layers.Dense, num_classes * 4, name="mrcnn_bbox_fc")(shared)
    shape = (regions, num_classes, 4)
    deltas = bank(layers.Reshape, shape, name="mrcnn_bbox", dtype="float32")(deltas)
    return logits, probabilities, deltas


def mask_features(
    rois, feature_maps, image_meta, pool_size, train_bn, channels, exact, bank,
):
    """The mask branch up to its last layer: [B, R, 2 pool_size, 2 pool_size, channels]."""
    regions = ops.shape(rois)[1]
    align = bank(PyramidROIAlign, (pool_size, pool_size), exact=exact, name="roi_align_mask")
    x = align([rois, image_meta, *feature_maps])
    x = ops.reshape(x, (-1, *x.shape[2:]))
    for number in (1, 2, 3, 4):
        x = bank(
            layers.Conv2D, channels, (3, 3), padding="same", name=f"mrcnn_mask_conv{number}"
        )(x)
        x = bank(BatchNorm, name=f"mrcnn_mask_bn{number}")(x, training=train_bn)
        x = bank(layers.Activation, "relu", name=f"mrcnn_mask_relu{number}")(x)
    x = bank(
        layers.Conv2DTranspose, channels, (2, 2), strides=2, activation="relu",
        name="mrcnn_mask_deconv",
    )(x)
    return ops.reshape(x, (-1, regions, *x.shape[1:]))


def build_fpn_mask_graph(
    rois, feature_maps, image_meta, pool_size, num_classes, train_bn=True, channels=256,
    exact=False, bank=None, logits=False,
):
    """A mask for every region and class.

    Returns:
        [B, R, 2 pool_size, 2 pool_size, K] float32: probabilities by a sigmoid per pixel and
        class (report section 4.1.1), or their logits.
    """
    bank = bank or LayerBank()
    x = mask_features(
        rois, feature_maps, image_meta, pool_size, train_bn, channels, exact, bank
    )
    mask = bank(RoiConv2D, num_classes, (1, 1), activation="sigmoid", name="mrcnn_mask")
    return ops.cast(mask(x, logits=logits), "float32")
