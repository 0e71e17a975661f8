"""Maps of the error: one GeoTIFF a pair, family and method, all on one colour scale."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from regnet import files
from regnet.evaluation.predictions import Outcome
from regnet.tiles.store import TileStore

SCALE_MAX_PX = 8.0


def write_map(path: Path, outcomes: Iterable[Outcome], store: TileStore, pair: str) -> None:
    """Write the end-point error of one method on the scene's grid, block by block.

    Args:
        path: of the GeoTIFF; float32, NaN where nothing was evaluated; the tag `colour_scale_px` tells the range that
            all maps of a run are to be shown with.
        outcomes: of the pair's blocks; of several draws the first is shown.
        store: the tiles.
        pair: name of the pair.
    """
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
        target.set_band_description(1, "epe_px")
        target.update_tags(units="px", colour_scale_px=f"0 {SCALE_MAX_PX:g}")
        for outcome in outcomes:
            block = outcome.case.block
            if outcome.errors_px is not None and outcome.case.draw == 0:
                window = Window(int(block.col), int(block.row), int(block.width), int(block.height))
                target.write(np.asarray(outcome.errors_px, np.float32), 1, window=window)
