"""Registration from Python: files, georeferenced arrays or xarray's arrays in, fields and arrays out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from regnet import files
from regnet.errors import ConfigError, InputError, RegnetError
from regnet.geo.features import free_names, read_features, write_features
from regnet.geo.sources import is_vector, open_raster, unplaced
from regnet.options import check_options
from regnet.ranks import FabricOptions, Ranks, launch
from regnet.registration import apply as applying
from regnet.registration import register as registering
from regnet.registration.labelled import like, values_of
from regnet.registration.options import AdaptOptions, ApplyOptions, RegisterOptions, WindowOptions
from regnet.registration.vectors import COLUMNS, STATUS

LEAST_ROWS, MOST_BANDS = 16, 4
"""An array whose first axis has at least so many and whose last one at most so many has its bands at the end."""


@dataclass(frozen=True)
class Raster:
    """An array with its place on the ground.

    Attributes:
        values: (H, W) or (C, H, W); what is masked in any band of a masked array is not valid.
        transform: from (column, row), whole numbers at the corners of pixels, to (x, y).
        crs: coordinate reference system, in any form that rasterio takes ("EPSG:32618"). Two arrays without one
            are laid on each other by their transforms; pixel on pixel from the upper left corner without these either.
        nodata: value of pixels that hold nothing; None if all hold something. NaN holds nothing in any case.
        valid: (H, W), false where nothing is held; None if `nodata` tells it.
    """

    values: NDArray[Any]
    transform: Affine = field(default_factory=Affine.identity)
    crs: Any = None
    nodata: float | None = None
    valid: NDArray[np.bool_] | None = None


class Registration:
    """A registered pair: what `register` writes, read when it is asked for.

    Attributes:
        folder: of the output files. Without an `output_dir` it is a temporary one that goes with this object.
        share: of the ground with data in both images that was registered; 0.0 if it abstained everywhere.
    """

    def __init__(self, folder: Path, share: float, keep: TemporaryDirectory[str] | None, like: Any) -> None:
        self.folder, self.share = folder, share
        self._keep, self._like = keep, like

    def __repr__(self) -> str:
        outcome, shift_px, error_px = (
            self.summary[name] for name in ("outcome", "shift_median_px", "expected_error_median_px")
        )
        lengths = f", median shift {shift_px:.2g} px, expected error {error_px:.2g} px" if self.share else ""
        return f"Registration: {outcome}{lengths}"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json says."""
        return dict(files.read_json(self.folder / registering.SUMMARY))

    @cached_property
    def displacement(self) -> NDArray[np.float32]:
        """(2, H, W) px, dx to the right and dy down on fixed's grid; it pulls. 0 where it abstains."""
        return self._bands((1, 2))

    @cached_property
    def expected_error_px(self) -> NDArray[np.float32]:
        """(H, W) px, infinite where it abstains."""
        return np.asarray(self._bands((3,))[0])

    @cached_property
    def tie_points(self) -> gpd.GeoDataFrame:
        """Tie points with their status."""
        return gpd.read_file(self.folder / registering.TIES)

    @cached_property
    def registered(self) -> Any:
        """Moving in its new place: a `Raster`, a GeoDataFrame, or an array of xarray if moving was one.

        An array of xarray lies on fixed's grid and keeps its name, attributes, dtype, bands and nodata; what is masked
        is not a number, or nodata, as it was.
        """
        if (self.folder / registering.VECTOR).exists():
            return _read_features(self.folder / registering.VECTOR, self._like)
        return _read(self.folder / registering.RASTER, self._like)

    def apply(self, target: Any, **settings: Any) -> Any:
        """Move any other raster or vector of the same place by this displacement.

        Args:
            target: path, `Raster`, plain array, array of rioxarray or GeoDataFrame.
            settings: those of the command `apply` beside displacement, target and output.

        Returns:
            As `registered`.

        Raises:
            RegnetError: as the command.
        """
        settings = _plain(settings)
        with _scratch() as scratch:
            path = _path(target, scratch, "target")
            vector = is_vector(path)
            output = scratch / f"output{'.gpkg' if vector else '.tif'}"
            own = {"displacement": str(self.folder / registering.DISPLACEMENT), "target": path, "output": str(output)}
            applying.apply(_options(ApplyOptions, own, settings))
            return _read_features(output, target) if vector else _read(output, target)

    def save(self, folder: Path | str) -> Path:
        """Copy all output files into a folder, each whole or not at all; gives the folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        for source in sorted(path for path in self.folder.iterdir() if not path.name.startswith(".")):
            with files.whole_path(folder / source.name) as partial:
                (shutil.copytree if source.is_dir() else shutil.copyfile)(source, partial)
        return folder

    def _bands(self, bands: tuple[int, ...]) -> NDArray[np.float32]:
        with open_raster(str(self.folder / registering.DISPLACEMENT)) as source:
            return np.asarray(source.read(bands), np.float32)


def register(fixed: Any, moving: Any, output_dir: Path | str | None = None, **settings: Any) -> Registration:
    """Register moving onto fixed, with all that the command `register` can do.

    Args:
        fixed: path of a raster, `Raster`, plain array as `Raster(array)`, or an array of xarray with rioxarray's
            georeferencing.
        moving: the same, or path of a vector file, or GeoDataFrame.
        output_dir: folder of the outputs; None for a temporary one that goes with the result.
        settings: of the command (`model`, `descriptor`, `gsd_m`, `max_error_px`, ...); `windows`, `adapt` and `fabric`
            may be mappings, and `adapt` true or false; `fixed_bands` and `moving_bands` a list or a single band.
            Several processes (`fabric.devices`) need an `output_dir` that all of them see.

    Returns:
        The registered pair. Where nothing could be registered its `share` is 0.

    Raises:
        ConfigError: a setting is not known or out of range.
        InputError: an input cannot be used.
        OutputError: the outputs cannot be written.
    """
    keep = TemporaryDirectory(prefix="regnet-") if output_dir is None else None
    folder = Path(keep.name if keep else str(output_dir))
    settings = _plain(settings)
    if isinstance(settings.get("adapt"), bool):
        settings["adapt"] = AdaptOptions(enabled=settings["adapt"])
    for name in ("fixed_bands", "moving_bands"):
        if isinstance(settings.get(name), int | str):
            settings[name] = [settings[name]]
    for name, schema in (("windows", WindowOptions), ("adapt", AdaptOptions), ("fabric", FabricOptions)):
        if isinstance(settings.get(name), Mapping):
            settings[name] = _options(schema, {}, settings[name])
    ranks = _ranks(settings.pop("fabric")) if "fabric" in settings else None
    if keep and ranks and ranks.size > 1:
        raise ConfigError("output_dir: missing; several processes need a folder that all of them see")
    with _scratch() as scratch:
        own = {"fixed": _path(fixed, scratch, "fixed"), "moving": _path(moving, scratch, "moving")}
        share = registering.register(_options(RegisterOptions, own, settings), folder, ranks)
    return Registration(folder, share, keep, moving)


def _ranks(fabric: Any) -> Ranks:
    """The processes that are asked for; a program's own are not taken for such, unless it asks.

    Raises:
        ConfigError: it is no mapping, out of range, or other processes were started.
    """
    if not isinstance(fabric, FabricOptions):
        raise ConfigError(f"fabric={fabric}: is no mapping; give for instance fabric={{'accelerator': 'cuda'}}")
    check_options(fabric, "fabric.")
    return launch(fabric)


def _plain(value: Any) -> Any:
    """A setting, or a mapping of some, without numpy's types, and paths as text."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for what is in memory, which errors call by the argument's name and not by its file."""
    with TemporaryDirectory(prefix="regnet-") as folder:
        try:
            yield Path(folder)
        except RegnetError as error:
            raise type(error)(re.sub(rf"{re.escape(folder)}/(\w+)\.\w+", r"\1", str(error))) from error


def _options(schema: type, own: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    known = [spec.name for spec in fields(schema)]
    for name in settings:
        if name not in known or name in own:
            free = ", ".join(name for name in known if name not in own)
            raise ConfigError(f"{name} is not a setting; choose among {free}")
    return schema(**own, **settings)


def _path(given: Any, folder: Path, name: str) -> str:
    """Path of an input; what is in memory is written to a folder first.

    Raises:
        InputError: it is of no kind that is known, or has no georeferencing.
    """
    if isinstance(given, str | Path):
        return str(given)
    if isinstance(given, gpd.GeoSeries):
        given = gpd.GeoDataFrame(geometry=given)
    if isinstance(given, gpd.GeoDataFrame):
        if not given.columns.is_unique:
            twice = ", ".join(map(str, given.columns[given.columns.duplicated()].unique()))
            raise InputError(f"{name}: has several columns called {twice}; rename them")
        write_features(given.reset_index(drop=True), folder / f"{name}.gpkg")
        return str(folder / f"{name}.gpkg")
    path = folder / f"{name}.tif"
    if isinstance(given, np.ndarray):
        given = Raster(given)
    if isinstance(given, Raster):
        shape = np.shape(given.values)
        if len(shape) == 3 and shape[0] >= LEAST_ROWS and shape[2] <= MOST_BANDS:
            raise InputError(
                f"{name}: the array has the shape {shape}; values must be (bands, rows, columns), so give "
                "np.moveaxis(values, -1, 0)"
            )
        _write(given, path, name)
    elif hasattr(given, "rio"):
        values, nodata, names = values_of(given, name)
        _write(Raster(values, given.rio.transform(recalc=True), given.rio.crs, nodata), path, name, names)
    elif hasattr(given, "dims") and hasattr(given, "coords"):
        raise InputError(f"{name}: the array has no georeferencing; import rioxarray first, and .rio.write_crs(...)")
    else:
        kind = type(given).__name__
        raise InputError(f"{name}: {kind} is no path and no array; give one of these, or a regnet.Raster of an array")
    return str(path)


def _write(raster: Raster, path: Path, name: str, bands: Sequence[str] = ()) -> None:
    valid, values = raster.valid, np.asarray(raster.values)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.size == 0:
        raise InputError(
            f"{name}: the array has the shape {np.shape(raster.values)}; give (rows, columns) or (bands, rows, columns)"
        )
    if valid is not None and np.shape(valid) != values.shape[-2:]:
        raise InputError(
            f"{name}: valid has the shape {np.shape(valid)} and the array {values.shape[-2:]}; make them alike"
        )
    if isinstance(raster.values, np.ma.MaskedArray):
        held = np.asarray(~np.ma.getmaskarray(raster.values).reshape(values.shape).any(0))
        valid = held if valid is None else np.logical_and(held, valid)
    kinds = {"bool": np.uint8, "float16": np.float32}
    values = values.astype(kinds.get(values.dtype.name, values.dtype.newbyteorder("=")), copy=False)
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    try:
        crs = None if raster.crs is None else CRS.from_user_input(raster.crs)
        place = {"crs": crs, "transform": raster.transform, "nodata": raster.nodata}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            unplaced(),
            rasterio.open(path, "w", dtype=values.dtype, tiled=True, **profile, **place) as target,
        ):
            target.write(values)
            for number, band in enumerate(bands[: len(values)], 1):
                target.set_band_description(number, band)
            if valid is not None:
                target.write_mask(valid)
    except (CRSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{name}: the array cannot be placed ({reason}); check its crs, dtype and nodata") from error


def _read_features(path: Path, given: Any) -> gpd.GeoDataFrame:
    """Read a layer; with the very columns and index that were given if that was a frame."""
    if not isinstance(given, gpd.GeoDataFrame):
        return gpd.read_file(path)
    found = read_features(str(path))
    # The layer was written without ids, so that its rows were counted from 1.
    rows = given.iloc[found.index - 1].rename(columns=free_names(given, COLUMNS))
    moved = rows.set_geometry(gpd.GeoSeries(found.geometry.values, index=rows.index, crs=found.crs))
    return moved.assign(**{name: found[name].to_numpy(None if name == STATUS else float) for name in COLUMNS})


def _read(path: Path, given: Any) -> Any:
    """Read a raster; as an array of xarray if what was given is one."""
    with open_raster(str(path)) as source:
        values, valid = source.read(), source.dataset_mask() > 0
        if hasattr(given, "rio"):
            return like(given, values, valid, source.crs, source.transform)
        return Raster(values, source.transform, source.crs, source.nodata, valid)
