"""Is the predicted denoising true? Every estimator of a training against replicas of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regnet.denoising.along import kernels_along, mean_kernel
from regnet.denoising.calibration import Pool
from regnet.denoising.estimators import PAPER, Estimate, all_estimates, calibrated_name, kernels_of
from regnet.denoising.maps import grid_cells
from regnet.denoising.operators import Array, DenseKernel
from regnet.denoising.options import DenoisingValidationOptions
from regnet.denoising.replicas import (
    Replicas,
    ShiftedTiles,
    retrain_replica,
    retraining_trail,
    shifted_tiles,
    train_replicas,
)
from regnet.denoising.validation import (
    COVERAGE,
    attainable_spearman,
    check_factor,
    noise_transfer,
    normal_quantile,
    true_factor,
    true_scatter,
)
from regnet.errors import ConfigError
from regnet.files import whole_path, write_figure
from regnet.models import ModelOptions
from regnet.tiles.store import TileStore


@dataclass(frozen=True)
class Study:
    """Estimators of one training against replicas of it.

    Attributes:
        tiles: what the network sees.
        replicas: the trainings; the first is the one that is estimated.
        regions: (n,) name of every tile's grid cell; empty where the cell has too few tiles.
        kernels: of the first training, by name.
        estimates: what every estimator says.
        table: a row an estimator: its scores.
        start_px: (n, 2) predictions before training.
        options: of the study.
    """

    tiles: ShiftedTiles
    replicas: Replicas
    regions: NDArray[np.str_]
    kernels: dict[str, DenseKernel]
    estimates: list[Estimate]
    table: pd.DataFrame
    start_px: Array
    options: DenoisingValidationOptions

    @property
    def best(self) -> str:
        """Name of the estimate that has everything: the kernels of all trainings, and set right by them."""
        return calibrated_name(self.options.retrainings)


def compare_estimators(
    store: TileStore, model_options: ModelOptions, options: DenoisingValidationOptions, folder: Path
) -> Study:
    """Train replicas, predict their denoising from the first of them, and compare.

    Writes `replicas/` (a killed study goes on behind the last one), `estimators.csv` (a row an estimator),
    `tiles.parquet` and `regions.csv` (true and predicted factors, 90 % intervals), `factors.png` and `estimators.png`.

    Raises:
        ConfigError: no grid cell has enough tiles for a region.
        InputError: too few tiles.
    """
    tiles = shifted_tiles(store, options)
    regions = _regions(tiles, store.tile_px, options)
    replicas = train_replicas(tiles, model_options, options, folder / "replicas")
    retrainings = retrain_replica(tiles, replicas, model_options, options, folder / "replicas")
    along = kernels_along(replicas.trail, tiles.batches, folder, plain=True)
    trails = [retraining_trail(folder / "replicas", place) for place in range(len(retrainings))]
    retrained = [
        mean_kernel(kernels_along(trail, tiles.batches, folder).adam, along.values[0].shape[1]) for trail in trails
    ]
    kernels = kernels_of(along)
    labels = tiles.offset.double().numpy() + replicas.noise[0]
    estimates = all_estimates(along, kernels, labels, retrainings, retrained)
    true = true_factor(replicas.predictions, replicas.noise)
    table = pd.DataFrame(_rows(estimates, replicas, regions))
    study = Study(tiles, replicas, regions, kernels, estimates, table, along.values[0], options)
    _write(study, true, folder)
    return study


def summarise(study: Study) -> dict[str, Any]:
    """The study's summary; `denoise` is what is known of the estimator that has everything."""
    replicas, options = study.replicas, study.options
    true = true_factor(replicas.predictions, replicas.noise)
    best = study.table.set_index("estimator").loc[study.best]
    offset = study.tiles.offset.double().numpy()
    errors = {
        "labels": replicas.noise,
        "before_training": study.start_px - offset,
        "predictions": replicas.predictions - offset,
    }
    return {
        "denoise": {
            "noise_sigma_px": options.noise_sigma_px,
            "factor_mean": best["predicted_mean"],
            **{name: best[name] for name in ("spearman", "slope", "noise_transfer")},
        },
        "estimator": study.best,
        "true_factor_mean": true.mean(),
        "attainable_spearman": attainable_spearman(replicas.predictions, replicas.noise),
        "replicas": options.replicas,
        "tiles": len(true),
        **{f"error_mean_px_{name}": np.linalg.norm(error, axis=-1).mean() for name, error in errors.items()},
        "estimators": study.table.to_dict("records"),
        "settings": asdict(options),
    }


def _write(study: Study, true: Array, folder: Path) -> None:
    by_region = _by_region(study.estimates, true, study.regions)
    with whole_path(folder / "estimators.csv") as partial:
        study.table.to_csv(partial, index=False, float_format="%.4g")
    with whole_path(folder / "tiles.parquet") as partial:
        rows = study.tiles.rows[["tile_id", "pair", "region", "row", "col", "geometry"]]
        rows.assign(true_factor=true, **_predicted(study.estimates)).to_parquet(partial)
    with whole_path(folder / "regions.csv") as partial:
        by_region.to_csv(partial)
    _draw_factors(folder / "factors.png", study, true, by_region)
    _draw_estimators(folder / "estimators.png", study.table)


