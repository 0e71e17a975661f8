"""Local correlation volumes: how well each cell of fixed fits moving at every offset within +-R px."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 4
"""Side of the cells over which the correlation is summed, px: the smallest window of any matcher."""
_FLOATS_AT_ONCE = {"cpu": 2**19, "cuda": 2**28}
"""Products are made and summed by as many rows of cells as stay in a processor's cache (2 MB), or fill a GPU (1 GB)."""


def correlation_volume(
    fixed: Tensor, moving: Tensor, radius: int, weights: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Correlate cells of fixed with moving at every offset: `sum over x in cell of <fixed(x), moving(x + o)>`.

    One small matrix product a cell gives all products of its pixels with all pixels in reach; those of equal offset lie
    on the diagonals of the product and are summed through a strided view, so no loop runs over offsets.

    Args:
        fixed: (B, C, H, W), H and W multiples of `CELL`.
        moving: (B, C, H, W); zero beyond its border.
        radius: greatest offset R, px.
        weights: (B, 1, H, W) each, by which the pixels of fixed and of moving are multiplied first; one if None.

    Returns:
        (B, K * K, H / CELL, W / CELL) with K = 2 R + 1; offsets in row-major order: (dy, dx) from (-R, -R) to (R, R).
    """
    batch, channels, height, width = fixed.shape
    reach, offsets = CELL + 2 * radius, 2 * radius + 1
    rows, columns = height // CELL, width // CELL
    some = max(1, _FLOATS_AT_ONCE[fixed.device.type] // (batch * columns * (CELL * CELL + channels) * reach * reach))
    sums = []
    for first in range(0, rows, some):
        few = min(some, rows - first)
        top, bottom = first * CELL, (first + few) * CELL
        cells, around = _rows(fixed, top, bottom), _rows(moving, top - radius, bottom + radius)
        if weights is not None:
            cells = cells * _rows(weights[0], top, bottom)
            around = around * _rows(weights[1], top - radius, bottom + radius)
        cells = cells.reshape(batch, channels, few, CELL, columns, CELL).permute(2, 0, 4, 3, 5, 1)
        around = F.pad(around, (radius, radius, max(radius - top, 0), max(bottom + radius - height, 0)))
        around = around.unfold(2, reach, CELL).unfold(3, reach, CELL).permute(2, 0, 3, 1, 4, 5)
        sums.append(_sums(cells.reshape(-1, CELL * CELL, channels), around.reshape(-1, channels, reach, reach), radius))
    return torch.cat(sums).reshape(rows, batch, columns, offsets * offsets).permute(1, 3, 0, 2)


def _rows(values: Tensor, top: int, bottom: int) -> Tensor:
    """Those of the rows from `top` to `bottom` that (B, C, H, W) has."""
    return values[:, :, max(top, 0) : bottom]


def _sums(cells: Tensor, around: Tensor, radius: int) -> Tensor:
    """Sums (n, K * K) over each cell's pixels (n, CELL * CELL, C) times those around them (n, C, reach, reach)."""
    reach, offsets = CELL + 2 * radius, 2 * radius + 1
    products = torch.bmm(cells, around.flatten(2))
    diagonals = products.as_strided(
        (products.shape[0], CELL, CELL, offsets, offsets),
        (CELL * CELL * reach * reach, CELL * reach * reach + reach, reach * reach + 1, reach, 1),
    )
    # Quicker than `sum`, whose innermost loop would run over as few values as a cell has on a side.
    down = _added(diagonals)
    return _added(down).flatten(1)


def _added(values: Tensor) -> Tensor:
    """The sum of (n, CELL, ...) over its second axis."""
    total = values[:, 0] + values[:, 1]
    for place in range(2, CELL):
        total += values[:, place]
    return total


def count_volume(fixed: Tensor, moving: Tensor, radius: int) -> Tensor:
    """`correlation_volume` of the shares of valid pixels, (B, 1, H, W) each, quicker where no gradient is asked for.

    Where all that a cell can see is valid, each sum is the number of its pixels, and only the other cells are summed
    over. How many these are depends on the values, which `torch.func.vmap` cannot follow.
    """
    if torch.is_grad_enabled():
        return correlation_volume(fixed, moving, radius)
    reach, offsets = CELL + 2 * radius, 2 * radius + 1
    padded = F.pad(moving, (radius,) * 4)
    least = torch.minimum(-F.max_pool2d(-fixed, CELL), -F.max_pool2d(-padded, reach, CELL))
    batch, rows, columns = torch.nonzero(least[:, 0] < 1 - 1e-5, as_tuple=True)
    counts = fixed.new_full((len(fixed), offsets * offsets, *least.shape[-2:]), CELL * CELL)
    if len(batch):
        cells = fixed.unfold(2, CELL, CELL).unfold(3, CELL, CELL)[batch, 0, rows, columns]
        around = padded.unfold(2, reach, CELL).unfold(3, reach, CELL)[batch, 0, rows, columns]
        counts[batch, :, rows, columns] = _sums(cells.flatten(1)[..., None], around[:, None], radius)
    return counts


def offset_grid(radius: int, device: torch.device | None = None) -> Tensor:
    """Offsets (dx, dy) in the order of the volume: (2, K * K), px."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=device)
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack((dx.reshape(-1), dy.reshape(-1)))
