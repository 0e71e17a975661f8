"""The shift that a whole pair has in common, and how much of it is believed.

Two sensors show the same thing beside each other: radar leans towards the sensor, one product's grid is laid otherwise
than another's. In pairs that are known to be in place a matcher then finds a shift all the same, as long as several
pixels, whose size and direction nothing in the pair itself tells. So a shift of the whole pair counts only if it is
clearly longer than those; what varies within the pair is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from regnet.registration.agreement import mean_fit
from regnet.registration.ahead import worked
from regnet.registration.calibration import shift_doubt_px
from regnet.registration.options import WindowOptions
from regnet.registration.windows import Match, Matcher, Reader, corners
from regnet.tiles.patch import Patch

Lengths = NDArray[np.floating] | float

MOST_WINDOWS, FEW_WINDOWS, SURE_PX = 12, 3, 0.5
"""Windows that are looked at, and how many are enough where the doubt is less than this."""
EVERY = np.s_[:, ::8, ::8]
LEAST_VALID = 0.25
"""Windows with a smaller share of data than this are passed over."""
CLEAR_SHIFT = (2.0, 3.0)
"""Nothing of a common shift is believed below the first multiple of its doubt, all of it above the second."""


@dataclass(frozen=True)
class CommonShift:
    """The mean displacement of a pair.

    Attributes:
        found_px: dx, dy.
        doubt_px: length of the shift that a matcher finds, root mean square, in pairs that are in place.
        trusted: whether the user says that the pair has the shift, however long the doubt is.
    """

    found_px: tuple[float, float] = (0.0, 0.0)
    doubt_px: float = 0.0
    trusted: bool = False

    @property
    def taken(self) -> float:
        """The share that is believed, 0 to 1."""
        return 1.0 if self.trusted else float(clear_share(np.hypot(*self.found_px), self.doubt_px, CLEAR_SHIFT))

    @property
    def left_px(self) -> float:
        """Length of what the pair may be off by beside what is taken, root mean square.

        As much of what was found may be the pair's as what such images show in place: with normal priors of one width,
        half of it is expected to be the pair's, with half of the doubt's variance.
        """
        return math.hypot((1 - self.taken) * math.hypot(*self.found_px) / 2, self.doubt_px / math.sqrt(2))

    def notes(self) -> list[str]:
        """What the user should know of it, if a shift worth speaking of was found and not taken."""
        if (1 - self.taken) * math.hypot(*self.found_px) < SURE_PX:
            return []
        dx, dy = self.found_px
        return [
            f"the whole pair is found shifted by ({dx:.1f}, {dy:.1f}) px, of which {self.taken:.0%} is applied, since "
            f"images that agree as badly are found {self.doubt_px:.1f} px off where they are in place; what that "
            "leaves open is part of the expected errors, and trust_shift=true applies it all"
        ]

    def without_doubtful(self, displacement: NDArray[np.float32]) -> NDArray[np.float32]:
        """A displacement (2, H, W) of the pair less the share of its common shift that is not believed."""
        doubtful = np.array([(1 - self.taken) * band for band in self.found_px], np.float32)
        return displacement - doubtful[:, None, None]


NO_SHIFT = CommonShift()


def clear_share(length: Lengths, doubt: Lengths, ratio: tuple[float, float]) -> NDArray[np.floating]:
    """How clearly lengths stand out from what they may be wrong by, 0 to 1 (firm shrinkage: Gao and Bruce 1997).

    Args:
        length: that was found.
        doubt: what it may be wrong by.
        ratio: of the two, at which nothing is believed, and all.
    """
    low, high = ratio
    return np.asarray(np.clip((length / np.maximum(doubt, 1e-6) - low) / (high - low), 0, 1))


def common_shift(matches: Sequence[Match], doubt_px: float) -> CommonShift:
    """The mean displacement of matches, weighted by their confidence."""
    total = sum(float(match.quality[0].sum(dtype=np.float64)) for match in matches)
    sums = [
        sum(float((match.displacement[axis] * match.quality[0]).sum(dtype=np.float64)) for match in matches)
        for axis in (0, 1)
    ]
    return CommonShift((sums[0] / total, sums[1] / total), doubt_px) if total > 0 else NO_SHIFT


def _windows(read: Reader, shape: tuple[int, int], options: WindowOptions) -> Iterator[Patch]:
    """Windows from all over a pair that have enough data; if none has, the few with the most."""
    places, (height, width) = corners(shape, options)
    passed: list[tuple[float, int]] = []
    order = np.random.default_rng(0).permutation(len(places))[:MOST_WINDOWS].tolist()
    for place in order:
        row, col = places[place]
        patch = read(row, col, height, width)
        share = float((patch.fixed_valid & patch.moving_valid).mean())
        if share >= LEAST_VALID:
            yield patch
        else:
            passed.append((share, place))
    if len(passed) == len(order):
        for share, place in sorted(passed, reverse=True)[:FEW_WINDOWS]:
            row, col = places[place]
            if share:
                yield read(row, col, height, width)


def find_common_shift(
    matcher: Matcher,
    read: Reader,
    shape: tuple[int, int],
    options: WindowOptions,
    spread_px: float = 0.0,
    at_once: int = 1,
) -> CommonShift:
    """Look at windows all over a pair for the shift that they have in common, at few of them where it is beyond doubt.

    Args:
        matcher: a plain one.
        read: `read(row, col, height, width)`.
        shape: (H, W) of the pair, px.
        options: size and overlap of the windows.
        spread_px: least doubt, that a model learned from several pairs; how badly the images agree may tell of more.
        at_once: how many windows are matched at the same time.
    """

    def looked(patch: Patch) -> tuple[float, Match]:
        match, known = matcher(patch), patch.fixed_valid & patch.moving_valid
        few = Match(match.displacement[EVERY], (match.quality[:1] * known)[EVERY])
        return mean_fit(patch, torch.from_numpy(match.displacement)), few

    matches: list[Match] = []
    fits: list[float] = []
    reads = (partial(_same, patch) for patch in _windows(read, shape, options))
    with closing(worked(reads, looked, at_once, apart=True)) as seen:
        for fit, match in seen:
            fits.append(fit)
            matches.append(match)
            if not spread_px and len(matches) >= FEW_WINDOWS and shift_doubt_px(float(np.mean(fits))) < SURE_PX:
                break
    return common_shift(matches, max(spread_px, shift_doubt_px(float(np.mean(fits))))) if matches else NO_SHIFT


def _same(patch: Patch) -> Patch:
    return patch
