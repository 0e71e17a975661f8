"""From a volume of evidence to a smooth field, as rough as held-out evidence says and no rougher.

The field is the posterior mean of a Gaussian process given the most likely offset of every cell and how sure it is in
each direction: along an edge, not at all. How rough the process is, and how noisy the offsets, is found by
cross-validation: the ground is cut into a checkerboard and the field found on one half is looked up in the evidence of
the other. What predicts best is taken, together with what does not predict significantly worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from regnet.displacement import gaussian
from regnet.models.correlation import CELL
from regnet.models.kriging import krige


class View(NamedTuple):
    """One way to look at the evidence, and how rough the fields are that it is good for.

    Attributes:
        window_px: Gaussian window over which the evidence is summed, px of the level.
        step: side of the squares, in cells, for each of which one offset is found: no wider than the window's sigma, so
            that the squares miss nothing the window shows.
        sigmas_px: of the Gaussians that make such fields out of white noise, from row to row and along them, px of the
            level.
    """

    window_px: float
    step: int
    sigmas_px: tuple[tuple[float, float], ...]


LEARNED_VIEWS = (
    View(32.0, 4, ((160.0, 160.0),)),
    View(12.0, 2, ((80.0, 80.0),)),
    View(8.0, 2, ((40.0, 40.0), (20.0, 20.0))),
    View(5.0, 1, ((20.0, 20.0), (10.0, 10.0))),
)
"""Those that training looks through: the fields that it draws are as rough along rows as from row to row."""
JITTER_PX = ((8.0, 160.0), (160.0, 8.0), (8.0, 40.0), (40.0, 8.0))
"""Sigmas of the jitter of a sensor whose path follows rows or columns, the shorter ones if it is some 10 degrees off
them, as in most images that were brought onto a map."""
VIEWS = (*LEARNED_VIEWS[:-1], LEARNED_VIEWS[-1]._replace(sigmas_px=LEARNED_VIEWS[-1].sigmas_px + JITTER_PX))
NOISES = (0.05, 0.2, 0.8, 3.2, 12.8)
"""Variances of a cell's offset that are tried, in units of the field's variance: a geometric series."""
ALONE = 0.2
"""That taken, of the smoothest field, where a single block holds nothing out."""
LEAST_SHARE = 1e-3
"""Alternatives with a smaller share are left out."""
LEAST_VIEWS = 3
"""So many views are taken in any case; beyond them, one that predicts no better than those before it is the last."""
NEAR_PX = 2.0
"""Spread of the Gaussian prior around what coarser levels found, px of the level."""
BLOCK_CELLS = 12
"""Side of the checkerboard's blocks, cells: farther than a change of the ground fools the evidence alike."""
SHARPNESS = 100.0
"""Inverse temperature of the windowed evidence of unit descriptors."""
LEAST_VARIANCE = 0.01
"""Variance of the offset along x, and along y, that the discretisation leaves, px^2."""
SURE_VARIANCE = 0.25
"""An offset whose variance is much smaller is not surer for it, px^2: the evidence knows less than it believes."""


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

    def in_cells(self, sigma_px: tuple[float, float]) -> tuple[float, float]:
        """Lengths from row to row and along them, px of the level, in cells."""
        down, along = sigma_px
        return down / self.side_px, along / self.side_px

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
    """Mean (B, 2, h, w), px, and covariance (B, 3, h, w: xx, xy, yy), px^2, of a distribution over offsets.

    Each offset stands for the top of the peak through its own logit and those of its neighbours, so that a sharp
    distribution is not drawn to whole pixels.
    """
    share = torch.softmax(logits, 1)
    x, y = offsets
    powers = torch.stack((x, y, x * x, x * y, y * y))
    moments = torch.matmul(powers, share.flatten(2)).reshape(-1, 5, *share.shape[2:])
    x, y = moments[:, :1], moments[:, 1:2]
    xx, xy, yy = (moments[:, 2:] - torch.cat((x * x, x * y, y * y), 1)).unbind(1)
    covariance = torch.stack((xx.clamp_min(0) + LEAST_VARIANCE, xy, yy.clamp_min(0) + LEAST_VARIANCE), 1)
    return moments[:, :2] + _tops(logits, share), covariance


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


