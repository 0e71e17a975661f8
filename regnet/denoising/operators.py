"""The kernel among n tiles as the denoising estimators use it: dense blocks, or features whose products give it.

Both hold `K` with d x d blocks, unnormalised. Everything an estimator needs is a sum over one of the sides, so that
features (n, d, k) never make the n x n matrix: the cost is O(n d k^2) instead of O(n^2 d^2) and more.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from regnet.errors import StoreError
from regnet.similarity.kernel import correlation_matrices, inverse_roots, scalar
from regnet.similarity.result import StoredKernel

Array = NDArray[Any]  # float64 throughout
_ROWS = 64  # tiles whose kernels are normalised at a time


class Operator(Protocol):
    """A symmetric positive kernel among n tiles with d x d blocks."""

    n: int
    d: int

    def apply(self, values: Array) -> Array:
        """Sum_j K_ij v_j: (n, d, q) from (n, d, q)."""

    def squared(self, correlation: Array | None = None) -> Array:
        """Sum_jk K_ij r_jk K_ik^T, (n, d, d), with r the (n, n) correlation of the noise, the identity if None."""

    def blocks(self, rows: slice = slice(None)) -> Array:
        """K of some tiles to all, (m, d, n, d)."""

    def own(self) -> Array:
        """K_ii, (n, d, d)."""

    @property
    def spectrum(self) -> tuple[Array, Array]:
        """Eigenvalues (r,) and eigenvectors (n d, r) of K; what is orthogonal to them has eigenvalue 0."""


class DenseKernel:
    """K held whole.

    Args:
        blocks: (n, d, n, d).
    """

    def __init__(self, blocks: Array) -> None:
        self.n, self.d = blocks.shape[:2]
        self.matrix: Array = np.asarray(blocks, dtype=np.float64).reshape(self.n * self.d, self.n * self.d)

    def apply(self, values: Array) -> Array:
        """Multiply by K."""
        return (self.matrix @ values.reshape(self.n * self.d, -1)).reshape(self.n, self.d, -1)

    def squared(self, correlation: Array | None = None) -> Array:
        """Multiply K C K^T and keep the diagonal blocks."""
        rows = self.blocks()
        mixed = rows if correlation is None else np.einsum("iajb,jk->iakb", rows, correlation, optimize=True)
        result: Array = np.einsum("iajb,icjb->iac", mixed, rows, optimize=True)
        return result

    def blocks(self, rows: slice = slice(None)) -> Array:
        """As they are held."""
        return self.matrix.reshape(self.n, self.d, self.n, self.d)[rows]

    def own(self) -> Array:
        """On the diagonal."""
        places = np.arange(self.n)
        return self.blocks()[places, :, places]

    @cached_property
    def spectrum(self) -> tuple[Array, Array]:
        """Full eigendecomposition."""
        values, vectors = np.linalg.eigh((self.matrix + self.matrix.T) / 2)
        return np.maximum(values, 0), vectors


class FeatureKernel:
    """K given by features: `K_ij = Phi_i Phi_j^T`.

    Args:
        features: (n, d, k).
    """

    def __init__(self, features: Array) -> None:
        self.features: Array = np.asarray(features, dtype=np.float64)
        self.n, self.d = features.shape[:2]

    def apply(self, values: Array) -> Array:
        """Multiply by K through the features."""
        inner = np.einsum("jbk,jbq->kq", self.features, values.reshape(self.n, self.d, -1), optimize=True)
        result: Array = self.features @ inner
        return result

    def squared(self, correlation: Array | None = None) -> Array:
        """Multiply K C K^T through the k x k matrix of the features."""
        mixed = self.features
        if correlation is not None:
            mixed = np.tensordot(correlation, self.features, 1)
        inner = np.einsum("jbk,jbl->kl", self.features, mixed, optimize=True)
        result: Array = self.features @ inner @ self.features.transpose(0, 2, 1)
        return result

    def blocks(self, rows: slice = slice(None)) -> Array:
        """Multiply the features."""
        own, k = self.features[rows], self.features.shape[2]
        result: Array = own.reshape(-1, k) @ self.features.reshape(-1, k).T
        return result.reshape(len(own), self.d, self.n, self.d)

    def own(self) -> Array:
        """Multiply each tile's features."""
        result: Array = self.features @ self.features.transpose(0, 2, 1)
        return result

    @cached_property
    def spectrum(self) -> tuple[Array, Array]:
        """Thin singular value decomposition of the features."""
        vectors, singular, _ = np.linalg.svd(self.features.reshape(self.n * self.d, -1), full_matrices=False)
        return singular**2, vectors


def similarities(kernel: Operator) -> Array:
    """The scalar similarity kC between all tiles, (n, n), in -1..1; 0 for tiles with zero gradient."""
    roots = inverse_roots(torch.from_numpy(kernel.own())).roots
    parts = [slice(start, start + _ROWS) for start in range(0, kernel.n, _ROWS)]
    found = [scalar(correlation_matrices(torch.from_numpy(kernel.blocks(rows)), roots[rows], roots)) for rows in parts]
    return np.concatenate([rows.numpy() for rows in found])


def operator_of(kernel: StoredKernel) -> Operator:
    """Choose by what was stored.

    Raises:
        StoreError: the similarity stage kept sums only.
    """
    if kernel.blocks is not None:
        return DenseKernel(kernel.blocks)
    if kernel.features is not None:
        return FeatureKernel(kernel.features)
    raise StoreError("similarity.backend=linear keeps sums only; denoising needs backend=exact or sketch")
