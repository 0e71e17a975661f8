"""What is made of images that show less detail than the working grid has pixels.

Coarse ones that were resampled to it, by us or by whoever made the file, and blurred ones: neighbouring pixels say the
same, which a matcher takes for so many witnesses. So it is shown both images at about the resolution that they have.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from regnet.displacement import pooled, smooth
from regnet.registration.options import WindowOptions
from regnet.registration.windows import Match, Matcher, corners
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch

WELL_SAMPLED_PX = 3.0
"""So many px across one of moving's pixels are enough: with bands of the sample scene made 5, 8 and 10 times coarser,
2.5 to 3 gave the smallest errors."""
UNSEEN_SHARE = 0.08
"""Share of one of moving's pixels that matches are off by, whatever the images seem to say (median, same images)."""
OCTAVES_PX = (1.4, 2.8, 5.6)
"""Gaussians between which lie two neighbouring octaves of detail."""
BLURRED, DETAIL_OF_SHARE, CLEARLY = 0.36, 1.6, 1.5
"""An image is blurred where the finer octave has less than this share of the coarser one's power. The second, divided
by the share, is about the side of the pixels that it was resampled from: of aerial and satellite images the share is
0.5 to 2, of the same in 3, 5 and 8 times as large pixels, resampled by cubic and linear interpolation, 0.4 to 0.6, 0.26
to 0.38 and 0.18 to 0.21. It is taken where it is so many times as large as moving's own pixels."""
LOOKED_AT, LOOKED_AT_PX = 4, 512
"""Windows of a pair by whose power it is told, and their longest side."""


def seen_detail_px(reader: PairReader) -> float:
    """Side of the pixels that a pair's images might be resampled from without losing what they show, px.

    Of moving's own pixels where they are large, more where either image is blurred; at least 1.
    """
    if reader.polygons is not None:
        return reader.detail_px
    places, (height, width) = corners(reader.shape, WindowOptions(LOOKED_AT_PX, 0))
    powers = np.zeros((2, 2))
    for place in np.unique(np.linspace(0, len(places) - 1, LOOKED_AT).round().astype(int)):
        row, col = places[place]
        patch = reader.read_images(row, col, height, width)
        powers += [_octaves(patch.fixed, patch.fixed_valid), _octaves(patch.moving, patch.moving_valid)]
    blurred = [fine / coarse for fine, coarse in powers.tolist() if 0 < fine < BLURRED * coarse]
    side_px = DETAIL_OF_SHARE / min(blurred, default=DETAIL_OF_SHARE)
    return side_px if side_px > CLEARLY * reader.detail_px else reader.detail_px


def _octaves(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> list[float]:
    """Power of the finer and of the coarser octave of an image (C, H, W) where it is valid."""
    weight = torch.from_numpy(valid.astype(np.float32))[None, None]
    levels = [smooth(torch.from_numpy(image)[None], sigma_px, weight) for sigma_px in OCTAVES_PX]
    return [float(((one - other).square() * weight).sum()) for one, other in pairwise(levels)]


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