class Choice(NamedTuple):
    """How smooth a field is to be.

    Attributes:
        share: (B, kinds) of the smoothnesses of all views in turn; less than one in all where there may be no offset.
        noise: (B, kinds), variance of a cell's offset with which each of them predicts best.
    """

    share: Tensor
    noise: Tensor


def fit_field(
    evidence: Evidence, caution: Tensor | float, begun: bool, drawn: bool = False, training: bool = False
) -> Tensor:
    """Find the offsets (B, 2, h, w), px of the level, that the evidence supports.

    Args:
        evidence: of one level.
        caution: so many times the noise that predicts best is taken, since what fools the evidence on one half of the
            ground partly fools it on the other.
        begun: whether coarser levels have found the base; if not, offsets are looked for everywhere in reach, and none
            may be found.
        drawn: take a smoothness and noise at random, whatever predicts best, as training does now and then.
        training: look through the views of training, and leave out what has no share though gradients are asked for.
    """
    shape = (evidence.base.shape[-2], evidence.base.shape[-1])
    like = evidence.base[:, 0, 0, 0]
    looks: list[_Look] = []
    caution = torch.as_tensor(caution)
    views = LEARNED_VIEWS if training else VIEWS
    if not drawn and max(shape) > BLOCK_CELLS:
        looks, choice = _best_predicting(evidence, views, begun, training)
    else:
        # How many times the noise that predicts best is right cannot be learned where nothing was predicted.
        choice, caution = _drawn(like, views) if drawn else _alone(like), caution.detach()
    found, first = torch.zeros_like(evidence.base), 0
    for place, view in enumerate(views):
        kinds = slice(first, first + len(view.sigmas_px))
        first = kinds.stop
        if not _counts(choice.share[:, kinds], training):
            continue
        look = looks[place] if place < len(looks) else _Look.at(evidence, view, begun)
        for kind, sigma_px in zip(range(kinds.start, kinds.stop), view.sigmas_px, strict=True):
            share, noise = (part[:, kind, None, None, None] for part in choice)
            if _counts(share, training):
                sigma = evidence.in_cells(sigma_px)
                field = krige(look.target, look.weight, sigma, noise * caution, view.step, shape)
                found = found + share * (field - evidence.base)
    return found


def _counts(share: Tensor, training: bool) -> bool:
    """Whether any of the shares is to be looked at."""
    return share.numel() > 0 and (not _values_tell(share, training) or bool(share.any()))


def _values_tell(values: Tensor, training: bool) -> bool:
    """Whether what is done next may depend on the values.

    `torch.func.vmap` cannot follow that, and whoever asks for each sample's gradients expects the same steps of all.
    """
    return not is_functorch_wrapped_tensor(values) and (training or not torch.is_grad_enabled())


def _drawn(like: Tensor, views: Sequence[View]) -> Choice:
    kinds = sum(len(view.sigmas_px) for view in views)
    share = F.one_hot(torch.randint(kinds, like.shape, device=like.device), kinds).to(like.dtype)
    return Choice(share, like.new_tensor(NOISES)[torch.randint(len(NOISES), share.shape, device=like.device)])


def _alone(like: Tensor) -> Choice:
    share = torch.ones_like(like)[:, None]
    return Choice(share, ALONE * share)


@dataclass(frozen=True)
class _Look:
    """What a view shows.

    Attributes:
        view: that view.
        seen: the evidence on its squares.
        windowed: the same, summed over its window.
        target: (B, 2, h, w), the most likely displacement of each square, px of the level.
        weight: (B, 3, h, w), how sure it is: xx, xy and yy of a matrix, whose diagonal is one in the mean.
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
        scale = sure[:, ::2].mean((1, 2, 3), keepdim=True)
        return cls(view, seen, windowed, target, sure / scale, scale)

    def halves(self, board: Tensor, begun: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Target and weight by the evidence of the board's ones alone, and by that of its zeros alone."""
        part = self.seen.part(board).window(self.view.window_px)
        for windowed, own in ((part, board), (self.windowed.rest(part), 1 - board)):
            target, sure = _most_likely(windowed, begun)
            yield target, sure / self.scale * own


