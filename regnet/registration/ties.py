"""Tie points: a regular sample of the displacement with what became of each point."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray

from regnet import files
from regnet.geo.grid import Grid, apply

STATUSES = (
    "matched",
    "global stage only",
    "no data",
    "no clear gain",
    "local affine outlier",
    "error too large",
    "forward-backward outlier",
)
MATCHED, OVERALL, NO_DATA, UNCLEAR, OUTLIER, UNSURE, INCONSISTENT = range(len(STATUSES))
"""A match is no clear gain if the displacement found is not clearly longer than its expected error, a local affine
outlier if it is far from what its neighbours say and the way back doubts it, a forward-backward outlier if what it
brings to a place is found elsewhere on the way back by far."""
COLUMNS = ("col", "row", "dx_px", "dy_px", "expected_error_px", "backward_px", "confidence", "status")
MEASURED = COLUMNS[2:-1]


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
        backward_px: NDArray[np.float32],
        confidence: NDArray[np.float32],
        status: NDArray[np.uint8],
    ) -> None:
        """Sample a strip.

        Args:
            row: first row of the strip.
            displacement: (2, h, W) px as matched, before abstention.
            error_px: (h, W), expected error.
            backward_px: (h, W), difference between the ways forward and backward.
            confidence: (h, W) in 0..1.
            status: (h, W), what became of each pixel, as places in `STATUSES`.
        """
        first, left = (min(self._spacing, side) // 2 for side in self._grid.shape)
        rows = np.arange((first - row) % self._spacing, error_px.shape[0], self._spacing)
        cols = np.arange(left, error_px.shape[1], self._spacing)
        at = np.ix_(rows, cols)
        row_grid, col_grid = (axis.ravel() for axis in np.meshgrid(rows + row, cols, indexing="ij"))
        matched = [displacement[component][at].ravel() for component in range(2)]
        values = [
            col_grid,
            row_grid,
            *matched,
            error_px[at].ravel(),
            backward_px[at].ravel(),
            confidence[at].ravel(),
            np.array(STATUSES)[status[at].ravel()],
        ]
        self._parts.append(dict(zip(COLUMNS, values, strict=True)))

    def frame(self) -> gpd.GeoDataFrame:
        """The points at their places on fixed."""
        table = {name: np.concatenate([part[name] for part in self._parts]) for name in COLUMNS}
        centres = np.column_stack([table["col"], table["row"]]) + 0.5
        crs = self._grid.file_crs
        frame = gpd.GeoDataFrame(
            table, geometry=shapely.points(apply(self._grid.transform, centres)), crs=crs.to_wkt() if crs else None
        )
        frame.loc[frame["status"] == STATUSES[NO_DATA], list(MEASURED)] = np.nan
        return frame


def write_ties(frame: gpd.GeoDataFrame, path: Path) -> dict[str, int]:
    """Write tie points as a GeoPackage; returns how many have each status."""
    with files.whole_path(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pictures without a CRS
        pyogrio.write_dataframe(frame, partial, driver="GPKG", layer="tie_points")
    return {status: int(count) for status, count in frame["status"].value_counts().items()}
