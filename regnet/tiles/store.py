"""The tile store: scenes, labels and index that `prepare` wrote, read by window or by tile."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd
import zarr
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from regnet.errors import ConfigError, StoreError
from regnet.files import read_json
from regnet.geo.grid import Box
from regnet.tiles.chunks import Chunks
from regnet.tiles.patch import Patch, Tile

__all__ = ["VERSION", "Patch", "Scene", "Tile", "TileSource", "TileStore", "folder_bytes"]

VERSION = 3
ARRAYS, INDEX, BLOCKS, MANIFEST = "tiles.zarr", "index.parquet", "blocks.parquet", "manifest.json"
SPLIT, LABEL, TRUTH = "split", "label_offset", "true_offset"
"""Columns of the tables as other programs read them: the part that a tile or block belongs to, and a tile's offsets, dx
and dy in px, at its pixel [S//2, S//2]."""
REMEDY = "run prepare again"


class TileSource(Protocol):
    """What can be trained on: tiles by position, in parts.

    Attributes:
        manifest: settings and counts that tell it from others.
        pairs: names of the pairs.
        fixed_channels, moving_channels: names of the channels.
    """

    manifest: dict[str, Any]
    pairs: list[str]
    fixed_channels: list[str]
    moving_channels: list[str]

    @property
    def name(self) -> str:
        """What messages call it."""

    def tiles(self, part: str) -> NDArray[np.int64]:
        """Positions of the tiles of one part."""

    def tile(self, position: int) -> Tile:
        """The tile at a position."""


class Scene:
    """One pair on its working grid.

    Attributes:
        name: name of the pair.
        shape: rows and columns.
        crs: coordinate reference system.
        transform: from (column, row) to (x, y).
        gsd_m: ground sampling distance, m on the ground.
        attributes: everything that was noted of the scene: channel names, percentiles.
    """

    def __init__(self, name: str, group: zarr.Group, chunks: Chunks) -> None:
        self.name, self._chunks = name, chunks
        self._arrays = {key: group[key] for key in ("fixed", "moving", "fixed_valid", "moving_valid", "structure")}
        self.attributes: dict[str, Any] = dict(group.attrs)
        self.shape: tuple[int, int] = self._arrays["structure"].shape
        self.crs = CRS.from_wkt(self.attributes["crs"])
        self.transform = Affine(*self.attributes["transform"])
        self.gsd_m = float(self.attributes["gsd_m"])

    def read(self, row: int, col: int, height: int, width: int) -> Patch:
        """Read a window; beyond the scene it is 0 and invalid."""
        box = Box(row, col, height, width)
        return Patch(
            fixed=self._window("fixed", box).astype(np.float32),
            moving=self._window("moving", box).astype(np.float32),
            fixed_valid=self._window("fixed_valid", box),
            moving_valid=self._window("moving_valid", box),
            structure=self._window("structure", box),
        )

    def shares(self, box: Box) -> tuple[float, float]:
        """Shares of a box that are valid in both images, and that are that and have structure."""
        valid = self._window("fixed_valid", box) & self._window("moving_valid", box)
        return float(valid.mean()), float((valid & self._window("structure", box)).mean())

    def _window(self, key: str, box: Box) -> NDArray[Any]:
        array = self._arrays[key]
        inside = box.clipped(self.shape)
        if (inside.height, inside.width) == (box.height, box.width):
            return self._chunks.window(array, inside)
        result = np.zeros((*array.shape[:-2], box.height, box.width), array.dtype)
        if inside.height and inside.width:
            result[..., *box.slices_within(self.shape)] = self._chunks.window(array, inside)
        return result


class TileStore:
    """Everything that `prepare` wrote; open it with `TileStore.open(folder)`.

    Attributes:
        folder: where it lies.
        manifest: settings, channels and counts.
        index: one row a tile: tile_id, pair, row, col (upper left pixel), part, region, label_dx_px, label_dy_px,
            true_dx_px, true_dy_px (at the tile's pixel [S//2, S//2]; true is NaN where unknown), valid_share,
            structure_share, geometry.
        blocks: one row a block: block_id, pair, part, row, col, height, width, geometry.
        tile_px: side of a tile, px.
        fixed_channels, moving_channels: names of the channels.
        pairs: names of the pairs.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        arrays: zarr.Group,
        index: gpd.GeoDataFrame,
        blocks: gpd.GeoDataFrame,
    ) -> None:
        self.folder, self.manifest, self.index, self.blocks = folder, manifest, index, blocks
        self.tile_px: int = manifest["tile_px"]
        self.pairs: list[str] = manifest["pairs"]
        self.fixed_channels: list[str] = manifest["fixed_channels"]
        self.moving_channels: list[str] = manifest["moving_channels"]
        self._labels, self._truth = arrays[LABEL], arrays[TRUTH]
        chunks = Chunks()
        self._scenes = {pair: Scene(pair, arrays["scenes"][pair], chunks) for pair in self.pairs}
        self._places = index[["pair", "row", "col"]].to_dict("records")

    @classmethod
    def open(cls, folder: Path) -> TileStore:
        """Open the folder that `prepare` wrote.

        Raises:
            StoreError: missing, cut short, or written by another version.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise StoreError(f"{folder}: no tile store, or one cut short; {REMEDY}")
        try:
            manifest = read_json(folder / MANIFEST)
            if manifest.get("version") != VERSION:
                raise StoreError(f"{folder}: written by another version of regnet; {REMEDY}")
            if folder_bytes(folder / ARRAYS) != manifest["bytes"]:
                raise StoreError(f"{folder / ARRAYS}: cut short or changed; {REMEDY}")
            arrays = zarr.open_group(folder / ARRAYS, mode="r")
            index, blocks = (
                gpd.read_parquet(folder / name).rename(columns={SPLIT: "part"}, errors="raise")
                for name in (INDEX, BLOCKS)
            )
            for name, column in (("label", LABEL), ("true", TRUTH)):
                offsets = [(np.nan, np.nan) if offset is None else offset for offset in index.pop(column)]
                index[f"{name}_dx_px"], index[f"{name}_dy_px"] = np.reshape(offsets, (-1, 2)).T
            store = cls(folder, manifest, arrays, index, blocks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{folder}: the tile store is damaged ({type(error).__name__}); {REMEDY}") from error
        if len(index) != manifest["tiles"] or store._labels.shape[0] != len(index):
            raise StoreError(f"{folder}: index and labels do not fit each other; {REMEDY}")
        return store

    def __len__(self) -> int:
        return len(self.index)

    @property
    def unknown_pairs(self) -> list[str]:
        """Names of the pairs whose true offset nobody knows."""
        return [pair["name"] for pair in self.manifest["options"]["pairs"] if pair["truth"] == "unknown"]

    @property
    def name(self) -> str:
        """The folder, for messages."""
        return str(self.folder)

    def with_labels(self, path: Path) -> TileStore:
        """The same tiles with other labels: a Zarr array of `label_offset` (tiles, 2, S, S) px, in the index's order.

        The index keeps the labels that `prepare` wrote; `copy_labels` makes such an array.
        """
        other = copy(self)
        other._labels = zarr.open_array(path, mode="r")
        return other

    def copy_labels(self, path: Path) -> zarr.Array:
        """Copy the labels of all tiles into a new Zarr array, to be changed."""
        shape = self._labels.shape
        labels = zarr.create_array(path, shape=shape, chunks=(1, *shape[1:]), dtype=np.float32)
        for position in range(len(self)):
            labels[position] = self._labels[position]
        return labels

    def centre_labels(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Labels of some tiles at their pixel [S // 2, S // 2], (n, 2) px."""
        middle = self.tile_px // 2
        values = [self._labels[int(position), :, middle, middle] for position in positions]
        return np.reshape(values, (-1, 2)).astype(np.float64)

    def scene(self, pair: str) -> Scene:
        """The scene of a pair.

        Raises:
            StoreError: no such pair.
        """
        if pair not in self._scenes:
            raise StoreError(f"{self.folder}: has no pair {pair}; it has {', '.join(self.pairs)}")
        return self._scenes[pair]

    def check_fixed_channels(self, key: str, channels: Sequence[int], counts: Sequence[int] = ()) -> None:
        """Refuse settings that are no channels of fixed.

        Args:
            key: of the settings, for the message.
            channels: numbers, from 1.
            counts: how many there may be; empty: any number.

        Raises:
            ConfigError: naming the key and what is allowed.
        """
        most = len(self.fixed_channels)
        if any(channel > most for channel in channels):
            raise ConfigError(f"{key}={list(channels)}: fixed has no such channel; choose among 1 to {most}")
        if counts and len(channels) not in counts:
            raise ConfigError(f"{key}={list(channels)}: give as many channels of fixed as one of {list(counts)}")

    def tiles(self, part: str) -> NDArray[np.int64]:
        """Positions in the index of the tiles of one part."""
        return np.flatnonzero((self.index["part"] == part).to_numpy())

    def positions(self, tile_id: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the index of tiles by their ids.

        Raises:
            StoreError: no such tile.
        """
        found: NDArray[np.int64] = pd.Index(self.index["tile_id"]).get_indexer(pd.Index(tile_id)).astype(np.int64)
        if (found < 0).any():
            raise StoreError(
                f"{self.folder}: has not all the tiles that are asked for; what was made from other tiles does not fit "
                "it: run the stage that made it again"
            )
        return found

    def tile(self, position: int) -> Tile:
        """Read the tile at a position of the index."""
        place = self._places[position]
        patch = self._scenes[place["pair"]].read(place["row"], place["col"], self.tile_px, self.tile_px)
        true_offset = np.asarray(self._truth[position], np.float32)
        known = bool(np.isfinite(true_offset).all())
        return Tile(
            **vars(patch),
            label_offset=np.asarray(self._labels[position], np.float32),
            true_offset=true_offset if known else None,
            pair=place["pair"],
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
