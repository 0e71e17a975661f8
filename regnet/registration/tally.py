"""Counts over a whole field, filled strip by strip."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Tally:
    """Counts over the whole field; the lengths are histograms of 1/100 px up to 1000 px.

    Attributes:
        valid: pixels with data in both images.
        known: those of them that are registered.
    """

    valid: int = 0
    known: int = 0
    length_px: NDArray[np.int64] = field(default_factory=lambda: np.zeros(100_000, np.int64))
    error_px: NDArray[np.int64] = field(default_factory=lambda: np.zeros(100_000, np.int64))

    def add(self, length_px: NDArray[np.float32], error_px: NDArray[np.float32], valid: int) -> None:
        """Count the registered pixels of a strip (n,), and how many pixels of it are valid."""
        self.valid += valid
        self.known += length_px.size
        for histogram, values in ((self.length_px, length_px), (self.error_px, error_px)):
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
