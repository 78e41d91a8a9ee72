"""The network that is compared, in plain numbers, and how many multiply-adds it takes.

Only convolutions and fully connected layers are counted; everything else (batch norm, ROIAlign,
suppression, pasting masks) is small in comparison. Padding counts as data.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

STAGE_FILTERS = (64, 128, 256, 512)
STAGE_BLOCKS = (3, 4, 6, 3)  # ResNet-50
STRIDES = (4, 8, 16, 32, 64)  # of the pyramid levels
POOL, MASK_POOL = 7, 14
RATIOS = 3


# What every contestant of benchmarks/compare.py is set to.
ANCHOR_SIDES = (8, 16, 32, 64, 128)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
PROPOSALS = 1000  # after suppression, in detection and in training
CANDIDATES_PER_LEVEL = 1000  # before suppression
RPN_NMS, DETECTION_NMS = 0.7, 0.3
MIN_CONFIDENCE = 0.5
MAX_DETECTIONS = 400
TRAIN_ROIS, POSITIVE_SHARE = 128, 0.25
TRAIN_ANCHORS = 256
BATCH = 2
# Training of the weights before anything is measured: fewer regions, to finish sooner.
LESSON_BATCH, LESSON_ROIS = 4, 32
WEIGHT_DECAY, MOMENTUM = 1e-4, 0.9
# The step's cost does not depend on its size: small, so that the weights stay what they are.
STEP_SIZE = 1e-7
MEAN_LEVEL = 40.0  # grey level, about the scenes' mean


@dataclass(frozen=True)
class Network:
    """Widths in channels. `stride_in_3x3`: where a stage's first block halves its resolution, in
    its 3x3 convolution (torchvision's ResNet) or in its first 1x1 (the original, used here).
    `scores`: the proposal network's outputs per anchor, two for a softmax, one for a sigmoid."""

    pyramid: int = 256
    rpn: int = 512
    box: int = 1024
    mask: int = 256
    classes: int = 2
    stride_in_3x3: bool = False
    scores: int = 2
    proposals: int = PROPOSALS


OURS = Network()
TORCHVISION = Network(stride_in_3x3=True, scores=1)


def candidates(side: int) -> int:
    """Boxes that go into the proposals' suppression when each level gives at most
    CANDIDATES_PER_LEVEL, for an image of side x side pixels."""
    anchors = (RATIOS * ceil(side / stride) ** 2 for stride in STRIDES)
    return sum(min(CANDIDATES_PER_LEVEL, count) for count in anchors)


def multiply_adds(network: Network, side: int, rois: int, masks: int) -> dict[str, int]:
    """Multiply-adds of one image's forward pass by part.

    Args:
        side: pixels of the square network input, a multiple of 64.
        rois: regions through the box head.
        masks: regions through the mask head.
    """
    n = network
    box = POOL**2 * n.pyramid * n.box + n.box**2 + n.box * 5 * n.classes
    mask = MASK_POOL**2 * 9 * (n.pyramid * n.mask + 3 * n.mask**2)
    mask += MASK_POOL**2 * 4 * n.mask * (n.mask + n.classes)
    return {
        "backbone": _backbone(network, side),
        "pyramid": _pyramid(network, side),
        "proposals": _proposals(network, side),
        "box head": rois * box,
        "mask head": masks * mask,
    }


def first_layer(side: int) -> int:
    """Multiply-adds of the first convolution (7x7, stride 2, 64 channels)."""
    return (side // 2) ** 2 * 49 * 3 * 64


def detection_multiply_adds(network: Network, side: int, detections: int) -> int:
    """Multiply-adds of detecting in one image."""
    return sum(multiply_adds(network, side, network.proposals, detections).values())


def training_multiply_adds(network: Network, side: int) -> int:
    """Multiply-adds of a training step: forward, and two products of the same size backward, for
    the gradients of the weights and of the input, which the first layer does not need."""
    positives = int(TRAIN_ROIS * POSITIVE_SHARE)
    forward = sum(multiply_adds(network, side, TRAIN_ROIS, positives).values())
    return BATCH * (3 * forward - first_layer(side))


def _backbone(network: Network, side: int) -> int:
    total, channels = first_layer(side), 64
    for number, (filters, blocks) in enumerate(zip(STAGE_FILTERS, STAGE_BLOCKS, strict=True)):
        cells = (side // STRIDES[number]) ** 2
        before = cells if number == 0 else 4 * cells
        reduced = before if network.stride_in_3x3 else cells  # cells of the first 1x1's output
        for block in range(blocks):
            total += (reduced if block == 0 else cells) * channels * filters
            total += cells * (9 * filters**2 + filters * 4 * filters)
            if block == 0:
                total += cells * channels * 4 * filters  # the shortcut
            channels = 4 * filters
    return total


def _pyramid(network: Network, side: int) -> int:
    width = network.pyramid
    levels = zip(STRIDES, STAGE_FILTERS, strict=False)
    return sum(
        (side // stride) ** 2 * (4 * filters * width + 9 * width**2) for stride, filters in levels
    )


def _proposals(network: Network, side: int) -> int:
    cell = 9 * network.pyramid * network.rpn + network.rpn * RATIOS * (4 + network.scores)
    return sum((side // stride) ** 2 * cell for stride in STRIDES)
