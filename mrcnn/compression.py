"""Faster class and box heads: each fully connected layer as two thin ones.

    W ~ U S_t V^T                                                       (paper equation 15)

keeps the t largest singular values of a layer's u x v kernel. The layer is replaced by one with the
kernel S_t V^T and without biases, and one with the kernel U and the layer's biases: t (u + v)
numbers instead of u v. The more regions an image has, the more time it saves.

Source: paper section 3.8.6; Girshick, "Fast R-CNN", section 3.1.
"""

from __future__ import annotations

import copy

import numpy as np
from keras import ops

from mrcnn.errors import UserError
from mrcnn.model import MaskRCNN
from mrcnn.weights.legacy_h5 import COMPRESSIBLE, THIN


def truncated_svd(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best approximation of a given rank, as a product: float [u, v] -> [u, rank], [rank, v].

    Inputs are multiplied from the left, x W, so the singular values go to the first factor (the
    paper, which multiplies from the right, calls it S_t V^T).
    """
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]


def rank_of_energy(values: np.ndarray, energy: float) -> int:
    """The smallest rank that keeps a share `energy` of the singular values' sum of squares."""
    shares = np.cumsum(np.square(values)) / np.sum(np.square(values))
    return int(np.searchsorted(shares, energy - 1e-9) + 1)


def compress(
    model: MaskRCNN, rank: int | tuple[int, int] | None = None, energy: float | None = None
) -> MaskRCNN:
    """A copy of a detector with compressed fully connected layers.

    Args:
        model: in "inference" mode, with ARCHITECTURE "fpn"; it stays as it is.
        rank: of both layers, or one for each.
        energy: instead of a rank, the share in (0, 1] of each kernel's sum of squares to keep.

    Returns:
        A model whose configuration has FPN_CLASSIF_FC_RANKS. Files that its `save_weights` writes
        load into models with that configuration.

    Raises:
        UserError: a wrong rank or energy, or a model without whole layers or without weights.
    """
    config = model.config
    if config.ARCHITECTURE != "fpn" or any(config.FPN_CLASSIF_FC_RANKS):
        raise UserError(
            "compress() needs a model with whole fully connected layers: "
            'ARCHITECTURE = "fpn" and FPN_CLASSIF_FC_RANKS = (0, 0)'
        )
    if model.mode != "inference":
        raise UserError('compress() needs MaskRCNN(mode="inference", ...)')
    model.check_weights()
    if (rank is None) == (energy is None):
        raise UserError("compress() takes either a rank or an energy")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"energy = {energy} is not allowed: a number in (0, 1]")
    kernels = [_matrix(model.bank.layers[name]) for name in COMPRESSIBLE]
    ranks = _ranks(kernels, rank, energy)

    config = copy.copy(config)
    config.FPN_CLASSIF_FC_RANKS = ranks
    compressed = MaskRCNN(model.mode, config, model.model_dir)
    for name, layer in model.bank.layers.items():
        if layer.weights and name not in COMPRESSIBLE:
            compressed.bank.layers[name].set_weights(layer.get_weights())
    for name, kernel, size in zip(COMPRESSIBLE, kernels, ranks, strict=True):
        first, second = truncated_svd(kernel, size)
        thin, whole = (compressed.bank.layers[n] for n in (name + THIN, name))
        bias = ops.convert_to_numpy(model.bank.layers[name].bias)
        thin.set_weights([first.reshape(thin.kernel.shape)])
        whole.set_weights([second.reshape(whole.kernel.shape), bias])
    return compressed


def _matrix(layer) -> np.ndarray:
    """A layer's kernel as float64 [inputs, outputs]."""
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel), np.float64)
    return kernel.reshape(-1, kernel.shape[-1])


def _ranks(kernels, rank, energy) -> tuple[int, int]:
    if energy is not None:
        values = [np.linalg.svd(kernel, compute_uv=False) for kernel in kernels]
        return tuple(rank_of_energy(v, energy) for v in values)
    ranks = tuple(rank) if isinstance(rank, tuple | list) else (rank, rank)
    limits = [min(kernel.shape) for kernel in kernels]
    if len(ranks) != len(kernels) or not all(
        isinstance(r, int | np.integer) and 1 <= r <= limit
        for r, limit in zip(ranks, limits, strict=False)
    ):
        raise UserError(
            f"rank = {rank} is not allowed: a whole number from 1 to {min(limits)}, or "
            f"two of them, up to {limits[0]} and {limits[1]}"
        )
    return tuple(int(r) for r in ranks)
