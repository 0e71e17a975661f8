"""Maps of the error: one GeoTIFF a pair, family and method, all on one colour scale, and differences of two of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from regnet import files
from regnet.denoising.maps import write_style
from regnet.evaluation.cases import Case
from regnet.evaluation.predictions import Outcome
from regnet.tiles.store import TileStore

SCALE_MAX_PX = 8.0
DIFFERENCE_MAX_PX = 4.0


def write_error_map(path: Path, outcomes: Iterable[Outcome], store: TileStore, pair: str) -> None:
    """Write the end-point error of one method on the scene's grid, block by block.

    Args:
        path: of the GeoTIFF; float32, NaN where nothing was evaluated; the tag `colour_scale_px` and the QGIS style
            beside it tell the range that all maps of a run are to be shown with.
        outcomes: of the pair's blocks; of several draws the first is shown.
        store: the tiles.
        pair: name of the pair.
    """
    _write(path, ((one.case, one.errors_px) for one in outcomes), store, pair, "epe_px", (0, SCALE_MAX_PX))


def write_difference_map(
    path: Path, outcomes: Iterable[Outcome], others: Iterable[Outcome], store: TileStore, pair: str
) -> None:
    """Write by how much one method's error exceeds another's, px; negative where the first is better.

    Args:
        path: of the GeoTIFF, as of `write_error_map`; NaN too where either method failed.
        outcomes: of the first method.
        others: of the second, on the same cases in the same order.
        store: the tiles.
        pair: name of the pair.
    """
    scale = (-DIFFERENCE_MAX_PX, DIFFERENCE_MAX_PX)
    _write(path, _differences(outcomes, others), store, pair, "epe_difference_px", scale)


def _differences(
    outcomes: Iterable[Outcome], others: Iterable[Outcome]
) -> Iterator[tuple[Case, NDArray[np.float32] | None]]:
    for one, other in zip(outcomes, others, strict=True):
        known = one.errors_px is not None and other.errors_px is not None
        yield one.case, one.errors_px - other.errors_px if known else None  # type: ignore[operator]


def _write(
    path: Path,
    blocks: Iterable[tuple[Case, NDArray[np.float32] | None]],
    store: TileStore,
    pair: str,
    name: str,
    scale: tuple[float, float],
) -> None:
    scene = store.scene(pair)
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": "float32",
        "nodata": float("nan"),
        "crs": scene.crs,
        "transform": scene.transform,
        "height": scene.shape[0],
        "width": scene.shape[1],
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "predictor": 3,
        "sparse_ok": True,
    }
    with files.whole_path(path) as partial, rasterio.open(partial, "w", **profile) as target:
        target.set_band_description(1, name)
        target.update_tags(units="px", colour_scale_px=f"{scale[0]:g} {scale[1]:g}")
        for case, values in blocks:
            block = case.block
            if values is not None and case.draw == 0:
                window = Window(int(block.col), int(block.row), int(block.width), int(block.height))
                target.write(values, 1, window=window)
    write_style(path, *scale)
