"""Images at 1, 1/2, 1/4 ... with their validity, and how a level of one is moved."""

from __future__ import annotations

from torch import Tensor

from regnet.displacement import pooled, warp, warp_valid


def pyramid(image: Tensor, valid: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
    """Means of the valid pixels over squares of 1, 2, 4 ... px, and which share of each is valid (as float)."""
    found = [(image, valid.to(image.dtype))]
    for _ in range(levels - 1):
        found.append(pooled(*found[-1], 2))
    return found


def moved(image: Tensor, weight: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """An image and its share of valid pixels at `x + displacement(x)`; none between pixels of which one has none."""
    whole = warp_valid(weight > 0, displacement)
    return warp(image, displacement, "bicubic"), warp(weight, displacement) * whole
