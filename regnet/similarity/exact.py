"""The exact backend: all pairs of tiles by streamed blocks of matrix products, the upper triangle only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from regnet.similarity.kernel import products, whitened


class Rows(Protocol):
    """Jacobians of n tiles that can be read by runs: a tensor (n, d, p), or a store behind `FunctionRows`."""

    @property
    def shape(self) -> torch.Size:
        """(n, d, p)."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Read (m, d, p)."""


class FunctionRows:
    """Rows read by a function, for Jacobians that do not fit in memory."""

    def __init__(self, shape: tuple[int, int, int], read: Callable[[slice], Tensor]) -> None:
        self.shape, self._read = torch.Size(shape), read

    def __getitem__(self, rows: slice) -> Tensor:
        return self._read(rows)


def block_rows(shape: torch.Size, memory_mb: float, itemsize: int) -> int:
    """Tiles a block so that two blocks, their product and its mirror stay within `memory_mb`; at least one."""
    n, d, p = shape
    budget = memory_mb * 2**20
    size = int(budget / (2 * d * p * itemsize))
    while size > 1 and 2 * size * d * (p + size * d) * itemsize > budget:
        size -= max(1, size // 16)
    return max(1, min(n, size))


def kernel_blocks(
    rows: Rows,
    others: Rows | None = None,
    *,
    memory_mb: float = 1024,
    dtype: torch.dtype | None = None,
    scalar: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Multiply all pairs of two sets, or of one set with itself (upper triangle of blocks only).

    Args:
        rows: (n, d, p).
        others: (m, d, p), or None for `rows` themselves; then only blocks on and above the diagonal come.
        memory_mb: bound of what is held beyond the caller's own: two blocks of rows, their product and its mirror.
        dtype: precision of the products: float32, bfloat16 or float64; the rows' own by default.
        scalar: give the traces only, (a, b), at 1/d of the work, instead of K (a, d, b, d).
        share: (rank, size): give every `size`-th block only, so that several processes share the work.

    Yields:
        Positions in `rows`, positions in `others`, and the block.
    """
    kind = dtype or rows[0:1].dtype
    itemsize = max(torch.empty(0, dtype=kind).element_size(), rows[0:1].element_size())
    partner = rows if others is None else others
    own, second = rows.shape, partner.shape
    size = block_rows(torch.Size((max(own[0], second[0]), *own[1:])), memory_mb, itemsize)
    number = itertools.count()
    for start in range(0, own[0], size):
        left, a = slice(start, min(start + size, own[0])), None
        for other in range(start if others is None else 0, second[0], size):
            if next(number) % share[1] != share[0]:
                continue
            a = rows[left].to(kind) if a is None else a
            right = slice(other, min(other + size, second[0]))
            b = a if others is None and other == start else partner[right].to(kind)
            yield left, right, (a.flatten(1) @ b.flatten(1).T if scalar else products(a, b))


def gram(
    rows: Rows,
    *,
    memory_mb: float = 1024,
    dtype: torch.dtype | None = None,
    scalar: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """All pairs within one set: (n, d, n, d), or (n, n) traces with `scalar`; exactly symmetric.

    With a `share` of the blocks the others are zero, so that the sum over all shares is the whole.
    """
    n, d, _ = rows.shape
    result = _zeros(rows, (n, n) if scalar else (n, d, n, d), dtype)
    for left, right, block in kernel_blocks(rows, memory_mb=memory_mb, dtype=dtype, scalar=scalar, share=share):
        mirrored = block.T if scalar else block.permute(2, 3, 0, 1)
        if left == right:  # a product of a block with itself is symmetric but for its rounding
            block = mirrored = (block + mirrored).mul_(0.5)
        result[(left, right) if scalar else (left, slice(None), right)] = block
        result[(right, left) if scalar else (right, slice(None), left)] = mirrored
    return result


def cross(
    rows: Rows,
    others: Rows,
    *,
    memory_mb: float = 1024,
    dtype: torch.dtype | None = None,
    scalar: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """K between two sets, (n, d, m, d), or (n, m) traces with `scalar`; shares of the blocks as in `gram`."""
    (n, d, _), m = rows.shape, others.shape[0]
    result = _zeros(rows, (n, m) if scalar else (n, d, m, d), dtype)
    for left, right, block in kernel_blocks(rows, others, memory_mb=memory_mb, dtype=dtype, scalar=scalar, share=share):
        result[(left, right) if scalar else (left, slice(None), right)] = block
    return result


def kc(
    jacobians: Tensor, others: Tensor | None = None, *, memory_mb: float = 1024, dtype: torch.dtype | None = None
) -> Tensor:
    """Scalar kC of all pairs, -1 to 1: (n, n) of one set with itself, or (n, m) of two; 0 for tiles without gradient.

    Args:
        jacobians: (n, d, p).
        others: (m, d, p).
        memory_mb: as in `kernel_blocks`, beside normalised copies of the Jacobians.
        dtype: precision of the products.
    """
    d, rows = jacobians.shape[1], whitened(jacobians)
    if others is None:
        return gram(rows, memory_mb=memory_mb, dtype=dtype, scalar=True) / d
    return cross(rows, whitened(others), memory_mb=memory_mb, dtype=dtype, scalar=True) / d


def _zeros(rows: Rows, shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
    return torch.zeros(shape, dtype=dtype or rows[0:1].dtype, device=rows[0:1].device)
