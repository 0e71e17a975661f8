"""What is made of moving images that are much coarser than the working grid.

Resampled to it they are blurred: neighbouring pixels say the same, which a matcher takes for so many witnesses. So it
is shown both images at about the resolution that moving has.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from regnet.displacement import pooled
from regnet.registration.windows import Match, Matcher
from regnet.tiles.patch import Patch

WELL_SAMPLED_PX = 3.0
"""So many px across one of moving's pixels are enough: with bands of the sample scene made 5, 8 and 10 times coarser,
2.5 to 3 gave the smallest errors."""
UNSEEN_SHARE = 0.08
"""Share of one of moving's pixels that matches are off by, whatever the images seem to say (median, same images)."""


def unseen_px(detail_px: float) -> float:
    """Error that comes of moving's own pixels beyond what a fine image has, px of the working grid."""
    return UNSEEN_SHARE * math.sqrt(max(detail_px**2 - 1, 0))


def at_detail(matcher: Matcher, detail_px: float) -> Matcher:
    """A matcher that is shown windows at about moving's own resolution.

    Args:
        matcher: of windows, with one channel of quality.
        detail_px: side of one of moving's pixels, px of the working grid.
    """
    ratio = int(detail_px / WELL_SAMPLED_PX + 0.5)
    return matcher if ratio < 2 else lambda patch: _coarsely(matcher, patch, ratio)


def _coarsely(matcher: Matcher, patch: Patch, ratio: int) -> Match:
    shape = patch.fixed_valid.shape
    pad = [(0, -side % ratio) for side in shape]
    fixed, fixed_valid = _reduced(patch.fixed, patch.fixed_valid, pad, ratio)
    moving, moving_valid = _reduced(patch.moving, patch.moving_valid, pad, ratio)
    match = matcher(Patch(fixed, moving, fixed_valid, moving_valid, structure=fixed_valid))
    layers = torch.from_numpy(np.concatenate((ratio * match.displacement, match.quality)))[None]
    fine = F.interpolate(layers, scale_factor=ratio, mode="bilinear", align_corners=False)[0]
    cut = fine[:, : shape[0], : shape[1]].numpy()
    return Match(cut[:2], cut[2:])


def _reduced(
    image: NDArray[np.float32], valid: NDArray[np.bool_], pad: list[tuple[int, int]], ratio: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Means of the valid pixels of squares, valid where half of a square is."""
    weight = torch.from_numpy(np.pad(valid, pad).astype(np.float32))[None, None]
    means, share = pooled(torch.from_numpy(np.pad(image, ((0, 0), *pad)))[None], weight, ratio)
    known = share[0, 0].numpy() >= 0.5
    return means[0].numpy(), known
