"""From a volume of evidence to a smooth field, as rough as held-out evidence says and no rougher.

The field is found by stages, the smoothest first, from no step at all. Each stage looks at a narrower window near what
the stages before it found and smooths less. How much of its step is taken is decided by cross-validation: the ground is
cut into a checkerboard, the step found on one half is tried on the other, forwards and backwards, and the parabola
through the three values of the evidence says how much of it is real. A step that only follows noise is as good
backwards as forwards, and nothing of it is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import gaussian, smooth
from regnet.models.correlation import CELL


class Stage(NamedTuple):
    """One smoothness of the field.

    Attributes:
        window_px: Gaussian window over which the evidence is summed, px of the level.
        field_px: Gaussian by which the field is smoothed, px of the level.
        passes: how often the smoothing runs on what it left over (twicing, Tukey 1977), which keeps slopes and bends.
        near_px: spread of the Gaussian prior around the field so far, px of the level.
        step: side of the squares, in cells, for each of which one offset is found: no wider than the window's sigma, so
            that the squares miss nothing the window shows.
        doubt: a share of the stage's step up to this is put down to noise that both halves have in common.
    """

    window_px: float
    field_px: float
    passes: int
    near_px: float
    step: int
    doubt: float


STAGES = (
    Stage(32.0, 96.0, 8, 2.0, 4, 0.0),
    Stage(12.0, 64.0, 8, 2.0, 2, 0.5),
    Stage(12.0, 32.0, 4, 2.0, 2, 0.5),
    Stage(8.0, 16.0, 2, 2.0, 2, 0.5),
    Stage(8.0, 8.0, 2, 2.0, 1, 0.5),
    Stage(5.0, 5.0, 2, 2.0, 1, 0.5),
)
BLOCK_CELLS = 12
"""Side of the checkerboard's blocks, cells: farther than a change of the ground fools the evidence alike."""
SHARPNESS = 100.0
"""Inverse temperature of the windowed evidence of unit descriptors."""
LEAST_VARIANCE = 0.02
"""Variance of the offset that the discretisation leaves, px^2."""
MOSTLY, IDLE_STAGES = 0.5, 2
"""After a stage whose step was mostly real, so many stages in a row with nothing real leave nothing to finer ones."""


