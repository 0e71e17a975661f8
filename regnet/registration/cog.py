"""Cloud Optimized GeoTIFFs written block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
import rasterio.shutil
import torch
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter

from regnet import files
from regnet.errors import OutputError
from regnet.geo.sources import unplaced

BLOCK_PX = 512


@contextmanager
def write_cog(path: Path, resampling: str = "average", **profile: Any) -> Iterator[DatasetWriter]:
    """Give a tiled GeoTIFF to write to, and turn it into a Cloud Optimized GeoTIFF when the block ends well.

    GDAL can only copy to that layout, so an ordinary file stands beside `path` until then, uncompressed since it is
    read just once, and band by band since of many bands a few are written at a time. Memory stays bounded.

    Args:
        path: of the result, which appears only when it is whole.
        resampling: of the overviews.
        profile: count, dtype, height, width, crs, transform and, where there is one, nodata.

    Raises:
        OutputError: the disk is full or the file cannot be written.
    """
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
    layout |= {"interleave": "band", "bigtiff": "if_safer"}
    scratch = path.with_name(f".blocks-{path.name}")
    try:
        with files.whole_path(path) as partial:
            try:
                with (
                    rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
                    unplaced(),
                    rasterio.open(scratch, "w", **layout, **profile) as target,
                ):
                    yield target
                rasterio.shutil.copy(
                    scratch,
                    partial,
                    driver="COG",
                    compress="deflate",
                    # The default takes half as long again and saves next to nothing of images and fields.
                    level=1,
                    predictor="yes",
                    num_threads=str(torch.get_num_threads()),
                    blocksize=BLOCK_PX,
                    overview_resampling=resampling,
                    bigtiff="if_safer",
                )
            except RasterioError as error:
                reason = " ".join(str(error).split())[:160]
                raise OutputError(
                    f"{path}: cannot be written ({reason}); free some space or write to another folder"
                ) from error
    finally:
        files.remove(scratch)
