"""The global stage: shift, rotation and scale of a whole pair, whatever its modalities.

The edges of both images are fitted to each other at every shift (`registration.edges`). Rotation and scale are tried
on a lattice, at a low resolution; then blocks of the image say at rising resolutions by how much they are still off,
and a similarity is fitted to what they say, robustly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from affine import Affine
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from regnet.registration.edges import Edges, Level, Matrix, scores, spectra
from regnet.tiles.patch import Patch

FINEST_PX, SEARCH_PX = 1024, 256
"""Longest side of the pair for the last refinement, and for the search."""
MIN_SIDE_PX = 64
ANGLES_DEG, STRETCHES = np.linspace(-7, 7, 11), np.linspace(0.88, 1.12, 9)
MIN_OVERLAP = 0.3
"""Least share of fixed's valid pixels that must overlap."""
BLOCK_PX, REACH_PX, BLOCKS_AN_AXIS, ROUNDS = 96, 12, 12, 2
MIN_BLOCKS, MIN_PEAK = 5, 4.0
"""Blocks say something if they fit somewhere by so many standard deviations more than elsewhere."""
IN_PLACE_PX = 3.0
FEW_BLOCKS, OBJECTIONS = 2, 0.2
"""Blocks that are off by no more than the first vote for a similarity, each as much as any other, since clouds that
moved have the strongest edges; more blocks than the second, and than this share of those votes, object. Pairs that were
put out of place have one objection in fifteen votes at most, but most have none."""
RIVAL_PX = 12.0
"""Similarities farther apart than this somewhere in the image, px of the search, are different answers."""
CLEARLY = 1.35
"""A similarity is believed if it fits so many times as well as every different one."""


@dataclass(frozen=True)
class Overall:
    """What the global stage found.

    Attributes:
        matrix: similarity from pixels of fixed to pixels of moving on fixed's grid; the identity if not found.
        found: whether the pair is off by a similarity that is clearly better than any other, and than none.
        reason: what was decided and why.
        score: how well the edges fit under the best similarity, up to 1; `rival` under the best different one, `still`
            with nothing moved.
        error_px: distance of most blocks (68 %) from the similarity, px.
        doubt_px: length of the shift that pairs which agree as badly seem to have in place, root mean square; the
            similarity may be off by as much.
    """

    matrix: Matrix
    found: bool
    reason: str
    score: float = 0.0
    rival: float = 0.0
    still: float = 0.0
    error_px: float = math.inf
    doubt_px: float = 0.0

    @property
    def affine(self) -> Affine:
        """The similarity as an affine transform."""
        return Affine(*self.matrix.ravel().tolist())


TOO_SMALL = Overall(np.eye(2, 3), False, "too small for a global stage")


