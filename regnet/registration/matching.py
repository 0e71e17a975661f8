"""The field of a pair: the global stage, the matches of the windows, and what is believed of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from regnet.geo.grid import Grid
from regnet.registration.common_shift import CommonShift
from regnet.registration.edges import Matrix
from regnet.registration.judgement import (
    BACKWARD,
    CONFIDENCE,
    DOUBT,
    ERROR,
    MISALIGNMENT,
    RESIDUAL,
    VALID,
    taken_share,
)
from regnet.registration.options import RegisterOptions
from regnet.registration.overall import FINEST_PX, MIN_SIDE_PX, TOO_SMALL, Overall, find_overall
from regnet.registration.progress import Progress
from regnet.registration.tally import Tally
from regnet.registration.ties import INCONSISTENT, MATCHED, NO_DATA, OUTLIER, OVERALL, UNCLEAR, UNSURE, TiePoints
from regnet.registration.windows import Mosaic, Strip
from regnet.tiles.pair import PairReader

KEEP_PX = 6.0
"""A pair that is off by less than this everywhere needs no global stage: the pyramid reaches far beyond."""
CLEARLY_BELOW = 0.25
"""A similarity is worth applying if its error is below this share of the misalignment that it takes away."""
OVERALL_FLOOR_PX = 0.5
"""Least error that is expected of a similarity alone."""
MEDIAN_OF_RMS = 0.83
"""Of the length of a shift whose components are normal (Rayleigh's distribution)."""
OUTLIER_PX, DOUBTED_PX = 4.0, 1.0
"""Matches farther than the first from the local affine displacement, and than three times their error, are outliers
where the way back contradicts them too, by more than the second. Alone, nine in ten that stand out so far are right."""
BACKWARD_PX = 6.0
"""Matches that the way back contradicts by more than this, and by more than three times their error, are outliers:
seven in ten of them are wrong, against one in seven of all that nothing else rejects. Of either kind is no match that
is contradicted by less than the displacements found around it are long: to stay would be worse than to follow it."""


@dataclass(frozen=True)
class Beliefs:
    """What is believed of a strip.

    Attributes:
        displacement: (2, h, W) px; 0 where it abstains.
        error_px: (h, W); infinite where it abstains.
        status: (h, W) places in `ties.STATUSES`.
    """

    displacement: NDArray[np.float32]
    error_px: NDArray[np.float32]
    status: NDArray[np.uint8]


def look_overall(reader: PairReader) -> Overall:
    """Find the similarity by which a pair is off, from a read at a low resolution."""
    pixel = max(reader.shape) / FINEST_PX
    if pixel <= 1:
        return find_overall(reader.read_images(0, 0, *reader.shape), 1.0, KEEP_PX)
    if min(reader.shape) < MIN_SIDE_PX * pixel:
        return TOO_SMALL
    coarse = reader.reduced(pixel)
    ratio = math.sqrt(abs(coarse.transform.determinant / reader.transform.determinant))
    return find_overall(coarse.read_images(0, 0, *coarse.shape), ratio, KEEP_PX)


def write_field(
    mosaic: Mosaic,
    grid: Grid,
    options: RegisterOptions,
    overall: Overall,
    common: CommonShift,
    target: DatasetWriter,
    progress: Progress,
) -> tuple[Tally, TiePoints]:
    """Predict the displacement beyond the global similarity, compose the two, and write them strip by strip."""
    shared_px = MEDIAN_OF_RMS * math.hypot(overall.doubt_px, common.left_px)
    tally, ties = Tally(grid.sides_m), TiePoints(grid, options.tie_spacing_px)
    for strip in mosaic.strips(progress, "register"):
        found = compose(strip, overall.matrix)
        beliefs = believe(strip, found, overall, options.max_error_px, shared_px)
        height, width = beliefs.error_px.shape
        bands = np.concatenate([beliefs.displacement, beliefs.error_px[None]])
        target.write(bands, window=Window(0, strip.row, width, height))
        valid = strip.quality[VALID] > 0.5
        known = valid & np.isfinite(beliefs.error_px)
        tally.add(beliefs.displacement[:, known], beliefs.error_px[known], int(valid.sum()))
        error, backward, confidence = (strip.quality[channel] for channel in (ERROR, BACKWARD, CONFIDENCE))
        error = np.hypot(error, np.float32(shared_px))
        ties.add(strip.row, found, error, backward, confidence, beliefs.status)
    return tally, ties


def compose(strip: Strip, matrix: Matrix) -> NDArray[np.float32]:
    """The whole displacement `A (x + d(x)) - x` of a strip (2, h, W), from d beyond the similarity A."""
    if np.array_equal(matrix, np.eye(2, 3)):
        return strip.displacement
    height, width = strip.displacement.shape[1:]
    places = np.mgrid[strip.row : strip.row + height, :width][::-1] + 0.5
    change = matrix[:, :2] - np.eye(2)
    moved = np.einsum("ij,jhw->ihw", change, places) + np.einsum("ij,jhw->ihw", matrix[:, :2], strip.displacement)
    return np.asarray(moved + matrix[:, 2, None, None], np.float32)


def believe(
    strip: Strip, found: NDArray[np.float32], overall: Overall, max_error_px: float, shared_px: float
) -> Beliefs:
    """Decide pixel by pixel: the match, in the share that its expected error allows, the similarity alone, or nothing.

    The error of a match is weighed against what would be left as it is: all that was found beyond the similarity, and
    that the similarity itself is off by most places, if there is one that is believed. What the whole pair may be off
    by in common, `shared_px`, is there whatever is taken of the match: part of the error, but no reason to abstain.
    """
    error, valid, residual = strip.quality[ERROR], strip.quality[VALID] > 0.5, strip.quality[RESIDUAL]
    doubt, misalignment = strip.quality[DOUBT], strip.quality[MISALIGNMENT]
    alone_px = max(overall.error_px, OVERALL_FLOOR_PX)
    share = taken_share(misalignment, doubt, max_error_px)
    if overall.found:
        # A match that is surer than the similarity is taken for any difference to it.
        surer = np.clip(3 - 2 * doubt / alone_px, 0, 1) * taken_share(np.hypot(*found), doubt, max_error_px)
        share = np.maximum(share, surer.astype(np.float32))
    backward = strip.quality[BACKWARD]
    bearable = np.maximum(3 * error, strip.quality[MISALIGNMENT])
    # Of a displacement that is taken in part the rest is an error too.
    stated = np.hypot(share * error, (1 - share) * np.hypot(*strip.displacement))
    reasons = [
        (~valid, NO_DATA),
        (np.maximum(error, doubt) >= max_error_px, UNSURE),
        (share <= 0, UNCLEAR),
        (stated >= max_error_px, UNSURE),
        ((residual > np.maximum(OUTLIER_PX, bearable)) & (backward > DOUBTED_PX), OUTLIER),
        (backward > np.maximum(BACKWARD_PX, bearable), INCONSISTENT),
    ]
    status = np.select([where for where, _ in reasons], [code for _, code in reasons], MATCHED).astype(np.uint8)
    matched = status == MATCHED
    taken = compose(Strip(strip.row, strip.displacement * share, strip.quality), overall.matrix)
    displacement = np.where(matched, taken, np.float32(0))
    error = np.where(matched, stated, np.float32(np.inf)).astype(np.float32)
    if overall.found:
        alone = compose(Strip(strip.row, np.zeros_like(found), strip.quality), overall.matrix)
        # What is found there beside chance is what the similarity alone is off by.
        left = np.hypot(alone_px, np.sqrt(np.maximum(misalignment**2 - doubt**2, 0)))
        worth = ~matched & (left <= np.maximum(max_error_px, CLEARLY_BELOW * np.hypot(*alone)))
        displacement = np.where(worth, alone, displacement)
        error[worth] = left[worth]
        status[worth & valid] = OVERALL
    return Beliefs(displacement, np.hypot(error, np.float32(shared_px)), status)
