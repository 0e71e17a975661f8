"""Cloud Optimized GeoTIFFs written block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter

from regnet import files
from regnet.errors import OutputError

BLOCK_PX = 512


@contextmanager
def write_cog(path: Path, resampling: str = "average", **profile: Any) -> Iterator[DatasetWriter]:
    """Give a tiled GeoTIFF to write to, and turn it into a Cloud Optimized GeoTIFF when the block ends well.

    GDAL can only copy to that layout, so an ordinary file stands beside `path` until then. Memory stays bounded.

    Args:
        path: of the result, which appears only when it is whole.
        resampling: of the overviews.
        profile: count, dtype, height, width, crs, transform and, where there is one, nodata.

    Raises:
        OutputError: the disk is full or the file cannot be written.
    """
    predictor = {"predictor": 3 if str(profile["dtype"]).startswith("float") else 2}
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "bigtiff": "if_safer"}
    scratch = path.with_name(f".blocks-{path.name}")
    try:
        with files.whole_path(path) as partial:
            try:
                with (
                    rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
                    rasterio.open(scratch, "w", **layout, compress="lzw", **predictor, **profile) as target,
                ):
                    yield target
                rasterio.shutil.copy(
                    scratch,
                    partial,
                    driver="COG",
                    compress="deflate",
                    predictor="yes",
                    blocksize=BLOCK_PX,
                    overview_resampling=resampling,
                    bigtiff="if_safer",
                )
            except RasterioError as error:
                reason = " ".join(str(error).split())[:160]
                raise OutputError(
                    f"{path}: cannot be written ({reason}); free some space or choose another output_dir"
                ) from error
    finally:
        files.remove(scratch)
