"""Register one pair of files: the field, moving brought onto fixed, tie points and a summary."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import torch

from regnet import files
from regnet.displacement import CONVENTION
from regnet.errors import OutputError
from regnet.geo.sources import block_cache, complex_files, files_behind, is_vector
from regnet.heap import give_back
from regnet.models.checkpoint import load_checkpoint
from regnet.models.matcher import Matcher
from regnet.models.unet import UNet
from regnet.options import check_options
from regnet.ranks import Ranks
from regnet.registration.adapt import adapt
from regnet.registration.calibration import BOUND_90
from regnet.registration.check import Check, check_errors
from regnet.registration.common_shift import CLEAR_SHIFT, NO_SHIFT, CommonShift, clear_share, find_common_shift
from regnet.registration.detail import seen_detail_px, unseen_px
from regnet.registration.familiar import UNKNOWN, Familiar, look_familiar
from regnet.registration.field import FieldFile, create_field
from regnet.registration.in_place import in_place_px, outcome
from regnet.registration.judgement import CHANNELS, JudgedMatcher
from regnet.registration.matching import look_overall, write_field
from regnet.registration.network import NetworkMatcher, load_network
from regnet.registration.options import RegisterOptions, WindowOptions
from regnet.registration.overall import Overall, corner_distances
from regnet.registration.progress import Progress
from regnet.registration.resample import resample
from regnet.registration.tally import Tally, quantile
from regnet.registration.ties import write_ties
from regnet.registration.vectors import Moved, move_vectors
from regnet.registration.windows import Mosaic, side_by_side
from regnet.report.registration import report_registration
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.training.fit import MODEL

DISPLACEMENT, RASTER, VECTOR = "displacement.tif", "registered.tif", "registered.gpkg"
ADAPTED = "adapt"
"""Folder of a model that was trained on the pair itself, and of the record of its training."""
TIES, SUMMARY, REPORT = "tie_points.gpkg", "summary.json", "report.html"
WHOLE, UNFINISHED = ".registering", ".unfinished"
"""Folders inside the output folder: of outputs until all are whole, and of what a killed registration left."""
FILES_SHARE, WINDOWS_SHARE = 6, 24
"""One part in so many of the memory is for decoded blocks. During the windows they are few: blocks that come and go
between the windows' arrays would leave gaps far larger than they are."""
SAMPLE_PX = 512
"""Longest side of the windows by which a pair is sampled: for its common shift, and to check the expected error."""
NOT_SOUGHT = Overall(np.eye(2, 3), False, "not asked for")


