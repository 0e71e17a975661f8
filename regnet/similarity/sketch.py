"""The sketch backend: a few hundred numbers a tile whose products approximate the normalised kernel.

A sketch has two parts. The first holds the coordinates of the normalised Jacobian in the span of those of some landmark
tiles (Nystrom); a few directions hold most of the spectrum, so this is most of the kernel. The second folds the rest:
entries get random signs and are added up modulo the number of buckets, which keeps scalar products in the mean (feature
hashing, Weinberger et al. 2009). Folding is linear, so that the rest itself is never formed; and since its products are
noisy, they are shrunk as much as serves landmarks that are held out. Tiles outside the set are sketched the same way.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regnet.errors import ConfigError, StoreError
from regnet.tensors import write_tensors

_ENOUGH = 16  # landmarks from which on a quarter can be held out
_RANK = 1e-14  # directions below this share of the largest eigenvalue are left out (its square root in float32)


class Sketcher:
    """Sketch normalised Jacobians (n, d, p) to (n, d, k).

    Args:
        landmarks: (m, d, p) normalised Jacobians of the landmark tiles (`kernel.normalised`).
        floats: numbers a tile, d x k; landmarks use at most m d of every k.
        seed: of the random signs.

    Raises:
        ConfigError: fewer numbers than outputs.
    """

    def __init__(self, landmarks: Tensor, floats: int = 1024, seed: int = 0) -> None:
        d = landmarks.shape[1]
        k = floats // d
        if k < 1:
            raise ConfigError(f"similarity.sketch_floats={floats} is less than one number for each of {d} outputs")
        self._take(_orthonormal(landmarks.flatten(0, 1), k), k, seed, 1.0)
        if self.buckets and len(landmarks) >= _ENOUGH:
            self.shrinkage = self._best_shrinkage(landmarks)

    def _take(self, basis: Tensor, k: int, seed: int, shrinkage: float) -> None:
        self.basis, self.k, self.seed, self.shrinkage = basis, k, seed, shrinkage
        self.p: int = basis.shape[1]
        self.buckets: int = min(k - len(basis), self.p)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (self.p,), generator=generator, dtype=torch.int8) * 2 - 1
        self.signs = signs.to(basis.dtype).to(basis.device)
        self._folded_basis = self._fold(basis) if self.buckets else None

    def save(self, path: Path) -> None:
        """Write it to one safetensors file, to sketch tiles later that nobody has seen yet.

        Raises:
            OutputError: full disk or read-only folder.
        """
        settings = {"k": str(self.k), "seed": str(self.seed), "shrinkage": repr(self.shrinkage)}
        write_tensors(path, {"basis": self.basis.cpu()}, settings)

    @classmethod
    def load(cls, path: Path, device: torch.device | None = None) -> Sketcher:
        """Read what `save` wrote.

        Raises:
            StoreError: it is not there or damaged.
        """
        sketcher = cls.__new__(cls)
        try:
            with safe_open(path, "pt", device=str(device or "cpu")) as stream:
                settings, basis = stream.metadata(), stream.get_tensor("basis")
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{path}: no sketcher, or a damaged one; run `regnet similarity` again") from error
        sketcher._take(basis, int(settings["k"]), int(settings["seed"]), float(settings["shrinkage"]))
        return sketcher

    def __call__(self, jacobians: Tensor) -> Tensor:
        """Sketch normalised Jacobians: (n, d, k) from (n, d, p)."""
        coordinates = jacobians @ self.basis.T
        if self._folded_basis is not None:
            rest = self._fold(jacobians) - coordinates @ self._folded_basis
            coordinates = torch.cat((coordinates, rest * self.shrinkage**0.5), -1)
        return F.pad(coordinates, (0, self.k - coordinates.shape[-1]))

    def _best_shrinkage(self, landmarks: Tensor) -> float:
        """Least squares share of the folded products that serves the last quarter of the landmarks, in 0..1."""
        first = len(landmarks) - len(landmarks) // 4
        kept, held = landmarks[:first], landmarks[first:]
        basis = _orthonormal(kept.flatten(0, 1), self.k)
        rest = held - (held @ basis.T) @ basis
        true, folded = (sketched_kc(rows, rows).fill_diagonal_(0) for rows in (rest, self._fold(rest)))
        return float(((true * folded).sum() / folded.square().sum().clamp_min(1e-30)).clamp(0, 1))

    def _fold(self, rows: Tensor) -> Tensor:
        whole = self.p // self.buckets * self.buckets
        folded: Tensor = rows[..., :whole] * self.signs[:whole]
        folded = folded.reshape(*rows.shape[:-1], -1, self.buckets).sum(-2)
        folded[..., : self.p - whole] += rows[..., whole:] * self.signs[whole:]
        return folded


def sketched_kc(sketches: Tensor, others: Tensor) -> Tensor:
    """Scalar kC between sketches: (n, m) from (n, d, k) and (m, d, k)."""
    return sketches.flatten(1) @ others.flatten(1).T / sketches.shape[1]


def _orthonormal(rows: Tensor, most: int) -> Tensor:
    """Orthonormal basis (r, p) of the span of rows (m, p), its strongest directions first, at most `most` of them."""
    product = rows @ rows.T if rows.dtype == torch.float64 else _product64(rows)
    values, vectors = torch.linalg.eigh(product)
    tolerance = _RANK if rows.dtype == torch.float64 else _RANK**0.5
    keep = torch.nonzero(values > tolerance * values[-1])[:, 0].flip(0)[:most]
    basis: Tensor = (vectors[:, keep] / values[keep].sqrt()).T.to(rows.dtype) @ rows
    return basis


def _product64(rows: Tensor, columns: int = 65536) -> Tensor:
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], columns):
        part = rows[:, start : start + columns].double()
        total += part @ part.T
    return total
