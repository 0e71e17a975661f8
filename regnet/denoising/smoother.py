"""The linearised network as a smoother of its labels: `prediction = S label` near the solution.

With ridge lambda (weight decay, early stopping) `S = K (K + lambda I)^-1`; after a time t of gradient flow
`S = I - exp(-K t)`. Both share K's eigenvectors, so that everything is a sum over the spectrum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from regnet.denoising.operators import Array, DenseKernel, Operator

KINDS = ("ridge", "flow")
_LEAST_FREE = 0.02  # share of the labels' freedom that a smoother must leave to be judged by its residuals
_STEPS = np.logspace(-9, 2, 111)  # candidates of lambda, or of 1 / t, relative to the largest eigenvalue
STRONGEST = float(_STEPS[-1])


class Smoother(ABC):
    """A linear map S from the labels of n tiles with d outputs to the network's predictions.

    Attributes:
        n: number of tiles.
        d: outputs a tile.
        strength: what was chosen without the truth; each kind says what it means.
    """

    n: int
    d: int
    strength: float

    @abstractmethod
    def apply(self, values: Array) -> Array:
        """S v, (n, d)."""

    @abstractmethod
    def weights(self) -> Array:
        """S whole, (n, d, n, d)."""

    @abstractmethod
    def blocks(self) -> Array:
        """S_ii, (n, d, d): how much a tile's own label moves its prediction."""

    @abstractmethod
    def noise_blocks(self, correlation: Array | None = None) -> Array:
        """(S C S^T)_ii, (n, d, d): covariance of the noise left in the predictions, for label noise of unit size.

        Args:
            correlation: (n, n) of the noise between tiles, the identity if None.
        """

    def factor(self, correlation: Array | None = None) -> Array:
        """Share of the label noise (standard deviation) left in every prediction, (n,)."""
        blocks = self.noise_blocks(correlation)
        result: Array = np.sqrt(np.maximum(np.trace(blocks, axis1=1, axis2=2), 0) / self.d)
        return result

    @property
    def effective_parameters(self) -> float:
        """Tr S."""
        return float(np.trace(self.blocks(), axis1=1, axis2=2).sum())

    def residual_freedom(self, correlation: Array | None = None) -> float:
        """Tr((I - S) C (I - S)^T): the expected squared residual of pure noise of unit size."""
        return float(np.trace(self.residual_blocks(correlation), axis1=1, axis2=2).sum())

    def residual_blocks(self, correlation: Array | None = None) -> Array:
        """((I - S) C (I - S)^T)_ii, (n, d, d): covariance of the residuals of pure noise of unit size.

        Args:
            correlation: as for `noise_blocks`.
        """
        crossed, size = self.blocks(), np.ones(self.n)
        if correlation is not None:
            crossed = np.einsum("iajb,ji->iab", self.weights(), correlation, optimize=True)
            size = np.diag(correlation)
        own: Array = size[:, None, None] * np.eye(self.d)
        return own - crossed - crossed.transpose(0, 2, 1) + self.noise_blocks(correlation)


@dataclass(frozen=True)
class SpectralSmoother(Smoother):
    """S that shares its eigenvectors with one kernel.

    Attributes:
        vectors: (n, d, r) eigenvectors of K.
        shares: (r,) eigenvalues of S, in 0..1; 0 for what is orthogonal to the vectors.
        strength: lambda (ridge) or 1 / t (flow), relative to the largest eigenvalue of K.
    """

    vectors: Array
    shares: Array
    strength: float

    def __post_init__(self) -> None:
        """Note the sizes."""
        object.__setattr__(self, "n", self.vectors.shape[0])
        object.__setattr__(self, "d", self.vectors.shape[1])

    def apply(self, values: Array) -> Array:
        """Through the spectrum."""
        inner = np.einsum("iar,ia->r", self.vectors, values)
        result: Array = self.vectors @ (self.shares * inner)
        return result

    def weights(self) -> Array:
        """Through the spectrum."""
        side = self.n * self.d
        flat = self.vectors.reshape(side, -1)
        result: Array = ((flat * self.shares) @ flat.T).reshape(self.n, self.d, self.n, self.d)
        return result

    def blocks(self) -> Array:
        """Through the spectrum."""
        result: Array = (self.vectors * self.shares) @ self.vectors.transpose(0, 2, 1)
        return result

    def noise_blocks(self, correlation: Array | None = None) -> Array:
        """Through the spectrum."""
        weighted = self.vectors * self.shares
        if correlation is None:
            plain: Array = weighted @ weighted.transpose(0, 2, 1)
            return plain
        mixed = np.tensordot(correlation, self.vectors, 1)
        inner = np.einsum("iar,ias->rs", self.vectors, mixed, optimize=True)
        result: Array = weighted @ inner @ weighted.transpose(0, 2, 1)
        return result