def register(options: RegisterOptions, output_dir: Path, ranks: Ranks | None = None) -> float:
    """Register moving onto fixed and write everything about it into a folder.

    Writes displacement.tif, registered.tif or registered.gpkg, tie_points.gpkg, summary.json, report.html and the stamp
    by which `finished` knows them, and with `adapt` a folder adapt/ with its model.safetensors; they appear together
    when all of them are whole. The same call after an interruption goes on where it was.

    Args:
        options: the files and how to register them.
        output_dir: folder of the outputs.
        ranks: processes that share the windows, the first of which does the rest, and where networks run; None: this
            one alone.

    Returns:
        Share of the ground with data in both images that was registered; 0.0 if it abstained everywhere.

    Raises:
        ConfigError: an option is out of range.
        InputError: a file cannot be used, or does not fit the model.
        OutputError: the folder cannot be written, or holds an input under the name of an output.
    """
    check_options(options)
    output_dir, ranks, start = Path(output_dir), ranks or Ranks(), time.perf_counter()
    refuse_own_inputs(options, output_dir)
    unfinished = output_dir / UNFINISHED
    with block_cache(options.memory_mb // FILES_SHARE), ExitStack() as stack:
        with ranks.together():
            reader = stack.enter_context(PairReader(pair_options(options), options.gsd_m))
            model = load_network(options.model, options.descriptor, reader.fixed_channels, reader.moving_channels)
            stamp, threads = _stamp(options), ranks.told(torch.get_num_threads())  # on which the windows depend
            marks = {**stamp, "threads": threads}
            progress = stack.enter_context(Progress(unfinished, marks, own=ranks.main))
        with ranks.together():
            ready = _prepare(options, reader, model.to(ranks.device), unfinished / ADAPTED, threads, ranks)
            if ranks.size > 1:
                with block_cache(options.memory_mb // WINDOWS_SHARE):
                    ready.mosaic.share(ranks, progress, "register" if ranks.main else "")
            share = _finish(ready, output_dir, progress, stamp, start) if ranks.main else 0.0
    return ranks.told(share)


@dataclass(frozen=True)
class _Ready:
    """A pair of which all is known but its displacement.

    Attributes:
        options: how it is to be registered.
        reader: of the pair as it lies; `aligned` as the similarity brings it.
        overall, common: the similarity of the whole pair, and the shift beside it.
        model: network of the matcher.
        adapted: what became of training on the pair; None if that was not asked for.
        mosaic: the windows of `aligned`, and the judged matcher of them.
        samples: windows small enough to look at many places.
        several: how many of the samples are matched at once.
    """

    options: RegisterOptions
    reader: PairReader
    aligned: PairReader
    overall: Overall
    common: CommonShift
    model: Matcher | UNet
    adapted: Mapping[str, Any] | None
    mosaic: Mosaic
    samples: WindowOptions
    several: int


def _prepare(
    options: RegisterOptions, reader: PairReader, model: Matcher | UNet, kept: Path, threads: int, ranks: Ranks
) -> _Ready:
    """Look at the whole pair, train on it in the folder `kept` if that is asked for, and lay out its windows."""
    overall = ranks.told(_overall(reader, model, options) if ranks.main else NOT_SOUGHT)
    aligned = reader.pulled(overall.affine) if overall.found else reader
    adapted = None
    if options.adapt.enabled:
        if ranks.main:
            model, adapted = adapt(model, aligned, options.adapt, options.memory_mb, kept)
        adapted = ranks.told(adapted)
        if adapted and adapted["used"] and not ranks.main:
            model = load_checkpoint(kept / MODEL).to(ranks.device)
    detail_px = ranks.told(seen_detail_px(reader) if ranks.main else 1.0)
    network = NetworkMatcher(model, detail_px)
    windows, at_once = side_by_side(options.windows, reader.shape, options.memory_mb, network.pixel_bytes, threads)
    samples = _samples(windows)
    # As many samples as take no more memory than the windows do.
    several = min(threads, at_once * windows.window_px**2 // samples.window_px**2)
    common = ranks.told(_common_shift(overall, network, reader, samples, several) if ranks.main else NO_SHIFT)
    common = replace(common, trusted=options.trust_shift)
    matcher = JudgedMatcher(network, common, network.trained, network.backward, unseen_px(detail_px))
    mosaic = Mosaic(matcher, aligned.read_images, aligned.shape, windows, CHANNELS, at_once)
    return _Ready(options, reader, aligned, overall, common, model, adapted, mosaic, samples, several)


def _finish(ready: _Ready, output_dir: Path, progress: Progress, stamp: Mapping[str, Any], start: float) -> float:
    """Write all outputs, which appear together; tells the share that was registered."""
    with files.whole_path(output_dir / WHOLE) as folder:
        folder.mkdir()
        share = _write(ready, folder, progress, start)
        files.write_stamp(folder, stamp)
        adapted = output_dir / UNFINISHED / ADAPTED
        if adapted.exists():
            shutil.copytree(adapted, folder / ADAPTED)
    _bring_out(output_dir / WHOLE, output_dir)
    return share


def _write(ready: _Ready, folder: Path, progress: Progress, start: float) -> float:
    """Write all outputs but the stamp into a folder; tells the share that was registered."""
    options, reader, mosaic = ready.options, ready.reader, ready.mosaic
    familiar, unknown = _familiarity(options, ready.model, ready.adapted, ready.aligned)
    with (
        block_cache(options.memory_mb // WINDOWS_SHARE),
        create_field(folder / DISPLACEMENT, reader.grid) as target,
    ):
        give_back()  # what looking at the whole pair took: windows take other arrays, and their processes none of it
        tally, ties = write_field(mosaic, reader.grid, options, ready.overall, ready.common, target, progress)
    samples, several = ready.samples, ready.several
    check = check_errors(mosaic.matcher, mosaic.read, mosaic.shape, samples, options.check_windows, several)
    # Windows are over; the files and the report take other arrays.
    give_back()
    points = familiar.onto(ties.frame()) if familiar else ties.frame()
    moved = _move(options, folder)
    place_px = in_place_px(points, ready.common)
    summary = summarise(tally, ready.overall, ready.common, reader) | {
        "outcome": outcome(tally.share, place_px),
        "in_place_px": place_px,
        "tie_points": write_ties(points, folder / TIES),
        "polygons": moved.features if moved else None,
        "adapt": ready.adapted,
        "familiarity": familiar.summary() if familiar else None,
        "check": check.summary() if check else None,
        "notes": [*notes(options), *reader.notes, *ready.common.notes(), *unknown, *(moved.notes if moved else [])],
        "seconds": time.perf_counter() - start,
        "settings": asdict(options),
    }
    files.write_json(folder / SUMMARY, summary)
    after = folder / (RASTER if moved is None else VECTOR) if tally.known else None
    _report(folder, reader, after, summary, points, check)
    return tally.share


def _report(
    folder: Path,
    reader: PairReader,
    moved: Path | None,
    summary: Mapping[str, Any],
    points: gpd.GeoDataFrame,
    check: Check | None,
) -> None:
    """Write the report; `moved` is moving in its new place, None if nothing was registered."""
    after = reader.with_moving(str(moved)) if moved else None
    errors = (check.stated_px, check.made_px) if check else None
    report_registration(folder, reader, after, summary, points, errors)


def finished(options: RegisterOptions, output_dir: Path) -> float | None:
    """Share of the ground that was registered, if a folder holds all outputs of just this registration; else None.

    Raises:
        InputError: fixed or moving is missing or no raster.
    """
    if (output_dir / WHOLE).exists() or not files.is_stamped(output_dir, _stamp(options)):
        return None
    return float(files.read_json(output_dir / SUMMARY)["share_registered"])


def _stamp(options: RegisterOptions) -> dict[str, Any]:
    """All that the outputs depend on: the options of a registration, and which files it reads."""
    settings = asdict(options)
    own = {spec.name: settings[spec.name] for spec in fields(RegisterOptions)}
    return {"settings": own, "inputs": files.input_marks(_inputs(options))}


def _samples(windows: WindowOptions) -> WindowOptions:
    """Windows that are small enough to look at many places."""
    return replace(windows, window_px=min(windows.window_px, SAMPLE_PX))


def _overall(reader: PairReader, model: Matcher | UNet, options: RegisterOptions) -> Overall:
    """The similarity by which the pair is off, if there is one beyond doubt."""
    overall = look_overall(reader) if options.global_stage else NOT_SOUGHT
    return _beyond_doubt(overall, NetworkMatcher(model), reader, options.windows) if overall.found else overall


def _beyond_doubt(overall: Overall, network: NetworkMatcher, reader: PairReader, windows: WindowOptions) -> Overall:
    """The similarity, unless it moves the pair by no more than images like these seem to be off when they are in place.

    It follows the images' edges, which are drawn to that shift whatever a network has learned of it.
    """
    samples = _samples(windows)
    read = reader.pulled(overall.affine).read_images
    doubt_px = find_common_shift(network, read, reader.shape, samples).doubt_px
    still = np.eye(2, 3)
    length_px = float(corner_distances(overall.matrix, still, reader.shape).mean())
    if clear_share(length_px, doubt_px, CLEAR_SHIFT) >= 1:
        return replace(overall, doubt_px=doubt_px)
    reason = f"it moves the pair by {length_px:.1f} px; images like these seem {doubt_px:.1f} px off in place"
    return replace(overall, matrix=still, found=False, reason=reason)


def _common_shift(
    overall: Overall, network: NetworkMatcher, reader: PairReader, samples: WindowOptions, several: int
) -> CommonShift:
    """The shift of the whole pair; what is left beside a similarity that was found is not in doubt."""
    if overall.found:
        return NO_SHIFT
    return find_common_shift(network, reader.read_images, reader.shape, samples, network.pair_spread_px, several)


def _familiarity(
    options: RegisterOptions, model: Matcher | UNet, adapted: Mapping[str, Any] | None, aligned: PairReader
) -> tuple[Familiar | None, list[str]]:
    """How familiar the pair is to the model that was given, and a note if nobody knows.

    A model that was trained on the pair itself is at home there.
    """
    if options.model is None or (adapted and adapted["used"]):
        return None, []
    found = look_familiar(model, Path(options.model), aligned.read_images, aligned.shape)
    return found, [] if found else [UNKNOWN.format(options.model)]


def _move(options: RegisterOptions, folder: Path) -> Moved | None:
    """Write moving in its new place; tells what became of its features, None for a raster."""
    with FieldFile(folder / DISPLACEMENT) as field:
        if is_vector(options.moving):
            path = folder / VECTOR
            return move_vectors(options.moving, field, path, options.polygons, options.layer, options.where)
        resample(options.moving, field, folder / RASTER, resampling=options.resampling)
        return None


def notes(options: RegisterOptions) -> list[str]:
    """What the user should know of how the files were read."""
    names = [name for source in (options.fixed, options.moving) for name in complex_files(source)]
    return [f"{name} is complex: its amplitude was taken" for name in dict.fromkeys(names)]


def _inputs(options: RegisterOptions) -> list[str]:
    images = [*files_behind(options.fixed), *files_behind(options.moving)]
    return [*images, *([options.model] if options.model else [])]


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
    names = (DISPLACEMENT, RASTER, VECTOR, TIES, SUMMARY, REPORT, f"{ADAPTED}/{MODEL}")
    outputs = {(output_dir / name).resolve() for name in names}
    for name in _inputs(options):
        if Path(name).resolve() in outputs:
            raise OutputError(f"{name}: is an input and would be overwritten; choose another output_dir")


def summarise(tally: Tally, overall: Overall, common: CommonShift, reader: PairReader) -> dict[str, Any]:
    """What summary.json says of a registration, lengths in px of the working grid and metres on the ground."""
    gsd_m = reader.gsd_m
    shift, error = quantile(tally.length_px, 0.5), quantile(tally.error_px, 0.5)
    pixels = reader.shape[0] * reader.shape[1]
    return {
        "status": "registered" if tally.known else "abstained everywhere",
        "share_registered": tally.share,
        "share_with_data": tally.valid / pixels,
        "shift_median_px": shift,
        "shift_median_m": quantile(tally.ground, 0.5) * gsd_m,
        "shift_p95_px": quantile(tally.length_px, 0.95),
        "expected_error_median_px": error,
        "expected_error_median_m": error * gsd_m,
        "bound_90_over_expected_error": BOUND_90,
        "gsd_m": gsd_m,
        "width_px": reader.shape[1],
        "height_px": reader.shape[0],
        "global_stage": asdict(overall),
        "common_shift": asdict(common) | {"share_taken": common.taken},
        "convention": CONVENTION,
        "version": version("regnet"),
    }


def _bring_out(source: Path, output_dir: Path) -> None:
    """Move finished files to where they belong; what an earlier registration left there goes."""
    for name in (RASTER, VECTOR, ADAPTED):
        if not (source / name).exists() or (source / name).is_dir():
            files.remove(output_dir / name)
    for path in source.iterdir():
        os.replace(path, output_dir / path.name)
    source.rmdir()
