"""How far a match can be trusted: do two halves of the ground say the same, and does it follow a known step?

A window is matched three times: whole, which is the answer; from the one half of a checkerboard alone; and from the
other half alone with moving shifted by a known step. The halves share no pixel of fixed, so where a match follows noise
or a change of the ground they disagree, by about as much as the whole is wrong; and an answer that falls back to zero
does not follow the step. Unlike the forward-backward check this needs no network that takes the modalities the other
way round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from regnet import displacement
from regnet.registration.windows import Match, Matcher
from regnet.tiles.patch import Patch

Value = TypeVar("Value", bound=np.generic)

# Odd and of unequal length, so that no level of a pyramid sees the same pixels again.
STEP_PX = (5, -3)
# So large that a changed field lies in one half, so small that a rough displacement is still followed.
BLOCK_PX = 64
SMOOTH_PX = 32.0
CONFIDENCE, DIFFERENCE, VALID, RESIDUAL = 0, 1, 2, 3
CHANNELS = 4
# The neighbourhood of the local affine displacement, and of how many pixels one is looked at.
AFFINE_SIGMA_PX, AFFINE_STEP_PX = 48.0, 8
# Mean end-point error on half of the difference: a line through training-free matches of Sentinel-2, NAIP, drone and
# radar pairs under known displacements, of 0.2 to 3.7 px.
FLOOR_PX, ERROR_PER_PX = 0.1, 1.7


class ConsistentMatcher:
    """Matches every window whole and by halves."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def __call__(self, patch: Patch) -> Match:
        """Match one window.

        Its quality: confidence (0..1), half the difference of the two halves' answers (px, root mean square over a
        neighbourhood), data in both (0 or 1), and distance from the local affine displacement (px).
        """
        dx, dy = STEP_PX
        whole = self._matcher(patch)
        board = checkerboard(patch.fixed_valid.shape)
        moving, valid = shift(patch.moving, dx, dy), shift(patch.moving_valid[None], dx, dy)[0]
        one = self._matcher(replace(patch, fixed_valid=patch.fixed_valid & board))
        other = self._matcher(replace(patch, fixed_valid=patch.fixed_valid & ~board, moving=moving, moving_valid=valid))
        step = np.array([dx, dy], np.float32)[:, None, None]
        square = np.square(other.displacement - step - one.displacement).sum(0) / 4
        both = torch.from_numpy(patch.fixed_valid & patch.moving_valid & valid)[None, None]
        difference = displacement.smooth(torch.from_numpy(square)[None, None], SMOOTH_PX, both.float())
        known = (patch.fixed_valid & patch.moving_valid).astype(np.float32)
        confidence = whole.quality[0]
        apart = local_affine_residual(whole.displacement, known * confidence)
        layers = [confidence, difference.clamp_min(0).sqrt()[0, 0].numpy(), known, apart]
        return Match(whole.displacement, np.stack(layers).astype(np.float32))


def checkerboard(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Every other block of a window (H, W)."""
    rows, cols = (np.arange(side) // BLOCK_PX for side in shape)
    return np.asarray((rows[:, None] + cols) % 2 == 0)


def local_affine_residual(field: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far a displacement is from the affine one that fits its neighbourhood best.

    The weighted least squares of every pixel, with a Gaussian neighbourhood, come from a few smoothed moments
    (normalised convolution, Knutsson and Westin 1993), at a low resolution.

    Args:
        field: (2, H, W) px.
        weight: (H, W), non-negative.

    Returns:
        (H, W) px.
    """
    shape = weight.shape
    step = min(AFFINE_STEP_PX, *shape)
    pad = (0, -shape[1] % step, 0, -shape[0] % step)
    share = F.avg_pool2d(F.pad(torch.from_numpy(weight)[None, None].double(), pad), step)
    values = F.pad(torch.from_numpy(field)[None].double() * torch.from_numpy(weight), pad)
    coarse = F.avg_pool2d(values, step) / share.clamp_min(1e-9)
    rows, cols = (torch.arange(side, dtype=torch.float64) * step / AFFINE_SIGMA_PX for side in coarse.shape[-2:])
    basis = torch.stack([torch.ones_like(coarse[0, 0]), *torch.meshgrid(rows, cols, indexing="ij")])
    products = basis[:, None] * torch.cat([basis, coarse[0]])[None]
    moments = displacement.gaussian((products * share[0, 0]).flatten(0, 1)[None], AFFINE_SIGMA_PX / step)
    moments = moments[0].reshape(products.shape).permute(2, 3, 0, 1)
    # A trace of ridge, so that places without neighbours have an answer: their own.
    normal = moments[..., :3] + 1e-6 * torch.eye(3, dtype=torch.float64)
    fitted = torch.einsum("hwkd,khw->dhw", torch.linalg.solve(normal, moments[..., 3:]), basis)
    apart = (fitted - coarse[0]).square().sum(0).sqrt() * (share[0, 0] > 1e-6)
    fine = F.interpolate(apart[None, None], scale_factor=step, mode="bilinear", align_corners=False)[0, 0]
    return np.asarray(fine[: shape[0], : shape[1]].numpy(), np.float32)


def shift(image: NDArray[Value], dx: int, dy: int) -> NDArray[Value]:
    """Move the content of (C, H, W) to the right by dx and down by dy; zero (or false) comes in.

    If moving fits fixed at the displacement d, moving shifted by (dx, dy) fits it at d + (dx, dy).
    """
    height, width = image.shape[1:]
    result = np.zeros_like(image)
    rows, cols = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
    result[:, rows, cols] = image[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
    return result


def expected_error(quality: NDArray[np.float32]) -> NDArray[np.float32]:
    """Expected end-point error in px from the quality (4, ...) of a match: what its halves' difference stands for."""
    return np.asarray(FLOOR_PX + ERROR_PER_PX * quality[DIFFERENCE], np.float32)
