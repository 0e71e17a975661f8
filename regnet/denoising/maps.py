"""Estimates of tiles summed up by region, and as georeferenced rasters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely.geometry import box

from regnet.errors import InputError
from regnet.files import whole_path, write_text
from regnet.geo.features import free_names, read_placed
from regnet.tiles.store import Scene

QUANTITIES = ("factor", "smoother_factor", "shift_px", "residual_px", "audit_score")
MEANS = (
    *QUANTITIES,
    "smoother_noise_px",
    "loo_residual_px",
    *(f"{kind}_{axis}_px" for kind in ("label", "predicted") for axis in ("dx", "dy")),
)
"""Columns of tiles that are averaged by region."""
TAKEN = {"geometry", "region", "cell", "pairs", "tiles", *MEANS, "effective_parameters", "doubtful_share"}
"""Names that the users' own attributes of regions cannot have."""


def summarise_regions(tiles: gpd.GeoDataFrame, regions: gpd.GeoDataFrame, column: str) -> gpd.GeoDataFrame:
    """Average the tiles of every region.

    Args:
        tiles: one row a tile, with `column`, the quantities, predicted and label offsets.
        regions: one row a region: `column` and geometry.
        column: the regions' name.

    Returns:
        regions that hold tiles (column `region`) with their own attributes, the pairs of their tiles (`pairs`, a
        list of names), the number of these, the mean of every quantity, of the noise left and of the length of the
        leave-one-out residual, the effective parameters that their labels take, the share of doubtful labels, and the
        mean label and prediction: where these two differ, a shift did not average out.
    """
    tiles = tiles.assign(loo_residual_px=np.hypot(tiles["loo_residual_dx_px"], tiles["loo_residual_dy_px"]))
    grouped = tiles.groupby(column)
    table = pd.DataFrame(grouped[list(MEANS)].mean())
    table.insert(0, "pairs", grouped["pair"].agg(lambda pairs: sorted(set(pairs))))
    table.insert(1, "tiles", grouped.size())
    table["effective_parameters"] = 2 * grouped["own_weight"].sum()
    table["doubtful_share"] = grouped["doubtful"].mean()
    joined = regions.merge(table, left_on=column, right_index=True, how="inner")
    named = joined.rename(columns={column: "region"}).reset_index(drop=True)
    return gpd.GeoDataFrame(named, geometry="geometry", crs=regions.crs)


def read_regions(path: Path, tiles: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, pd.Series]:
    """Read the user's polygons and tell in which of them every tile's centre lies (NaN: in none).

    Returns:
        The polygons with their attributes, in the CRS of the tiles, and column `region`; the region of every tile.

    Raises:
        InputError: the file cannot be read, has no CRS, or covers no tile.
    """
    frame = read_placed(str(path)).to_crs(tiles.crs).reset_index(drop=True)
    attributes = frame.drop(columns=frame.geometry.name)
    regions = gpd.GeoDataFrame(attributes.rename(columns=free_names(attributes, TAKEN)), geometry=frame.geometry)
    regions["region"] = [f"region_{place:04d}" for place in range(len(regions))]
    centres = gpd.GeoDataFrame(geometry=tiles.geometry.centroid, crs=tiles.crs)
    joined = gpd.sjoin(centres, regions[["region", "geometry"]], how="left", predicate="within")
    names = joined["region"][~joined.index.duplicated()].reindex(tiles.index)
    if names.isna().all():
        raise InputError(f"denoise.regions={path}: covers no tile; check its place and CRS")
    return regions, names


def grid_cells(tiles: gpd.GeoDataFrame, cell_px: int, tile_px: int) -> list[str]:
    """Name the grid cell that holds every tile's centre: `<pair>-<row>-<column>`, counted in cells of the scene."""
    middle = tile_px // 2
    return [
        f"{pair}-{(row + middle) // cell_px:03d}-{(col + middle) // cell_px:03d}"
        for pair, row, col in zip(tiles["pair"], tiles["row"], tiles["col"], strict=True)
    ]


def cell_polygons(tiles: gpd.GeoDataFrame, scenes: Mapping[str, Scene], cell_px: int) -> gpd.GeoDataFrame:
    """Outline the cells that hold tiles (column `cell`), in the CRS of the tiles."""
    parts = []
    for pair, own in tiles.groupby("pair"):
        transform = scenes[pair].transform @ Affine.scale(cell_px)
        names = sorted(set(own["cell"]))
        places = [(int(name.rsplit("-", 2)[2]), int(name.rsplit("-", 2)[1])) for name in names]
        corners = [(*(transform @ (col, row)), *(transform @ (col + 1, row + 1))) for col, row in places]
        shapes = [box(min(x, u), min(y, v), max(x, u), max(y, v)) for x, y, u, v in corners]
        parts.append(gpd.GeoDataFrame({"cell": names}, geometry=shapes, crs=scenes[pair].crs).to_crs(tiles.crs))
    return gpd.GeoDataFrame(pd.concat(parts, ignore_index=True), geometry="geometry", crs=tiles.crs)


