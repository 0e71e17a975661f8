"""From a volume of evidence to a smooth field, as rough as held-out evidence says and no rougher.

The field is the posterior mean of a Gaussian process given the most likely offset of every cell. How rough the process
is, and how noisy the offsets, is found by cross-validation: the ground is cut into a checkerboard, the field found on
one half is looked up in the evidence of the other, and the roughness and noise that predict best are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import gaussian
from regnet.models.correlation import CELL
from regnet.models.kriging import krige


class View(NamedTuple):
    """One way to look at the evidence, and how rough the fields are that it is good for.

    Attributes:
        window_px: Gaussian window over which the evidence is summed, px of the level.
        step: side of the squares, in cells, for each of which one offset is found: no wider than the window's sigma, so
            that the squares miss nothing the window shows.
        sigmas_px: of the Gaussians that make such fields out of white noise, px of the level.
    """

    window_px: float
    step: int
    sigmas_px: tuple[float, ...]


VIEWS = (View(32.0, 4, (160.0,)), View(12.0, 2, (80.0,)), View(8.0, 1, (40.0, 20.0)), View(5.0, 1, (20.0, 10.0)))
NOISES = (0.05, 0.2, 0.8, 3.2, 12.8)
"""Variances of a cell's offset that are tried, in units of the field's variance: a geometric series."""
ALONE = 0.2
"""That taken, of the smoothest field, where a single block holds nothing out."""
LEAST_VIEWS = 3
"""So many views are taken in any case; beyond them, one that predicts no better than those before it is the last."""
NEAR_PX = 2.0
"""Spread of the Gaussian prior around what coarser levels found, px of the level."""
BLOCK_CELLS = 12
"""Side of the checkerboard's blocks, cells: farther than a change of the ground fools the evidence alike."""
SHARPNESS = 100.0
"""Inverse temperature of the windowed evidence of unit descriptors."""
LEAST_VARIANCE = 0.02
"""Variance of the offset that the discretisation leaves, px^2."""


@dataclass(frozen=True)
class Evidence:
    """What a level knows of the offsets, cell by cell.

    Attributes:
        volume: (B, K * K, h, w), sums over each cell of how well the pixels fit at every offset.
        count: (B, K * K, h, w), how many pixels each sum has.
        offsets: (2, K * K) px of the level.
        base: (B, 2, h, w) px of the level, the displacement that the offsets add to; the sum of both is smooth.
        side_px: side of a cell, px of the level.
    """

    volume: Tensor
    count: Tensor
    offsets: Tensor
    base: Tensor
    side_px: float = CELL

    def window(self, sigma_px: float) -> Evidence:
        """The evidence summed over a Gaussian window around each cell."""
        sigma = sigma_px / self.side_px
        return replace(self, volume=gaussian(self.volume, sigma), count=gaussian(self.count, sigma))

    def logits(self, sharpness: float = SHARPNESS) -> Tensor:
        """Mean fit of the pixels valid in both images, times an inverse temperature."""
        return self.volume * (sharpness / self.count.clamp_min(1e-2))

    def part(self, cells: Tensor) -> Evidence:
        """The evidence of some cells alone; `cells` is (1, 1, h, w), one or zero."""
        return replace(self, volume=self.volume * cells, count=self.count * cells)

    def rest(self, part: Evidence) -> Evidence:
        """What is left of the evidence without a part of it."""
        return replace(self, volume=self.volume - part.volume, count=(self.count - part.count).clamp_min(0))

    def coarser(self, step: int) -> Evidence:
        """The mean evidence of squares of `step` cells, the last of a row or column filled up with no evidence."""
        if step == 1:
            return self
        height, width = self.base.shape[-2:]
        pad = (0, -width % step, 0, -height % step)
        volume, count = (F.avg_pool2d(F.pad(values, pad), step) for values in (self.volume, self.count))
        base = F.avg_pool2d(F.pad(self.base, pad, mode="replicate"), step)
        return Evidence(volume, count, self.offsets, base, self.side_px * step)


