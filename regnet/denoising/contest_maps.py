"""Where one similarity explains the averaging of label noise better than another: maps of a contest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import geopandas as gpd

from regnet.denoising.contest import Contest
from regnet.denoising.maps import rasterise, write_map
from regnet.tiles.store import Scene

BANDS = ("difference", "gradient", "perceptual")


def write_contest_maps(
    contest: Contest,
    tiles: gpd.GeoDataFrame,
    scenes: Mapping[str, Scene],
    tile_px: int,
    cell_px: int,
    folder: Path,
    own: bool = True,
) -> list[Path]:
    """Write the noise transfer of the best gradient weights and of the best perceptual ones, and their difference.

    Args:
        contest: scores of n tiles.
        tiles: (n) rows of the store's index: pair, row, col.
        scenes: by the pair's name.
        tile_px: side of a tile.
        cell_px: side of a cell; overlapping tiles are averaged.
        folder: gets `noise_transfer_<pair>.tif`, bands difference (positive where gradients win), gradient, perceptual,
            with a QGIS style.
        own: whether the weights with or those without a tile's own label are shown.

    Returns:
        The files.
    """
    ours, theirs = (contest.tiles[contest.best(kind, own)].to_numpy() for kind in BANDS[1:])
    table = tiles.assign(difference=ours - theirs, gradient=ours, perceptual=theirs)
    paths = []
    for pair, rows in table.groupby("pair"):
        scene = scenes[str(pair)]
        path = folder / f"noise_transfer_{pair}.tif"
        values = rasterise(rows, BANDS, scene.shape, tile_px, cell_px)
        write_map(path, values, BANDS, scene.crs, scene.transform, cell_px, gain_scale=1)
        paths.append(path)
    return paths