def rasterise(
    tiles: gpd.GeoDataFrame, names: Sequence[str], shape: tuple[int, int], tile_px: int, cell_px: int
) -> NDArray[np.float32]:
    """Average overlapping tiles of one scene into cells: those whose centres they cover, or else the one of theirs.

    Args:
        tiles: with columns row, col (upper left pixel) and the quantities; NaN is left out.
        names: the q quantities.
        shape: of the scene, px.
        tile_px: side of a tile.
        cell_px: side of a cell.

    Returns:
        (q, cells down, cells across); NaN where no tile is.
    """
    down, across = -(-shape[0] // cell_px), -(-shape[1] // cell_px)
    total = np.zeros((len(names), down, across))
    count = np.zeros_like(total)
    values = tiles[list(names)].to_numpy(dtype=np.float64)[:, :, None, None]
    for value, row, col in zip(values, tiles["row"], tiles["col"], strict=True):
        rows, columns = _centres_within(row, tile_px, cell_px), _centres_within(col, tile_px, cell_px)
        known = np.isfinite(value)
        total[:, rows, columns] += np.where(known, value, 0)
        count[:, rows, columns] += known
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / count).astype(np.float32)


def _centres_within(start: int, side: int, cell_px: int) -> slice:
    """The cells of a row or column whose centres lie in `start <= x < start + side`, or the one of the middle."""
    first, end = (math.ceil(edge / cell_px - 0.5) for edge in (start, start + side))
    return slice(first, end) if end > first else slice(middle := (2 * start + side) // (2 * cell_px), middle + 1)


def write_map(
    path: Path,
    values: NDArray[np.float32],
    names: Sequence[str],
    crs: CRS,
    transform: Affine,
    cell_px: int,
    gain_scale: float | None = None,
) -> None:
    """Write cells as a GeoTIFF with one described band a quantity, and a QGIS style beside it (first band).

    Args:
        path: of the GeoTIFF.
        values: (q, cells down, cells across).
        names: of the bands.
        crs: of the scene.
        transform: of the scene's pixels.
        cell_px: side of a cell.
        gain_scale: the first band is a gain, shown from minus this (red) to this (green); None: it is shown over its
            own range from green to red.
    """
    profile = {
        "driver": "GTiff",
        "dtype": "float32",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "nodata": float("nan"),
        "compress": "deflate",
        "crs": crs,
        "transform": transform @ Affine.scale(cell_px),
    }
    with whole_path(path) as partial, rasterio.open(partial, "w", **profile) as target:
        target.write(values)
        for band, name in enumerate(names, 1):
            target.set_band_description(band, name)
    if gain_scale is not None:
        write_style(path, -gain_scale, gain_scale, rising=True)
        return
    finite = values[0][np.isfinite(values[0])]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    write_style(path, low, high)


def write_style(path: Path, low: float, high: float, rising: bool = False) -> None:
    """Write a QGIS style beside a GeoTIFF: its first band from green (low) over yellow to red (high), or the reverse.

    Args:
        path: of the GeoTIFF.
        low: least value shown.
        high: greatest value shown.
        rising: more is better, so that high is green.
    """
    colours = dict(zip(("least", "most"), reversed(_GOOD_TO_BAD) if rising else _GOOD_TO_BAD, strict=True))
    write_text(path.with_suffix(".qml"), _STYLE.format(low=low, middle=(low + high) / 2, high=high, **colours))


_GOOD_TO_BAD = ("#1a9850", "#d73027")
_STYLE = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="AllStyleCategories">
  <pipe>
    <rasterrenderer type="singlebandpseudocolor" band="1" opacity="0.7"
        classificationMin="{low}" classificationMax="{high}">
      <rastershader>
        <colorrampshader colorRampType="INTERPOLATED" clip="0" minimumValue="{low}" maximumValue="{high}">
          <item value="{low}" label="{low:.3g}" color="{least}" alpha="255"/>
          <item value="{middle}" label="{middle:.3g}" color="#ffffbf" alpha="255"/>
          <item value="{high}" label="{high:.3g}" color="{most}" alpha="255"/>
        </colorrampshader>
      </rastershader>
    </rasterrenderer>
  </pipe>
</qgis>
"""
