"""A pair's own test of its expected error: windows are displaced by a known field and matched again.

Whatever the pair, the second answer should be the first one carried along by what is known. By how much it is not is an
error that was made for sure, so it can be held against the error that was stated. It sees noise, ground without
structure and displacements that are too rough to be followed; it does not see what both answers have wrong alike, such
as a shift between what two sensors show of the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from regnet.displacement import compose, random_field
from regnet.registration.ahead import worked
from regnet.registration.calibration import BOUND_90
from regnet.registration.judgement import ERROR, VALID, Values
from regnet.registration.options import WindowOptions
from regnet.registration.windows import Matcher, Reader, corners
from regnet.tiles.patch import Patch, displaced

PEAK_PX, SIGMA_PX = 4.0, 60.0
"""The field that is added: smooth, and no larger than what a pair in need of registration is off by."""
SPACING_PX = 16
"""Distance of the places that are compared."""
LEAST_VALID = 0.5
"""Windows with a smaller share of data than this are not tested."""


@dataclass(frozen=True)
class Check:
    """Errors as stated and as made, (n,) each, px, at places of windows that were displaced by a known field."""

    stated_px: Values
    made_px: Values
    windows: int

    def summary(self) -> dict[str, float]:
        """How many windows, and which share of the errors is within the bounds of 50 % and 90 %."""
        median, most = (float((self.made_px <= factor * self.stated_px).mean()) for factor in (1, BOUND_90))
        return {"windows": self.windows, "within_50": median, "within_90": most}


def check_errors(
    matcher: Matcher, read: Reader, shape: tuple[int, int], options: WindowOptions, count: int, at_once: int = 1
) -> Check | None:
    """Displace and match windows that lie evenly over a pair.

    Args:
        matcher: a judged one.
        read: `read(row, col, height, width)`.
        shape: (H, W) of the pair, px.
        options: size and overlap of the windows.
        count: how many windows.
        at_once: how many of them at the same time.

    Returns:
        What was found; None if none of the windows has enough data.
    """
    places, (height, width) = corners(shape, options)
    chosen = np.unique(np.linspace(0, len(places) - 1, count + 2)[1:-1].round().astype(int)).tolist()
    border = min(options.overlap_px, height // 2, width // 2) // 4
    at = np.s_[border : height - border or None : SPACING_PX, border : width - border or None : SPACING_PX]

    def seen(place: int) -> tuple[int, Patch]:
        return place, read(*places[place], height, width)

    def errors(window: tuple[int, Patch]) -> tuple[Values, Values] | None:
        place, patch = window
        if (patch.fixed_valid & patch.moving_valid).mean() < LEAST_VALID:
            return None
        added = random_field((height, width), PEAK_PX, SIGMA_PX, np.random.default_rng(place))
        first, second = matcher(patch), matcher(displaced(patch, added))
        wanted = compose(torch.from_numpy(added)[None], torch.from_numpy(first.displacement)[None])[0].numpy()
        known = second.quality[VALID][at] > 0.5
        return second.quality[ERROR][at][known], np.hypot(*(second.displacement - wanted))[at][known]

    reads = [partial(seen, place) for place in chosen]
    told = [pair for pair in worked(reads, errors, at_once, apart=True) if pair is not None]
    if not sum(len(stated) for stated, _ in told):
        return None
    stated, made = (np.concatenate(parts) for parts in zip(*told, strict=True))
    return Check(stated, made, len(told))
