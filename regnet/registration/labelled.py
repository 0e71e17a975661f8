"""Arrays of xarray, as rioxarray georeferences them: what a file needs of one, and one made of a file's values."""

from __future__ import annotations

from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from regnet.errors import InputError

KEPT_ENCODING = ("_FillValue", "missing_value", "dtype", "scale_factor", "add_offset")


def values_of(array: Any, name: str) -> tuple[NDArray[Any], float | None, list[str]]:
    """Values (C, H, W) of an array, what stands for nodata in them, and the names of its bands, if it has any.

    Raises:
        InputError: it has no CRS, is a whole data set, its coordinates are uneven, or it has more than one dimension
            beside the two of the ground.
    """
    if hasattr(array, "data_vars"):
        variables = ", ".join(map(str, array.data_vars))
        raise InputError(f"{name}: is a whole Dataset; give one of its variables ({variables})")
    if array.rio.crs is None:
        raise InputError(f"{name}: the array has no CRS; give it one with .rio.write_crs(...)")
    for dim in (array.rio.x_dim, array.rio.y_dim):
        if dim in array.coords and not _evenly_spaced(np.asarray(array[dim].values, np.float64)):
            raise InputError(f"{name}: its coordinates {dim} are not evenly spaced; interpolate onto even ones")
    others = _other_dims(array)
    if len(others) > 1:
        raise InputError(f"{name}: the array has the dimensions {', '.join(map(str, array.dims))}; choose one of each")
    values = np.asarray(array.transpose(*others, array.rio.y_dim, array.rio.x_dim).values)
    # What is masked in memory is not a number there, whatever it is to be in a file.
    nodata = np.nan if array.rio.encoded_nodata is not None else array.rio.nodata
    if nodata is not None and np.isnan(nodata) and not np.issubdtype(values.dtype, np.inexact):
        nodata = None
    return values if others else values[None], nodata, _band_names(array, others)


def _evenly_spaced(values: NDArray[np.float64]) -> bool:
    """Whether no value is off by more than a step, as rounded coordinates of small pixels may be by some of it."""
    if len(values) < 3:
        return True
    even = np.linspace(values[0], values[-1], len(values))
    return bool(np.abs(values - even).max() <= abs(even[1] - even[0]))


def _other_dims(array: Any) -> list[Any]:
    return [dim for dim in array.dims if dim not in (array.rio.y_dim, array.rio.x_dim)]


def _band_names(array: Any, others: list[Any]) -> list[str]:
    told = array.attrs.get("long_name", ())
    if others and others[0] in array.coords and array.coords[others[0]].dtype.kind in "UO":
        return [str(name) for name in array.coords[others[0]].values]
    return [str(name) for name in told] if isinstance(told, tuple | list) else []


def like(array: Any, values: NDArray[Any], valid: NDArray[np.bool_], crs: Any, transform: Affine) -> Any:
    """An array like another, with its name, attributes, bands and nodata, of values on another grid.

    Args:
        array: the other.
        values: (C, H, W).
        valid: (H, W); where false and nothing else tells it, whole numbers get a nodata value that no valid one has.
        crs: of the values.
        transform: from (column, row), whole numbers at the corners of pixels, to (x, y).
    """
    y, x, others = array.rio.y_dim, array.rio.x_dim, _other_dims(array)
    height, width = values.shape[1:]
    # Pixel centres, as xarray counts; a rotated grid has no such axes, but its transform is kept in any case.
    t = transform
    axes = {y: t.f + t.e * (np.arange(height) + 0.5), x: t.c + t.a * (np.arange(width) + 0.5)}
    mapping = array.rio.grid_mapping
    kept = {name: coord for name, coord in array.coords.items() if name != mapping and not {x, y} & {name, *coord.dims}}
    nodata = array.rio.nodata
    if nodata is None and array.dtype.kind in "iu" and not valid.all():
        nodata = _unused(values[:, valid])
        values = values if nodata is None else np.where(valid, values, nodata)
    shaped = type(array)(
        values.astype(array.dtype) if array.dtype.kind != "c" else values,
        dims=(*(others or ["band"]), y, x),
        coords=kept | axes,
        name=array.name,
        attrs=array.attrs,
    )
    for axis in (x, y):
        shaped[axis].attrs.update(array[axis].attrs if axis in array.coords else {})
    shaped = (shaped if others else shaped.isel(band=0)).transpose(*array.dims)
    shaped = shaped.rio.set_spatial_dims(x, y).rio.write_crs(crs, mapping).rio.write_transform(transform, mapping)
    if nodata is not None and array.rio.encoded_nodata is None:
        shaped = shaped.rio.write_nodata(nodata)
    shaped.encoding.update({key: array.encoding[key] for key in KEPT_ENCODING if key in array.encoding})
    return shaped


def _unused(values: NDArray[Any]) -> int | None:
    """A whole number that no value is, among the usual ones for nodata; None if all of them are."""
    limits = np.iinfo(values.dtype)
    return next((number for number in (0, limits.min, limits.max) if not (values == number).any()), None)
