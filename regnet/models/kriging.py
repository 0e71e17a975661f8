"""Smooth fields through uncertain values: the posterior mean of a Gaussian process (kriging), on a grid."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet.displacement import lasting

SPACING = 1.0
"""Distance of the process's basis functions, sigmas: their sum of squares is level to 0.01 %."""
BEYOND = 2
"""So many basis functions lie beyond each end of the grid."""
ITERATIONS = 12
"""Steps of the preconditioned conjugate gradients."""
TINY = 1e-12
"""Nothing is divided by less, whose square is a number still: gradients stay finite."""
LEAST_SHARE = 1e-5
"""Combinations of basis functions with a smaller share of the largest one's power are left out."""


class _Axis(NamedTuple):
    """The basis along one axis, turned so that its columns are orthogonal on the squares.

    Attributes:
        squares: (n, m) at the centres of the squares.
        cells: (n * step, m) at the centres of the cells.
        power: (m), the squared lengths of the columns of `squares`.
    """

    squares: Tensor
    cells: Tensor
    power: Tensor


def krige(
    target: Tensor, weight: Tensor, sigma: tuple[float, float], noise: Tensor, step: int, shape: tuple[int, int]
) -> Tensor:
    """Find the field most likely to have given uncertain values, whatever their mean.

    Each component of the field is white noise smoothed by a Gaussian, of unit variance, on top of an unknown constant;
    the values are the field and independent noise: `argmin_u sum over cells of (target - u)' weight (target - u) /
    noise + |u|^2 in the process's norm` (Rasmussen and Williams, 2006, chapter 2). The process is a sum of Gaussians on
    a grid as wide as it allows, so that what is solved is small. Without weight the field returns to its mean.

    Args:
        target: (..., 2, h, w), x and y, on squares of `step` x `step` cells.
        weight: (..., 3, h, w), how sure the values are: xx, xy and yy of a matrix, positive semidefinite.
        sigma: of the smoothing Gaussian from row to row and along them, cells.
        noise: what broadcasts to both: variance of a cell's value of weight one, in units of the field's variance.
        step: side of a square, cells.
        shape: (rows, columns) of the cells; the last squares may reach beyond them.

    Returns:
        The field (..., 2, *shape) at the cells.
    """
    if shape[0] * sigma[1] > shape[1] * sigma[0]:
        # The axis with fewer basis functions goes first, where it makes the products below small.
        target, weight = target.mT.contiguous(), weight.mT.contiguous()
        return krige(target, weight, (sigma[1], sigma[0]), noise, step, (shape[1], shape[0])).mT
    rows, columns = (
        _axis(count, step, width, target.device, target.dtype)
        for count, width in zip(target.shape[-2:], sigma, strict=True)
    )
    mean = _weighted_mean(weight, target)
    # Not a factor of the weights themselves, which all noises share.
    scale = step**2 / noise

    def onto(coefficients: Tensor) -> Tensor:
        return rows.squares @ (coefficients @ columns.squares.T)

    def weighed_back(field: Tensor) -> Tensor:
        return torch.stack([rows.squares.T @ part @ columns.squares for part in _times(weight, field)], -3)

    # As if the weights were alike everywhere and along x and y, which is solved at once in the turned basis.
    power = weight[..., ::2, :, :].mean((-2, -1), keepdim=True) * (rows.power[:, None] * columns.power)
    likely = 1 + scale * power
    rest = scale * weighed_back(target - mean)
    found, guess = torch.zeros_like(rest), rest / likely
    way, size = guess, _inner(rest, guess)
    rests, shares = [rest], [guess / size.clamp_min(TINY)]
    for _ in range(ITERATIONS):
        ahead = way + scale * weighed_back(onto(way))
        length = size / _inner(way, ahead).clamp_min(TINY)
        found, rest = found + length * way, rest - length * ahead
        # In exact arithmetic this takes nothing away. Without it rounding grows tenfold from step to step where weights
        # differ widely, until the field, and its gradient all the more, is chance (Golub and Van Loan 2013, 10.3.1).
        rest = rest - (_inner(rest, torch.stack(shares)) * torch.stack(rests)).sum(0)
        guess = rest / likely
        before, size = size, _inner(rest, guess)
        way = guess + size / before.clamp_min(TINY) * way
        rests.append(rest)
        shares.append(guess / size.clamp_min(TINY))
    return rows.cells[: shape[0]] @ (found @ columns.cells[: shape[1]].T) + mean


def _times(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric matrices (..., 3, h, w) by vectors (..., 2, h, w): both components (..., h, w)."""
    xx, xy, yy = matrix.unbind(-3)
    x, y = vector.unbind(-3)
    return torch.addcmul(xx * x, xy, y), torch.addcmul(xy * x, yy, y)


def _weighted_mean(weight: Tensor, target: Tensor) -> Tensor:
    """(..., 2, 1, 1): the vector that the targets are nearest to."""
    total = weight.sum((-2, -1), keepdim=True)
    xx, xy, yy = total.unbind(-3)
    adjugate = torch.stack((yy, -xy, xx), -3)
    determinant = (xx * yy - xy * xy).clamp_min(TINY)
    moment = torch.stack(_times(weight, target), -3).sum((-2, -1), keepdim=True)
    return torch.stack(_times(adjugate, moment), -3) / determinant[..., None, :, :]


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((-3, -2, -1), keepdim=True)


@lru_cache(maxsize=256)
def _axis(count: int, step: int, sigma: float, device: torch.device, dtype: torch.dtype) -> _Axis:
    spacing = max(1.0, SPACING * sigma)
    inside = math.ceil((count * step - 1) / spacing) + 1
    centres = (count * step - 1) / 2 + (np.arange(inside + 2 * BEYOND) - (inside - 1) / 2 - BEYOND) * spacing

    def basis(places: NDArray[np.float64]) -> NDArray[np.float64]:
        height = (spacing / (math.sqrt(math.pi) * sigma)) ** 0.5
        return np.asarray(height * np.exp(-0.5 * ((places[:, None] - centres) / sigma) ** 2))

    squares = basis(np.arange((step - 1) / 2, count * step, step))
    cells = basis(np.arange(count * step, dtype=np.float64))
    power, turn = np.linalg.eigh(squares.T @ squares)
    kept = power > LEAST_SHARE * power.max()
    turn = turn[:, kept]
    return _Axis(*(lasting(part, device, dtype) for part in (squares @ turn, cells @ turn, power[kept])))
