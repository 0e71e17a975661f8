"""Counts over a whole field, filled strip by strip."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def _histogram() -> NDArray[np.int64]:
    return np.zeros(100_000, np.int64)


@dataclass
class Tally:
    """Counts over the whole field; the lengths are histograms of 1/100 px up to 1000 px.

    Attributes:
        sides_m: width and height of a pixel on the ground; NaN if not known, which is taken for a square.
        length_px: of the displacements.
        ground: of the displacements on the ground, in units of the geometric mean of a pixel's sides.
        error_px: expected.
        valid: pixels with data in both images.
        known: those of them that are registered.
    """

    sides_m: tuple[float, float]
    valid: int = 0
    known: int = 0
    length_px: NDArray[np.int64] = field(default_factory=_histogram)
    ground: NDArray[np.int64] = field(default_factory=_histogram)
    error_px: NDArray[np.int64] = field(default_factory=_histogram)

    def add(self, displacement: NDArray[np.float32], error_px: NDArray[np.float32], valid: int) -> None:
        """Count the registered pixels of a strip, (2, n) and (n,), and how many pixels of it are valid."""
        self.valid += valid
        self.known += error_px.size
        width, height = np.nan_to_num(np.array(self.sides_m, np.float32) / math.sqrt(math.prod(self.sides_m)), nan=1.0)
        dx, dy = displacement
        lengths = ((self.length_px, np.hypot(dx, dy)), (self.ground, np.hypot(dx * width, dy * height)))
        for histogram, values in (*lengths, (self.error_px, error_px)):
            places = np.minimum((values * 100).astype(np.int64), histogram.size - 1)
            histogram += np.bincount(places, minlength=histogram.size)

    @property
    def share(self) -> float:
        """Share of the ground with data in both images that is registered."""
        return self.known / self.valid if self.valid else 0.0


def quantile(histogram: NDArray[np.int64], share: float) -> float:
    """Quantile of a histogram of 1/100 px; NaN if it is empty."""
    total = np.cumsum(histogram)
    if not total[-1]:
        return float("nan")
    return float((np.searchsorted(total, share * total[-1]) + 0.5) / 100)
