"""Register one pair of files: the field, moving brought onto fixed, tie points and a summary."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from regnet import files
from regnet.displacement import CONVENTION
from regnet.errors import OutputError
from regnet.geo.raster import complex_files, is_vector, raster_sources
from regnet.options import check_options
from regnet.registration.consistency import CHANNELS, CONFIDENCE, VALID, ConsistentMatcher, expected_error
from regnet.registration.field import FieldFile, create_field
from regnet.registration.network import NetworkMatcher, load_network
from regnet.registration.options import RegisterOptions
from regnet.registration.resample import resample
from regnet.registration.ties import TiePoints
from regnet.registration.vectors import move_vectors
from regnet.registration.windows import predict_strips
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader

DISPLACEMENT, RASTER, VECTOR = "displacement.tif", "registered.tif", "registered.gpkg"
TIES, SUMMARY = "tie_points.gpkg", "summary.json"


@dataclass
class Tally:
    """Counts over the whole field, filled strip by strip; the lengths are histograms of 1/100 px up to 100 px."""

    valid: int = 0
    known: int = 0
    length_px: NDArray[np.int64] = field(default_factory=lambda: np.zeros(10_000, np.int64))
    error_px: NDArray[np.int64] = field(default_factory=lambda: np.zeros(10_000, np.int64))

    def add(self, length_px: NDArray[np.float32], error_px: NDArray[np.float32], valid: int) -> None:
        """Count the registered pixels of a strip (n,), and how many pixels of it are valid."""
        self.valid += valid
        self.known += length_px.size
        for histogram, values in ((self.length_px, length_px), (self.error_px, error_px)):
            places = np.minimum((values * 100).astype(np.int64), histogram.size - 1)
            histogram += np.bincount(places, minlength=histogram.size)

    @property
    def share(self) -> float:
        """Share of the ground with data in both images that is registered."""
        return self.known / self.valid if self.valid else 0.0


def quantile(histogram: NDArray[np.int64], share: float) -> float:
    """Quantile of a histogram of 1/100 px; NaN if it is empty."""
    total = np.cumsum(histogram)
    if not total[-1]:
        return float("nan")
    return float((np.searchsorted(total, share * total[-1]) + 0.5) / 100)


def register(options: RegisterOptions, output_dir: Path) -> float:
    """Register moving onto fixed and write everything about it into a folder.

    Writes displacement.tif, registered.tif or registered.gpkg, tie_points.gpkg and summary.json; they appear together
    when all of them are whole.

    Args:
        options: the files and how to register them.
        output_dir: folder of the outputs.

    Returns:
        Share of the ground with data in both images that was registered; 0.0 if it abstained everywhere.

    Raises:
        ConfigError: an option is out of range.
        InputError: a file cannot be used, or does not fit the model.
        OutputError: the folder cannot be written, or holds an input under the name of an output.
    """
    check_options(options)
    output_dir = Path(output_dir)
    refuse_own_inputs(options, output_dir)
    start = time.perf_counter()
    with PairReader(pair_options(options), options.gsd_m) as reader:
        model = load_network(options.model, options.descriptor, len(reader.fixed_channels), len(reader.moving_channels))
        with files.whole_path(output_dir / ".registering") as folder:
            folder.mkdir()
            tally, ties = write_field(reader, ConsistentMatcher(NetworkMatcher(model)), options, folder)
            with FieldFile(folder / DISPLACEMENT) as field_file:
                if is_vector(options.moving):
                    moved = move_vectors(
                        options.moving, field_file, folder / VECTOR, options.polygons, options.layer, options.where
                    )
                else:
                    moved = None
                    resample(options.moving, field_file, folder / RASTER)
            summary = {
                **summarise(tally, ties.write(folder / TIES), moved, reader),
                "notes": [
                    f"{name} is complex: its amplitude was taken"
                    for source in (options.fixed, options.moving)
                    for name in complex_files(source)
                ],
                "seconds": time.perf_counter() - start,
                "settings": asdict(options),
            }
            files.write_json(folder / SUMMARY, summary)
    _bring_out(output_dir / ".registering", output_dir)
    return tally.share


def pair_options(options: RegisterOptions) -> PairOptions:
    """The files as a pair."""
    return PairOptions(
        name="pair",
        fixed=options.fixed,
        moving=options.moving,
        fixed_bands=list(options.fixed_bands),
        moving_bands=list(options.moving_bands),
        fixed_transform=options.fixed_transform,
        moving_transform=options.moving_transform,
        layer=options.layer,
        where=options.where,
    )


def refuse_own_inputs(options: RegisterOptions, output_dir: Path) -> None:
    """Refuse to write over an input.

    Raises:
        OutputError: naming the input.
    """
    outputs = {(output_dir / name).resolve() for name in (DISPLACEMENT, RASTER, VECTOR, TIES, SUMMARY)}
    inputs = [
        *raster_sources(options.fixed),
        *raster_sources(options.moving),
        *([options.model] if options.model else []),
    ]
    for name in inputs:
        if Path(name).resolve() in outputs:
            raise OutputError(f"{name}: is an input and would be overwritten; choose another output_dir")


def write_field(
    reader: PairReader, matcher: ConsistentMatcher, options: RegisterOptions, folder: Path
) -> tuple[Tally, TiePoints]:
    """Predict the displacement and write it strip by strip, 0 and infinite where it abstains."""
    tally, ties = Tally(), TiePoints(reader.grid, options.tie_spacing_px)
    strips = predict_strips(matcher, reader.read, reader.shape, options.windows, "register", CHANNELS)
    with create_field(folder / DISPLACEMENT, reader.grid) as target:
        for strip in strips:
            valid = strip.quality[VALID] > 0.5
            error = expected_error(strip.quality)
            known = valid & (error <= options.max_error_px)
            bands = np.concatenate([np.where(known, strip.displacement, 0), np.where(known, error, np.inf)[None]])
            target.write(bands.astype(np.float32), window=Window(0, strip.row, valid.shape[1], valid.shape[0]))
            tally.add(np.hypot(*strip.displacement[:, known]), error[known], int(valid.sum()))
            ties.add(strip.row, strip.displacement, error, strip.quality[CONFIDENCE], valid, known)
    return tally, ties


def summarise(tally: Tally, ties: dict[str, int], moved: dict[str, int] | None, reader: PairReader) -> dict[str, Any]:
    """What summary.json says of a registration, lengths in px of the working grid and metres on the ground."""
    gsd_m = reader.gsd_m
    shift, error = quantile(tally.length_px, 0.5), quantile(tally.error_px, 0.5)
    pixels = reader.shape[0] * reader.shape[1]
    return {
        "status": "registered" if tally.known else "abstained everywhere",
        "share_registered": tally.share,
        "share_with_data": tally.valid / pixels,
        "shift_median_px": shift,
        "shift_median_m": shift * gsd_m,
        "shift_p95_px": quantile(tally.length_px, 0.95),
        "expected_error_median_px": error,
        "expected_error_median_m": error * gsd_m,
        "gsd_m": gsd_m,
        "width_px": reader.shape[1],
        "height_px": reader.shape[0],
        "tie_points": ties,
        "polygons": moved,
        "convention": CONVENTION,
        "version": version("regnet"),
    }


def _bring_out(source: Path, output_dir: Path) -> None:
    """Move finished files to where they belong; what an earlier registration left there goes."""
    for name in (RASTER, VECTOR):
        if not (source / name).exists():
            files.remove(output_dir / name)
    for path in source.iterdir():
        os.replace(path, output_dir / path.name)
    source.rmdir()