@dataclass(frozen=True)
class Evidence:
    """What a level knows of the offsets, cell by cell.

    Attributes:
        volume: (B, K * K, h, w), sums over each cell of how well the pixels fit at every offset.
        count: (B, K * K, h, w), how many pixels each sum has.
        offsets: (2, K * K) px of the level.
        base: (B, 2, h, w) px of the level, the displacement that the offsets add to; the sum of both is smoothed.
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


@dataclass(frozen=True)
class _View:
    """The evidence as stages of one window and one step see it.

    Attributes:
        stage: one of those stages.
        seen: the evidence on the stage's squares.
        parts: logits of the windowed evidence: of all and, where evidence is held out, of each half of the ground.
        board: (1, 1, h, w), one on the squares of the first half.
    """

    stage: Stage
    seen: Evidence
    parts: list[Tensor]
    board: Tensor

    @classmethod
    def of(cls, seen: Evidence, stage: Stage, held_out: bool) -> _View:
        """What a stage sees of the evidence on its squares, with or without halves held out."""
        parts, board = [seen.window(stage.window_px)], _checkerboard(seen.base, BLOCK_CELLS // stage.step)
        if held_out:
            parts.append(seen.part(board).window(stage.window_px))
            parts.append(parts[0].rest(parts[1]))
        return cls(stage, seen, [part.logits() for part in parts], board)

    def serves(self, stage: Stage) -> bool:
        return (stage.window_px, stage.step) == (self.stage.window_px, self.stage.step)


def fit_field(evidence: Evidence, stages: int | None = None) -> Tensor:
    """Find the offsets (B, 2, h, w), px of the level, that the evidence supports.

    Args:
        evidence: of one level.
        stages: take that many stages whole, as training does; None to let held-out evidence decide on each.
    """
    first = STAGES[0]
    if stages is None and max(evidence.base.shape[-2:]) <= BLOCK_CELLS:
        stages = 1  # A single block holds nothing out.
    view = _View.of(evidence.coarser(first.step), first, stages is None)
    still = torch.zeros_like(view.seen.base)
    fields = [_smoothed(view, first, still, still[:, :1])] * len(view.parts)
    begun = torch.zeros_like(still[:, :1, :1, :1], dtype=torch.bool)
    idle, going = begun.int(), ~begun
    for stage in STAGES[:stages]:
        if not view.serves(stage):
            ratio = view.stage.step // stage.step
            seen = view.seen if ratio == 1 else evidence.coarser(stage.step)
            fields = [_finer(field, ratio, view.seen.base, seen.base) for field in fields]
            view = _View.of(seen, stage, stages is None)
        around = [None if stage is first else field for field in fields]
        found = [_found(view, part, stage, near) for part, near in zip(view.parts, around, strict=True)]
        steps = [new - field for new, field in zip(found, fields, strict=True)]
        if stages is None:
            taken = _real_share(view, stage, fields[1:], steps[1:]) * going
            steps = [taken * step for step in steps]
        fields = [field + step for field, step in zip(fields, steps, strict=True)]
        if stages is None:
            begun |= taken > MOSTLY
            idle = torch.where(taken > 0, 0, idle + 1)
            going = ~(begun & (idle >= IDLE_STAGES))
            # `torch.func.vmap` cannot follow a loop that ends where the values say so.
            if not torch.is_grad_enabled() and not going.any():
                break
    return _finer(fields[0], view.stage.step, view.seen.base, evidence.base)


def _finer(field: Tensor, ratio: int, base: Tensor, finer_base: Tensor) -> Tensor:
    """Offsets from `base` on squares of `ratio` cells as offsets from the base of these cells.

    The sum of both is interpolated: it is smooth, whatever the base is. What was filled up is cut off.
    """
    if ratio == 1:
        return field
    whole = field + base
    near = F.pad(whole, (1, 1, 1, 1), mode="replicate")
    across, down = near[..., 1:-1, :-2] + near[..., 1:-1, 2:], near[..., :-2, 1:-1] + near[..., 2:, 1:-1]
    # Lines between the squares cut off a parabola's bend: between two, by t (1 - t) / 2 of the second difference, which
    # is 3/32 at a quarter and at three quarters.
    fine = F.interpolate(
        whole - 3 / 32 * (across + down - 4 * whole), scale_factor=ratio, mode="bilinear", align_corners=False
    )
    return fine[..., : finer_base.shape[-2], : finer_base.shape[-1]] - finer_base


def _found(view: _View, logits: Tensor, stage: Stage, near: Tensor | None) -> Tensor:
    """Offsets at one smoothness, looked for around `near`; the first stage finds its own place to look around."""
    offsets = view.seen.offsets
    if near is None:
        near = _smoothed(view, stage, *statistics(logits, offsets))
    # The Gaussian around `near`, less what is the same for all offsets: <o, near> - <o, o> / 2.
    sides = torch.cat((offsets, -offsets.square().sum(0, keepdim=True) / 2)).T / stage.near_px**2
    place = torch.cat((near, torch.ones_like(near[:, :1])), 1).flatten(2)
    likely = torch.baddbmm(logits.flatten(2), sides.expand(len(near), -1, -1), place).reshape(logits.shape)
    return _smoothed(view, stage, *statistics(likely, offsets))


def _smoothed(view: _View, stage: Stage, offset: Tensor, variance: Tensor) -> Tensor:
    """Smooth the whole field by how sure each cell is, and take the base off again."""
    base, sigma = view.seen.base, stage.field_px / view.seen.side_px
    weight, target = (1 + variance) ** -2, offset + base
    field = smooth(target, sigma, weight)
    for _ in range(stage.passes - 1):
        field = field + smooth(target - field, sigma, weight)
    return field - base


@torch.no_grad()
def _real_share(view: _View, stage: Stage, fields: list[Tensor], steps: list[Tensor]) -> Tensor:
    """How much of a step (B, 1, 1, 1) in 0..1 the half of the ground that it was not made from supports.

    The parabola through the evidence at the field less the step, at the field and at the field plus the step has its
    top at this share of the step.
    """
    # Each square has one field that it was not made from, so one look at each is enough.
    field, step = (one * (1 - view.board) + other * view.board for one, other in (fields, steps))
    behind, here, ahead = (_look_up(view.seen, field + share * step) for share in (-1, 0, 1))
    slope, bend = (part.mean((1, 2, 3), keepdim=True) for part in (ahead - behind, 2 * (2 * here - ahead - behind)))
    # Where the halves know nothing of each other, what is left of the sums is rounding.
    least = 1e-5 * view.seen.volume.abs().mean((1, 2, 3), keepdim=True)
    share = torch.where(bend > least, slope / bend.clamp_min(1e-12), (slope > least).to(slope.dtype))
    doubt = stage.doubt
    return ((share - doubt) / (1 - doubt)).clamp(0, 1)


def _look_up(evidence: Evidence, field: Tensor) -> Tensor:
    """The volume (B, 1, h, w) at a field of offsets, bilinear between whole offsets."""
    side = round(evidence.offsets.shape[1] ** 0.5)
    place = (field + side // 2).clamp(0, side - 1)
    whole = place.floor().clamp(max=side - 2)
    x, y = (place - whole).split(1, 1)
    index = (whole[:, 1:] * side + whole[:, :1]).long()
    near = [evidence.volume.gather(1, index + step) for step in (0, 1, side, side + 1)]
    upper, lower = near[0] * (1 - x) + near[1] * x, near[2] * (1 - x) + near[3] * x
    found: Tensor = upper * (1 - y) + lower * y
    return found


def _checkerboard(like: Tensor, block: int) -> Tensor:
    rows, cols = (torch.arange(side, device=like.device) // block for side in like.shape[-2:])
    board = ((rows[:, None] + cols) % 2).to(like.dtype)
    return board[None, None]
