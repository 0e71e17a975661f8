"""Tie points: a regular sample of the displacement with what became of each point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray

from regnet import files
from regnet.geo.grid import Grid
from regnet.registration.places import to_ground

MATCHED, UNSURE, NO_DATA = "matched", "error too large", "no data"
COLUMNS = ("col", "row", "dx_px", "dy_px", "expected_error_px", "confidence", "status")


class TiePoints:
    """Collects points from the strips of a displacement as they are finished."""

    def __init__(self, grid: Grid, spacing_px: int) -> None:
        self._grid, self._spacing = grid, spacing_px
        self._parts: list[dict[str, NDArray[Any]]] = []

    def add(
        self,
        row: int,
        displacement: NDArray[np.float32],
        error_px: NDArray[np.float32],
        confidence: NDArray[np.float32],
        valid: NDArray[np.bool_],
        known: NDArray[np.bool_],
    ) -> None:
        """Sample a strip.

        Args:
            row: first row of the strip.
            displacement: (2, h, W) px as matched, before abstention.
            error_px: (h, W), expected error.
            confidence: (h, W) in 0..1.
            valid: (h, W), data in both images.
            known: (h, W), registered.
        """
        first = self._spacing // 2
        rows = np.arange((first - row) % self._spacing, error_px.shape[0], self._spacing)
        cols = np.arange(min(first, error_px.shape[1] // 2), error_px.shape[1], self._spacing)
        at = np.ix_(rows, cols)
        row_grid, col_grid = (axis.ravel() for axis in np.meshgrid(rows + row, cols, indexing="ij"))
        status = np.where(known[at], MATCHED, np.where(valid[at], UNSURE, NO_DATA)).ravel()
        matched = [displacement[component][at].ravel() for component in range(2)]
        values = [col_grid, row_grid, *matched, error_px[at].ravel(), confidence[at].ravel(), status]
        self._parts.append(dict(zip(COLUMNS, values, strict=True)))

    def write(self, path: Path) -> dict[str, int]:
        """Write the points as a GeoPackage, at their places on fixed; returns how many have each status."""
        table = {name: np.concatenate([part[name] for part in self._parts]) for name in COLUMNS}
        centres = np.column_stack([table["col"], table["row"]]) + 0.5
        frame = gpd.GeoDataFrame(
            table, geometry=shapely.points(to_ground(self._grid.transform, centres)), crs=self._grid.crs.to_wkt()
        )
        frame.loc[frame["status"] == NO_DATA, ["dx_px", "dy_px", "expected_error_px", "confidence"]] = np.nan
        with files.whole_path(path) as partial:
            pyogrio.write_dataframe(frame, partial, driver="GPKG", layer="tie_points")
        return {status: int(count) for status, count in frame["status"].value_counts().items()}
