"""A matcher that is judged: what it says of a window, how wrong that may be, and by how much the window is off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regnet import displacement
from regnet.registration.agreement import agreement
from regnet.registration.calibration import expected_error, features, finer
from regnet.registration.common_shift import NO_SHIFT, CommonShift, clear_share
from regnet.registration.windows import Match, Matcher
from regnet.tiles.patch import Patch

Values = NDArray[np.float32]

CONFIDENCE, ERROR, VALID, RESIDUAL, MISALIGNMENT, DOUBT, BACKWARD = range(7)
"""Channels of a judged match's quality.

The matcher's own confidence (0..1); the expected error (px); data in both images (0 or 1); the distance from the local
affine displacement (px); over a neighbourhood, the root mean squares of the displacement found and of its expected
error (px); and the difference between the ways forward and backward (px; 0 if there is no way back)."""
CHANNELS = 7
NEIGHBOURHOOD_PX = 128.0
"""Gaussian neighbourhood over which a displacement is weighed against its error."""
CLEAR_RATIO = (1.25, 2.0)
"""Nothing of a displacement is taken below the first multiple of its error, all of it above the second."""
FADE = 0.2
"""Towards the greatest error that is taken, the displacement fades over this share of it."""
AFFINE_SIGMA_PX, AFFINE_STEP_PX = 48.0, 8
"""The neighbourhood of the local affine displacement, and of how many pixels one is looked at."""


class JudgedMatcher:
    """Matches windows and judges what comes of it, whatever the matcher is: network, training-free or another's.

    Args:
        matcher: of windows.
        common: the shift of the whole pair; what of it is not believed is taken off, and not judged.
        trained: whether the matcher is a trained network.
        unseen_px: error that is there whatever the images seem to say.
        backward: the way back, if there is one: tells of a window and its displacement (2, H, W) how far from where it
            brings them the places of moving fit fixed, (H, W) px.
    """

    def __init__(
        self,
        matcher: Matcher,
        common: CommonShift = NO_SHIFT,
        trained: bool = False,
        backward: Callable[[Patch, Values], Values] | None = None,
        unseen_px: float = 0.0,
    ) -> None:
        self._matcher, self._common, self._trained, self._backward = matcher, common, trained, backward
        self._unseen_px = unseen_px

    @torch.inference_mode()
    def __call__(self, patch: Patch) -> Match:
        """Match one window; its quality has the channels named above."""
        match = self._matcher(patch)
        taken = self._common.without_doubtful(match.displacement)
        # What lies in a gap of moving may be shown by the place that the displacement points to.
        there = displacement.warp_valid(torch.from_numpy(patch.moving_valid)[None, None], torch.from_numpy(taken)[None])
        known = patch.fixed_valid & (patch.moving_valid | there[0, 0].numpy())
        found, weight = torch.from_numpy(match.displacement), torch.from_numpy(known)
        told = features(agreement(patch, found), found, weight, self._trained)
        error = torch.hypot(expected_error(told, known.shape), torch.tensor(self._unseen_px))
        apart = local_affine_residual(taken, known * match.quality[0])
        around = neighbourhood(torch.from_numpy(taken), error, weight.float(), NEIGHBOURHOOD_PX)
        back = self._backward(patch, match.displacement) if self._backward else np.zeros_like(apart)
        layers = [match.quality[0], error.numpy(), known, apart, *around.numpy(), back]
        return Match(taken, np.stack(layers).astype(np.float32))


def neighbourhood(found: Tensor, error: Tensor, weight: Tensor, sigma_px: float) -> Tensor:
    """Root mean squares (2, H, W) of a displacement (2, H, W) and of its error (H, W) over a weighted Gaussian."""
    squares = torch.stack((found.square().sum(0), error.square()))
    return displacement.smooth(squares[None], sigma_px, weight[None, None])[0].clamp_min(0).sqrt()


def taken_share(misalignment: Values, doubt: Values, max_error_px: float) -> Values:
    """How much of a displacement is taken, 0 to 1.

    Nothing where it is not clearly longer than its expected error or where that is too large, all of it where it is
    longer by far, and a growing share between the two, so that the field has no steps.

    Args:
        misalignment: rms of the displacement found around a place, px.
        doubt: rms of its expected error there, px.
        max_error_px: greatest error at which anything is taken.
    """
    worth = clear_share(misalignment, doubt, CLEAR_RATIO)
    bearable = np.clip((max_error_px - doubt) / (FADE * max_error_px), 0, 1)
    return np.asarray(worth * bearable, np.float32)


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
    return np.asarray(finer(apart, step, (shape[0], shape[1])).numpy(), np.float32)
