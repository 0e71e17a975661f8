"""From a volume of evidence to a smooth field, as rough as held-out evidence says and no rougher.

The field is found by stages, the smoothest first. Each stage looks at a narrower window near what the stages before it
found and smooths less. How much of its step is taken is decided by cross-validation: the ground is cut into a
checkerboard, the step found on one half is tried on the other, forwards and backwards, and the parabola through the
three values of the evidence says how much of it is real. A step that only follows noise is as good backwards as
forwards, and nothing of it is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
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
    """

    window_px: float
    field_px: float
    passes: int
    near_px: float


STAGES = (
    Stage(32.0, 96.0, 8, 2.0),
    Stage(12.0, 64.0, 8, 2.0),
    Stage(12.0, 32.0, 4, 2.0),
    Stage(8.0, 16.0, 2, 2.0),
    Stage(8.0, 8.0, 2, 2.0),
    Stage(5.0, 5.0, 2, 2.0),
)
BLOCK_CELLS = 12
"""Side of the checkerboard's blocks, cells: farther than a change of the ground fools the evidence alike."""
DOUBT = 0.5
"""A share of a step up to this is put down to noise that both halves have in common."""
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
        base: (B, 2, h, w) px of the level, the displacement that the offsets add to; the sum of both is smoothed.
    """

    volume: Tensor
    count: Tensor
    offsets: Tensor
    base: Tensor

    def logits(self, sigma_px: float, sharpness: float = SHARPNESS) -> Tensor:
        """Mean fit over a Gaussian window, of the pixels valid in both images, times an inverse temperature."""
        sigma = sigma_px / CELL
        return sharpness * gaussian(self.volume, sigma) / gaussian(self.count, sigma).clamp_min(1e-2)

    def part(self, cells: Tensor) -> Evidence:
        """The evidence of some cells alone; `cells` is (1, 1, h, w), one or zero."""
        return Evidence(self.volume * cells, self.count * cells, self.offsets, self.base)


def statistics(logits: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean offset (B, 2, h, w) and its variance (B, 1, h, w), px^2, of a distribution given by logits over offsets.

    Each offset stands for the top of the peak through its own logit and those of its neighbours, so that a sharp
    distribution is not drawn to whole pixels.
    """
    share = torch.softmax(logits, 1)
    mean = torch.einsum("ko,bohw->bkhw", offsets, share)
    mean = mean + torch.stack([(share * top).sum(1) for top in _tops(logits)], 1)
    square = torch.einsum("o,bohw->bhw", offsets.square().sum(0), share)[:, None]
    return mean, (square - mean.square().sum(1, keepdim=True)).clamp_min(0) + LEAST_VARIANCE


def _tops(logits: Tensor) -> list[Tensor]:
    """How far, along x and along y, the top of a peak at each offset is from it: in -0.5..0.5 px.

    Two lines of equal and opposite slope through the logit and its neighbours (equiangular fit: Shimizu and Okutomi,
    ICCV 2001), since unit descriptors fit with a peak that is pointed rather than round.
    """
    side = round(logits.shape[1] ** 0.5)
    grid = logits.reshape(-1, side, side, *logits.shape[2:])
    tops = []
    for axis in (2, 1):
        before, here, after = (grid.narrow(axis, start, side - 2) for start in (0, 1, 2))
        drop = (here - torch.minimum(before, after)).clamp_min(1e-3)
        top = ((after - before) / (2 * drop)).clamp(-0.5, 0.5)
        edge = torch.zeros_like(grid.narrow(axis, 0, 1))
        tops.append(torch.cat((edge, top, edge), axis).reshape(logits.shape))
    return tops


def fit_field(evidence: Evidence, stages: int | None = None) -> Tensor:
    """Find the offsets (B, 2, h, w), px of the level, that the evidence supports.

    Args:
        evidence: of one level.
        stages: take that many stages whole, as training does; None to let held-out evidence decide on each.
    """
    if stages is not None:
        field = None
        for stage in STAGES[:stages]:
            field = _stage(evidence, stage, field)
        assert field is not None
        return field
    board = _checkerboard(evidence.base)
    parts = [evidence, evidence.part(board), evidence.part(1 - board)]
    fields = [_stage(part, STAGES[0], None) for part in parts]
    for stage in STAGES[1:]:
        steps = [_stage(part, stage, field) - field for part, field in zip(parts, fields, strict=True)]
        with torch.no_grad():
            taken = _real_share(evidence, fields[1:], steps[1:], (1 - board, board))
        fields = [field + taken * step for field, step in zip(fields, steps, strict=True)]
    return fields[0]


def _stage(evidence: Evidence, stage: Stage, near: Tensor | None) -> Tensor:
    """Offsets at one smoothness, looked for around `near`; the first stage finds its own place to look around."""
    logits = evidence.logits(stage.window_px)
    if near is None:
        near = _smoothed(evidence, stage, *statistics(logits, evidence.offsets))
    distance = evidence.offsets[None, :, :, None, None] - near[:, :, None]
    logits = logits - distance.square().sum(1) / (2 * stage.near_px**2)
    return _smoothed(evidence, stage, *statistics(logits, evidence.offsets))


def _smoothed(evidence: Evidence, stage: Stage, offset: Tensor, variance: Tensor) -> Tensor:
    """Smooth the whole field by how sure each cell is, and take the base off again."""
    weight = (1 + variance) ** -2
    target = offset + evidence.base
    field = smooth(target, stage.field_px / CELL, weight)
    for _ in range(stage.passes - 1):
        field = field + smooth(target - field, stage.field_px / CELL, weight)
    return field - evidence.base


def _real_share(
    evidence: Evidence, fields: list[Tensor], steps: list[Tensor], held_out: tuple[Tensor, Tensor]
) -> Tensor:
    """How much of a step (B, 1, 1, 1) in 0..1 the evidence that it was not made from supports.

    The parabola through the evidence at the field less the step, at the field and at the field plus the step has its
    top at this share of the step.
    """
    slope, bend = torch.zeros_like(fields[0][:, :1, :1, :1]), torch.zeros_like(fields[0][:, :1, :1, :1])
    for field, step, cells in zip(fields, steps, held_out, strict=True):
        behind, here, ahead = (_look_up(evidence, field + share * step) for share in (-1, 0, 1))
        slope += ((ahead - behind) * cells).mean((1, 2, 3), keepdim=True)
        bend += 2 * ((2 * here - ahead - behind) * cells).mean((1, 2, 3), keepdim=True)
    # A window of less than two blocks holds nothing out, and what is left of the sums is rounding.
    least = 1e-5 * evidence.volume.abs().mean((1, 2, 3), keepdim=True)
    share = torch.where(bend > least, slope / bend.clamp_min(1e-12), (slope > least).to(slope.dtype))
    return ((share - DOUBT) / (1 - DOUBT)).clamp(0, 1)


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


def _checkerboard(like: Tensor) -> Tensor:
    rows, cols = (torch.arange(side, device=like.device) // BLOCK_CELLS for side in like.shape[-2:])
    board = ((rows[:, None] + cols) % 2).to(like.dtype)
    return board[None, None]
