"""Vertices of geometries with all that they hold: of measures (M) shapely loses some when vertices are set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

POINT, LINE, POLYGON = 1, 2, 3


def with_places(shape: Any, places: NDArray[np.float64]) -> Any:
    """A geometry with other x and y (n, 2) at its n vertices; its Z and M stay."""
    start = 0

    def change(run: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal start
        start += len(run)
        return np.column_stack([places[start - len(run) : start], run[:, 2:]])

    return rewritten(shape, change)


def without_measures(shape: Any) -> Any:
    """A geometry without its M; its Z stays."""
    flat = shapely.force_2d(shape)
    if not shapely.has_z(shape):
        return flat
    own = shapely.get_coordinates(shape, include_z=True)
    return shapely.transform(shapely.force_3d(flat), lambda _: own, include_z=True)


def vertices_of(shape: Any) -> list[NDArray[np.float64]]:
    """All runs of vertices (n, 2 to 4) of a geometry in their order: of a line, of a ring, of a point."""
    runs: list[NDArray[np.float64]] = []

    def keep(run: NDArray[np.float64]) -> NDArray[np.float64]:
        runs.append(run)
        return run

    rewritten(shape, keep)
    return runs


def rewritten(shape: Any, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Any:
    """A geometry whose runs of vertices (n, 2 to 4) are changed in turn, in lines and rings also in their number."""
    data, at = shapely.to_wkb(shape, byte_order=1, flavor="iso"), 0

    def taken(size: int) -> bytes:
        nonlocal at
        at += size
        return bytes(data[at - size : at])

    def number() -> int:
        return int.from_bytes(taken(4), "little")

    def run(count: int, width: int) -> NDArray[np.float64]:
        return np.frombuffer(taken(8 * count * width), "<f8").reshape(count, width)

    def counted(width: int) -> bytes:
        changed = change(run(number(), width))
        return len(changed).to_bytes(4, "little") + changed.astype("<f8").tobytes()

    def geometry() -> bytes:
        """The geometry at hand, its parts in turn."""
        head = taken(5)  # the order of bytes and the kind
        dimensions, kind = divmod(int.from_bytes(head[1:], "little"), 1000)
        width = (2, 3, 3, 4)[dimensions]
        if kind == POINT:
            point = run(1, width)
            empty = np.isnan(point).all()
            return head + (point if empty else change(point)).astype("<f8").tobytes()
        if kind == LINE:
            return head + counted(width)
        count = number()
        parts = [counted(width) if kind == POLYGON else geometry() for _ in range(count)]
        return head + count.to_bytes(4, "little") + b"".join(parts)

    return shapely.from_wkb(geometry())
