"""The linear backend: N_S without pairs and without storage, from sums of normalised Jacobians.

Source: Charpiat et al. 2019, section 4: with `M = sum_x' K(x',x')^-1/2 J(x')`, `N_S(x) = Tr(K(x,x)^-1/2 J(x) M^T) / d`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regnet.similarity.kernel import whitened


class SoftCounter:
    """Accumulate M over a first pass of batches, then count N_S in a second one; batches may come in any order.

    The sums of several workers add up: `counter.total` is all there is to reduce.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None  # (d, p) float64

    def add(self, jacobians: Tensor) -> None:
        """Add a batch (n, d, p); dead tiles add nothing."""
        part = whitened(jacobians).sum(0, dtype=torch.float64)
        self.total = part if self.total is None else self.total + part

    def sums(self) -> Tensor:
        """M so far, (d, p) float64.

        Raises:
            ValueError: no tiles were added.
        """
        if self.total is None:
            raise ValueError("no tiles were added")
        return self.total

    def count(self, jacobians: Tensor) -> Tensor:
        """N_S of a batch, (n,) float64, over all tiles that were added; of new tiles too."""
        rows, total = whitened(jacobians), self.sums()
        sums = [
            (rows[:, :, start : start + 65536].double() * total[:, start : start + 65536]).sum((1, 2))
            for start in range(0, rows.shape[2], 65536)
        ]
        return torch.stack(sums).sum(0) / jacobians.shape[1]