def _most_likely(windowed: Evidence, begun: bool) -> tuple[Tensor, Tensor]:
    """Displacement (B, 2, h, w) that the windowed evidence speaks for, and how surely (B, 3, h, w: xx, xy, yy)."""
    spread = NEAR_PX if begun else torch.inf
    near = windowed.offsets.square().sum(0) / (-2 * spread**2)
    offset, covariance = statistics(windowed.logits() + near[:, None, None], windowed.offsets)
    prior = torch.softmax(near, 0)
    return offset + windowed.base, _sureness(covariance, prior @ windowed.offsets[0].square())


def _sureness(covariance: Tensor, before: Tensor) -> Tensor:
    """The square, so that the unsure hardly count, of the precision that the evidence adds (B, 3, h, w: xx, xy, yy).

    Precisions are the inverses of the covariance (B, 3, h, w) and of the variance before, each and `SURE_VARIANCE`.
    """
    xx, xy, yy = covariance[:, 0] + SURE_VARIANCE, covariance[:, 1], covariance[:, 2] + SURE_VARIANCE
    determinant, known = xx * yy - xy * xy, 1 / (before + SURE_VARIANCE)
    xx, xy, yy = yy / determinant - known, -xy / determinant, xx / determinant - known
    return torch.stack((xx * xx + xy * xy, xy * (xx + yy), yy * yy + xy * xy), 1)


def _best_predicting(
    evidence: Evidence, views: Sequence[View], begun: bool, training: bool
) -> tuple[list[_Look], Choice]:
    """Looks, and what predicts best by them, no offset at all included."""
    looks: list[_Look] = []
    fits: list[Tensor] = []
    tried: list[Tensor] = []
    noises: list[Tensor] = []
    best = torch.full_like(evidence.base[:, 0, 0, 0], -torch.inf)
    going = torch.ones_like(best, dtype=torch.bool)
    wide = _widened(evidence)
    if not begun:
        fits.append(_by_block(_look_up(wide, torch.zeros_like(evidence.base[:, None])))[:, 0])
        tried.append(going)
        best = fits[0].sum(1)
    for view in views:
        looks.append(_Look.at(evidence, view, begun))
        with torch.no_grad():
            predictions = _predictions(evidence, wide, looks[-1], begun)
        for fit in predictions.unbind(1):
            scores = fit.sum(2)
            place = scores.argmax(1, keepdim=True)
            fits.append(fit.take_along_dim(place[..., None], 1)[:, 0])
            noises.append(_noise_between(scores, place)[:, 0])
            tried.append(going)
        top = predictions.sum(3).amax((1, 2))
        better = going & (top > best)
        best = torch.where(better, top, best)
        going = going & (better | (len(looks) < LEAST_VIEWS))
        if _values_tell(going, training) and not bool(going.any()):
            break
    share = _shares(torch.stack(fits, 1), torch.stack(tried, 1))
    return looks, Choice(share[:, -len(noises) :], torch.stack(noises, 1))


def _shares(fits: Tensor, tried: Tensor) -> Tensor:
    """The share (B, A) of each of the alternatives that were tried (B, A), from how well they fit each block (B, A, N).

    `exp(-z^2)` with the z-score of the best one's lead, as if blocks were independent.
    """
    place = fits.sum(2).masked_fill(~tried, -torch.inf).argmax(1, keepdim=True)
    lead = fits.take_along_dim(place[..., None], 1) - fits
    z_squared = lead.sum(2).square() / lead.square().sum(2).clamp_min(1e-12)
    share = torch.softmax((-z_squared).masked_fill(~tried, -torch.inf), 1)
    share = share * (share > LEAST_SHARE)
    return share / share.sum(1, keepdim=True)


def _by_block(values: Tensor) -> Tensor:
    """Sums (B, A, N) of (B, A, h, w) over the checkerboard's blocks."""
    pad = (0, -values.shape[-1] % BLOCK_CELLS, 0, -values.shape[-2] % BLOCK_CELLS)
    return F.avg_pool2d(F.pad(values, pad), BLOCK_CELLS, divisor_override=1).flatten(2)