def find_overall(patch: Patch, pixel_px: float, keep_px: float) -> Overall:
    """Find the similarity by which moving is off.

    Args:
        patch: the whole pair, at a low resolution (longest side about `FINEST_PX`).
        pixel_px: size of its pixels, px of the working grid.
        keep_px: a similarity that moves no pixel by more than this, px of the working grid, is left to the pyramid.
    """
    still: Matrix = np.eye(2, 3)
    side = patch.fixed_valid.shape
    if min(side) < MIN_SIDE_PX:
        return TOO_SMALL
    search = Level(patch, max(1, math.ceil(max(side) / SEARCH_PX)))
    matrix, score, rival = _near(search)
    if score < CLEARLY * rival or score <= 0:
        matrix, score, rival = _anywhere(search)
    if score <= 0:
        return Overall(still, False, "nothing fits")
    error_px = math.inf
    for ratio in sorted({search.ratio, max(1, search.ratio // 2), 1}, reverse=True):
        level = search if ratio == search.ratio else Level(patch, ratio)
        for _ in range(ROUNDS):
            refined, error = refine(level, rescaled(matrix, search.ratio / ratio))
            matrix = rescaled(refined, ratio / search.ratio)
        error_px = error * ratio * pixel_px
    numbers = (max(score, fit(search, matrix)), rival, fit(search, still), error_px)
    whole = rescaled(matrix, search.ratio * pixel_px)
    decided = _decide(whole, numbers, farthest(whole, still, (side[0] * pixel_px, side[1] * pixel_px)), keep_px)
    if decided.found and objects(level, rescaled(matrix, search.ratio)):
        return Overall(still, False, "part of the ground fits in place, and not under the best similarity", *numbers)
    return decided


def _near(level: Level) -> tuple[Matrix, float, float]:
    """What a pair that is nearly in place says: the similarity, its score, and the best score of a far shift."""
    matrix, _ = refine(level, np.eye(2, 3))
    return matrix, fit(level, matrix), best_shift(level, 0, 1, RIVAL_PX)[0]


def _anywhere(level: Level) -> tuple[Matrix, float, float]:
    """The best similarity of all, its score, and the best score of those that are clearly different."""
    tried = [best_shift(level, angle, stretch) for angle, stretch in product(ANGLES_DEG, STRETCHES)]
    score, matrix = max(tried, key=lambda pair: pair[0])
    far = [other for other, there in tried if farthest(matrix, there, (level.height, level.width)) > RIVAL_PX]
    return matrix, score, max([0.0, *far])


def _decide(matrix: Matrix, numbers: tuple[float, float, float, float], moved_px: float, keep_px: float) -> Overall:
    """Believe a similarity only if it is clearly better than any other and than none."""
    score, rival, unmoved, error_px = numbers
    still: Matrix = np.eye(2, 3)
    if score < CLEARLY * rival or not math.isfinite(error_px):
        return Overall(still, False, "no similarity is clearly better than the others", *numbers)
    if moved_px <= keep_px:
        reason = f"no shift, rotation or scale of the whole pair beyond {moved_px:.1f} px"
        return Overall(still, False, f"{reason}; the rest is left to the local match", *numbers)
    if score < CLEARLY * unmoved:
        return Overall(still, False, "the best similarity is not clearly better than none", *numbers)
    return Overall(matrix, True, f"moving is off by up to {moved_px:.0f} px", *numbers)


def best_shift(level: Level, angle_deg: float, stretch: float, beyond_px: float = -1) -> tuple[float, Matrix]:
    """Fit moving, turned and stretched about the middle, to fixed at every shift beyond some px.

    Returns:
        The best score and its similarity.
    """
    angle, middle = math.radians(angle_deg), np.array([level.width, level.height]) / 2
    turn = stretch * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = np.column_stack([turn, middle - turn @ middle])
    score, area = scores(level.spectra, spectra(level.pulled(matrix), level.size), level.size)
    rows, cols = (torch.fft.fftfreq(count, 1 / count) for count in level.size)
    near = (rows.abs()[:, None] <= level.reach) & (cols.abs() <= level.reach)
    near &= torch.hypot(rows[:, None], cols[None]) > beyond_px
    score = torch.where(near & (area > MIN_OVERLAP * level.fixed.known.sum()), score, -1.0)
    row, col = divmod(int(score.argmax()), level.size[1])
    matrix[:, 2] += turn @ [float(cols[col]), float(rows[row])]
    return float(score[row, col]), matrix


def fit(level: Level, matrix: Matrix) -> float:
    """How well the edges of a pair fit under a similarity in pixels of the level, up to 1."""
    fixed, moving = level.fixed, level.pulled(matrix)
    if (fixed.known * moving.known).sum() < MIN_OVERLAP * fixed.known.sum():
        return 0.0
    match = (fixed.field.conj() * moving.field).real.sum()
    energies = (fixed.field.abs().square() * moving.known).sum() * (moving.field.abs().square() * fixed.known).sum()
    return float(match / energies.sqrt().clamp_min(1e-6))


def refine(level: Level, matrix: Matrix) -> tuple[Matrix, float]:
    """Let blocks of a pair say how far they are off under a similarity, and fit a better one to them.

    Returns:
        The similarity, as it was if too few blocks say anything, and the distance of 68 % of them from it, px.
    """
    places, offsets, strength = _blocks(level, matrix)
    said = strength > MIN_PEAK
    if said.sum() < MIN_BLOCKS:
        return matrix, math.inf
    places = places[said]
    wanted = (places + offsets[said]) @ matrix[:, :2].T + matrix[:, 2]
    return fit_similarity(places, wanted, strength[said], places @ matrix[:, :2].T + matrix[:, 2])


def objects(level: Level, matrix: Matrix) -> bool:
    """Whether blocks that a similarity would move say that they are in place, beside those that it puts in place."""
    places, *moved = _blocks(level, matrix)
    _, *still = _blocks(level, np.eye(2, 3))
    apart = np.hypot(*(places @ matrix[:, :2].T + matrix[:, 2] - places).T) > 2 * IN_PLACE_PX
    votes, objections = (
        int((apart & (strength > MIN_PEAK) & (np.hypot(*offsets.T) <= IN_PLACE_PX)).sum())
        for offsets, strength in (moved, still)
    )
    return objections > max(FEW_BLOCKS, OBJECTIONS * votes)


def _blocks(level: Level, matrix: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Middles (n, 2) of the blocks of a pair, how far off each is under a similarity, (n, 2), and how clearly, (n,)."""
    moving = level.pulled(matrix)
    starts = [_starts(side) for side in (level.height, level.width)]
    corners = [(row, col) for row in starts[0] for col in starts[1]]
    ours = Edges(*(_cut(layer, corners, 0) for layer in level.fixed))
    theirs = Edges(*(_cut(layer, corners, REACH_PX) for layer in moving))
    side = next_fast_len(BLOCK_PX + 2 * REACH_PX)
    score, area = scores(spectra(ours, (side, side)), spectra(theirs, (side, side)), (side, side))
    count = 2 * REACH_PX + 1
    score = torch.where(area > MIN_OVERLAP * BLOCK_PX**2, score, 0.0)[:, :count, :count]
    offsets, strength = _peaks(score.numpy())
    return np.array(corners, np.float64)[:, ::-1] + BLOCK_PX / 2, offsets - REACH_PX, strength


def fit_similarity(
    places: NDArray[np.float64], wanted: NDArray[np.float64], weight: NDArray[np.float64], start: NDArray[np.float64]
) -> tuple[Matrix, float]:
    """Fit a similarity robustly, by iteratively reweighted least squares with Cauchy's weights.

    Args:
        places: (n, 2).
        wanted: (n, 2) where the similarity should take them; some are wrong.
        weight: (n,).
        start: (n, 2) where they are taken before, which says which of them are likely wrong.

    Returns:
        The similarity, and the distance of 68 % of the points from it.
    """
    middle = places.mean(0)
    x, y = (places - middle).T
    one, none = np.ones_like(x), np.zeros_like(x)
    design = np.concatenate([np.column_stack([x, -y, one, none]), np.column_stack([y, x, none, one])])
    distance = np.hypot(*(wanted - start).T)
    for _ in range(20):
        scale = max(1.5 * float(np.median(distance)), 0.1)
        root = np.sqrt(weight / (1 + (distance / scale) ** 2))
        a, b, c, d = np.linalg.lstsq(
            design * np.tile(root, 2)[:, None], wanted.T.ravel() * np.tile(root, 2), rcond=None
        )[0]
        turn = np.array([[a, -b], [b, a]])
        distance = np.hypot(*(wanted - (places - middle) @ turn.T - [c, d]).T)
    return np.column_stack([turn, [c, d] - turn @ middle]), float(np.quantile(distance, 0.68))


def farthest(one: Matrix, other: Matrix, size: tuple[float, float]) -> float:
    """Greatest distance, over an image of (height, width), between where two similarities take a place."""
    return float(corner_distances(one, other, size).max())


def corner_distances(one: Matrix, other: Matrix, size: tuple[float, float]) -> NDArray[np.float64]:
    """Distances (4,) between where two similarities take the corners of an image of (height, width)."""
    corners = np.array([(col, row, 1.0) for row in (0, size[0]) for col in (0, size[1])])
    return np.asarray(np.hypot(*((one - other) @ corners.T)))


def rescaled(matrix: Matrix, factor: float) -> Matrix:
    """The same similarity in pixels that are `factor` times smaller."""
    return np.column_stack([matrix[:, :2], matrix[:, 2] * factor])


def _starts(side: int) -> list[int]:
    """Where blocks begin along an axis."""
    room = max(side - BLOCK_PX, 0)
    count = min(BLOCKS_AN_AXIS, 1 + 2 * room // BLOCK_PX)
    return [round(place) for place in np.linspace(0, room, count)]


def _cut(layer: Tensor, corners: list[tuple[int, int]], margin: int) -> Tensor:
    """Cut (H, W) into (n, side, side) blocks with a margin; zero beyond."""
    side = BLOCK_PX + 2 * margin
    room = (margin, side, margin, side)
    padded = F.pad(layer, room)
    return torch.stack([padded[row : row + side, col : col + side] for row, col in corners])


def _peaks(score: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where (n, k, k) scores are greatest, as (n, 2) column and row by parabolas, and by how many deviations, (n,)."""
    count, side, _ = score.shape
    flat = score.reshape(count, -1)
    best = flat.argmax(1)
    strength = (flat.max(1) - flat.mean(1)) / np.maximum(flat.std(1), 1e-6)
    rows, cols = np.divmod(best, side)
    inside = (rows > 0) & (rows < side - 1) & (cols > 0) & (cols < side - 1)
    r, c, n = rows.clip(1, side - 2), cols.clip(1, side - 2), np.arange(count)
    offsets = []
    for place, dr, dc in ((c, 0, 1), (r, 1, 0)):
        low, mid, high = (score[n, r + k * dr, c + k * dc].astype(np.float64) for k in (-1, 0, 1))
        offsets.append(place + 0.5 * (low - high) / np.minimum(low - 2 * mid + high, -1e-9))
    return np.column_stack(offsets), np.where(inside, strength, 0.0)
