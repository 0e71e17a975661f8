"""The similarity stage: from a model and a tile store to neighbour counts, nearest tiles and the kernel."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from regnet import models
from regnet.errors import ConfigError, InputError
from regnet.files import remove, whole_path, write_json
from regnet.ranks import Ranks
from regnet.similarity.backends import compare
from regnet.similarity.checkpoints import load_along, load_checkpoints
from regnet.similarity.kernel import inverse_roots
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.result import StoredKernel, save_kernel
from regnet.similarity.task import Comparison, Task, remove_shards
from regnet.similarity.tiles import batches, pick_tiles
from regnet.similarity.trajectory import draw_trajectory
from regnet.tiles.store import TileStore

COUNTS = ("n_soft", "n_tau", "n_alpha")
SOMETIMES = ("kernel.zarr", "trajectory.csv", "trajectory.png")
"""Outputs that some settings do not write: those of an earlier run must not stay."""


def similarity_stage(
    store: TileStore, model_path: Path, options: SimilarityOptions, folder: Path, ranks: Ranks | None = None
) -> None:
    """Compare tiles as the network does, and write what follows from it.

    Writes `neighbours.parquet` (a row a tile: tile_id, pair, part, region, reference, n_soft, n_tau, n_alpha,
    nearest_kc, floored, dead, predicted_dx_px, predicted_dy_px, geometry), `regions.csv` (means by region),
    `nearest.npz` (tile_id, nearest_tile_id, kc; -1 and NaN where a tile has fewer neighbours), `kernel.zarr` (not with
    backend=linear), with several networks `trajectory.csv` and `trajectory.png`, and `summary.json`. A killed run goes
    on behind the last batch it wrote, as long as model, tiles and settings are the same; with `keep_gradients` the
    Jacobians or sketches stay.

    Args:
        store: the prepared tiles.
        model_path: weights of a trained model.
        options: what to compare and how.
        folder: where to write.
        ranks: who shares the gradients, products and counts; the first writes the tables.

    Raises:
        ConfigError: options that contradict each other.
        InputError: no tiles, a model without parameters or with bad weights, non-finite tiles, faiss is not installed.
    """
    _check_parts(options)
    model = models.load_checkpoint(model_path)
    models.check_channels(model, len(store.fixed_channels), len(store.moving_channels))
    reference = pick_tiles(store, options.parts, options.max_tiles, options.seed)
    others = [part for part in options.query_parts if part not in options.parts]
    queries = [pick_tiles(store, [part], options.max_query_tiles, options.seed) for part in others]
    if len(reference) == 0:
        raise InputError(f"similarity.parts={','.join(options.parts)}: the store has no such tile; prepare more tiles")
    positions = np.concatenate([reference, *queries])
    ranks = ranks or Ranks()
    checkpoints = load_checkpoints(model_path, options, ranks.device)
    along = load_along(model_path, options, ranks.device)
    task = Task(store, positions, len(reference), checkpoints, along, options, folder, ranks)
    result = compare(task)
    ranks.barrier()  # all have read the shards
    if not ranks.main:
        return
    values = predict(store, model, positions, options.batch)
    for name in SOMETIMES:
        remove(folder / name)
    _save_kernel(folder / "kernel.zarr", task, result, values)
    table = _table(task, result, values)
    _write_tables(folder, table, result, len(reference))
    write_json(folder / "summary.json", _summary(task, table))
    remove_shards(task)


def _check_parts(options: SimilarityOptions) -> None:
    for key, named in (("parts", options.parts), ("query_parts", options.query_parts)):
        if twice := sorted({part for part in named if named.count(part) > 1}):
            raise ConfigError(
                f"similarity.{key}={','.join(named)} names {' and '.join(twice)} twice, but a tile has one row; "
                "name each part once"
            )


def predict(store: TileStore, model: torch.nn.Module, positions: NDArray[np.int64], batch: int) -> NDArray[np.float32]:
    """Displacement predicted at the centre of some tiles, where their labels are: (n, 2) px, whatever the readout."""
    with torch.no_grad():
        parts = [models.centre_offset(model, *images).numpy() for _, images in batches(store, positions, batch)]
    return np.concatenate(parts)


def _save_kernel(path: Path, task: Task, result: Comparison, values: NDArray[np.float32]) -> None:
    if result.blocks is None and result.features is None:
        return
    m = task.references
    ids = task.store.index["tile_id"].to_numpy(dtype=np.int64)[task.positions[:m]]
    blocks = None if result.blocks is None else result.blocks.numpy()
    features = None if result.features is None else result.features[:m].numpy()
    save_kernel(path, StoredKernel(ids, values[:m], result.self_kernel[:m].numpy(), blocks, features))


def _table(task: Task, result: Comparison, values: NDArray[np.float32]) -> gpd.GeoDataFrame:
    roots, found = inverse_roots(result.self_kernel), result.found
    table = task.store.index.iloc[task.positions][["tile_id", "pair", "part", "region", "geometry"]]
    listed = found.similarity.shape[1] > 0
    columns = {
        "reference": np.arange(len(table)) < task.references,
        **{name: getattr(found, name) for name in COUNTS},
        "nearest_kc": found.similarity[:, 0] if listed else np.full(len(table), np.nan),
        "floored": roots.floored.numpy(),
        "dead": roots.dead.numpy(),
        **{f"predicted_{axis}_px": values[:, k] for k, axis in enumerate(("dx", "dy"))},
    }
    return table.reset_index(drop=True).assign(**columns)


def _write_tables(folder: Path, table: gpd.GeoDataFrame, result: Comparison, references: int) -> None:
    ids, found = table["tile_id"].to_numpy(dtype=np.int64), result.found
    with whole_path(folder / "neighbours.parquet") as partial:
        table.to_parquet(partial)
    with whole_path(folder / "nearest.npz") as partial, partial.open("wb") as stream:
        nearest = np.where(found.nearest < 0, -1, ids[:references][found.nearest])
        np.savez(stream, tile_id=ids, nearest_tile_id=nearest, kc=found.similarity)
    grouped = table.groupby(["part", "region"])
    means = pd.DataFrame(grouped[[*COUNTS, "nearest_kc"]].mean()).assign(tiles=grouped.size())
    with whole_path(folder / "regions.csv") as partial:
        means.to_csv(partial)
    if len(result.trajectory) > 1:
        with whole_path(folder / "trajectory.csv") as partial:
            pd.DataFrame(result.trajectory).to_csv(partial, index=False)
        draw_trajectory(result.trajectory, folder / "trajectory.png")


def _summary(task: Task, table: gpd.GeoDataFrame) -> dict[str, Any]:
    """Sum up; tiles with zero gradient are named, and so are those whose outputs are nearly dependent."""
    inside = table[table["reference"]]
    return {
        "tiles": task.references,
        "query_tiles": len(table) - task.references,
        "parameters": task.checkpoints[0].engine.size,
        "checkpoints": [checkpoint.name for checkpoint in task.checkpoints],
        **{f"{name}_mean": inside[name].mean() for name in COUNTS},
        "n_soft_median": inside["n_soft"].median(),
        "nearest_kc_median": {part: rows["nearest_kc"].median() for part, rows in table.groupby("part")},
        "floored_tiles": table.loc[table["floored"], "tile_id"].tolist(),
        "dead_tiles": table.loc[table["dead"], "tile_id"].tolist(),
        "routes": sorted(set(task.checkpoints[-1].engine.routes().values())),
        "settings": asdict(task.options),
    }
