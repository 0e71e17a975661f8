"""Do two halves of the ground say the same, and does a matcher follow a known step?

A window is matched from the one half of a checkerboard alone, and from the other half alone with moving shifted by a
known step. The halves share no pixel of fixed, so where a match follows noise or a change of the ground they disagree;
and an answer that falls back to zero does not follow the step. Unlike the forward-backward check this needs no network
that takes the modalities the other way round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from regnet.registration.windows import Matcher
from regnet.tiles.patch import Patch

Value = TypeVar("Value", bound=np.generic)

# Odd and of unequal length, so that no level of a pyramid sees the same pixels again.
STEP_PX = (5, -3)
# So large that a changed field lies in one half, so small that a rough displacement is still followed.
BLOCK_PX = 64


def half_difference(matcher: Matcher, patch: Patch) -> float:
    """Half of the difference between what two halves of a window say, root mean square, px."""
    dx, dy = STEP_PX
    board = checkerboard(patch.fixed_valid.shape)
    moving, valid = shift(patch.moving, dx, dy), shift(patch.moving_valid[None], dx, dy)[0]
    one = matcher(replace(patch, fixed_valid=patch.fixed_valid & board))
    other = matcher(replace(patch, fixed_valid=patch.fixed_valid & ~board, moving=moving, moving_valid=valid))
    step = np.array([dx, dy], np.float32)[:, None, None]
    square = np.square(other.displacement - step - one.displacement).sum(0) / 4
    both = patch.fixed_valid & patch.moving_valid & valid
    return float(np.sqrt(square[both].mean())) if both.any() else 0.0


def checkerboard(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Every other block of a window (H, W)."""
    rows, cols = (np.arange(side) // BLOCK_PX for side in shape)
    return np.asarray((rows[:, None] + cols) % 2 == 0)


def shift(image: NDArray[Value], dx: int, dy: int) -> NDArray[Value]:
    """Move the content of (C, H, W) to the right by dx and down by dy; zero (or false) comes in.

    If moving fits fixed at the displacement d, moving shifted by (dx, dy) fits it at d + (dx, dy).
    """
    height, width = image.shape[1:]
    result = np.zeros_like(image)
    rows, cols = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
    result[:, rows, cols] = image[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
    return result
