"""Similarity kernels between tiles from their Jacobians J(x), (d, p): K, KN, KC, kC and the rotation-invariant form.

`K(x, x') = J(x) J(x')^T`, (d, d). A block of K between n and m tiles has the shape (n, d, m, d). Source:
Charpiat et al. 2019, sections 2 and 3 (d = 1) and appendix (d > 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-6  # eigenvalues of K(x, x) below this share of the largest one are raised to it


def products(a: Tensor, b: Tensor) -> Tensor:
    """K between all tiles of two sets.

    Args:
        a: (n, d, p) Jacobians.
        b: (m, d, p).

    Returns:
        (n, d, m, d), in the precision of the inputs.
    """
    return (a.flatten(0, 1) @ b.flatten(0, 1).T).reshape(len(a), a.shape[1], len(b), b.shape[1])


def self_products(jacobians: Tensor, columns: int = 65536) -> Tensor:
    """K(x, x) of every tile, (n, d, d) in float64, accumulated in float64 over slices of the parameters."""
    n, d, p = jacobians.shape
    total = torch.zeros(n, d, d, dtype=torch.float64, device=jacobians.device)
    for start in range(0, p, columns):
        part = jacobians[:, :, start : start + columns].double()
        total += part @ part.mT
    return total


@dataclass(frozen=True)
class InverseRoots:
    """K(x, x)^-1/2 of n tiles.

    Attributes:
        roots: (n, d, d) float64; zero for dead tiles.
        floored: (n,) bool: some eigenvalue was raised, the outputs are nearly dependent.
        dead: (n,) bool: the gradient is zero; such a tile is similar to nothing and left out of sums.
    """

    roots: Tensor
    floored: Tensor
    dead: Tensor


def inverse_roots(self_kernels: Tensor, floor: float = FLOOR) -> InverseRoots:
    """Invert the square root of K(x, x), (n, d, d), with its eigenvalues floored at a share of the largest."""
    values, vectors = torch.linalg.eigh(self_kernels.double())
    largest = values[:, -1:]
    dead = largest[:, 0] <= torch.finfo(torch.float64).tiny
    floored = (values[:, 0] < floor * largest[:, 0]) & ~dead
    scale = values.clamp(min=floor * largest).rsqrt().masked_fill(dead[:, None], 0.0)
    return InverseRoots((vectors * scale[:, None]) @ vectors.mT, floored, dead)


def normalised(jacobians: Tensor, roots: Tensor) -> Tensor:
    """Normalise Jacobians to K(x, x)^-1/2 J(x), (n, d, p), so that plain products give KC."""
    return roots.to(jacobians.dtype) @ jacobians


def whitened(jacobians: Tensor) -> Tensor:
    """Normalise Jacobians (n, d, p) by their own K(x, x), eigenvalues floored; zero for dead tiles."""
    return normalised(jacobians, inverse_roots(self_products(jacobians)).roots)


def correlation_matrices(kernel: Tensor, roots: Tensor, other_roots: Tensor) -> Tensor:
    """KC = K(x,x)^-1/2 K(x,x') K(x',x')^-1/2 of a block.

    Args:
        kernel: (n, d, m, d).
        roots: (n, d, d).
        other_roots: (m, d, d).

    Returns:
        (n, d, m, d).
    """
    dtype = kernel.dtype
    return torch.einsum("iab,ibjc,jcd->iajd", roots.to(dtype), kernel, other_roots.to(dtype))


def influence_matrices(kernel: Tensor, self_kernels: Tensor) -> Tensor:
    """KN = K(x', x) K(x, x)^-1: the parameter step that moves f(x) by v moves f(x') by KN v.

    Args:
        kernel: (n, d, m, d): K(x, x') with x in front.
        self_kernels: (n, d, d): K(x, x).

    Returns:
        (m, d, n, d): moved tile x' in front, moving tile x behind; zero where x is dead.
    """
    inverse = inverse_roots(self_kernels).roots
    return torch.einsum("ibjc,iba->jcia", kernel, (inverse @ inverse).to(kernel.dtype))


def scalar(correlations: Tensor) -> Tensor:
    """Trace of KC over d: kC / d in [-1, 1], (n, m) from (n, d, m, d)."""
    return torch.einsum("iaja->ij", correlations) / correlations.shape[1]


def rotation_invariant(correlations: Tensor, reflections: bool = False) -> Tensor:
    """Largest trace over rotations of the output, max_R Tr(R KC) / d, (n, m) from (n, d, m, d).

    Two tiles that differ only by the direction of their displacement are alike in this form. For d = 2 the maximum over
    rotations is the length of (KC_00 + KC_11, KC_01 - KC_10); over all orthogonal R it is the nuclear norm.

    Args:
        correlations: KC.
        reflections: allow reflections too.
    """
    blocks = correlations.transpose(1, 2)
    d = blocks.shape[-1]
    if d == 1 and not reflections:
        return blocks[..., 0, 0]
    if d == 2 and not reflections:
        turned = blocks[..., 0, 1] - blocks[..., 1, 0]
        return torch.hypot(blocks[..., 0, 0] + blocks[..., 1, 1], turned) / 2
    singular = torch.linalg.svdvals(blocks)
    if not reflections:
        singular = torch.cat((singular[..., :-1], singular[..., -1:] * torch.linalg.det(blocks).sign()[..., None]), -1)
    total: Tensor = singular.sum(-1)
    return total / d
