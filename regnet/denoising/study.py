"""The study `denoising_validation`: is the predicted denoising true? Every estimator against replicas."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regnet.denoising.along import kernels_along
from regnet.denoising.blunders import audit_blunders
from regnet.denoising.estimators import CALIBRATED, PAPER, Estimate, SecondTraining, all_estimates
from regnet.denoising.maps import grid_cells
from regnet.denoising.operators import Array
from regnet.denoising.options import DenoisingValidationOptions
from regnet.denoising.replicas import Replicas, ShiftedTiles, shifted_tiles, train_once, train_replicas
from regnet.denoising.validation import attainable_spearman, check_factor, noise_transfer, true_factor
from regnet.files import whole_path, write_json
from regnet.models import ModelOptions
from regnet.tiles.store import TileStore
from regnet.training.trail import Trail


def run_denoising_validation(
    store: TileStore, model_options: ModelOptions, options: DenoisingValidationOptions, folder: Path
) -> None:
    """Train replicas, predict their denoising from the first of them, and compare.

    Writes `replicas/` (a killed study goes on behind the last one), `estimators.csv` (a row an estimator),
    `tiles.parquet` and `regions.csv` (true and predicted factors), `factors.png`, `estimators.png`, and `summary.json`.

    Raises:
        InputError: too few tiles.
    """
    tiles = shifted_tiles(store, options)
    replicas = train_replicas(tiles, model_options, options, folder / "replicas")
    offset = tiles.offset.double().numpy()
    along = kernels_along(replicas.trail, tiles.batches, plain=True)
    labels = offset + replicas.noise[0]
    estimates = all_estimates(along, labels, _second_training(tiles, labels, model_options, options, folder / "second"))
    true = true_factor(replicas.predictions, replicas.noise)
    regions = _regions(tiles, store.tile_px, options)
    table = pd.DataFrame([_row(estimate, replicas, true, regions) for estimate in estimates])
    by_region = _by_region(estimates, true, regions)
    with whole_path(folder / "estimators.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.4g")
    with whole_path(folder / "tiles.parquet") as partial:
        columns = {"true_factor": true} | {f"factor: {one.name}": one.factor for one in estimates}
        tiles.rows[["tile_id", "pair", "region", "row", "col", "geometry"]].assign(**columns).to_parquet(partial)
    with whole_path(folder / "regions.csv") as partial:
        by_region.to_csv(partial)
    _draw_factors(folder / "factors.png", estimates, true, by_region)
    _draw_estimators(folder / "estimators.png", table)
    summary = _summary(table, replicas, along.values[0], offset, options)
    found = audit_blunders(tiles, model_options, options, folder / "blunders")
    write_json(folder / "summary.json", {**summary, "audit": found})


def _second_training(
    tiles: ShiftedTiles, labels: Array, model_options: ModelOptions, options: DenoisingValidationOptions, folder: Path
) -> SecondTraining:
    """The first replica's training once more, with as much noise again on its labels."""
    added = np.random.default_rng((options.seed, 5)).normal(0, options.noise_sigma_px, labels.shape)
    trail = Trail(folder)
    train_once(tiles, labels + added, model_options, options, trail)
    return SecondTraining(kernels_along(trail, tiles.batches), added)


def _regions(tiles: ShiftedTiles, tile_px: int, options: DenoisingValidationOptions) -> NDArray[np.str_]:
    """Name of every tile's grid cell; empty where the cell has too few tiles."""
    cells = np.array(grid_cells(tiles.rows, options.region_px, tile_px))
    names, counts = np.unique(cells, return_counts=True)
    return np.where(np.isin(cells, names[counts >= options.region_tiles]), cells, "")


def _region_factors(factor: Array, regions: NDArray[np.str_]) -> pd.Series:
    """Root of the mean squared factor of every region's tiles."""
    squared = pd.Series(factor**2).groupby(regions).mean()
    return squared[squared.index != ""].pow(0.5)


