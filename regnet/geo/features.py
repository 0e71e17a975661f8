"""Vector files read and written with all that they hold: heights, whole numbers with gaps, dates, lists.

Attributes are kept in Arrow's types from file to file, since those of pandas have no whole numbers with gaps, no dates
and no lists.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from regnet import files
from regnet.errors import ConfigError, InputError, OutputError
from regnet.geo.grid import is_local
from regnet.geo.measures import without_measures
from regnet.geo.sources import is_remote

PARQUET = (".parquet", ".geoparquet")
DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf", ".parquet": ""}
GEOPACKAGE, FLATGEOBUF, GEOJSON = "GPKG", "FlatGeobuf", "GeoJSON"
FID = "fid"
OWN_ID = "regnet_id"
"""Name of the ids of GeoJSON, and of a copy in memory, so that an attribute may be called `fid`."""
ID_COLUMNS = {GEOPACKAGE: FID, GEOJSON: OWN_ID}
"""Columns that these formats take for ids."""
TAKEN = {GEOPACKAGE: (FID, "geom"), GEOJSON: (OWN_ID,)}
"""Names that no attribute of these formats may have."""


def read_features(path: str, layer: str | None = None, where: str | None = None) -> gpd.GeoDataFrame:
    """Read all features of a layer as they are, in their own CRS.

    Where they have ids of their own (GeoPackages, and GeoJSON with numbers that are more than a count), these are the
    index, called `fid`. Curves become lines of many vertices.

    Args:
        path: vector file.
        layer: layer name; None for the only or first one.
        where: filter as in SQL's WHERE.

    Raises:
        InputError: missing file, not a vector file, unknown layer, bad filter, no geometries.
    """
    if not is_remote(path) and not Path(path).exists():
        raise InputError(f"{path}: no such file; check the path")
    try:
        if Path(path).suffix.lower() in PARQUET:
            return _read_parquet(path, layer, where)
        layer = _layer(path, layer)
        ids = _tells_ids(path, layer)
        frame = _read_layer(path, layer, where, ids)
        # Of GeoJSON without ids of its own GDAL tells the numbers of the features in the file.
        counted = Path(path).suffix.lower() != ".gpkg" and list(frame.index) == list(range(len(frame)))
        return frame if ids and not counted else frame.reset_index(drop=True)
    except (DataSourceError, DataLayerError, shapely.GEOSException) as error:
        raise InputError(
            f"{path}: not a vector file that GDAL can read ({_reason(error)}); check the file and `where`"
        ) from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read with where={where!r} ({_reason(error)}); check the filter") from error


def read_placed(path: str, layer: str | None = None, where: str | None = None) -> gpd.GeoDataFrame:
    """As `read_features`, and they have a CRS that ties them to the Earth.

    Raises:
        InputError: as `read_features`, or no such CRS.
    """
    frame = read_features(path, layer, where)
    if frame.crs is None or is_local(frame.crs):
        lacks = "no CRS" if frame.crs is None else "a local CRS, which nothing ties to the Earth"
        raise InputError(f"{path}: has {lacks}; assign the right one, for example with ogr2ogr -a_srs EPSG:...")
    return frame


def refuse_filter(raster: str, layer: str | None, where: str | None) -> None:
    """Refuse what can only choose features, where there is a raster.

    Raises:
        ConfigError: a layer or a filter is given.
    """
    for name, value in (("layer", layer), ("where", where)):
        if value is not None:
            raise ConfigError(f"{name}={value}: is for vector files, but {raster} is a raster; leave it out")


def layers_of(path: str) -> list[str]:
    """Names of a vector file's layers."""
    if Path(path).suffix.lower() in PARQUET:
        return [Path(path).stem]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [str(name) for name in pyogrio.list_layers(path)[:, 0]]


def _layer(path: str, layer: str | None) -> str:
    layers = layers_of(path)
    if layer is not None and layer not in layers:
        raise InputError(f"{path}: has no layer {layer!r}; choose one of {', '.join(layers)}")
    return layer or layers[0]


def _tells_ids(path: str, layer: str) -> bool:
    """Whether ids that GDAL tells of features may be their own, and are none of their attributes."""
    suffix = Path(path).suffix.lower()
    if suffix in (".geojson", ".json"):
        # GDAL takes whole numbers in the attribute `id` for ids too.
        return not pyogrio.read_info(path, layer=layer)["fid_column"]
    return suffix == ".gpkg"


