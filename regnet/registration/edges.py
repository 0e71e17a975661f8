"""Edges of a pair, and how well they fit at every shift.

Edges lie in the same places in every modality, and their direction up to a half turn is the same too. So each image
becomes a complex number a pixel, edge strength times exp(2 i direction) (the normalised gradient field of Haber and
Modersitzki 2006), and how well two of them fit at every shift is one product of Fourier transforms.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from regnet.displacement import pooled
from regnet.models.descriptors import orientation
from regnet.tiles.patch import Patch

MAX_SHIFT = 0.3
"""Greatest shift that is sought, as a share of the pair's longer side."""
SIGMA_PX = 1.0
"""Gaussian window before the gradient."""
USUAL, MOST_SORTED = 0.75, 1_000_000
"""Edges count by their strength relative to the image's mean, in which none counts for more than this quantile of it:
a few clouds are brighter than all ground, and move. The quantile is of at most so many pixels."""
BORDER_PX = 3
"""Next to invalid pixels the gradient is not that of the ground."""

Matrix = NDArray[np.float64]
"""(2, 3): from column and row of fixed to those of moving, whole numbers at the corners of pixels."""


class Edges(NamedTuple):
    """Edges of an image: (..., H, W) complex, and (..., H, W) where they are known, 0 or 1."""

    field: Tensor
    known: Tensor


class Level:
    """A pair at one resolution, reduced by means of the valid pixels of `ratio` x `ratio`."""

    def __init__(self, patch: Patch, ratio: int) -> None:
        self.ratio = ratio
        fixed, fixed_valid = _reduced(patch.fixed, patch.fixed_valid, ratio)
        self._moving, self._moving_valid = _reduced(patch.moving, patch.moving_valid, ratio)
        self.fixed = _edges(fixed, fixed_valid)
        self.height, self.width = int(fixed.shape[-2]), int(fixed.shape[-1])
        self.reach = int(MAX_SHIFT * max(self.height, self.width))
        self.size = (next_fast_len(self.height + self.reach), next_fast_len(self.width + self.reach))

    @cached_property
    def spectra(self) -> tuple[Tensor, Tensor, Tensor]:
        """Transforms of fixed's edges, with room for every shift that is sought."""
        return spectra(self.fixed, self.size)

    def pulled(self, matrix: Matrix) -> Edges:
        """Edges of moving pulled by a similarity in pixels of this level."""
        rows, cols = torch.meshgrid(torch.arange(self.height) + 0.5, torch.arange(self.width) + 0.5, indexing="ij")
        (a, b, c), (d, e, f) = matrix.tolist()
        places = torch.stack(((a * cols + b * rows + c) / self.width, (d * cols + e * rows + f) / self.height), -1)
        both = torch.cat((self._moving, self._moving_valid), 1)
        sampled = F.grid_sample(both, (2 * places - 1)[None], padding_mode="zeros", align_corners=False)
        return _edges(sampled[:, :-1], (sampled[:, -1:] > 0.99).float())


def spectra(edges: Edges, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Fourier transforms of (..., h, w) edges, of where they are known, and of their energy."""
    field, energy = edges.field, edges.field.abs().square()
    return torch.fft.fft2(field, size), torch.fft.rfft2(edges.known, size), torch.fft.rfft2(energy, size)


def scores(
    fixed: tuple[Tensor, Tensor, Tensor], moving: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Fit at every shift of moving, from spectra, and over how many pixels; shifts as in `fftfreq` of `size`."""
    (field, known, energy), (their_field, their_known, their_energy) = fixed, moving
    match = torch.fft.ifft2(field.conj() * their_field).real
    pairs = ((known, their_known), (energy, their_known), (known, their_energy))
    area, one, other = (torch.fft.irfft2(a.conj() * b, size) for a, b in pairs)
    return match / (one.clamp_min(1e-2) * other.clamp_min(1e-2)).sqrt(), area


def _edges(image: Tensor, valid: Tensor) -> Edges:
    """Edges of (1, C, H, W) where a border around what is invalid is left out, less their mean."""
    known = -F.max_pool2d(-F.pad(valid, (BORDER_PX,) * 4), 2 * BORDER_PX + 1, 1)
    turned, energy = orientation(image, SIGMA_PX)
    usual = energy[known > 0]
    if usual.numel():
        usual = usual.clamp_max(torch.quantile(usual[:: -(-usual.numel() // MOST_SORTED)], USUAL))
    gradient = turned / (energy + usual.mean().clamp_min(1e-12).nan_to_num(1.0))
    mean = (gradient * known).sum((2, 3), keepdim=True) / known.sum().clamp_min(1)
    gradient = (gradient - mean) * known
    return Edges(torch.complex(gradient[0, 0], gradient[0, 1]), known[0, 0])


def _reduced(image: NDArray[np.float32], valid: NDArray[np.bool_], ratio: int) -> tuple[Tensor, Tensor]:
    """(C, H, W) and (H, W) to (1, C, h, w) and (1, 1, h, w); invalid pixels are 0, which is the image's median."""
    weight = torch.from_numpy(valid.astype(np.float32))[None, None]
    values = torch.from_numpy(image)[None] * weight
    if ratio > 1:
        values, share = pooled(values, weight, ratio)
        weight = (share > 0.99).float()
    return values, weight
