"""The five losses, pure functions of tensors, computed in float32.

L = L_class + L_box + L_mask (paper section 4.1.1) for the second stage, and the two terms of
equation 16 for the region proposals. Each is a mean over what it sees in the whole batch, as in
matterport; a batch in which a loss sees nothing gives zero. The two box losses also come with the
paper's divisors (`Config.BOX_LOSS_MEAN`).

On several devices a loss is this device's share: the mean of the shares is the loss of the whole
batch, since each is divided by what all devices see (`replicas`).

Shape shorthand: B images, A anchors, T sampled regions, K classes.
"""

from keras import ops

from mrcnn.network.replicas import mean_over_replicas, replica_count


def _masked_mean(values, mask):
    """Mean of `values` where `mask` is True; zero where it never is."""
    mask = ops.cast(mask, "float32")
    count = mean_over_replicas(ops.sum(mask))  # per replica, on average
    least = 1.0 / replica_count()  # one in total
    return ops.sum(ops.where(mask > 0, values, 0.0)) / ops.maximum(count, least)


def smooth_l1_loss(y_true, y_pred):
    """Element by element 0.5 d^2 below 1, |d| - 0.5 above (paper equation 13)."""
    difference = ops.abs(ops.cast(y_true, "float32") - ops.cast(y_pred, "float32"))
    return ops.where(difference < 1.0, 0.5 * difference * difference, difference - 0.5)


def _cross_entropy(class_ids, logits):
    """Softmax cross-entropy of int32 [...] class ids and [..., K] logits, [...]."""
    log_probabilities = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    picked = ops.take_along_axis(log_probabilities, class_ids[..., None], axis=-1)
    return -picked[..., 0]


def rpn_class_loss_graph(rpn_match, rpn_class_logits):
    """Log loss of object against background over the sampled anchors (paper 3.9.4).

    Args:
        rpn_match: int32 [B, A] or [B, A, 1]: 1 positive, -1 negative, 0 not sampled.
        rpn_class_logits: [B, A, 2].
    """
    match = ops.reshape(rpn_match, ops.shape(rpn_class_logits)[:2])
    loss = _cross_entropy(ops.cast(match == 1, "int32"), rpn_class_logits)
    return _masked_mean(loss, match != 0)


def rpn_anchor_box_loss(target_deltas, rpn_match, rpn_deltas, places=None):
    """Smooth L1 over the positive anchors, targets given for every anchor [B, A, 4].

    places: N_reg of paper equation 16, the number of anchor locations in an image: the sum over
        anchors and coordinates is divided by it. None: a mean over both.
    """
    match = ops.reshape(rpn_match, ops.shape(rpn_deltas)[:2])
    loss = smooth_l1_loss(target_deltas, rpn_deltas)
    if places is None:
        return _masked_mean(ops.mean(loss, axis=-1), match == 1)
    an_image = ops.sum(ops.where((match == 1)[..., None], loss, 0.0), axis=(1, 2)) / places
    return ops.mean(an_image)


def rpn_bbox_loss_graph(config, target_bbox, rpn_match, rpn_bbox):
    """As `rpn_anchor_box_loss` with matterport's packed targets.

    Args:
        config: not used; matterport's signature.
        target_bbox: [B, P, 4], row i belongs to the i-th positive anchor of its image.
        rpn_match: int32 [B, A] or [B, A, 1].
        rpn_bbox: [B, A, 4].
    """
    match = ops.reshape(rpn_match, ops.shape(rpn_bbox)[:2])
    position = ops.cumsum(ops.cast(match == 1, "int32"), axis=1) - 1
    position = ops.clip(position, 0, target_bbox.shape[1] - 1)
    targets = ops.take_along_axis(target_bbox, position[..., None], axis=1)
    return rpn_anchor_box_loss(targets, match, rpn_bbox)


def mrcnn_class_loss_graph(target_class_ids, pred_class_logits, active_class_ids, used=None):
    """Log loss of the regions' classes (paper equation 12).

    Args:
        target_class_ids: int [B, T].
        pred_class_logits: [B, T, K].
        active_class_ids: [B, K] 1 for classes of the data set that the image comes from; regions
            predicted to be of another class do not count (matterport uses the first image's row
            only).
        used: bool [B, T], False for padding; None counts all.
    """
    target = ops.cast(target_class_ids, "int32")
    loss = _cross_entropy(target, pred_class_logits)
    predicted = ops.argmax(pred_class_logits, axis=-1)
    active = ops.take_along_axis(ops.cast(active_class_ids, "float32"), predicted, axis=1) > 0
    return _masked_mean(loss, active if used is None else active & used)


def mrcnn_bbox_loss_graph(target_bbox, target_class_ids, pred_bbox, used=None):
    """Smooth L1 of the positive regions' deltas for their true class (paper equation 13).

    Args:
        target_bbox: [B, T, 4].
        target_class_ids: int [B, T].
        pred_bbox: [B, T, K, 4].
        used: bool [B, T], False for padding: the sum over the four numbers is divided by all used
            regions, background included (paper equation 12). None: a mean over the positive
            regions and the four numbers.
    """
    target_class_ids = ops.cast(target_class_ids, "int32")
    class_ids = ops.maximum(target_class_ids, 0)[..., None, None]
    predicted = ops.take_along_axis(pred_bbox, class_ids, axis=2)[:, :, 0]
    loss = smooth_l1_loss(target_bbox, predicted)
    if used is None:
        return _masked_mean(ops.mean(loss, axis=-1), target_class_ids > 0)
    loss = ops.where(target_class_ids > 0, ops.sum(loss, axis=-1), 0.0)
    return _masked_mean(loss, used)


def mrcnn_mask_loss_graph(target_masks, target_class_ids, pred_masks, from_logits=False):
    """Binary cross-entropy per pixel of the positive regions' masks for their true class.

    Args:
        target_masks: [B, T, h, w] from 0 to 1; a value in between is the probability to learn.
        target_class_ids: int [B, T].
        pred_masks: [B, T, h, w, K] probabilities, or logits with `from_logits`.
    """
    target_class_ids = ops.cast(target_class_ids, "int32")
    class_ids = ops.maximum(target_class_ids, 0)[..., None, None, None]
    predicted = ops.cast(ops.take_along_axis(pred_masks, class_ids, axis=4)[..., 0], "float32")
    target = ops.cast(target_masks, "float32")
    if not from_logits:
        predicted = ops.clip(predicted, 1e-7, 1.0 - 1e-7)
        predicted = ops.log(predicted) - ops.log1p(-predicted)
    # log(1 + exp(x)) - target * x, the first term written so that it does not overflow.
    softplus = ops.maximum(predicted, 0.0) + ops.log1p(ops.exp(-ops.abs(predicted)))
    loss = softplus - predicted * target
    return _masked_mean(ops.mean(loss, axis=(2, 3)), target_class_ids > 0)