def _read_layer(source: str, layer: str, where: str | None, ids: bool) -> gpd.GeoDataFrame:
    # GDAL's quick way to read FlatGeobuf ends the process at a feature without geometry (seen in GDAL 3.12).
    pyogrio.set_gdal_config_options({"OGR_FLATGEOBUF_STREAM_BASE_IMPL": "YES"})
    which = {"layer": layer, "where": where, "fid_as_index": ids}
    exact = {"use_arrow": True, "arrow_to_pandas_kwargs": {"types_mapper": pd.ArrowDtype}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frame = pyogrio.read_dataframe(source, **which, **exact)
        except NotImplementedError:  # curves, which shapely does not know and GDAL can draw as lines
            lines = pyogrio.read_dataframe(source, **which, columns=[], use_arrow=False)
            frame = pyogrio.read_dataframe(source, **which, **exact, read_geometry=False)
            frame = gpd.GeoDataFrame(frame, geometry=lines.geometry)
    if not isinstance(frame, gpd.GeoDataFrame):
        raise InputError(f"{source}: layer {layer!r} has no geometries; choose another layer")
    for name in [name for name, kind in frame.dtypes.items() if isinstance(kind, np.dtype) and kind.kind == "O"]:
        # Values of several kinds, which pyogrio takes out of their JSON.
        frame[name] = pd.array([_json(value) for value in frame[name]], pd.ArrowDtype(pa.string()))
    return frame


def _read_parquet(path: str, layer: str | None, where: str | None) -> gpd.GeoDataFrame:
    """A GeoParquet file; GDAL, which filters by `where`, is mostly built without Parquet and gets a copy.

    Raises:
        InputError: it is not GeoParquet.
    """
    _layer(path, layer)
    try:
        frame = gpd.read_parquet(path, to_pandas_kwargs={"types_mapper": pd.ArrowDtype})
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not GeoParquet that can be read ({_reason(error)}); check the file") from error
    frame = frame.reset_index(drop=True)
    frame.index.name = FID
    if where is None:
        return frame
    copy = io.BytesIO()
    simple, _ = _held(frame, GEOPACKAGE)
    _write_layer(simple, copy, GEOPACKAGE, Path(path).stem, {"FID": OWN_ID})
    copy.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = pyogrio.read_dataframe(copy, where=where, columns=[], read_geometry=False, fid_as_index=True)
    return frame.iloc[chosen.index - 1]


def write_features(frame: gpd.GeoDataFrame, path: Path) -> list[str]:
    """Write features in the format that the path's suffix (`DRIVERS`) tells.

    Args:
        frame: the features; an index called `fid` holds ids, which GeoPackage and GeoJSON keep.
        path: of the file.

    Returns:
        What became text or coarser, or was left out, since the format does not hold it; one sentence each.

    Raises:
        OutputError: the file cannot be written, or the format does not hold such features.
    """
    driver = DRIVERS[path.suffix.lower()]
    ids, frame, notes = frame.index, frame.reset_index(drop=True), list[str]()
    if driver:
        frame, notes = _held(frame, driver)
    own, column = ids.name == FID, ID_COLUMNS.get(driver)
    if column and (own or driver == GEOPACKAGE):
        # The format takes a column of this name for its ids, so that an attribute needs another.
        names = free_names(frame.drop(columns=frame.geometry.name), TAKEN[driver], alike=driver != GEOPACKAGE)
        notes += [f"the attribute {name} is now called {new}" for name, new in names.items()]
        frame = frame.rename(columns=names)
        if own:
            frame.insert(0, column, ids)
    with files.whole_path(path) as partial:
        if not driver:
            _write_parquet(frame, partial)
            return notes
        options = _flatgeobuf_options(frame.geometry, path) if driver == FLATGEOBUF else {}
        if driver == GEOJSON and own:
            options = {"ID_FIELD": OWN_ID}
        try:
            _write_layer(frame, partial, driver, path.stem, options)
        except (DataSourceError, DataLayerError) as error:
            other = "" if driver == GEOPACKAGE else ", or write another format, .gpkg"
            raise OutputError(
                f"{path.name}: cannot be written ({_reason(error)}); look whether its disk has space left{other}"
            ) from error
    return notes


def _write_layer(frame: gpd.GeoDataFrame, path: Path | io.BytesIO, driver: str, layer: str, options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyogrio.write_dataframe(frame, path, driver=driver, layer=layer, use_arrow=True, layer_options=options)


def _flatgeobuf_options(geometry: gpd.GeoSeries, path: Path) -> dict[str, str]:
    """Options of a FlatGeobuf layer.

    Raises:
        OutputError: its heights would be lost.
    """
    kinds = set(geometry.geom_type.dropna().str.removeprefix("Multi"))
    if geometry.has_z.any() and (len(kinds) > 1 or not geometry[~geometry.isna()].has_z.all()):
        raise OutputError(
            f"{path}: FlatGeobuf holds the heights (Z) of a layer only if all its geometries have them and are of one "
            "kind; write another format, .gpkg"
        )
    return {"SPATIAL_INDEX": "NO"} if (geometry.isna() | geometry.is_empty).any() else {}


def free_names(frame: pd.DataFrame, taken: Iterable[str], alike: bool = True) -> dict[str, str]:
    """New names for the columns whose names, in lower case, are taken.

    Args:
        frame: of the columns.
        taken: names in lower case.
        alike: whether names may differ in their case alone; else all but the first of those need new ones too.
    """
    names, seen = {str(name).lower() for name in frame.columns}, set(taken)
    new = {}
    for name in frame.columns:
        if str(name).lower() in seen:
            new[name] = f"{name}_attribute"
            while new[name].lower() in names:
                new[name] += "_"
            names.add(new[name].lower())
        if not alike:
            seen.add(str(name).lower())
    return new


def _write_parquet(frame: gpd.GeoDataFrame, path: Path) -> None:
    copy = io.BytesIO()
    frame.to_parquet(copy, index=False)
    table = pa.parquet.read_table(copy)
    # Without the note of the types in pandas, some of which other versions of it cannot read.
    pa.parquet.write_table(table.replace_schema_metadata({b"geo": table.schema.metadata[b"geo"]}), path)


def _held(frame: gpd.GeoDataFrame, driver: str) -> tuple[gpd.GeoDataFrame, list[str]]:
    """A frame whose columns are of types that GDAL writes to a format; what became text, coarser or is left out."""
    frame, notes = frame.copy(), []
    for name in frame.columns.drop(frame.geometry.name):
        column = frame[name]
        array = pa.array(column.to_wkt() if isinstance(column, gpd.GeoSeries) else column, from_pandas=True)
        text = array.to_pylist() if isinstance(column, gpd.GeoSeries) else _text(array, driver)
        if text is None:
            frame[name] = _plain(array, column)
            if _finer_than_milliseconds(array):
                notes.append(f"{name} is cut to milliseconds, since {driver} does not hold finer times")
        else:
            frame[name] = pd.array(text, pd.ArrowDtype(pa.string()))
            # GeoJSON takes text that is JSON for what it says.
            if driver != GEOJSON or not pa.types.is_nested(array.type):
                notes.append(f"{name} became text, since {driver} does not hold its type")
    geometry = frame.geometry.values
    if driver != GEOPACKAGE and shapely.has_m(geometry).any():
        flat = [without_measures(shape) for shape in geometry]
        frame = frame.set_geometry(gpd.GeoSeries(flat, index=frame.index, crs=frame.crs))
        notes.append(f"the measures (M) were left out, since {driver} does not hold them")
    return frame, notes


def _text(array: Any, driver: str) -> list[str | None] | None:
    """Values as text, JSON if they have parts; None if the format holds their type."""
    kind = array.type
    flat_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if pa.types.is_nested(kind):
        held = flat_list and not pa.types.is_nested(kind.value_type) and driver != FLATGEOBUF
        return None if held else [_json(value) for value in array.to_pylist()]
    beyond = pa.types.is_uint64(kind) and (pa.compute.max(array).as_py() or 0) > np.iinfo(np.int64).max
    if beyond or pa.types.is_duration(kind):
        return [None if value is None else str(value) for value in array.to_pylist()]
    return None


def _finer_than_milliseconds(array: Any) -> bool:
    """Whether any of the values is a point in time that milliseconds do not tell, which are all that GDAL writes."""
    if not pa.types.is_timestamp(array.type):
        return False
    coarse = array.cast(pa.timestamp("ms", array.type.tz), safe=False).cast(array.type)
    return bool(pa.compute.any(pa.compute.not_equal(coarse, array)).as_py())


def _plain(array: Any, column: pd.Series) -> Any:
    """A column in the type that GDAL takes for it."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        return pd.Series(array.to_pandas(), index=column.index)  # whose time zones pyogrio understands
    if pa.types.is_uint64(kind):
        array = array.cast(pa.int64())
    elif pa.types.is_fixed_size_binary(kind) and not pa.types.is_decimal(kind):
        array = array.cast(pa.binary())
    return pd.Series(pd.array(array, pd.ArrowDtype(array.type)), index=column.index)


def _json(value: Any) -> str | None:
    missing = value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))
    return None if missing else json.dumps(value, ensure_ascii=False, default=str)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