def _predictions(evidence: Evidence, wide: Tensor, look: _Look, begun: bool) -> Tensor:
    """How well (B, sigmas, noises, blocks) fields found on half of the ground fit the other's evidence."""
    shape = (evidence.base.shape[-2], evidence.base.shape[-1])
    board = _checkerboard(evidence.base, BLOCK_CELLS)
    noise = evidence.volume.new_tensor(NOISES).reshape(-1, 1, 1, 1)
    halves = list(look.halves(_checkerboard(look.seen.base, BLOCK_CELLS // look.view.step), begun))
    scores = []
    for sigma_px in look.view.sigmas_px:
        one, other = (
            krige(target[:, None], weight[:, None], evidence.in_cells(sigma_px), noise, look.view.step, shape)
            for target, weight in halves
        )
        # Each cell has one field that it was not made from, so one look at each is enough.
        field = one * (1 - board) + other * board - evidence.base[:, None]
        scores.append(_by_block(_look_up(wide, field)))
    return torch.stack(scores, 1)


def _noise_between(scores: Tensor, place: Tensor) -> Tensor:
    """The noise (B, 1) at the top of the parabola through the best of the scores (B, noises) and its neighbours."""
    inside = (place > 0) & (place < len(NOISES) - 1)
    behind, here, ahead = (scores.take_along_dim((place + step).clamp(0, len(NOISES) - 1), 1) for step in (-1, 0, 1))
    bend = (2 * here - behind - ahead).clamp_min(1e-12)
    aside = torch.where(inside, ((ahead - behind) / (2 * bend)).clamp(-0.5, 0.5), 0.0)
    return scores.new_tensor(NOISES)[place] * (NOISES[1] / NOISES[0]) ** aside


def _widened(evidence: Evidence) -> Tensor:
    """The volume as it goes on for one offset beyond its reach, (B, (K + 2)^2, h, w)."""
    side = round(evidence.offsets.shape[1] ** 0.5)
    wide = evidence.volume.reshape(-1, side, side, *evidence.volume.shape[2:])
    for dim in (1, 2):
        steps = wide.diff(dim=dim)
        before = wide.narrow(dim, 0, 1) - steps.narrow(dim, 0, 1)
        after = wide.narrow(dim, -1, 1) + steps.narrow(dim, -1, 1)
        wide = torch.cat((before, wide, after), dim)
    return wide.flatten(1, 2)


def _look_up(wide: Tensor, fields: Tensor) -> Tensor:
    """The widened volume (B, (K + 2)^2, h, w) at fields (B, A, 2, h, w) of offsets: (B, A, h, w).

    Bilinear, and what peaks rise above that: between whole offsets a share t (1 - t) of the bend there, twice what a
    parabola asks for, and half of what a peak of two straight lines may. Without it fields that move least would seem
    to predict best, since whole offsets, no offset among them, would be looked up on their peaks and all others below.
    """
    side, (height, width) = round(wide.shape[1] ** 0.5), wide.shape[2:]
    place = (fields + side // 2).clamp(1, side - 2)
    whole = place.floor().clamp(max=side - 3)
    x, y = (place - whole).unbind(2)
    first = ((whole[:, :, 1] - 1) * side + whole[:, :, 0] - 1).long()
    batches = torch.arange(len(wide), device=wide.device)[:, None, None, None]
    cells = torch.arange(height * width, device=wide.device).reshape(height, width)
    index = ((first + wide.shape[1] * batches) * (height * width) + cells).flatten()
    flat, last = wide.flatten(), (3 * side + 3) * height * width

    def at(row: int, col: int) -> Tensor:
        # The same index into the volume from another offset on; selecting is several times as quick as gathering.
        start = ((row + 1) * side + col + 1) * height * width
        return flat[start : len(flat) - last + start].index_select(0, index).reshape(x.shape)

    bend_x, bend_y = x * (1 - x), y * (1 - y)
    lines, bent = [], []
    for row in (-1, 0, 1, 2):
        left, right = at(row, 0), at(row, 1)
        lines.append(torch.lerp(left, right, x))
        if row in (0, 1):
            bends = torch.lerp(2 * left - at(row, -1) - right, 2 * right - left - at(row, 2), x)
            bent.append(torch.addcmul(lines[-1], bend_x, bends))
    bends = torch.lerp(2 * lines[1] - lines[0] - lines[2], 2 * lines[2] - lines[1] - lines[3], y)
    return torch.addcmul(torch.lerp(bent[0], bent[1], y), bend_y, bends)


def _checkerboard(like: Tensor, block: int) -> Tensor:
    rows, cols = (torch.arange(side, device=like.device) // block for side in like.shape[-2:])
    board = ((rows[:, None] + cols) % 2).to(like.dtype)
    return board[None, None]
