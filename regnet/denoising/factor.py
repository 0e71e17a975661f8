"""The paper's estimator: the kernel mean, and which share of the label noise is left in it.

Source: Charpiat et al. 2019, section 5. With `A_ij = (sum_j K_ij)^-1 K_ij` (d x d, rows sum to the identity), the
kernel mean `E_k[v]_i = sum_j A_ij v_j` of the labels keeps of noise that is independent from tile to tile the share
`sqrt(Tr(sum_j A_ij A_ij^T) / d)`; noise correlated by r keeps `sqrt(Tr(sum_jk A_ij r_jk A_ik^T) / d)`.
"""

from __future__ import annotations

import numpy as np

from regnet.denoising.operators import Array, Operator

_SINGULAR = 1e-10  # a row sum whose smallest singular value is below this share of the largest K(x, x) has no mean


def row_sums(kernel: Operator) -> Array:
    """Sum_j K_ij, (n, d, d)."""
    identity = np.broadcast_to(np.eye(kernel.d), (kernel.n, kernel.d, kernel.d))
    return kernel.apply(np.ascontiguousarray(identity))


def inverse_row_sums(kernel: Operator) -> Array:
    """(Sum_j K_ij)^-1, (n, d, d); NaN for tiles whose sum is singular, which have no kernel mean."""
    sums = row_sums(kernel)
    singular = np.linalg.svd(sums, compute_uv=False)
    usable = singular[:, -1] > _SINGULAR * max(float(singular[:, 0].max(initial=0.0)), np.finfo(float).tiny)
    inverse = np.full_like(sums, np.nan)
    inverse[usable] = np.linalg.inv(sums[usable])
    return inverse


def kernel_mean(kernel: Operator, values: Array) -> Array:
    """E_k[v]_i = sum_j A_ij v_j.

    Args:
        kernel: K among n tiles.
        values: (n, d), for instance labels in px.

    Returns:
        (n, d); NaN where the mean does not exist.
    """
    mean: Array = np.einsum("iab,ib->ia", inverse_row_sums(kernel), kernel.apply(values[..., None])[..., 0])
    return mean


def mean_weights(kernel: Operator) -> Array:
    """A whole, (n, d, n, d); NaN in the rows of tiles whose mean does not exist."""
    weights: Array = np.einsum("iab,ibjc->iajc", inverse_row_sums(kernel), kernel.blocks(), optimize=True)
    return weights


def denoising_factor(kernel: Operator, correlation: Array | None = None) -> Array:
    """Share of the label noise (standard deviation) left in the kernel mean of every tile, (n,).

    1/sqrt(n) if all n tiles are the same to the network, 1 if they are all unlike.

    Args:
        kernel: K among n tiles.
        correlation: (n, n) of the noise between tiles, the identity if None. Draws of one tile share its noise: list
            each draw as a tile and give them correlation 1.
    """
    inverse = inverse_row_sums(kernel)
    left = inverse @ kernel.squared(correlation) @ inverse.transpose(0, 2, 1)
    result: Array = np.sqrt(np.maximum(np.trace(left, axis1=1, axis2=2), 0) / kernel.d)
    return result


def spatial_correlation(x_px: Array, y_px: Array, place: Array, range_px: float) -> Array:
    """Gaussian correlation of the noise by distance, `exp(-(r / range)^2 / 2)`, (n, n).

    Args:
        x_px: (n,) columns of the tiles' centres.
        y_px: (n,) rows.
        place: (n,) number of the scene; tiles of different scenes are independent.
        range_px: distance at which the correlation has fallen to 0.61; 0 makes tiles independent.
    """
    if range_px == 0:
        return np.eye(len(x_px))
    squared = np.subtract.outer(x_px, x_px) ** 2 + np.subtract.outer(y_px, y_px) ** 2
    correlation: Array = np.exp(-squared / (2 * range_px**2)) * np.equal.outer(place, place)
    return correlation
