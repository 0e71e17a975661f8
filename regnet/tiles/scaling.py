"""How images are scaled, from their percentiles, and where they have structure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from regnet.displacement import smooth
from regnet.errors import InputError
from regnet.geo.grid import Box, Grid

SAMPLE_PIXELS, SAMPLE_VALUES = 1_000_000, 16_000_000
"""Percentiles are of at most so many pixels, and of at most so many values of all bands together."""


BOX_PX, BOX_STEP = 256, 4
"""Where they are of fewer pixels than one in so many rows and columns, boxes of this side are read, apart."""


LEAST_VALID = 1 / 16
"""Unless so many of the pixels that are wanted are valid there, the whole image is read."""


CLIP = 3.0

FILLERS, HUGE, LEAST_FILLED = (-9999, -32767, -32768, -99999, -999999, -(2**31)), 1e18, 1e-3
"""Values that customarily stand for no data, as all beyond the second do, and the least share of them to speak of."""


Arrays = tuple[NDArray[np.float32], NDArray[np.bool_]]


class Image(Protocol):
    """Anything that has bands and is read by box of the working grid, with its validity."""

    @property
    def names(self) -> list[str]:
        """A name for each band."""

    def read(self, box: Box) -> Arrays:
        """(C, H, W) values and (H, W) validity of a box; NaN where a band of a valid pixel has no value."""


@dataclass(frozen=True)
class Scaling:
    """How the bands of one image become comparable numbers.

    Attributes:
        floor: smallest value that the logarithm is taken of; None for no logarithm.
        low, median, high: (C,) 2nd, 50th and 98th percentile of the valid pixels (after the logarithm).
        kept: (C,) places, among the bands that were measured, of those that have contrast; the others are left out.
        notes: what looks wrong with the values, one sentence each.
    """

    floor: float | None
    low: NDArray[np.float32]
    median: NDArray[np.float32]
    high: NDArray[np.float32]
    kept: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def values(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the logarithm if asked. (C, ...) to (C, ...)."""
        return raw if self.floor is None else np.log(np.maximum(raw, np.float32(self.floor)))

    def normalise(self, raw: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(C, H, W) to (x - median) / (high - low), clipped, 0 where invalid.

        A band without a value takes the mean of those that have one there: so it adds nothing of its own.
        """
        spread = (self.high - self.low)[:, None, None]
        scaled = np.clip((self.values(raw) - self.median[:, None, None]) / spread, -CLIP, CLIP)
        gap = np.isnan(scaled) & valid
        if gap.any():
            scaled[gap] = np.broadcast_to(_mean(scaled, gap), scaled.shape)[gap]
        return np.where(valid, scaled, np.float32(0))

    def brightness(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, H, W) to (H, W): mean of the bands, low = 0 and high = 1, clipped."""
        spread = (self.high - self.low)[:, None, None]
        light = np.clip((self.values(raw) - self.low[:, None, None]) / spread, 0, 1)
        return _mean(light, np.isnan(light))


def _mean(bands: NDArray[np.float32], gap: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(C, H, W) to (H, W): mean of the bands that have a value, where any has."""
    if not gap.any():
        return np.asarray(bands.mean(axis=0))
    return np.asarray(np.where(gap, np.float32(0), bands).sum(axis=0) / np.maximum((~gap).sum(axis=0), 1), np.float32)


@dataclass(frozen=True)
class StructureRule:
    """Structure is where the local standard deviation of fixed's smoothed brightness exceeds a threshold.

    Attributes:
        sigma_px: Gaussian window of the deviation, px.
        threshold: least deviation; brightness is 0 at the 2nd and 1 at the 98th percentile.
        fine_px: Gaussian taken over the brightness first, px: noise and waves are finer than what can be matched.
    """

    sigma_px: float = 8.0
    threshold: float = 0.033
    fine_px: float = 2.0

    @property
    def margin_px(self) -> int:
        """How far around a window the rule looks, px."""
        return 16 * math.ceil(3.5 * (self.sigma_px + self.fine_px) / 16)

    def mask(self, brightness: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(H, W) brightness and validity to (H, W) structure."""
        weight = torch.from_numpy(valid.astype(np.float32))[None, None]
        light = smooth(torch.from_numpy(brightness)[None, None], self.fine_px, weight)
        moments = smooth(torch.cat((light, light * light), 1), self.sigma_px, weight)[0]
        deviation = (moments[1] - moments[0] ** 2).clamp_min(0).sqrt().numpy()
        return np.asarray((deviation > self.threshold) & valid)


def _sample(image: Image, grid: Grid, block_px: int) -> NDArray[np.float32]:
    """Valid pixels of an image's bands (C, n), evenly spread.

    Of a large image only small boxes are read, unless they show hardly anything valid, or a band without contrast.
    """
    most = min(SAMPLE_PIXELS, SAMPLE_VALUES // len(image.names))
    step = max(1, math.ceil(math.sqrt(grid.height * grid.width / most)))
    largest = math.isqrt(SAMPLE_VALUES // len(image.names))
    if step > BOX_STEP:
        side = min(BOX_PX, largest)
        corners = grid.blocks(side * step // BOX_STEP)
        boxes = [Box(corner.row, corner.col, side, side).clipped(grid.shape) for corner in corners]
        sample = _valid_pixels(image, boxes, BOX_STEP)
        known = [band[np.isfinite(band)] for band in sample]
        if sample.shape[1] >= most * LEAST_VALID and all(band.size and band.min() < band.max() for band in known):
            return sample
    side = min(block_px, largest)
    return _valid_pixels(image, grid.blocks(max(side // step, 1) * step), step)


def _valid_pixels(image: Image, boxes: list[Box], step: int) -> NDArray[np.float32]:
    """Of one pixel in `step` rows and columns of each box those that are valid, (C, n)."""
    found = []
    for box in boxes:
        values, valid = image.read(box)
        found.append(values[:, ::step, ::step][:, valid[::step, ::step]])
    return np.concatenate(found, axis=1)


def measure(image: Image, grid: Grid, name: str, logarithm: bool, block_px: int) -> Scaling:
    """Find the percentiles of an image's bands from at most about a million valid pixels, evenly spread.

    Raises:
        InputError: at most one valid pixel, no band with contrast, or a logarithm of values that are never positive.
    """
    sample = _sample(image, grid, block_px)
    if sample.shape[1] == 0:
        raise InputError(f"{name}: has no valid pixel on the fixed image's grid; check its nodata value and mask")
    if sample.shape[1] == 1:
        raise InputError(f"{name}: has a single valid pixel on the fixed image's grid; give a larger image")
    bands = [values[np.isfinite(values)] for values in sample]
    flaws = [_flaw(name, band, values) for band, values in zip(image.names, bands, strict=True)]
    kept = tuple(place for place, flaw in enumerate(flaws) if not flaw)
    if not kept:
        raise InputError(f"{flaws[0]}, so that nothing can be matched; give an image with contrast")
    bands = [bands[place] for place in kept]
    notes = [f"{flaw} and was left out" for flaw in flaws if flaw]
    notes += [_filled(name, image.names[place], values) for place, values in zip(kept, bands, strict=True)]
    floor = None
    if logarithm:
        positive = np.concatenate([values[values > 0] for values in bands])
        if positive.size == 0:
            raise InputError(f"{name}: has no positive value to take the logarithm of; set its transform to none")
        floor = float(np.percentile(positive, 1))
        bands = [np.log(np.maximum(values, floor)) for values in bands]
    low, median, high = np.stack([np.percentile(values, [2, 50, 98]) for values in bands], 1).astype(np.float32)
    flat = high <= low
    reaches = np.array([(values.min(), values.max()) for values in bands], np.float32)
    low[flat], high[flat] = reaches[flat].T
    return Scaling(floor, low, median, high, kept, tuple(note for note in notes if note))


def _flaw(name: str, band: str, values: NDArray[np.float32]) -> str:
    """Say so if the valid pixels (n,) of a band cannot be matched by; else nothing."""
    if not values.size:
        return f"{name}: band {band} has no valid pixel"
    return f"{name}: band {band} is constant ({values[0]:g})" if values.min() == values.max() else ""


def _filled(name: str, band: str, values: NDArray[np.float32]) -> str:
    """Say so if values (n,) of a band look like no data that nobody declared; else nothing."""
    # Between the pixels of another grid they are a little off.
    filled = np.rint(values[np.isin(np.rint(values), FILLERS) | (np.abs(values) > HUGE)])
    if filled.size < LEAST_FILLED * values.size:
        return ""
    found, counts = np.unique(filled, return_counts=True)
    value = f"{found[counts.argmax()]:.9g}"
    return (
        f"{name}: {filled.size / values.size:.1%} of band {band} is {value}, which looks like no data and is taken for "
        f"a value; declare it, for example with gdal_edit.py -a_nodata {value}"
    )
