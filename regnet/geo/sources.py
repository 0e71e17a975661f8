"""Raster files: what a path names, what lies behind it, and whether it can be used."""

from __future__ import annotations

import warnings
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from regnet.errors import InputError
from regnet.geo.grid import Grid, is_local

ASSIGN = "assign the right one, for example with gdal_edit.py -a_srs EPSG:..."
PLACE = "-a_ullr LEFT TOP RIGHT BOTTOM, or give it ground control points (-gcp) and warp it with gdalwarp"


SHAPEFILE = (".shx", ".dbf", ".prj", ".cpg")
"""What belongs to a .shp: places in it, attributes, CRS and encoding."""


def raster_sources(path: str) -> list[str]:
    """Files of a raster: several single files joined by | are stacked as bands."""
    return [part.strip() for part in str(path).split("|") if part.strip()]


def is_remote(path: str) -> bool:
    """Tell a path that GDAL alone can follow (into an archive, to a server) from that of a local file."""
    return "://" in path or path.startswith("/vsi")


def is_vector(path: str) -> bool:
    """Tell a vector file from a raster by its name."""
    suffixes = (".geojson", ".json", ".shp", ".gpkg", ".fgb", ".kml", ".gml", ".sqlite", ".parquet", ".geoparquet")
    return Path(path).suffix.lower() in suffixes


def amplitude_dtype(dtype: str) -> str | None:
    """Type of the amplitude of complex values, as single-look SAR has them; None for real ones."""
    return {"complex_int16": "float32", "complex64": "float32", "complex128": "float64"}.get(dtype)


def complex_files(path: str) -> list[str]:
    """Files of a raster that hold complex values, of which only the amplitude is used."""
    if is_vector(path):
        return []
    found = []
    for source in raster_sources(path):
        with open_raster(source) as dataset:
            found += [source] if any(map(amplitude_dtype, dataset.dtypes)) else []
    return found


def files_behind(path: str) -> list[str]:
    """All files that are read for a raster or a vector layer: of a VRT also its sources, of a shapefile all its parts.

    Raises:
        InputError: as `open_raster`.
    """
    if is_vector(path):
        parts = [Path(path).with_suffix(suffix) for suffix in SHAPEFILE] if path.lower().endswith(".shp") else []
        return [path, *(str(part) for part in parts if part.is_file())]
    found = []
    for source in raster_sources(path):
        with open_raster(source) as dataset:
            found += [source, *dataset.files]
    return list(dict.fromkeys(found))


def open_raster(path: str) -> DatasetReader:
    """Open one raster file that has bands, a CRS and a geotransform.

    Raises:
        InputError: missing, not a raster, without bands, CRS or geotransform.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # it is said below
            dataset = rasterio.open(path)
    except RasterioError as error:
        if not is_remote(path) and not Path(path).exists():
            raise InputError(f"{path}: no such file; check the path") from error
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path}: not a raster that GDAL can read ({reason}); give a GeoTIFF, JPEG 2000 or the like"
        ) from error
    trouble = ""
    if dataset.count == 0:
        trouble = "has no bands; name one of its subdatasets"
    elif dataset.crs is None and dataset.gcps[0]:
        trouble = "has ground control points but no grid; warp it first, for example with gdalwarp -tps"
    elif dataset.rpcs and dataset.transform.is_identity:
        trouble = "has rational polynomial coefficients (RPC) but no grid; orthorectify it first, with gdalwarp -rpc"
    elif dataset.crs is None and dataset.transform.is_identity:
        trouble = f"has neither CRS nor geotransform; assign both with gdal_edit.py -a_srs EPSG:... {PLACE}"
    elif dataset.crs is None:
        trouble = f"has no CRS; {ASSIGN}"
    elif is_local(dataset.crs):
        trouble = f"has a local CRS, which nothing ties to the Earth; {ASSIGN}"
    elif dataset.transform.is_identity or dataset.transform.is_degenerate:
        trouble = f"has no geotransform; assign it with gdal_edit.py {PLACE}"
    if trouble:
        dataset.close()
        raise InputError(f"{path}: {trouble}")
    return dataset


def raster_grid(path: str) -> Grid:
    """Grid of a raster; of the first file if several are joined.

    Raises:
        InputError: as `open_raster`, or the path is empty.
    """
    sources = raster_sources(path)
    if not sources:
        raise InputError("the path of a raster is empty; name a file")
    with open_raster(sources[0]) as dataset:
        return grid_of(dataset)


def grid_of(dataset: DatasetReader) -> Grid:
    """Grid of an open raster; its bounds are in order also where its rows run from south to north."""
    return Grid(dataset.crs, dataset.transform, dataset.height, dataset.width)


def block_cache(megabytes: int) -> rasterio.Env:
    """An environment in which GDAL keeps so many MB of decoded blocks; rasterio asks for bytes."""
    return rasterio.Env(GDAL_CACHEMAX=megabytes * 2**20)
