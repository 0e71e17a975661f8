"""Windows of Zarr arrays, whose decoded chunks are kept in memory up to a bound.

Tiles overlap and are read again and again, and Zarr takes milliseconds for every read.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import product
from threading import Lock
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from regnet.geo.grid import Box


class Chunks:
    """Reader of the arrays of one group; threads may share it.

    Args:
        memory_mb: how much it keeps of what was read last.
    """

    def __init__(self, memory_mb: float = 256) -> None:
        self._room = int(memory_mb * 2**20)
        self._kept: OrderedDict[tuple[str, int, int], NDArray[Any]] = OrderedDict()
        self._lock = Lock()

    def window(self, array: zarr.Array, box: Box) -> NDArray[Any]:
        """Read a box, which lies inside the array, of an array (..., H, W)."""
        high, wide = array.chunks[-2:]
        size = box.height, box.width
        result = np.empty((*array.shape[:-2], *size), array.dtype)
        rows = range(box.row // high * high, box.row + box.height, high)
        cols = range(box.col // wide * wide, box.col + box.width, wide)
        for row, col in product(rows, cols):
            chunk = self._chunk(array, row, col)
            there = Box(row - box.row, col - box.col, chunk.shape[-2], chunk.shape[-1])
            result[..., *there.clipped(size).slices] = chunk[..., *there.slices_within(size)]
        return result

    def _chunk(self, array: zarr.Array, row: int, col: int) -> NDArray[Any]:
        key = array.path, row, col
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        box = Box(row, col, *array.chunks[-2:]).clipped(array.shape[-2:])
        chunk = np.asarray(array[..., *box.slices])
        with self._lock:
            self._kept[key] = chunk
            held = sum(values.nbytes for values in self._kept.values())
            while held > self._room:
                held -= self._kept.popitem(last=False)[1].nbytes
        return chunk
