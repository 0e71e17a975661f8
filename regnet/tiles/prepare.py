"""The prepare stage: pairs and labels to a tile store."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
import zarr
from affine import Affine
from numpy.typing import NDArray
from tqdm import tqdm

from regnet.errors import ConfigError, InputError
from regnet.files import whole_path, write_json
from regnet.geo.grid import Box
from regnet.geo.sources import block_cache
from regnet.options import check_names, check_options
from regnet.tiles.chunks import Chunks
from regnet.tiles.index import Block, Cell, check_apart, cut, lattice, split_blocks, split_columns, tile_boxes
from regnet.tiles.labels import Noise, make_noise
from regnet.tiles.options import PairOptions, PrepareOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch
from regnet.tiles.scaling import StructureRule
from regnet.tiles.store import ARRAYS, BLOCKS, INDEX, LABEL, MANIFEST, SPLIT, TRUTH, VERSION, Scene, folder_bytes

CHUNK_PX = 256


def prepare(options: PrepareOptions, folder: Path) -> None:
    """Write the tile store of some pairs: scenes, split, tiles and labels.

    Args:
        options: pairs, working grid, tiles, split and noise.
        folder: the store's folder; what stood there before stays until the new store is whole.

    Raises:
        ConfigError: an option is out of range, or the split leaves nothing.
        InputError: a file cannot be used.
        OutputError: the folder cannot be written.
    """
    _check(options)
    with whole_path(Path(folder)) as partial, block_cache(max(32, options.memory_mb // 4)):
        partial.mkdir()
        arrays = zarr.open_group(partial / ARRAYS, mode="w")
        scenes: dict[str, Scene] = {}
        noises: dict[str, Noise] = {}
        truths: dict[str, float] = {}
        blocks: list[Block] = []
        for pair in options.pairs:
            scene, outlines = write_scene(pair, options, arrays, next(iter(scenes.values()), None))
            scenes[pair.name] = scene
            noises[pair.name] = make_noise(options.noise, pair.name, scene.shape, outlines)
            truths[pair.name] = 0.0 if pair.truth == "identity" else math.nan
            blocks += split_scene(pair, scene, options)
        rows = [{"block_id": b.block_id, "pair": b.pair, SPLIT: b.part, **asdict(b.box)} for b in blocks]
        parts = _frame(rows, [block.box for block in blocks], scenes)
        check_apart(parts)
        tiles = find_tiles(blocks, scenes, options)
        _write_labels(arrays, tiles, noises, truths, options.tile_px)
        places = [Box(tile["row"], tile["col"], options.tile_px, options.tile_px) for tile in tiles]
        _frame(tiles, places, scenes).to_parquet(partial / INDEX)
        parts.to_parquet(partial / BLOCKS)
        write_json(partial / MANIFEST, _manifest(options, tiles, scenes, partial / ARRAYS))


def write_scene(
    pair: PairOptions, options: PrepareOptions, arrays: zarr.Group, first: Scene | None
) -> tuple[Scene, NDArray[np.object_] | None]:
    """Bring a pair onto its working grid, write it block by block, and say on stderr what looks wrong with its values.

    Returns:
        The scene, and the pair's polygons in pixels if moving is a vector layer.

    Raises:
        InputError: it has another number of channels than the first pair, or no valid pixel.
    """
    rule = StructureRule(options.structure_sigma_px, options.structure_threshold, options.structure_fine_px)
    with PairReader(pair, options.gsd_m, rule, block_side(options.memory_mb, 8)) as reader:
        if first is not None:
            _same_channels(reader, first)
        for note in reader.notes:
            tqdm.write(f"prepare {pair.name}: {note}", file=sys.stderr)
        group = arrays.create_group(f"scenes/{pair.name}")
        counts = {"fixed": len(reader.fixed_channels), "moving": len(reader.moving_channels)}
        for key, count in counts.items():
            group.create_array(key, shape=(count, *reader.shape), chunks=(count, CHUNK_PX, CHUNK_PX), dtype=np.float16)
        for key in ("fixed_valid", "moving_valid", "structure"):
            group.create_array(key, shape=reader.shape, chunks=(CHUNK_PX, CHUNK_PX), dtype=np.bool_)
        both = 0
        side = block_side(options.memory_mb, sum(counts.values()))
        for box in tqdm(reader.grid.blocks(side), desc=f"prepare {pair.name}", unit="block"):
            patch = reader.read(box.row, box.col, box.height, box.width)
            both += int((patch.fixed_valid & patch.moving_valid).sum())
            for key, values in vars(patch).items():
                group[key][..., *box.slices] = values
        if both == 0:
            raise InputError(
                f"{pair.moving}: has no valid pixel in common with {pair.fixed}; check their nodata values"
            )
        group.attrs.update(_attributes(reader))
        return Scene(pair.name, group, Chunks()), reader.polygons.outlines if reader.polygons else None


def block_side(memory_mb: int, channels: int) -> int:
    """Side in px, whole chunks, of blocks that keep to the memory (some twelve float32 copies of a block at once)."""
    pixels = memory_mb * 2**20 / (12 * 4 * (channels + 4))
    return int(np.clip(math.sqrt(pixels) // CHUNK_PX, 1, 8)) * CHUNK_PX


def split_scene(pair: PairOptions, scene: Scene, options: PrepareOptions) -> list[Block]:
    """Divide a scene into the blocks of its parts.

    Raises:
        ConfigError: the scene is too small for the split.
    """
    if pair.part is not None:
        return cut(pair.name, [(pair.part, Box(0, 0, *scene.shape))])
    if options.split.rule == "columns":
        return split_columns(pair.name, scene.shape, options.split)
    cells = []
    for row, col, box in tqdm(lattice(scene.shape, options.split), desc=f"split {pair.name}", unit="block"):
        patch = scene.read(box.row, box.col, box.height, box.width)
        useful = patch.structure & patch.moving_valid
        weight = float(useful.sum()) if useful.mean() >= options.min_structure / 2 else 0.0
        cells.append(Cell(row, col, box, describe(patch), weight))
    return split_blocks(pair.name, cells, options.split, options.seed)


def describe(patch: Patch) -> NDArray[np.float64]:
    """Describe ground by what its fixed image looks like where it has structure.

    Returns:
        (2 C + 2,): mean and standard deviation of each band, mean gradient of the brightness, share with structure.
    """
    counted = patch.structure & patch.fixed_valid
    if counted.sum() < 2:
        return np.zeros(2 * len(patch.fixed) + 2)
    values = patch.fixed[:, counted].astype(np.float64)
    down, across = np.gradient(patch.fixed.mean(axis=0, dtype=np.float64))
    texture = np.hypot(down, across)[counted].mean()
    return np.concatenate([values.mean(axis=1), values.std(axis=1), [texture, counted.mean()]])


def find_tiles(blocks: list[Block], scenes: dict[str, Scene], options: PrepareOptions) -> list[dict[str, Any]]:
    """Find the tiles with enough valid ground and structure.

    Raises:
        ConfigError: there are none.
    """
    tiles: list[dict[str, Any]] = []
    for block in tqdm(blocks, desc="find tiles", unit="block"):
        for box in tile_boxes(block.box, options.tile_px, options.stride_px):
            valid, structure = scenes[block.pair].shares(box)
            if valid >= options.min_valid and structure >= options.min_structure:
                tiles.append(
                    {
                        "tile_id": len(tiles),
                        "pair": block.pair,
                        "row": box.row,
                        "col": box.col,
                        SPLIT: block.part,
                        "region": block.block_id,
                        "valid_share": valid,
                        "structure_share": structure,
                    }
                )
    if not tiles:
        raise ConfigError(
            f"no tile of {options.tile_px} px has min_valid={options.min_valid:g} and min_structure="
            f"{options.min_structure:g}; choose smaller tiles or larger blocks, or lower these"
        )
    return tiles


def _write_labels(
    arrays: zarr.Group, tiles: list[dict[str, Any]], noises: dict[str, Noise], truths: dict[str, float], tile_px: int
) -> None:
    """Write the offsets of every tile and note their values at its centre pixel."""
    shape, middle = (len(tiles), 2, tile_px, tile_px), tile_px // 2
    chunks = (1, 2, tile_px, tile_px)
    labels = arrays.create_array(LABEL, shape=shape, chunks=chunks, dtype=np.float32)
    truth = arrays.create_array(TRUTH, shape=shape, chunks=chunks, dtype=np.float32)
    for position, tile in enumerate(tqdm(tiles, desc="draw labels", unit="tile")):
        box = Box(tile["row"], tile["col"], tile_px, tile_px)
        true_px, noise = truths[tile["pair"]], noises[tile["pair"]].read(box)
        labels[position] = noise
        truth[position] = true_px
        tile[LABEL] = noise[:, middle, middle].tolist()
        tile[TRUTH] = [true_px, true_px] if math.isfinite(true_px) else None


def _frame(rows: list[dict[str, Any]], boxes: list[Box], scenes: dict[str, Scene]) -> gpd.GeoDataFrame:
    """A table with footprints, in the scenes' CRS if they share one, else in longitude and latitude."""
    crs = {scene.crs.to_wkt() for scene in scenes.values()}
    shapes = [_footprint(box, scenes[row["pair"]].transform) for row, box in zip(rows, boxes, strict=True)]
    if len(crs) == 1:
        return gpd.GeoDataFrame(rows, geometry=shapes, crs=crs.pop())
    for name, scene in scenes.items():
        here = [place for place, row in enumerate(rows) if row["pair"] == name]
        degrees = gpd.GeoSeries([shapes[place] for place in here], crs=scene.crs.to_wkt()).to_crs("EPSG:4326")
        for place, shape in zip(here, degrees, strict=True):
            shapes[place] = shape
    return gpd.GeoDataFrame(rows, geometry=shapes, crs="EPSG:4326")


