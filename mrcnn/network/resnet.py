"""ResNet-50 and ResNet-101 backbones with the layer names of the public weight files.

Stages 2 to 5 are made of bottleneck blocks: `res2a_branch2a` is stage 2, block a, first
convolution; `bn2a_branch2a` its batch normalization. As in the public weights, which come from
Caffe, the stride is in the first 1x1 convolution and every convolution has a bias.

Source: He et al., "Deep Residual Learning"; paper sections 3.2 and 3.3; matterport
`resnet_graph`.
Shape shorthand: B images, H W rows and columns, C channels.
"""

from keras import layers

from mrcnn.network.layers import BatchNorm, LayerBank

# Identity blocks that follow the first block of stage 4; the other stages do not differ.
STAGE4_BLOCKS = {"resnet50": 5, "resnet101": 22}


def _branch(
    x,
    bank,
    name,
    filters,
    kernel_size,
    train_bn,
    strides=1,
    use_bias=True,
    relu=True,
    dilation=1,
):
    """Convolution and batch normalization, `name` being e.g. "2a_branch2b"."""
    x = bank(
        layers.Conv2D,
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=use_bias,
        dilation_rate=dilation,
        name="res" + name,
    )(x)
    x = bank(BatchNorm, name="bn" + name)(x, training=train_bn)
    return bank(layers.Activation, "relu", name=f"res{name}_relu")(x) if relu else x


def _bottleneck(
    x, bank, kernel_size, filters, name, train_bn, strides=1, use_bias=True, dilation=1
):
    x = _branch(x, bank, name + "_branch2a", filters[0], 1, train_bn, strides, use_bias)
    x = _branch(
        x,
        bank,
        name + "_branch2b",
        filters[1],
        kernel_size,
        train_bn,
        1,
        use_bias,
        dilation=dilation,
    )
    return _branch(x, bank, name + "_branch2c", filters[2], 1, train_bn, 1, use_bias, relu=False)


def _join(x, shortcut, bank, name):
    x = bank(layers.Add, name=f"res{name}_add")([x, shortcut])
    return bank(layers.Activation, "relu", name=f"res{name}_out")(x)


def identity_block(
    input_tensor,
    kernel_size,
    filters,
    stage,
    block,
    use_bias=True,
    train_bn=True,
    bank=None,
    dilation=1,
):
    """Bottleneck block whose shortcut is the identity (paper equation 6).

    [B, H, W, C] -> [B, H, W, filters[2]].
    """
    bank, name = bank or LayerBank(), f"{stage}{block}"
    x = _bottleneck(input_tensor, bank, kernel_size, filters, name, train_bn, 1, use_bias, dilation)
    return _join(x, input_tensor, bank, name)


def conv_block(
    input_tensor,
    kernel_size,
    filters,
    stage,
    block,
    strides=(2, 2),
    use_bias=True,
    train_bn=True,
    bank=None,
    dilation=1,
):
    """Bottleneck block whose shortcut is a strided 1x1 convolution (paper equation 7).

    It opens a stage.
    """
    bank, name = bank or LayerBank(), f"{stage}{block}"
    x = _bottleneck(
        input_tensor, bank, kernel_size, filters, name, train_bn, strides, use_bias, dilation
    )
    shortcut = _branch(
        input_tensor,
        bank,
        name + "_branch1",
        filters[2],
        1,
        train_bn,
        strides,
        use_bias,
        relu=False,
    )
    return _join(x, shortcut, bank, name)


def _stage(x, number, filters, identity_blocks, strides, train_bn, bank, dilation=1):
    filters = [filters, filters, 4 * filters]
    x = conv_block(
        x, 3, filters, number, "a", strides, train_bn=train_bn, bank=bank, dilation=dilation
    )
    for block in range(identity_blocks):
        letter = chr(ord("b") + block)
        x = identity_block(
            x, 3, filters, number, letter, train_bn=train_bn, bank=bank, dilation=dilation
        )
    return x


def stage5_graph(x, train_bn, bank, dilated=False):
    """The fifth stage.

    Args:
        x: [B, H, W, 1024], features of the fourth stage.
        train_bn: passed to `BatchNorm`, see there.
        bank: where the layers come from.
        dilated: the stage neither halves the features nor loses their context: its stride is 1 and
            its 3x3 windows read every other cell (paper section 3.5.1, filter dilation instead
            of shift-and-stitch). Every other cell of the result is what the strided stage gives.

    Returns:
        [B, H / 2, W / 2, 2048] (rounded up), or [B, H, W, 2048].
    """
    strides, dilation = ((1, 1), 2) if dilated else ((2, 2), 1)
    return _stage(x, 5, 512, 2, strides, train_bn, bank, dilation)


def resnet_graph(input_image, architecture, stage5=False, train_bn=True, bank=None):
    """Backbone features of an image batch.

    Args:
        input_image: [B, H, W, C] float32, mean-subtracted pixels; H and W multiples of 64.
        architecture: "resnet50" or "resnet101".
        stage5: build the fifth stage too; without it C5 is None.
        train_bn: passed to `BatchNorm`, see there.
        bank: where the layers come from; None makes new ones.

    Returns:
        [C1, C2, C3, C4, C5]: the last feature map of every stage, strides 4, 4, 8, 16 and 32.
    """
    assert architecture in STAGE4_BLOCKS, f"architecture is one of {sorted(STAGE4_BLOCKS)}"
    bank = bank or LayerBank()

    # Stage 1: padding by 3 on every side, as in the files, not Keras's "same".
    x = bank(layers.ZeroPadding2D, (3, 3), name="conv1_pad")(input_image)
    x = bank(layers.Conv2D, 64, (7, 7), strides=(2, 2), name="conv1")(x)
    x = bank(BatchNorm, name="bn_conv1")(x, training=train_bn)
    x = bank(layers.Activation, "relu", name="conv1_relu")(x)
    c1 = bank(layers.MaxPooling2D, (3, 3), strides=(2, 2), padding="same", name="pool1")(x)
    c2 = _stage(c1, 2, 64, 2, (1, 1), train_bn, bank)
    c3 = _stage(c2, 3, 128, 3, (2, 2), train_bn, bank)
    c4 = _stage(c3, 4, 256, STAGE4_BLOCKS[architecture], (2, 2), train_bn, bank)
    c5 = stage5_graph(c4, train_bn, bank) if stage5 else None
    return [c1, c2, c3, c4, c5]
