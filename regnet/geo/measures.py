"""Geometries with measures (M), of which shapely loses some when vertices are set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

POINT, LINE, POLYGON = 1, 2, 3


def with_places(shape: Any, places: NDArray[np.float64]) -> Any:
    """A geometry with other x and y (n, 2) at its n vertices; its Z and M stay."""
    data = bytearray(shapely.to_wkb(shape, byte_order=1, flavor="iso"))
    start = 0
    for vertices in _vertices(data):
        vertices[:, :2] = places[start : start + len(vertices)]
        start += len(vertices)
    return shapely.from_wkb(bytes(data))


def without_measures(shape: Any) -> Any:
    """A geometry without its M; its Z stays."""
    flat = shapely.force_2d(shape)
    if not shapely.has_z(shape):
        return flat
    own = shapely.get_coordinates(shape, include_z=True)
    return shapely.transform(shapely.force_3d(flat), lambda _: own, include_z=True)


def _vertices(data: bytearray) -> Iterator[NDArray[np.float64]]:
    """Views (n, 2 to 4) of all runs of vertices in the little-endian ISO form, in their order."""
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return int.from_bytes(data[at - 4 : at], "little")

    def run(count: int, width: int) -> NDArray[np.float64]:
        nonlocal at
        view = np.frombuffer(data, "<f8", count * width, at).reshape(count, width)
        at += 8 * count * width
        return view

    def geometry() -> Iterator[NDArray[np.float64]]:
        """The runs of coordinates of the geometry at hand, its parts in turn."""
        nonlocal at
        at += 1  # the order of bytes
        dimensions, kind = divmod(number(), 1000)
        width = (2, 3, 3, 4)[dimensions]
        if kind == POINT:
            point = run(1, width)
            yield point[:0] if np.isnan(point).all() else point  # an empty one is not a number
        elif kind == LINE:
            yield run(number(), width)
        elif kind == POLYGON:
            for _ in range(number()):
                yield run(number(), width)
        else:
            for _ in range(number()):
                yield from geometry()

    return geometry()
