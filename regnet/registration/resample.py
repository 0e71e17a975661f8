"""Rasters resampled once, from their own pixels through a displacement onto a grid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader
from rasterio.windows import Window
from tqdm import tqdm

from regnet.geo.grid import Box, Grid
from regnet.geo.sources import amplitude_dtype, open_raster, raster_sources
from regnet.registration.ahead import worked
from regnet.registration.cog import BLOCK_PX, write_cog
from regnet.registration.field import FieldFile
from regnet.registration.sampling import Source, read_source, sampled, to_dtype

BANDS_AT_ONCE = 8
"""However many bands a file has, memory is taken for so many."""


def resample(moving: str, field: FieldFile, path: Path, grid: Grid | None = None, resampling: str = "auto") -> float:
    """Write all bands of moving, pulled by a displacement, with moving's own dtype and nodata.

    Each band has its own validity: where one has no value, the others keep theirs. Complex values, as single-look SAR
    has them, become their amplitude.

    Args:
        moving: raster, or several joined by | that are stacked.
        field: the displacement.
        path: of the Cloud Optimized GeoTIFF. Without a nodata value or an alpha band it gets a mask, which is false
            where no band has a value; a band without one beside others is NaN, or 0 if it is of whole numbers.
        grid: of the result; None for the field's own.
        resampling: nearest, cubic, or auto: nearest if moving has a colour table.

    Returns:
        Share of the result for which the field knows the displacement; elsewhere nothing moves.

    Raises:
        OutputError: the file cannot be written.
    """
    grid = grid or field.grid
    known = 0
    with ExitStack() as stack:
        stacked = _Stack([stack.enter_context(open_raster(source)) for source in raster_sources(moving)])
        categorical = stacked.coloured if resampling == "auto" else resampling == "nearest"
        place = {"height": grid.height, "width": grid.width, "crs": grid.file_crs, "transform": grid.transform}
        target = stack.enter_context(
            write_cog(path, "nearest" if categorical else "average", **stacked.profile, **place)
        )
        _describe(target, stacked.bands)
        pull = lru_cache(1)(partial(field.pull, grid))

        def read(box: Box, group: _Group) -> _Piece:
            pulled, sure = pull(box)
            source = read_source(group.dataset, group.bands, field.grid, pulled, categorical)
            return _Piece(box, group, int(sure.sum()), source)

        def work(piece: _Piece) -> tuple[_Piece, NDArray[Any], NDArray[np.bool_]]:
            return piece, *stacked.written(*sampled(piece.source, categorical))

        reads = [partial(read, box, group) for box in grid.blocks(BLOCK_PX) for group in stacked.groups]
        pieces = stack.enter_context(closing(worked(reads, work, torch.get_num_threads())))
        anywhere: NDArray[np.bool_] | None = None
        for piece, values, valid in tqdm(pieces, total=len(reads), desc="resample", unit="block"):
            window = Window(piece.box.col, piece.box.row, piece.box.width, piece.box.height)
            target.write(values, piece.group.places, window=window)
            anywhere = valid if anywhere is None else anywhere | valid
            if piece.group is stacked.groups[-1]:
                if stacked.masked:
                    target.write_mask(anywhere, window=window)
                known, anywhere = known + piece.known, None
    return known / (grid.height * grid.width)


@dataclass(frozen=True)
class _Group:
    """Bands of one file, counted from 1, and their places among all, that are worked on together."""

    dataset: DatasetReader
    bands: list[int]
    places: list[int]


@dataclass(frozen=True)
class _Piece:
    """Some bands of a block: its box, for how many of its pixels the field knows, and what of the file it needs."""

    box: Box
    group: _Group
    known: int
    source: Source


class _Stack:
    """Files whose bands are stacked into one."""

    def __init__(self, datasets: Sequence[DatasetReader]) -> None:
        self.bands = [(dataset, band) for dataset in datasets for band in dataset.indexes]
        dtypes = [dataset.dtypes[band - 1] for dataset, band in self.bands]
        self._amplitude = any(map(amplitude_dtype, dtypes))
        self._kind = np.result_type(*(amplitude_dtype(dtype) or dtype for dtype in dtypes))
        told = [nodata for dataset in datasets for nodata in dataset.nodatavals]
        usable = [nodata for nodata in told if not self._amplitude and _fits(nodata, self._kind)]
        self._nodata = usable[0] if usable else None
        meanings = [dataset.colorinterp[band - 1] for dataset, band in self.bands]
        self.masked = self._nodata is None and ColorInterp.alpha not in meanings
        self.coloured = ColorInterp.palette in meanings

    @property
    def profile(self) -> dict[str, Any]:
        """Number of bands, dtype and nodata of the result."""
        return {"count": len(self.bands), "dtype": self._kind.name, "nodata": self._nodata}

    @cached_property
    def groups(self) -> list[_Group]:
        """All bands in their order, a few of one file at a time."""
        found: list[_Group] = []
        for place, (dataset, band) in enumerate(self.bands, 1):
            if not found or found[-1].dataset is not dataset or len(found[-1].bands) == BANDS_AT_ONCE:
                found.append(_Group(dataset, [], []))
            found[-1].bands.append(band)
            found[-1].places.append(place)
        return found

    def written(self, values: NDArray[np.floating], valid: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Interpolated values (C, H, W) as they are written, and where any of them is valid (H, W)."""
        if self._amplitude:
            values = np.maximum(values, 0)  # bicubic interpolation may fall below
        return to_dtype(values, valid, self._kind, self._nodata), np.asarray(valid.any(axis=0))


def _fits(nodata: float | None, kind: np.dtype[Any]) -> bool:
    """Tell whether a nodata value can be told in a dtype."""
    if nodata is None or not np.issubdtype(kind, np.integer):
        return nodata is not None
    return float(nodata).is_integer() and np.iinfo(kind).min <= nodata <= np.iinfo(kind).max


def _describe(target: Any, bands: list[tuple[DatasetReader, int]]) -> None:
    """Carry over descriptions, units, colours, scales and tags."""
    for place, (dataset, band) in enumerate(bands, 1):
        if dataset.descriptions[band - 1]:
            target.set_band_description(place, dataset.descriptions[band - 1])
        if dataset.units[band - 1]:
            target.set_band_unit(place, dataset.units[band - 1])
        tags = dataset.tags(band)
        target.update_tags(place, **{key: tags[key] for key in tags if not key.startswith("STATISTICS_")})
        if dataset.colorinterp[band - 1] == ColorInterp.palette:
            target.write_colormap(place, dataset.colormap(band))
    target.colorinterp = [dataset.colorinterp[band - 1] for dataset, band in bands]
    target.scales = [dataset.scales[band - 1] for dataset, band in bands]
    target.offsets = [dataset.offsets[band - 1] for dataset, band in bands]
    first = bands[0][0]
    target.update_tags(**{key: value for key, value in first.tags().items() if key != "AREA_OR_POINT"})
