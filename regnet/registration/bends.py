"""Straight edges under a displacement that bends: in how many parts each is to move, so that it follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet.geo.measures import rewritten, vertices_of
from regnet.registration.field import FieldFile

TOLERANCE_PX = 0.1
"""So far may parts of an edge lie from where the displacement takes them; n parts are off by 1 / n^2 of what one is."""
SAMPLE_PX, MOST_SAMPLES = 8.0, 1000
"""Edges are looked at so often; shorter ones hardly bend."""


def edge_parts(shape: Any, field: FieldFile) -> NDArray[np.intp]:
    """In how many equal parts each edge of a geometry follows the inverse of a displacement.

    Args:
        shape: in pixels (column, row) of the field's grid.
        field: the displacement.

    Returns:
        (n,) one for each edge, in the order of the vertices; 1 where the displacement is not known all along.
    """
    runs = vertices_of(shape)
    start, end = (np.concatenate([np.empty((0, 2)), *(run[part, :2] for run in runs)]) for part in _ENDS)
    parts, length = np.ones(len(start), np.intp), np.hypot(*(end - start).T)
    long = np.flatnonzero((length > SAMPLE_PX) & np.isfinite(length))
    if not len(long):
        return parts
    # From the lesser end on, so that neighbours cut a wall that they share alike.
    start, end = _ordered(start[long], end[long])
    counts = np.minimum(np.ceil(length[long] / SAMPLE_PX), MOST_SAMPLES).astype(np.intp) + 1
    firsts = np.cumsum(counts) - counts
    edge = np.repeat(np.arange(len(long)), counts)
    share = ((np.arange(len(edge)) - firsts[edge]) / (counts - 1)[edge])[:, None]
    offsets = field.inverse_offsets(start[edge] + share * (end - start)[edge])[:, :2]
    straight = (1 - share) * offsets[firsts][edge] + share * offsets[firsts + counts - 1][edge]
    apart = np.maximum.reduceat(np.hypot(*(offsets - straight).T), firsts)
    needed = np.ceil(np.sqrt(np.nan_to_num(apart) / TOLERANCE_PX))
    parts[long] = np.clip(needed, 1, counts - 1).astype(np.intp)
    return parts


def cut(shape: Any, parts: NDArray[np.intp] | None) -> Any:
    """A geometry with each of its edges (n,) in so many equal parts, None for one; Z and M are interpolated."""
    if parts is None or (parts == 1).all():
        return shape
    left = iter(parts)

    def change(run: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([*_pieces(run, left), run[-1:]])

    return rewritten(shape, change)


_ENDS = (np.s_[:-1], np.s_[1:])


def _pieces(run: NDArray[np.float64], left: Iterator[np.intp]) -> Iterator[NDArray[np.float64]]:
    """The vertices (parts, width) of each edge of a run but for its end."""
    for start, end in zip(*(run[part] for part in _ENDS), strict=True):
        count = int(next(left))
        share = np.arange(count)[:, None] / count
        low, high = _ordered(start[None], end[None])
        turned = bool((low != start).any())
        between = low + (1 - share if turned else share) * (high - low)
        between[0] = start
        yield between


def _ordered(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pairs of points (n, width), the one farther left, or farther up if none is, first."""
    first = (one[:, 0] < other[:, 0]) | ((one[:, 0] == other[:, 0]) & (one[:, 1] <= other[:, 1]))
    return np.where(first[:, None], one, other), np.where(first[:, None], other, one)
