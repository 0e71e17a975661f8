"""The similarity stage: from a model and a tile store to neighbour counts, nearest tiles and the kernel."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from regnet import models
from regnet.errors import InputError
from regnet.files import whole_path, write_json
from regnet.similarity.exact import FunctionRows, cross, gram
from regnet.similarity.gradients import Jacobians
from regnet.similarity.kernel import correlation_matrices, inverse_roots, scalar, self_products
from regnet.similarity.neighbours import Neighbours, count
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.readouts import READOUTS
from regnet.similarity.result import StoredKernel, save_kernel
from regnet.similarity.store import ShardStore, model_digest
from regnet.similarity.tiles import batches, pick_tiles, tiles_digest
from regnet.tiles.store import TileStore

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def similarity_stage(store: TileStore, model_path: Path, options: SimilarityOptions, folder: Path) -> None:
    """Compare tiles as the network does, and write what follows from it.

    Writes `neighbours.parquet` (a row a tile: tile_id, part, region, reference, n_soft, n_tau, n_alpha,
    nearest_kc, floored, dead, prediction, geometry), `nearest.npz` (tile_id, nearest tile_ids, kC), `kernel.zarr` and
    `summary.json`.

    Args:
        store: the prepared tiles.
        model_path: weights of a trained model.
        options: what to compare and how.
        folder: where to write.

    Raises:
        InputError: no tiles, a model without parameters or with bad weights, non-finite tiles.
        StoreError: the folder holds gradients of another model or other settings.
    """
    model = models.load_checkpoint(model_path)
    reference = pick_tiles(store, options.parts, options.max_tiles, options.seed)
    queries = [pick_tiles(store, [part], options.max_query_tiles, options.seed) for part in options.query_parts]
    positions = np.concatenate([reference, *queries])
    if len(reference) == 0:
        raise InputError(f"similarity.parts={','.join(options.parts)}: the store has no such tile; prepare more tiles")
    gradients = compute_gradients(store, model, positions, options, folder / "gradients")
    kernel, similarities = _compare(gradients, store, positions, len(reference), options)
    save_kernel(folder / "kernel.zarr", kernel)
    own = np.where(np.arange(len(positions)) < len(reference), np.arange(len(positions)), -1)
    found = count(similarities, options.tau, options.alpha, options.nearest, own)
    _write_tables(folder, store, positions, len(reference), found, gradients)
    write_json(folder / "summary.json", _summary(found, gradients, len(reference), options))
    if not options.keep_gradients:
        gradients.remove()


def compute_gradients(
    store: TileStore, model: torch.nn.Module, positions: NDArray[np.int64], options: SimilarityOptions, folder: Path
) -> ShardStore:
    """Write the Jacobians (n, d, p), readouts (n, d) and self kernels (n, d, d) of tiles; go on where a run stopped."""
    engine = Jacobians(model, READOUTS[options.readout], options.parameters)
    manifest: dict[str, Any] = {
        "model": model_digest(model),
        "data": tiles_digest(store, positions),
        "readout": options.readout,
        "parameters": list(options.parameters),
        "p": engine.size,
    }
    shards = ShardStore(folder, manifest, len(positions), options.batch)
    for index in tqdm(shards.missing(), desc="gradients", unit="batch"):
        for _, batch in batches(store, positions[shards.span(index)], options.batch):
            values, jacobians = engine(*batch)
            own = self_products(jacobians)
            arrays = {"values": values, "jacobians": jacobians, "self_kernel": own}
            shards.write(index, {name: array.numpy() for name, array in arrays.items()})
    return shards


def _compare(
    gradients: ShardStore, store: TileStore, positions: NDArray[np.int64], references: int, options: SimilarityOptions
) -> tuple[StoredKernel, NDArray[np.float64]]:
    """K among the reference tiles, and kC of all tiles to the reference tiles, (n, m)."""
    values, own = gradients.all("values"), torch.from_numpy(gradients.all("self_kernel"))
    shape = (references, values.shape[1], int(gradients.manifest["p"]))
    rows = FunctionRows(shape, lambda part: torch.from_numpy(gradients.rows("jacobians", part)))
    dtype = _DTYPES[options.precision]
    block = gram(rows, memory_mb=options.memory_mb, dtype=dtype).double()
    block[torch.arange(references), :, torch.arange(references)] = own[:references]
    roots = inverse_roots(own).roots
    similarities = [scalar(correlation_matrices(block, roots[:references], roots[:references]))]
    if len(positions) > references:
        others = FunctionRows(
            (len(positions) - references, *shape[1:]),
            lambda part: torch.from_numpy(
                gradients.rows("jacobians", slice(part.start + references, part.stop + references))
            ),
        )
        outside = cross(others, rows, memory_mb=options.memory_mb, dtype=dtype).double()
        similarities.append(scalar(correlation_matrices(outside, roots[references:], roots[:references])))
    ids = store.index["tile_id"].to_numpy()[positions[:references]].astype(np.int64)
    kernel = StoredKernel(ids, values[:references], own[:references].numpy(), blocks=block.numpy())
    return kernel, torch.cat(similarities).numpy()


def _write_tables(
    folder: Path,
    store: TileStore,
    positions: NDArray[np.int64],
    references: int,
    found: Neighbours,
    gradients: ShardStore,
) -> None:
    roots = inverse_roots(torch.from_numpy(gradients.all("self_kernel")))
    ids = store.index["tile_id"].to_numpy()[positions].astype(np.int64)
    table = store.index.iloc[positions][["tile_id", "pair", "part", "region", "geometry"]].reset_index(drop=True)
    values = gradients.all("values")
    columns = {
        "reference": np.arange(len(positions)) < references,
        "n_soft": found.n_soft,
        "n_tau": found.n_tau,
        "n_alpha": found.n_alpha,
        "nearest_kc": found.similarity[:, 0] if found.similarity.shape[1] else np.full(len(ids), np.nan),
        "floored": roots.floored.numpy(),
        "dead": roots.dead.numpy(),
        **{f"predicted_{axis}_px": values[:, k] for k, axis in enumerate(("dx", "dy"))},
    }
    with whole_path(folder / "neighbours.parquet") as partial:
        table.assign(**columns).to_parquet(partial)
    with whole_path(folder / "nearest.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, tile_id=ids, nearest_tile_id=ids[:references][found.nearest], kc=found.similarity)


def _summary(found: Neighbours, gradients: ShardStore, references: int, options: SimilarityOptions) -> dict[str, Any]:
    roots = inverse_roots(torch.from_numpy(gradients.all("self_kernel")))
    inside = found.n_soft[:references]
    return {
        "tiles": references,
        "query_tiles": len(found.n_soft) - references,
        "parameters": gradients.manifest["p"],
        "n_soft_mean": inside.mean(),
        "n_soft_median": np.median(inside),
        "n_tau_mean": found.n_tau[:references].mean(),
        "n_alpha_mean": found.n_alpha[:references].mean(),
        "floored": int(roots.floored.sum()),
        "dead": int(roots.dead.sum()),
        "settings": asdict(options),
    }
