"""Check points: places whose true displacement somebody measured, as the truth where no field is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from regnet.errors import InputError
from regnet.tiles.store import Scene, TileStore

COLUMNS = ("fixed_x", "fixed_y", "moving_x", "moving_y")
FAMILY = "check_points"
REMEDY = f"give a CSV with the columns {', '.join(COLUMNS)}, or a vector file of lines from fixed to moving"


def read_check_points(path: Path, store: TileStore) -> dict[str, NDArray[np.float64]]:
    """Read check points and find them on the scenes.

    A CSV has the columns fixed_x, fixed_y, moving_x, moving_y in the CRS of the working grid: where a thing is seen in
    fixed and where moving shows it. A vector file has the same as tie-point vectors, lines whose first vertex is the
    place in fixed and whose last is that in moving, in a CRS of its own. A column `pair` names the pair a point belongs
    to; without it a point counts for every pair that shows its place.

    Args:
        path: of the file.
        store: the prepared scenes.

    Returns:
        By pair, (n, 4): row and column of the pixel in fixed, dx and dy of the true displacement in px.

    Raises:
        InputError: the file cannot be read, has other columns or geometries, or no point lies on a scene.
    """
    table = _read_csv(path) if path.suffix.lower() == ".csv" else None
    lines = _read_lines(path) if table is None else None
    found = {}
    for pair in store.pairs:
        scene = store.scene(pair)
        here = table if table is not None else _vertices(lines, scene)
        if "pair" in here:
            here = here[here["pair"] == pair]
        points = _on_grid(here[list(COLUMNS)].to_numpy(dtype=np.float64), scene)
        if len(points):
            found[pair] = points
    if not found:
        raise InputError(f"evaluate.check_points={path}: no point lies on a prepared scene; check its CRS and pairs")
    return found


def sparse_truth(points: NDArray[np.float64], row: int, col: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """True displacement of a window, (2, H, W) px: known at the pixels of its check points, NaN elsewhere.

    Args:
        points: (n, 4) as `read_check_points` gives them; of several in one pixel the mean is taken.
        row: of the window's first pixel.
        col: likewise.
        shape: (H, W).
    """
    places = points[:, :2].astype(np.int64) - [row, col]
    inside = ((places >= 0) & (places < shape)).all(1)
    sums, counts = np.zeros((2, *shape)), np.zeros(shape)
    at = tuple(places[inside].T)
    np.add.at(counts, at, 1)
    for component in range(2):
        np.add.at(sums[component], at, points[inside, 2 + component])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={"pair": str})  # a place called 047 is no number
    except (OSError, ValueError) as error:
        raise InputError(f"evaluate.check_points={path}: cannot be read ({error}); {REMEDY}") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing or not np.isfinite(table[list(COLUMNS)].apply(pd.to_numeric, errors="coerce")).all(axis=None):
        raise InputError(f"evaluate.check_points={path}: columns are missing or not numbers; {REMEDY}")
    return table


def _read_lines(path: Path) -> gpd.GeoDataFrame:
    try:
        lines = gpd.read_file(path)
    except Exception as error:
        raise InputError(f"evaluate.check_points={path}: cannot be read ({error}); {REMEDY}") from error
    if lines.crs is None or not (lines.geometry.geom_type == "LineString").all() or lines.geometry.is_empty.any():
        raise InputError(f"evaluate.check_points={path}: has no CRS, empty lines, or other things than lines; {REMEDY}")
    return lines


def _vertices(lines: Any, scene: Scene) -> pd.DataFrame:
    placed = lines.to_crs(scene.crs)
    ends = [(*line.coords[0][:2], *line.coords[-1][:2]) for line in placed.geometry]
    table = pd.DataFrame(ends, columns=list(COLUMNS))
    return table.assign(pair=placed["pair"].astype(str).to_numpy()) if "pair" in placed else table


def _on_grid(places: NDArray[np.float64], scene: Scene) -> NDArray[np.float64]:
    """Points of one scene as row, column, dx and dy; those beyond it are left out."""
    inverse = ~scene.transform
    fixed, moving = (np.stack(inverse @ tuple(places[:, pair].T), 1) for pair in (slice(0, 2), slice(2, 4)))
    pixels = np.floor(fixed[:, ::-1])
    inside = ((pixels >= 0) & (pixels < scene.shape)).all(1)
    return np.asarray(np.concatenate([pixels, moving - fixed], 1)[inside])
