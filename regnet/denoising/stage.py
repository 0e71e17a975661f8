"""The denoising stage: how much label noise was averaged away, tile by tile and region by region, without the truth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray

from regnet.denoising.along import kernels_along, mean_kernel
from regnet.denoising.maps import (
    QUANTITIES,
    cell_polygons,
    grid_cells,
    rasterise,
    read_regions,
    summarise_regions,
    write_map,
)
from regnet.denoising.noise import LabelNoise, label_noise
from regnet.denoising.operators import Array, Operator, operator_of
from regnet.denoising.options import DenoiseOptions
from regnet.denoising.plots import draw_audit, draw_factors
from regnet.denoising.retraining import Seen, retrain_model
from regnet.denoising.smoother import STRONGEST, choose_smoother, closest_smoother
from regnet.denoising.tilewise import TileEstimates, estimate_tiles, noise_size
from regnet.files import whole_path, write_json
from regnet.similarity.result import StoredKernel, load_kernel
from regnet.similarity.tiles import batches
from regnet.tiles.store import TileStore
from regnet.training.fit import CHECKPOINTS
from regnet.training.options import TrainingOptions
from regnet.training.rounds import trained_on
from regnet.training.trail import Trail

_BATCH = 16  # tiles differentiated at once


def denoise_stage(
    store: TileStore,
    model_path: Path,
    similarity_folder: Path,
    options: DenoiseOptions,
    training: TrainingOptions,
    folder: Path,
) -> None:
    """Estimate the denoising of the reference tiles of the similarity stage.

    After several rounds of training, what is smoothed are the labels of the last one, which the round before corrected;
    doubtful are the labels that `prepare` wrote.

    Writes `tiles.parquet`, `regions.parquet`, `audit.parquet` (doubtful labels, worst first), `factor.tif` with a QGIS
    style (`factor_<pair>.tif` if there are several pairs), `factor.png`, `audit.png`, `summary.json` and
    `retraining_<k>.npz`.

    Args:
        store: the prepared tiles, with their labels.
        model_path: the model whose kernel it is; beside it lie the checkpoints along its training.
        similarity_folder: what the similarity stage wrote.
        options: the noise and the smoother.
        training: what the model was trained with, for retrainings.
        folder: where to write.

    Raises:
        StoreError: no kernel, or one of other tiles.
        ConfigError: retrainings of more tiles than were compared.
        InputError: `regions` cannot be used, or the way of the training is not known.
    """
    stored = load_kernel(similarity_folder / "kernel.zarr")
    positions = store.positions(stored.tile_id)
    rows = store.index.iloc[positions].reset_index(drop=True)
    given = store.centre_labels(positions)
    learned = trained_on(store, model_path.parent)
    labels = learned.centre_labels(positions)
    folder.mkdir(parents=True, exist_ok=True)
    operator = _operator(store, positions, model_path, stored, options, folder)
    kind = "ridge" if options.smoothing == "mean" else options.smoothing
    predictions = stored.values.astype(np.float64)
    found, seen = choose_smoother(operator, labels, predictions, kind, options.choose), None
    noise = label_noise(store, rows, options)
    if options.retrainings:
        sigma, _ = noise_size(found, labels, given, predictions, noise.correlation, options.noise_sigma_px)
        seen = retrain_model(
            learned, positions, predictions, operator, model_path, training, sigma, options.retrainings, folder
        )
        found = closest_smoother(operator, seen.noise, seen.changes, kind)
    estimates = estimate_tiles(stored, labels, given, found, noise.correlation, options.noise_sigma_px, seen)
    tiles = _tile_table(rows, labels, given, stored, estimates, options)
    regions, column = _regions(store, tiles, options)
    by_region = summarise_regions(tiles, regions, column)
    for name, table in {
        "tiles": tiles,
        "regions": by_region,
        "audit": tiles.iloc[estimates.audit.order][lambda table: table["doubtful"]].reset_index(drop=True),
    }.items():
        with whole_path(folder / f"{name}.parquet") as partial:
            table.to_parquet(partial)
    maps = _write_maps(store, tiles, folder)
    draw_factors(folder / "factor.png", store, tiles, by_region)
    draw_audit(folder / "audit.png", store, tiles, options.audit_score)
    write_json(
        folder / "summary.json",
        {
            **_summary(estimates, tiles, noise, options),
            "remarks": _remarks(estimates, tiles, len(store.tiles("train")), seen),
            "model": model_path.name,
            "maps": maps,
        },
    )


def _operator(
    store: TileStore,
    positions: NDArray[np.int64],
    model_path: Path,
    stored: StoredKernel,
    options: DenoiseOptions,
    folder: Path,
) -> Operator:
    """The kernel of the network as a smoother of its labels.

    What it predicted before training is not taken off labels and predictions, as theory asks where labels are all that
    is learned from (`regnet.denoising.estimators`): here random displacements teach it to register, and labels are what
    is off.
    """
    if options.smoothing != "mean":
        return operator_of(stored)
    along = kernels_along(
        Trail(model_path.parent / CHECKPOINTS),
        lambda: (batch for _, batch in batches(store, positions, _BATCH)),
        folder,
        memory_mb=options.memory_mb,
    )
    return mean_kernel(along.adam, stored.values.shape[1])


def _tile_table(
    rows: gpd.GeoDataFrame,
    labels: Array,
    given: Array,
    stored: StoredKernel,
    estimates: TileEstimates,
    options: DenoiseOptions,
) -> gpd.GeoDataFrame:
    found = estimates.audit
    vectors = {
        "label": given,
        "trained_label": labels,
        "predicted": stored.values,
        "kernel_mean": estimates.mean_label,
        "loo_residual": found.residual,
        "suggested": found.suggested,
    }
    columns = {
        "factor": estimates.factor,
        "shift_px": estimates.shift,
        "residual_px": estimates.residual,
        "smoother_factor": estimates.smoother_factor,
        "smoother_noise_px": estimates.smoother_factor * estimates.sigma,
        "own_weight": np.trace(estimates.found.blocks(), axis1=1, axis2=2) / labels.shape[1],
        "audit_score": found.score,
        "doubtful": found.score >= options.audit_score,
        **{
            f"{name}_{axis}_px": values[:, k] for name, values in vectors.items() for k, axis in enumerate(("dx", "dy"))
        },
    }
    kept = rows[["tile_id", "pair", "part", "region", "row", "col", "true_dx_px", "true_dy_px", "geometry"]]
    return kept.assign(**columns)


def _regions(store: TileStore, tiles: gpd.GeoDataFrame, options: DenoiseOptions) -> tuple[gpd.GeoDataFrame, str]:
    if options.regions is not None:
        regions, names = read_regions(Path(options.regions), tiles)
        tiles["cell"] = names
        return regions.rename(columns={"region": "cell"}), "cell"
    if options.region_px > 0:
        tiles["cell"] = grid_cells(tiles, options.region_px, store.tile_px)
        return cell_polygons(tiles, {pair: store.scene(pair) for pair in store.pairs}, options.region_px), "cell"
    return store.blocks.rename(columns={"block_id": "region"})[["region", "geometry"]], "region"


def _write_maps(store: TileStore, tiles: gpd.GeoDataFrame, folder: Path) -> list[str]:
    names = []
    cell_px = max(1, store.tile_px // 2)
    for pair in store.pairs:
        own, scene = tiles[tiles["pair"] == pair], store.scene(pair)
        if own.empty:
            continue
        name = "factor.tif" if len(store.pairs) == 1 else f"factor_{pair}.tif"
        values = rasterise(own, QUANTITIES, scene.shape, store.tile_px, cell_px)
        write_map(folder / name, values, QUANTITIES, scene.crs, scene.transform, cell_px)
        names.append(name)
    return names


def _remarks(estimates: TileEstimates, tiles: gpd.GeoDataFrame, training_tiles: int, seen: Seen | None) -> list[str]:
    """What the figures do not say of themselves, in sentences."""
    remarks, compared = [], int((tiles["part"] == "train").sum())
    if compared < training_tiles:
        remarks.append(
            f"{compared} of {training_tiles} training tiles were compared (similarity.max_tiles); factors are of "
            "averaging among these. Averaging among all leaves less: of noise that is independent from tile to tile "
            f"about {np.sqrt(compared / training_tiles):.2f} times as much."
        )
    if seen is not None:
        remarks.append(
            f"{len(seen.noise)} retraining(s) on labels with more noise changed the predictions by {seen.share():.3f} "
            "times as much, to which the smoother's factors are scaled."
        )
    elif estimates.found.strength >= STRONGEST:
        remarks.append(
            "The smoother finds no trace of the labels in the predictions, even at its strongest, so its factors say "
            "only that next to nothing of single labels' noise is left."
        )
    return remarks


def _summary(
    estimates: TileEstimates, tiles: gpd.GeoDataFrame, noise: LabelNoise, options: DenoiseOptions
) -> dict[str, Any]:
    """Sum up; `spearman`, `slope` and `noise_transfer` need replicas and are null here."""
    return {
        "tiles": len(tiles),
        "noise_sigma_px": estimates.sigma,
        "noise_sigma_source": estimates.sigma_source,
        "noise_model": noise.model,
        "noise_model_source": noise.source,
        "common_noise_px": noise.common_px(estimates.sigma, len(tiles)),
        "systematic_shift_px": list(noise.shift_px),
        "not_averaged": noise.not_averaged(),
        "factor_mean": float(np.nanmean(estimates.factor)),
        "smoother_factor_mean": float(estimates.smoother_factor.mean()),
        "smoother_strength": estimates.found.strength,
        "smoother_rule": f"{options.smoothing}, {options.choose}",
        "effective_parameters": estimates.found.effective_parameters,
        "shift_mean_px": float(np.nanmean(estimates.shift)),
        "stationarity_residual_px": float(np.nanmean(estimates.residual)),
        "without_kernel_mean": int(np.isnan(estimates.factor).sum()),
        "doubtful_labels": int(tiles["doubtful"].sum()),
        "mean_label_px": [float(tiles[f"label_{axis}_px"].mean()) for axis in ("dx", "dy")],
        "mean_prediction_px": [float(tiles[f"predicted_{axis}_px"].mean()) for axis in ("dx", "dy")],
        "spearman": None,
        "slope": None,
        "noise_transfer": None,
        "settings": asdict(options),
    }
