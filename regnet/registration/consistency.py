"""How far a match can be trusted: does it come out again at half the resolution, with moving shifted by a known step?

A matcher that is guessing gives an answer that has nothing to do with the step, and one that falls back to zero does
not follow it at all; one that has recognised the ground follows, at any scale. Unlike the forward-backward check this
needs no network that takes the modalities the other way round, it is not fooled by answers of zero in both directions,
and it costs a quarter of a match.
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
CONFIDENCE, DIFFERENCE, VALID = 0, 1, 2
CHANNELS = 3
# Fitted by least squares to training-free matches of Sentinel-2, NAIP and building pairs under smooth displacements.
# The spread of the matching distribution is told by the confidence, 1 / (1 + variance).
FLOOR_PX, SPREAD_SHARE, DIFFERENCE_SHARE = 0.1, 0.45, 0.45


class ConsistentMatcher:
    """Matches every window, and again coarsely with moving shifted, to see whether both agree."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def __call__(self, patch: Patch) -> Match:
        """Match one window of even size; quality: confidence (0..1), difference (px), data in both (0 or 1)."""
        match = self._matcher(patch)
        dx, dy = STEP_PX
        moving, valid = shift(patch.moving, dx, dy), shift(patch.moving_valid[None], dx, dy)[0]
        again = self._matcher(halved(replace(patch, moving=moving, moving_valid=valid))).displacement
        step = np.array([dx, dy], np.float32)[:, None, None]
        again = 2 * F.interpolate(torch.from_numpy(again)[None], scale_factor=2, mode="bilinear")[0].numpy() - step
        square = torch.from_numpy(np.square(again - match.displacement).sum(0))[None, None]
        compared = torch.from_numpy(patch.fixed_valid & patch.moving_valid & valid)[None, None]
        difference = displacement.smooth(square, SMOOTH_PX, compared.float()).clamp_min(0).sqrt()[0, 0].numpy()
        known = patch.fixed_valid & patch.moving_valid
        return Match(match.displacement, np.stack([match.quality[0], difference, known]).astype(np.float32))


def halved(patch: Patch) -> Patch:
    """The patch at half its resolution: means of the valid ones of 2 x 2 pixels, valid where most of them are."""
    fixed, fixed_valid = _halved(patch.fixed, patch.fixed_valid)
    moving, moving_valid = _halved(patch.moving, patch.moving_valid)
    return Patch(fixed, moving, fixed_valid, moving_valid, patch.structure[::2, ::2])


def _halved(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    share = F.avg_pool2d(torch.from_numpy(valid.astype(np.float32))[None], 2)
    mean = F.avg_pool2d(torch.from_numpy(image * valid)[None], 2)[0] / share.clamp_min(0.25)
    return mean.numpy(), share[0].numpy() > 0.5


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
    """Expected end-point error in px from the quality (3, ...) of a match: its spread and its inconsistency."""
    spread_px = np.sqrt(1 / np.clip(quality[CONFIDENCE], 1e-6, 1) - 1)
    return np.asarray(FLOOR_PX + SPREAD_SHARE * spread_px + DIFFERENCE_SHARE * quality[DIFFERENCE], np.float32)