def _regions(tiles: ShiftedTiles, tile_px: int, options: DenoisingValidationOptions) -> NDArray[np.str_]:
    """Name of every tile's grid cell; empty where the cell has too few tiles.

    Raises:
        ConfigError: all have too few.
    """
    cells = np.array(grid_cells(tiles.rows, options.region_px, tile_px))
    names, counts = np.unique(cells, return_counts=True)
    if counts.max() < options.region_tiles:
        raise ConfigError(
            f"denoising_validation.region_tiles={options.region_tiles}: no cell of {options.region_px} px has so many, "
            f"the fullest has {counts.max()}; ask for fewer, or raise denoising_validation.region_px"
        )
    return np.where(np.isin(cells, names[counts >= options.region_tiles]), cells, "")


def _region_factors(factor: Array, regions: NDArray[np.str_]) -> pd.Series:
    """Root of the mean squared factor of every region's tiles."""
    squared = pd.Series(factor**2).groupby(regions).mean()
    return squared[squared.index != ""].pow(0.5)


def _pool(regions: NDArray[np.str_]) -> Pool:
    """Makes factors of regions, in the order of their names, from those of tiles."""
    return lambda factor: _region_factors(factor, regions).to_numpy(dtype=np.float64)


def _predicted(estimates: list[Estimate], regions: NDArray[np.str_] | None = None) -> dict[str, Array]:
    """Factors of all estimators by tile, or by region, and the ends of the 90 % intervals of those that state them."""
    pool, columns = _pool(regions) if regions is not None else None, {}
    for one in estimates:
        columns[f"factor: {one.name}"] = factor = pool(one.factor) if pool else one.factor
        error = one.error(pool)
        if error is not None:
            reach = np.exp(normal_quantile(COVERAGE) * error)
            columns |= {f"low: {one.name}": factor / reach, f"high: {one.name}": factor * reach}
    return columns


def _by_region(estimates: list[Estimate], true: Array, regions: NDArray[np.str_]) -> pd.DataFrame:
    table = _region_factors(true, regions).to_frame("true_factor").rename_axis("region")
    table.insert(0, "tiles", pd.Series(regions).value_counts().reindex(table.index))
    return table.assign(**_predicted(estimates, regions))


def _rows(estimates: list[Estimate], replicas: Replicas, regions: NDArray[np.str_]) -> Iterator[dict[str, Any]]:
    """Scores of every estimator, by tile and by region."""
    drawn, pool = (replicas.predictions, replicas.noise), _pool(regions)
    true, scatter, region_scatter = true_factor(*drawn), true_scatter(*drawn), true_scatter(*drawn, pool)
    for one in estimates:
        known = np.isfinite(one.factor)
        check = check_factor(one.factor[known], true[known], one.error(), scatter)
        region = check_factor(pool(one.factor), pool(true), one.error(pool), region_scatter)
        yield {
            "estimator": one.name,
            "trainings": one.trainings,
            "strength": one.strength,
            "noise_transfer": float("nan") if one.weights is None else noise_transfer(one.apply, *drawn),
            **{key: value for key, value in asdict(check).items() if key != "true_mean"},
            "region_spearman": region.spearman,
            "region_slope": region.slope,
            "region_coverage": region.coverage,
        }


def _draw_factors(path: Path, study: Study, true: Array, by_region: pd.DataFrame) -> None:
    """True factors against those predicted by the best estimator, set right, with its intervals, and by the paper."""
    figure = Figure(figsize=(8, 7.8), layout="constrained")
    by_tile = pd.DataFrame({"true_factor": true, **_predicted(study.estimates)})
    for row, name in zip(figure.subplots(2, 2), (study.best, PAPER), strict=True):
        _scatter(row[0], by_tile, name, "tiles", 4)
        _scatter(row[1], by_region, name, "regions", 18)
    write_figure(path, figure)


def _scatter(axes: Axes, table: pd.DataFrame, name: str, what: str, size: int) -> None:
    predicted, true = table[f"factor: {name}"], table["true_factor"]
    most = 1.05 * float(max(np.nanmax(predicted), np.nanmax(true)))
    axes.plot([0, most], [0, most], color="tab:gray", linewidth=1)
    axes.scatter(predicted, true, s=size, alpha=0.6, linewidths=0)
    if f"low: {name}" in table:
        axes.hlines(true, table[f"low: {name}"], table[f"high: {name}"], linewidth=size / 18, alpha=0.4)
    axes.set(xlim=(0, most), ylim=(0, most), aspect="equal", xlabel="predicted factor", ylabel="true factor")
    axes.set_title(f"{name}\n{what}", fontsize=8)


def _draw_estimators(path: Path, table: pd.DataFrame) -> None:
    """Noise transfer, rank correlation and slope of every estimator as bars."""
    figure = Figure(figsize=(10, 0.24 * len(table) + 1.2), layout="constrained")
    titles = {"noise_transfer": "noise transfer", "spearman": "Spearman, tiles", "slope": "slope, tiles (1 is right)"}
    for axes, (column, title) in zip(figure.subplots(1, 3, sharey=True), titles.items(), strict=True):
        axes.barh(table["estimator"], table[column].clip(upper=4), color="tab:blue")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
        axes.set_ylim(len(table) - 0.5, -0.5)
    write_figure(path, figure)
