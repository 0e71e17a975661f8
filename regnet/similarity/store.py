"""A folder of shards: what was computed for the tiles (Jacobians or sketches), resumable, bound to its manifest.

Layout: `manifest.json` (model hash, data hash, readout, parameters, settings, number of tiles, tiles a shard) and one
Zarr group `shard_00000`, ... for every run of tiles, holding arrays with one row a tile. A shard is written under a
temporary name and renamed when whole, so whatever is there can be used, and a run that was killed goes on behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import nn

from regnet.errors import StoreError
from regnet.files import read_json, remove, whole_path, write_json

MANIFEST = "manifest.json"
Arrays = Mapping[str, NDArray[Any]]


class ShardStore:
    """Arrays of n tiles in shards.

    Args:
        folder: where it is or will be.
        manifest: what the numbers depend on; anything JSON can hold.
        tiles: number of tiles n.
        shard: tiles a shard.

    Raises:
        StoreError: the folder holds a store made otherwise; the message names the first difference and both values.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], tiles: int, shard: int = 64) -> None:
        self.folder, self.tiles, self.shard = Path(folder), tiles, shard
        self.manifest = {**manifest, "tiles": tiles, "shard": shard}
        path = self.folder / MANIFEST
        if path.is_file():
            _compare(self.folder, read_json(path), self.manifest)
        elif self.folder.is_dir() and any(self.folder.glob("shard_*")):
            raise StoreError(f"{self.folder}: holds shards without {MANIFEST}; delete the folder and run again")
        else:
            write_json(path, self.manifest)

    @classmethod
    def open(cls, folder: Path) -> ShardStore:
        """Open a store that must be there and whole."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise StoreError(f"{folder}: there is no similarity store ({MANIFEST} is missing); run `regnet similarity`")
        manifest = read_json(path)
        tiles, shard = manifest.pop("tiles"), manifest.pop("shard")
        store = cls(folder, manifest, tiles, shard)
        if store.missing():
            raise StoreError(
                f"{folder}: cut short, {len(store.missing())} of {store.shards} shards are missing; "
                "run `regnet similarity` again, it goes on where it stopped"
            )
        return store

    @property
    def shards(self) -> int:
        """Number of shards of the whole store."""
        return -(-self.tiles // self.shard)

    def missing(self) -> list[int]:
        """Shards that are not written yet."""
        return [index for index in range(self.shards) if not self._path(index).is_dir()]

    def span(self, index: int) -> slice:
        """Positions of the tiles of one shard."""
        return slice(index * self.shard, min((index + 1) * self.shard, self.tiles))

    def write(self, index: int, arrays: Arrays) -> None:
        """Write one shard whole.

        Raises:
            OutputError: full disk or read-only folder.
        """
        with whole_path(self._path(index)) as partial:
            group = zarr.open_group(str(partial), mode="w")
            for name, values in arrays.items():
                group.create_array(name, data=np.ascontiguousarray(values), chunks=values.shape, compressors=None)

    def read(self, index: int, name: str) -> NDArray[Any]:
        """Read one array of one shard.

        Raises:
            StoreError: the shard is damaged.
        """
        try:
            values: NDArray[Any] = zarr.open_group(str(self._path(index)), mode="r")[name][:]
        except (KeyError, FileNotFoundError, ValueError) as error:
            raise StoreError(f"{self._path(index)}: damaged or not whole; delete it and run again") from error
        if len(values) != self.span(index).stop - self.span(index).start:
            raise StoreError(f"{self._path(index)}: array {name} has {len(values)} rows; delete it and run again")
        return values

    def rows(self, name: str, rows: slice) -> NDArray[Any]:
        """Read one array for a run of tiles, shard by shard."""
        parts = []
        for index in range(rows.start // self.shard, -(-rows.stop // self.shard)):
            span = self.span(index)
            parts.append(self.read(index, name)[max(rows.start - span.start, 0) : rows.stop - span.start])
        return np.concatenate(parts)

    def all(self, name: str) -> NDArray[Any]:
        """Read one array for all tiles."""
        return np.concatenate([self.read(index, name) for index in range(self.shards)])

    def remove(self) -> None:
        """Delete the store."""
        remove(self.folder)

    def _path(self, index: int) -> Path:
        return self.folder / f"shard_{index:05d}"


def model_digest(model: nn.Module) -> str:
    """Hash of a model's parameters and buffers, with their names, to 16 hexadecimal digits."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def arrays_digest(arrays: Iterable[NDArray[Any]]) -> str:
    """Hash of arrays with their shapes, to 16 hexadecimal digits."""
    total = hashlib.sha256()
    for values in arrays:
        total.update(f"{values.dtype}{values.shape}".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()[:16]


def _compare(folder: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in sorted(set(there) | set(wanted)):
        if there.get(key) != wanted.get(key):
            raise StoreError(
                f"{folder}: made with {key}={there.get(key)!r}, but now {key}={wanted.get(key)!r}; "
                "set it back, or delete the folder to compute it anew"
            )