def statistics(logits: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean offset (B, 2, h, w) and its variance (B, 1, h, w), px^2, of a distribution given by logits over offsets.

    Each offset stands for the top of the peak through its own logit and those of its neighbours, so that a sharp
    distribution is not drawn to whole pixels.
    """
    share = torch.softmax(logits, 1)
    powers = torch.cat((offsets, offsets.square().sum(0, keepdim=True)))
    moments = torch.matmul(powers, share.flatten(2)).reshape(-1, 3, *share.shape[2:])
    mean = moments[:, :2] + _tops(logits, share)
    return mean, (moments[:, 2:] - mean.square().sum(1, keepdim=True)).clamp_min(0) + LEAST_VARIANCE


def _tops(logits: Tensor, share: Tensor) -> Tensor:
    """How far, along x and along y, the tops of the peaks at the offsets are from them, in the mean (B, 2, h, w), px.

    Two lines of equal and opposite slope through the logit and its neighbours (equiangular fit: Shimizu and Okutomi,
    ICCV 2001), since unit descriptors fit with a peak that is pointed rather than round; -0.5..0.5 px at each offset,
    and none at those on the border.
    """
    side = round(logits.shape[1] ** 0.5)
    grid, shares = (values.reshape(-1, side, side, *values.shape[2:]) for values in (logits, share))
    tops = []
    for axis in (2, 1):
        rise = grid.diff(dim=axis)
        here, onward = rise.narrow(axis, 0, side - 2), rise.narrow(axis, 1, side - 2)
        twice = ((here + onward) / torch.maximum(here, -onward).clamp_min(1e-3)).clamp(-1, 1)
        tops.append((shares.narrow(axis, 1, side - 2) * twice).sum((1, 2)))
    return torch.stack(tops, 1) / 2


def fit_field(evidence: Evidence, caution: Tensor | float, begun: bool, drawn: bool = False) -> Tensor:
    """Find the offsets (B, 2, h, w), px of the level, that the evidence supports.

    Args:
        evidence: of one level.
        caution: so many times the noise that predicts best is taken, since what fools the evidence on one half of the
            ground partly fools it on the other.
        begun: whether coarser levels have found the base; if not, offsets are looked for everywhere in reach, and none
            may be found.
        drawn: take a smoothness and noise at random, whatever predicts best, as training does now and then.
    """
    shape = (evidence.base.shape[-2], evidence.base.shape[-1])
    like = evidence.base[:, 0, 0, 0]
    if drawn:
        looks = [_Look.at(evidence, view, begun) for view in VIEWS]
        kind = torch.randint(len(_kinds(looks)), like.shape, device=like.device)
        noise = torch.tensor(NOISES, device=like.device)[torch.randint(len(NOISES), like.shape, device=like.device)]
    elif max(shape) > BLOCK_CELLS:
        looks, kind, noise = _best_predicting(evidence, begun)
    else:
        looks = [_Look.at(evidence, VIEWS[0], begun)]
        kind, noise = torch.zeros_like(like, dtype=torch.long), torch.full_like(like, ALONE)
    noise = (noise * caution)[:, None, None, None]
    found = torch.zeros_like(evidence.base)
    for index, (look, sigma_px) in enumerate(_kinds(looks)):
        mine = kind == index
        # `torch.func.vmap` cannot follow a choice that the values make.
        if torch.is_grad_enabled() or bool(mine.any()):
            sigma = sigma_px / evidence.side_px
            field = krige(look.target, look.weight, sigma, noise, look.view.step, shape) - evidence.base
            found = torch.where(mine[:, None, None, None], field, found)
    return found


@dataclass(frozen=True)
class _Look:
    """What a view shows.

    Attributes:
        view: that view.
        seen: the evidence on its squares.
        windowed: the same, summed over its window.
        target: (B, 2, h, w), the most likely displacement of each square, px of the level.
        weight: (B, 1, h, w), how sure it is; one in the mean.
        scale: (B, 1, 1, 1), what the weights were divided by.
    """

    view: View
    seen: Evidence
    windowed: Evidence
    target: Tensor
    weight: Tensor
    scale: Tensor

    @classmethod
    def at(cls, evidence: Evidence, view: View, begun: bool) -> _Look:
        seen = evidence.coarser(view.step)
        windowed = seen.window(view.window_px)
        target, sure = _most_likely(windowed, begun)
        scale = sure.mean((-2, -1), keepdim=True)
        return cls(view, seen, windowed, target, sure / scale, scale)

    def halves(self, board: Tensor, begun: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Target and weight by the evidence of the board's ones alone, and by that of its zeros alone."""
        part = self.seen.part(board).window(self.view.window_px)
        for windowed, own in ((part, board), (self.windowed.rest(part), 1 - board)):
            target, sure = _most_likely(windowed, begun)
            yield target, sure / self.scale * own


def _most_likely(windowed: Evidence, begun: bool) -> tuple[Tensor, Tensor]:
    """Displacement (B, 2, h, w) that the windowed evidence speaks for, and how surely (B, 1, h, w), 0..1."""
    logits = windowed.logits()
    if begun:
        near = windowed.offsets.square().sum(0) / (2 * NEAR_PX**2)
        logits = logits - near[:, None, None]
    offset, variance = statistics(logits, windowed.offsets)
    return offset + windowed.base, (1 + variance) ** -2


def _kinds(looks: list[_Look]) -> list[tuple[_Look, float]]:
    """Every smoothness that there are looks for: the look and sigma, px."""
    return [(look, sigma_px) for look in looks for sigma_px in look.view.sigmas_px]


def _best_predicting(evidence: Evidence, begun: bool) -> tuple[list[_Look], Tensor, Tensor]:
    """Looks, the place of the smoothness (B) that predicts best among their kinds, and its noise (B).

    The place is -1 where no offset at all predicts best.
    """
    looks: list[_Look] = []
    if begun:
        best = torch.full_like(evidence.base[:, 0, 0, 0], -torch.inf)
    else:
        best = _look_up(evidence, torch.zeros_like(evidence.base[:, None])).mean((1, 2, 3))
    kind, noise = torch.full_like(best, -1, dtype=torch.long), torch.ones_like(best)
    going = torch.ones_like(best, dtype=torch.bool)
    for view in VIEWS:
        looks.append(_Look.at(evidence, view, begun))
        first = len(_kinds(looks[:-1]))
        with torch.no_grad():
            scores = _predictions(evidence, looks[-1], begun).flatten(1)
        top, place = scores.max(1)
        better = going & (top > best)
        best = torch.where(better, top, best)
        kind = torch.where(better, first + place // len(NOISES), kind)
        noise = torch.where(better, _noise_between(scores, place), noise)
        # `torch.func.vmap` cannot follow a loop that ends where the values say so.
        going = going & (better | (len(looks) < LEAST_VIEWS))
        if not torch.is_grad_enabled() and not bool(going.any()):
            break
    return looks, kind, noise


def _predictions(evidence: Evidence, look: _Look, begun: bool) -> Tensor:
    """How well (B, sigmas, noises) fields found on half of the ground fit the other's evidence."""
    shape = (evidence.base.shape[-2], evidence.base.shape[-1])
    board = _checkerboard(evidence.base, BLOCK_CELLS)
    noise = evidence.volume.new_tensor(NOISES).reshape(-1, 1, 1, 1)
    halves = list(look.halves(_checkerboard(look.seen.base, BLOCK_CELLS // look.view.step), begun))
    scores = []
    for sigma_px in look.view.sigmas_px:
        one, other = (
            krige(target[:, None], weight[:, None], sigma_px / evidence.side_px, noise, look.view.step, shape)
            for target, weight in halves
        )
        # Each cell has one field that it was not made from, so one look at each is enough.
        field = one * (1 - board) + other * board - evidence.base[:, None]
        scores.append(_look_up(evidence, field).mean((2, 3)))
    return torch.stack(scores, 1)


def _noise_between(scores: Tensor, place: Tensor) -> Tensor:
    """The noise (B) at the top of the parabola through the best score of (B, sigmas * noises) and its neighbours."""
    count = len(NOISES)
    inside = (place % count > 0) & (place % count < count - 1)
    behind, here, ahead = (
        scores.gather(1, (place + step).clamp(0, scores.shape[1] - 1)[:, None])[:, 0] for step in (-1, 0, 1)
    )
    bend = (2 * here - behind - ahead).clamp_min(1e-12)
    aside = torch.where(inside, ((ahead - behind) / (2 * bend)).clamp(-0.5, 0.5), 0.0)
    return scores.new_tensor(NOISES)[place % count] * (NOISES[1] / NOISES[0]) ** aside


def _look_up(evidence: Evidence, fields: Tensor) -> Tensor:
    """The volume (B, A, h, w) at fields (B, A, 2, h, w) of offsets, bilinear between whole offsets."""
    side = round(evidence.offsets.shape[1] ** 0.5)
    place = (fields + side // 2).clamp(0, side - 1)
    whole = place.floor().clamp(max=side - 2)
    x, y = (place - whole).unbind(2)
    index = (whole[:, :, 1] * side + whole[:, :, 0]).long()
    near = [evidence.volume.gather(1, index + step) for step in (0, 1, side, side + 1)]
    upper, lower = near[0] * (1 - x) + near[1] * x, near[2] * (1 - x) + near[3] * x
    found: Tensor = upper * (1 - y) + lower * y
    return found


def _checkerboard(like: Tensor, block: int) -> Tensor:
    rows, cols = (torch.arange(side, device=like.device) // block for side in like.shape[-2:])
    board = ((rows[:, None] + cols) % 2).to(like.dtype)
    return board[None, None]
