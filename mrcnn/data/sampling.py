"""The order in which a pass over a data set takes its images."""

import numpy as np

from mrcnn.errors import UserError


def pass_order(ids: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image ids of one pass, as many as there are images, in random order.

    With equal weights a permutation. Otherwise systematic resampling: an image whose share of the
    pass (its weight over the mean weight) is s comes floor(s) or ceil(s) times, s times on average.

    Args:
        ids: int [N].
        weights: float [N], of 0 or more, not all 0.
        rng: a separate one for each pass.

    Returns:
        int [N].
    """
    order = rng.permutation(len(ids))
    if (weights == weights[0]).all():
        return ids[order]
    order = order[weights[order] > 0]  # weight 0: never taken, not even by a rounding error
    ends = np.cumsum(weights[order])
    points = (np.arange(len(ids)) + rng.random()) * (ends[-1] / len(ids))
    taken = np.minimum(np.searchsorted(ends, points, side="right"), len(order) - 1)
    return ids[rng.permutation(order[taken])]


def sampling_weights(dataset) -> np.ndarray:
    """`Dataset.sampling_weight` of every image, float64 [N].

    Raises:
        UserError: a weight is negative or not finite, or all are 0.
    """
    weights = np.array([dataset.sampling_weight(i) for i in dataset.image_ids], np.float64)
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(wrong):
        image_id = dataset.image_ids[wrong[0]]
        raise UserError(
            f"sampling_weight({image_id}) = {weights[wrong[0]]} is not allowed: it must be a "
            "finite number of 0 or more"
        )
    if not weights.any():
        raise UserError("sampling_weight is 0 for all images: at least one must be above 0")
    return weights
