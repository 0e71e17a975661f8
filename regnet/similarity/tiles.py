"""The tiles of a store as batches for the similarity engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet.errors import InputError
from regnet.similarity.checks import check_inputs
from regnet.similarity.store import arrays_digest
from regnet.tiles.store import TileStore


def pick_tiles(store: TileStore, parts: Sequence[str], most: int, seed: int) -> NDArray[np.int64]:
    """Draw tiles of some parts, spread evenly over their regions; positions in the store's index, sorted.

    Every region gives its tiles in a random order, and the regions take turns, so that a small draw still sees all.
    """
    index = store.index
    positions = np.flatnonzero(index["part"].isin(list(parts)).to_numpy())
    rng = np.random.default_rng(seed)
    positions = rng.permutation(positions)
    turn = index.iloc[positions].groupby("region").cumcount().to_numpy()
    return np.sort(positions[np.argsort(turn, kind="stable")][:most]).astype(np.int64)


def read_batch(store: TileStore, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Read fixed (n, Cf, S, S) and moving (n, Cm, S, S) float32 of some tiles.

    Raises:
        InputError: a tile with non-finite values, named by its tile_id.
    """
    tiles = [store.tile(int(position)) for position in positions]
    batch = (
        torch.from_numpy(np.stack([tile.fixed for tile in tiles])),
        torch.from_numpy(np.stack([tile.moving for tile in tiles])),
    )
    check_inputs(batch, store.index["tile_id"].to_numpy()[positions].tolist())
    return batch


def batches(
    store: TileStore, positions: NDArray[np.int64], size: int
) -> Iterator[tuple[NDArray[np.int64], tuple[Tensor, Tensor]]]:
    """Go through tiles in batches of `size`."""
    for start in range(0, len(positions), size):
        chunk = positions[start : start + size]
        yield chunk, read_batch(store, chunk)


def tiles_digest(store: TileStore, positions: NDArray[np.int64]) -> str:
    """Hash which tiles these are and what every one of them shows."""
    if len(positions) == 0:
        raise InputError("similarity: there is no tile in the chosen parts; check parts and the prepared tiles")
    index = store.index.iloc[positions]
    places = index[["tile_id", "row", "col"]].to_numpy(dtype=np.int64)
    names = np.array(index["pair"].tolist(), dtype="U")
    shown = (values for position in positions for values in _shown(store, int(position)))
    return arrays_digest(chain((places, names), shown))


def _shown(store: TileStore, position: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    tile = store.tile(position)
    return tile.fixed, tile.moving
