"""One saved displacement put onto any other raster or vector of the same place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regnet.errors import ConfigError, InputError, OutputError
from regnet.geo.features import refuse_filter
from regnet.geo.grid import Grid, check_overlap
from regnet.geo.sources import complex_files, files_behind, grid_of, is_vector, open_raster, raster_grid, raster_sources
from regnet.options import check_options
from regnet.registration.field import FieldFile
from regnet.registration.options import ApplyOptions
from regnet.registration.resample import resample
from regnet.registration.vectors import MOVED, move_vectors


@dataclass(frozen=True)
class Applied:
    """What an application came to.

    Attributes:
        share: of the raster's area, or of the vector's features, that the displacement knows; the rest stays.
        features: how many features have each status; None for a raster.
        notes: what the user should know, one sentence each.
    """

    share: float
    features: dict[str, int] | None
    notes: list[str]

    @property
    def outcome(self) -> str:
        """What became of the file, in a few words."""
        if self.features is None:
            return f"moved {self.share:.0%} of the area"
        return ", ".join(f"{count} {status}" for status, count in self.features.items()) or "the layer is empty"


def apply(options: ApplyOptions) -> Applied:
    """Move a raster or vector file by a saved displacement.

    Raises:
        ConfigError: an option is out of range, or the result's format does not fit.
        InputError: a file cannot be used, or target lies elsewhere than the displacement.
        OutputError: the result cannot be written, or would replace an input.
    """
    check_options(options)
    output = Path(options.output)
    inputs = [options.displacement, options.target]
    if output.resolve() in [Path(name).resolve() for path in inputs for name in files_behind(path)]:
        raise OutputError(f"{output}: is an input and would be overwritten; choose another output")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; choose another output")
    with FieldFile(options.displacement) as field:
        if is_vector(options.target):
            moved = move_vectors(options.target, field, output, options.polygons, options.layer, options.where)
            features = moved.features
            return Applied(features.get(MOVED, 0) / max(sum(features.values()), 1), features, moved.notes)
        refuse_filter(options.target, options.layer, options.where)
        if output.suffix.lower() not in (".tif", ".tiff"):
            raise ConfigError(f"{output}: a raster is written as GeoTIFF; end the name in .tif")
        for source in raster_sources(options.target):
            with open_raster(source) as dataset:
                own = grid_of(dataset)
                check_overlap(own.bounds, own.crs, field.grid, source)
        share = resample(options.target, field, output, _grid(options, field), options.resampling)
        notes = [f"{name} is complex: its amplitude was taken" for name in complex_files(options.target)]
        return Applied(share, None, notes)


def _grid(options: ApplyOptions, field: FieldFile) -> Grid:
    """Grid of the result."""
    if options.grid == "fixed":
        return field.grid
    grids = [raster_grid(source) for source in raster_sources(options.target)]
    if any(grid != grids[0] for grid in grids):
        raise InputError(f"{options.target}: the files have different grids; set grid=fixed, or give them one by one")
    return grids[0]