def _footprint(box: Box, transform: Affine) -> shapely.Polygon:
    corners = [(0, 0), (box.width, 0), (box.width, box.height), (0, box.height)]
    return shapely.Polygon([transform @ (box.col + x, box.row + y) for x, y in corners])


def _manifest(
    options: PrepareOptions, tiles: list[dict[str, Any]], scenes: dict[str, Scene], arrays: Path
) -> dict[str, Any]:
    first = next(iter(scenes.values()))
    return {
        "version": VERSION,
        "tile_px": options.tile_px,
        "tiles": len(tiles),
        "parts": Counter(tile[SPLIT] for tile in tiles),
        "pairs": list(scenes),
        "fixed_channels": first.attributes["fixed_channels"],
        "moving_channels": first.attributes["moving_channels"],
        "bytes": folder_bytes(arrays),
        "options": asdict(options),
    }


def _attributes(reader: PairReader) -> dict[str, Any]:
    scalings = {"fixed": reader.fixed_scaling, "moving": reader.moving_scaling}
    return {
        "crs": reader.crs.to_wkt(),
        "transform": list(reader.transform)[:6],
        "gsd_m": reader.gsd_m,
        "fixed_channels": reader.fixed_channels,
        "moving_channels": reader.moving_channels,
        "percentiles": {
            key: {name: np.asarray(values).tolist() for name, values in vars(scaling).items() if values is not None}
            for key, scaling in scalings.items()
            if scaling is not None
        },
        "polygons": len(reader.polygons.outlines) if reader.polygons else 0,
        "polygons_repaired": reader.polygons.repaired if reader.polygons else 0,
        "polygons_dropped": reader.polygons.dropped if reader.polygons else 0,
    }


