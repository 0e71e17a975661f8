"""How far a match can be trusted: does it follow when moving is shifted by a known step?

A matcher that is guessing gives an answer that has nothing to do with the step, and one that falls back to zero does
not follow it at all; one that has recognised the ground follows exactly. Unlike the forward-backward check this needs
no network that takes the modalities the other way round, and it is not fooled by answers of zero in both directions.
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
SMOOTH_PX = 24.0
CONFIDENCE, DIFFERENCE, VALID, RESIDUAL = 0, 1, 2, 3
CHANNELS = 4
# The neighbourhood of the local affine displacement, and of how many pixels one is looked at.
AFFINE_SIGMA_PX, AFFINE_STEP_PX = 48.0, 8
# Set by hand on training-free matches of Sentinel-2 and NAIP pairs under known displacements: smoothing leaves about
# this much of the spread of the matching distribution, of which the confidence is 1 / (1 + variance).
FLOOR_PX, SPREAD_LEFT = 0.1, 0.6


class ConsistentMatcher:
    """Matches every window twice, the second time with moving shifted, and averages the two answers."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def __call__(self, patch: Patch) -> Match:
        """Match one window.

        Its quality: confidence (0..1), difference of the two answers (px), data in both (0 or 1), and distance from the
        local affine displacement (px).
        """
        dx, dy = STEP_PX
        first = self._matcher(patch)
        moving, valid = shift(patch.moving, dx, dy), shift(patch.moving_valid[None], dx, dy)[0]
        second = self._matcher(replace(patch, moving=moving, moving_valid=valid))
        step = np.array([dx, dy], np.float32)[:, None, None]
        both = torch.from_numpy(patch.fixed_valid & patch.moving_valid & valid)[None, None]
        difference = np.square(second.displacement - step - first.displacement).sum(0)
        spread = displacement.smooth(torch.from_numpy(difference)[None, None], SMOOTH_PX, both.float())
        confidence = (first.quality[0] + second.quality[0]) / 2
        known = (patch.fixed_valid & patch.moving_valid).astype(np.float32)
        mean = np.asarray((first.displacement + second.displacement - step) / 2, np.float32)
        apart = local_affine_residual(mean, known * confidence)
        layers = [confidence, spread.clamp_min(0).sqrt()[0, 0].numpy(), known, apart]
        return Match(mean, np.stack(layers).astype(np.float32))


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
    """Expected end-point error in px from the quality (4, ...) of a match: its spread and its inconsistency."""
    spread_px = np.sqrt(1 / np.clip(quality[CONFIDENCE], 1e-6, 1) - 1)
    return np.asarray(FLOOR_PX + SPREAD_LEFT * spread_px + quality[DIFFERENCE], np.float32)
