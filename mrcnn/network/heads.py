"""The second stage: class and box of every region, and its mask.

Source: paper sections 3.7, 4.1 and 4.2; matterport `fpn_classifier_graph`,
`build_fpn_mask_graph`.
Shape shorthand: B images, R regions, K classes, C channels.
"""

from keras import layers, ops

from mrcnn.network.layers import BatchNorm, FullWindowConv2D, LayerBank, RoiConv2D, first_values
from mrcnn.network.resnet import stage5_graph
from mrcnn.network.roi_features import ALIGN, region_features
from mrcnn.network.spatial_transformer import transform_regions

# Paper section 3.8.3: standard deviations of the two output layers' initial values.
CLASS_DEVIATION, BOX_DEVIATION = 0.01, 0.001


def fpn_classifier_graph(
    rois,
    feature_maps,
    image_meta,
    pool_size,
    num_classes,
    train_bn=True,
    fc_layers_size=1024,
    pooling=ALIGN,
    bank=None,
    transformer=False,
    gaussian=False,
    ranks=(0, 0),
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
        pooling: how features are pooled.
        bank: where the layers come from; None makes new ones.
        transformer: whether a spatial transformer stands between pooling and layers.
        gaussian: see `layers.first_values`.
        ranks: of the two fully connected layers, see `compression`; 0 for whole ones.

    Returns:
        logits [B, R, K], probabilities [B, R, K], deltas [B, R, K, 4], all float32.
    """
    bank = bank or LayerBank()
    x = region_features(
        rois, feature_maps, image_meta, pool_size, pooling, bank, "roi_align_classifier"
    )
    if transformer:
        x = transform_regions(x, bank)
    # Two fully connected layers, written as convolutions as in the weight files.
    for number, window, rank in ((1, pool_size, ranks[0]), (2, 1, ranks[1])):
        name = f"mrcnn_class_conv{number}"
        if rank:  # paper equation 15: two layers without a nonlinearity instead of one
            x = bank(FullWindowConv2D, rank, window, use_bias=False, name=name + "_svd")(x)
            window = 1
        x = bank(FullWindowConv2D, fc_layers_size, window, name=name)(x)
        x = bank(BatchNorm, name=f"mrcnn_class_bn{number}")(x, training=train_bn)
        x = bank(layers.Activation, "relu", name=f"mrcnn_class_relu{number}")(x)
    shared = bank(layers.Reshape, (fc_layers_size,), name="pool_squeeze")(x)
    return _class_and_box(shared, rois.shape[1], num_classes, gaussian, bank)


def c4_classifier_graph(
    rois,
    feature_map,
    image_meta,
    pool_size,
    num_classes,
    train_bn,
    pooling,
    bank,
    dilated=False,
    transformer=False,
    gaussian=False,
):
    """As `fpn_classifier_graph` on the fourth stage's features, with the fifth as its trunk."""
    x = _stage5_of_regions(
        rois,
        feature_map,
        image_meta,
        pool_size,
        train_bn,
        pooling,
        bank,
        dilated,
        "roi_align_classifier",
        transformer,
    )
    shared = bank(layers.GlobalAveragePooling2D, name="pool_average")(x)
    return _class_and_box(shared, rois.shape[1], num_classes, gaussian, bank)


def _class_and_box(shared, regions, num_classes, gaussian, bank):
    """The two output layers over features [B * R, C] of R regions per image."""
    shared = ops.reshape(shared, (-1, regions, shared.shape[-1]))
    logits = bank(
        layers.Dense,
        num_classes,
        kernel_initializer=first_values(gaussian, CLASS_DEVIATION),
        name="mrcnn_class_logits",
    )(shared)
    logits = ops.cast(logits, "float32")
    probabilities = bank(layers.Softmax, name="mrcnn_class", dtype="float32")(logits)
    deltas = bank(
        layers.Dense,
        num_classes * 4,
        kernel_initializer=first_values(gaussian, BOX_DEVIATION),
        name="mrcnn_bbox_fc",
    )(shared)
    shape = (-1, num_classes, 4)  # the same layer serves any number of regions
    deltas = bank(layers.Reshape, shape, name="mrcnn_bbox", dtype="float32")(deltas)
    return logits, probabilities, deltas


def _stage5_of_regions(
    rois,
    feature_map,
    image_meta,
    pool_size,
    train_bn,
    pooling,
    bank,
    dilated,
    name,
    transformer=False,
):
    """[B * R, h, w, 2048]; both heads share the stage's weights."""
    x = region_features(rois, [feature_map], image_meta, pool_size, pooling, bank, name)
    if transformer:
        x = transform_regions(x, bank)
    return stage5_graph(x, train_bn, bank, dilated)


def build_fpn_mask_graph(
    rois,
    feature_maps,
    image_meta,
    pool_size,
    num_classes,
    train_bn=True,
    channels=256,
    pooling=ALIGN,
    bank=None,
    logits=False,
):
    """A mask for every region and class.

    Returns:
        [B, R, 2 pool_size, 2 pool_size, K] float32: probabilities by a sigmoid per pixel and
        class (paper section 4.1.1), or their logits.
    """
    bank = bank or LayerBank()
    x = region_features(rois, feature_maps, image_meta, pool_size, pooling, bank, "roi_align_mask")
    for number in (1, 2, 3, 4):
        x = bank(layers.Conv2D, channels, (3, 3), padding="same", name=f"mrcnn_mask_conv{number}")(
            x
        )
        x = bank(BatchNorm, name=f"mrcnn_mask_bn{number}")(x, training=train_bn)
        x = bank(layers.Activation, "relu", name=f"mrcnn_mask_relu{number}")(x)
    return _masks(x, ops.shape(rois)[1], num_classes, channels, bank, logits)


def c4_mask_graph(
    rois,
    feature_map,
    image_meta,
    pool_size,
    num_classes,
    train_bn,
    channels,
    pooling,
    bank,
    dilated=False,
    logits=False,
):
    """As `build_fpn_mask_graph` on the fourth stage's features, with the fifth as its trunk.

    Masks have twice as many cells per side as the fifth stage leaves: see `config_rules.mask_side`.
    """
    x = _stage5_of_regions(
        rois,
        feature_map,
        image_meta,
        pool_size,
        train_bn,
        pooling,
        bank,
        dilated,
        "roi_align_mask",
    )
    return _masks(x, ops.shape(rois)[1], num_classes, channels, bank, logits)


def _masks(x, regions, num_classes, channels, bank, logits):
    """The last two layers of the mask branch: [B * R, h, w, C] -> [B, R, 2 h, 2 w, K] float32."""
    x = bank(
        layers.Conv2DTranspose,
        channels,
        (2, 2),
        strides=2,
        activation="relu",
        name="mrcnn_mask_deconv",
    )(x)
    x = ops.reshape(x, (-1, regions, *x.shape[1:]))
    mask = bank(RoiConv2D, num_classes, (1, 1), activation="sigmoid", name="mrcnn_mask")
    return ops.cast(mask(x, logits=logits), "float32")