def check_parts(options: PrepareOptions, needed: Sequence[str]) -> None:
    """Refuse options that leave a part without any ground, before any is looked at.

    Raises:
        ConfigError: a part has a share of 0, or whole pairs are given to parts and none to this.
    """
    given = {pair.part for pair in options.pairs}
    for part in needed:
        if not options.pairs or part in given:
            continue
        if options.split.rule == "pairs" or None not in given:
            raise ConfigError(f"prepare.pairs: no pair is of the part {part}, which training needs; give it one")
        if part != "train" and getattr(options.split, f"{part}_share") == 0:
            raise ConfigError(
                f"prepare.split.{part}_share=0: training needs tiles of this part; give it a larger share"
            )


def _check(options: PrepareOptions) -> None:
    check_options(options, "prepare.")
    if not options.pairs:
        raise ConfigError("prepare.pairs is empty; name at least one pair of fixed and moving")
    check_names([pair.name for pair in options.pairs], "prepare.pairs")
    for pair in options.pairs:
        if options.split.rule == "pairs" and pair.part is None:
            raise ConfigError(f"prepare.split.rule=pairs needs the part of every pair; give pair {pair.name} one")


def _same_channels(reader: PairReader, first: Scene) -> None:
    counts = {"fixed": len(reader.fixed_channels), "moving": len(reader.moving_channels)}
    for image, here in counts.items():
        if here != (there := len(first.attributes[f"{image}_channels"])):
            raise InputError(
                f"pair {reader.options.name} has {here} {image} channels and pair {first.name} has {there}; "
                f"choose the same number by {image}_bands"
            )