def _by_region(estimates: list[Estimate], true: Array, regions: NDArray[np.str_]) -> pd.DataFrame:
    columns = {"true_factor": _region_factors(true, regions)}
    columns |= {f"factor: {one.name}": _region_factors(one.factor, regions) for one in estimates}
    table = pd.DataFrame(columns).rename_axis("region")
    table.insert(0, "tiles", pd.Series(regions).value_counts().reindex(table.index))
    return table


def _row(estimate: Estimate, replicas: Replicas, true: Array, regions: NDArray[np.str_]) -> dict[str, Any]:
    known = np.isfinite(estimate.factor)
    check = check_factor(estimate.factor[known], true[known], len(replicas.noise))
    predicted_region, true_region = (_region_factors(values, regions).to_numpy() for values in (estimate.factor, true))
    region = check_factor(predicted_region, true_region, len(replicas.noise))
    return {
        "estimator": estimate.name,
        "strength": estimate.strength,
        "noise_transfer": noise_transfer(estimate.apply, replicas.predictions, replicas.noise),
        **{key: value for key, value in asdict(check).items() if key != "true_mean"},
        "region_spearman": region.spearman,
        "region_slope": region.slope,
    }


def _summary(
    table: pd.DataFrame, replicas: Replicas, start: Array, offset: Array, options: DenoisingValidationOptions
) -> dict[str, Any]:
    true = true_factor(replicas.predictions, replicas.noise)
    best = table.set_index("estimator").loc[CALIBRATED]
    errors = {
        "labels": replicas.noise,
        "before_training": start - offset,
        "predictions": replicas.predictions - offset,
    }
    return {
        "denoise": {
            "noise_sigma_px": options.noise_sigma_px,
            "factor_mean": best["predicted_mean"],
            **{name: best[name] for name in ("spearman", "slope", "noise_transfer")},
        },
        "estimator": CALIBRATED,
        "true_factor_mean": true.mean(),
        "attainable_spearman": attainable_spearman(replicas.predictions, replicas.noise),
        "replicas": options.replicas,
        "tiles": len(true),
        **{f"error_mean_px_{name}": np.linalg.norm(error, axis=-1).mean() for name, error in errors.items()},
        "estimators": table.to_dict("records"),
        "settings": asdict(options),
    }


def _draw_factors(path: Path, estimates: list[Estimate], true: Array, by_region: pd.DataFrame) -> None:
    """True factors against those predicted by the training's own flow and by the paper, by tile and by region."""
    figure = Figure(figsize=(8, 7.4), layout="constrained")
    factors = {one.name: one.factor for one in estimates}
    for row, name in zip(figure.subplots(2, 2), (CALIBRATED, PAPER), strict=True):
        _scatter(row[0], factors[name], true, f"{name}\ntiles", 4)
        _scatter(row[1], by_region[f"factor: {name}"], by_region["true_factor"], f"{name}\nregions", 18)
    with whole_path(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _scatter(axes: Axes, predicted: Array | pd.Series, true: Array | pd.Series, title: str, size: int) -> None:
    most = 1.05 * float(max(np.nanmax(predicted), np.nanmax(true)))
    axes.plot([0, most], [0, most], color="tab:gray", linewidth=1)
    axes.scatter(predicted, true, s=size, alpha=0.6, linewidths=0)
    axes.set(xlim=(0, most), ylim=(0, most), aspect="equal", xlabel="predicted factor", ylabel="true factor")
    axes.set_title(title, fontsize=9)


def _draw_estimators(path: Path, table: pd.DataFrame) -> None:
    """Noise transfer, rank correlation and slope of every estimator as bars."""
    figure = Figure(figsize=(10, 0.28 * len(table) + 1.2), layout="constrained")
    titles = {"noise_transfer": "noise transfer", "spearman": "Spearman, tiles", "slope": "slope, tiles (1 is right)"}
    for axes, (column, title) in zip(figure.subplots(1, 3, sharey=True), titles.items(), strict=True):
        axes.barh(table["estimator"], table[column].clip(upper=4), color="tab:blue")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, axis="x")
    with whole_path(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