@dataclass(frozen=True)
class DenseSmoother(Smoother):
    """S held whole; it need not be symmetric.

    Attributes:
        matrix: (n d, n d).
        d: outputs a tile.
        strength: factor on the time of training (1: the learning rates as they were).
    """

    matrix: Array
    d: int
    strength: float

    def __post_init__(self) -> None:
        """Note the size."""
        object.__setattr__(self, "n", len(self.matrix) // self.d)

    def apply(self, values: Array) -> Array:
        """Multiply by S."""
        return (self.matrix @ values.reshape(-1)).reshape(self.n, self.d)

    def weights(self) -> Array:
        """As they are held."""
        return self.matrix.reshape(self.n, self.d, self.n, self.d)

    def blocks(self) -> Array:
        """Diagonal blocks."""
        places = np.arange(self.n)
        return self.weights()[places, :, places]

    def noise_blocks(self, correlation: Array | None = None) -> Array:
        """Diagonal blocks of the product."""
        return DenseKernel(self.weights()).squared(correlation)


def smoother(kernel: Operator, strength: float, kind: str = "ridge") -> Smoother:
    """Make S for one strength (see `SpectralSmoother.strength`)."""
    values, vectors = kernel.spectrum
    return SpectralSmoother(vectors.reshape(kernel.n, kernel.d, -1), _shares(values, strength, kind), strength)


def choose_smoother(
    kernel: Operator, labels: Array, predictions: Array, kind: str = "ridge", rule: str = "residuals"
) -> Smoother:
    """Find how strongly the network smooths, without the truth.

    Args:
        kernel: K among n tiles.
        labels: (n, d) px, less what the network predicted before training if that is known.
        predictions: (n, d) px, less the same.
        kind: ridge or flow.
        rule: `residuals` takes the S whose S label is closest to the predictions; `likelihood` maximises the marginal
            likelihood of the labels; `gcv` minimises the generalised cross-validation of the labels.

    Returns:
        The best of 111 strengths from 1e-9 to 100.
    """
    values, vectors = kernel.spectrum
    y, seen = labels.reshape(-1), predictions.reshape(-1)
    z, w = vectors.T @ y, vectors.T @ seen
    outside = float(y @ y - z @ z)
    return _best(kernel, kind, lambda strength: _score(rule, kind, values, z, w, max(outside, 0.0), y.size, strength))


def closest_smoother(kernel: Operator, noise: Array, changes: Array, kind: str = "ridge") -> Smoother:
    """Find how strongly the network smooths from what noise on the labels did to its predictions.

    Args:
        kernel: K among n tiles.
        noise: (k, n, d) px, draws of noise.
        changes: (k, n, d) px, what each of them changed.
        kind: ridge or flow.

    Returns:
        The one of the strengths of `choose_smoother` whose S noise is closest to the changes.
    """
    values, vectors = kernel.spectrum
    z, w = (drawn.reshape(len(drawn), -1) @ vectors for drawn in (noise, changes))
    return _best(kernel, kind, lambda strength: float(((_shares(values, strength, kind) * z - w) ** 2).sum()))


def _best(kernel: Operator, kind: str, score: Callable[[float], float]) -> Smoother:
    """S for the strength of least score."""
    scores = [score(strength) for strength in _STEPS]
    return smoother(kernel, float(_STEPS[int(np.argmin(scores))]), kind)


def leave_one_out(found: Smoother, labels: Array, predictions: Array) -> Array:
    """Residual of every label against what the network would predict had it not seen it, (n, d) px.

    Closed form `(I - S_ii)^-1 (label_i - prediction_i)`.
    """
    return np.linalg.solve(_own_rest(found), (labels - predictions)[..., None])[..., 0]


def leave_one_out_covariance(found: Smoother, correlation: Array | None = None) -> Array:
    """Covariance of the leave-one-out residuals for label noise of unit size, (n, d, d)."""
    inverse = np.linalg.inv(_own_rest(found))
    return inverse @ found.residual_blocks(correlation) @ inverse.transpose(0, 2, 1)


def estimate_noise(found: Smoother, labels: Array, predictions: Array, correlation: Array | None = None) -> float:
    """Size of the label noise a component from the residuals, px: `|label - prediction|^2 / Tr((I - S) C (I - S)^T)`.

    NaN where the smoother all but repeats the labels: then the residuals say nothing of the noise.
    """
    free = found.residual_freedom(correlation)
    if free < _LEAST_FREE**2 * labels.size:
        return float("nan")
    return float(np.sqrt(((labels - predictions) ** 2).sum() / free))


def _own_rest(found: Smoother) -> Array:
    own = found.blocks()
    rest: Array = np.eye(found.d) - (own + own.transpose(0, 2, 1)) / 2
    values, vectors = np.linalg.eigh(rest)
    result: Array = (vectors * np.maximum(values, 1e-6)[:, None]) @ vectors.transpose(0, 2, 1)
    return result


def _shares(values: Array, strength: float, kind: str) -> Array:
    largest = float(values.max(initial=0.0)) or 1.0
    relative = values / (largest * strength)
    return relative / (relative + 1) if kind == "ridge" else -np.expm1(-relative)


def _score(
    rule: str, kind: str, values: Array, z: Array, w: Array, outside: float, size: int, strength: float
) -> float:
    shares = _shares(values, strength, kind)
    if rule == "residuals":
        return float(((shares * z - w) ** 2).sum())
    free = size - float(shares.sum())
    if free < _LEAST_FREE * size:
        return float("inf")  # it all but repeats the labels: nothing is left to judge by
    rest = float((((1 - shares) * z) ** 2).sum() + outside)
    if rule == "gcv":
        return rest / free**2
    # labels ~ N(0, tau^2 (I - S)^-1) up to scale: for the ridge this is K / lambda + I
    remaining = np.maximum(1 - shares, 1e-12)
    quadratic = float((remaining * z**2).sum() + outside)
    return float(size * np.log(max(quadratic, 1e-300)) - np.log(remaining).sum())
