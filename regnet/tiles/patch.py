"""What is read of a pair: a patch of both images with their validity, and a patch with labels, which is a tile."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from regnet import displacement

MENDED_SIGMA_PX, MENDED_SHARE = 1.0, 0.55
"""A pixel without a value is mended where so much of a Gaussian around it has one: less has beside a border."""


@dataclass(frozen=True)
class Patch:
    """A window of a pair on the working grid; beyond the scene the values are 0 and invalid.

    Attributes:
        fixed: (Cf, H, W), each band as (x - median) / (98th - 2nd percentile) of the scene, clipped to -3 to 3.
        moving: (Cm, H, W), likewise; channels of a vector layer stay coverage, 0 to 1.
        fixed_valid: (H, W).
        moving_valid: (H, W).
        structure: (H, W), where the fixed image has something to register by.
    """

    fixed: NDArray[np.float32]
    moving: NDArray[np.float32]
    fixed_valid: NDArray[np.bool_]
    moving_valid: NDArray[np.bool_]
    structure: NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Memory that its arrays take."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))


@dataclass(frozen=True)
class Tile(Patch):
    """A patch with its labels.

    Attributes:
        label_offset: (2, S, S) px, the displacement at which the label says that moving fits fixed.
        true_offset: (2, S, S) px, the displacement at which it does; None where nobody knows.
        pair: name of the pair that it is of.
    """

    label_offset: NDArray[np.float32]
    true_offset: NDArray[np.float32] | None
    pair: str = ""


def displaced(patch: Patch, true: NDArray[np.float32]) -> Patch:
    """Displace a patch's moving image so that `true` (2, H, W) px is what brings it back onto fixed."""
    pull = displacement.invert(torch.from_numpy(true)[None])
    moving = torch.from_numpy(patch.moving)[None]
    warped = displacement.warp(moving, pull, "bicubic")
    low, high = moving.amin((-2, -1), keepdim=True), moving.amax((-2, -1), keepdim=True)
    valid = displacement.warp_valid(torch.from_numpy(patch.moving_valid)[None, None], pull)
    # Bicubic interpolation overshoots at edges: a coverage of 0 to 1 stays one.
    warped = torch.minimum(torch.maximum(warped, low), high) * valid
    return replace(patch, moving=warped[0].numpy(), moving_valid=valid[0, 0].numpy())


def mended(patch: Patch) -> Patch:
    """A patch whose smallest gaps, single pixels and thin lines, are closed by what lies around them.

    Descriptors see some pixels around each, so that one in ten without a value would leave next to nothing to match.
    """
    fixed, fixed_valid = _mended(patch.fixed, patch.fixed_valid)
    moving, moving_valid = _mended(patch.moving, patch.moving_valid)
    return replace(patch, fixed=fixed, moving=moving, fixed_valid=fixed_valid, moving_valid=moving_valid)


def _mended(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    if valid.all() or not valid.any():
        return image, valid
    weight = torch.from_numpy(valid.astype(np.float32))[None, None]
    share = displacement.gaussian(weight, MENDED_SIGMA_PX)[0, 0].numpy()
    gap = ~valid & (share > MENDED_SHARE)
    if not gap.any():
        return image, valid
    around = displacement.smooth(torch.from_numpy(image)[None], MENDED_SIGMA_PX, weight)[0].numpy()
    return np.where(gap, around, image), valid | gap
