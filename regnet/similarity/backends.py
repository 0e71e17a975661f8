"""How a set of tiles is compared: all pairs exactly, from sketches, or by sums only. One interface: `compare`.

With several checkpoints the kernels are averaged, each divided by its trace: the network was smoothed by all of them
along the training, not by the last alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from regnet.errors import ConfigError
from regnet.similarity.checkpoints import Checkpoint
from regnet.similarity.exact import FunctionRows, cross, gram
from regnet.similarity.kernel import correlation_matrices, inverse_roots, normalised, scalar, self_products
from regnet.similarity.linear import SoftCounter
from regnet.similarity.neighbours import Neighbours, count, soft_only
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.sketch import Sketcher, sketched_kc
from regnet.similarity.store import ShardStore
from regnet.similarity.tiles import batches, read_batch, tiles_digest
from regnet.tiles.store import TileStore

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Task:
    """What is compared: reference tiles first, then query tiles.

    Attributes:
        store: the tiles.
        positions: (n,) in the store's index.
        references: how many of them, from the front, make the reference set.
        checkpoints: networks to compare by.
        options: how.
        folder: for what is kept on disk.
    """

    store: TileStore
    positions: NDArray[np.int64]
    references: int
    checkpoints: list[Checkpoint]
    options: SimilarityOptions
    folder: Path

    def self_columns(self) -> NDArray[np.int64]:
        """Where each tile stands in the reference set, -1 for query tiles."""
        places = np.arange(len(self.positions))
        return np.where(places < self.references, places, -1)


@dataclass
class Comparison:
    """What came out, for the n tiles of a task.

    Attributes:
        found: neighbour counts.
        self_kernel: (n, d, d) float64.
        blocks: (m, d, m, d) float64 K among the reference tiles (exact), or None.
        features: (n, d, k) Phi with `K = Phi Phi^T` (sketch), or None.
        trajectory: one row a checkpoint: quantiles of kC and of N_S / m.
    """

    found: Neighbours
    self_kernel: Tensor
    blocks: Tensor | None = None
    features: Tensor | None = None
    trajectory: list[dict[str, Any]] = field(default_factory=list)


def compare(task: Task) -> Comparison:
    """Compare by the backend that the options name.

    Raises:
        ConfigError: the linear backend with several checkpoints.
    """
    return {"exact": _exact, "sketch": _sketch, "linear": _linear}[task.options.backend](task)


def _exact(task: Task) -> Comparison:
    m, n = task.references, len(task.positions)
    kernel, own = torch.zeros(()), torch.zeros(())
    trajectory = []
    for checkpoint in task.checkpoints:
        shards = _shards(task, checkpoint, "gradients", {})
        _fill(task, checkpoint, shards, lambda jacobians, _: {"jacobians": jacobians})
        selves = torch.from_numpy(shards.all("self_kernel"))
        part = _all_pairs(task, shards, (n, selves.shape[1], checkpoint.engine.size))
        places = torch.arange(m)
        part[places, :, places] = selves[:m]
        trajectory.append(_spread(checkpoint, _correlations(part, selves, m)))
        share = _share(task, selves)
        kernel, own = kernel + part * share, own + selves * share
        if not task.options.keep_gradients:
            shards.remove()
    found = _count(task, _correlations(kernel, own, m), task.self_columns())
    return Comparison(found, own, blocks=kernel[:m], trajectory=trajectory)


def _all_pairs(task: Task, shards: ShardStore, shape: tuple[int, int, int]) -> Tensor:
    """K of all tiles to the reference tiles, (n, d, m, d) float64."""
    n, d, p = shape
    m, memory_mb, dtype = task.references, task.options.memory_mb, DTYPES[task.options.precision]

    def rows(start: int, stop: int) -> FunctionRows:
        def read(part: slice) -> Tensor:
            return torch.from_numpy(shards.rows("jacobians", slice(part.start + start, part.stop + start)))

        return FunctionRows((stop - start, d, p), read)

    inside = gram(rows(0, m), memory_mb=memory_mb, dtype=dtype).double()
    if n == m:
        return inside
    outside = cross(rows(m, n), rows(0, m), memory_mb=memory_mb, dtype=dtype).double()
    return torch.cat((inside, outside))


def _sketch(task: Task) -> Comparison:
    m, options = task.references, task.options
    features, own = [], torch.zeros(())
    trajectory = []
    for checkpoint in task.checkpoints:
        settings = {"floats": options.sketch_floats, "landmarks": options.landmarks, "seed": options.seed}
        shards = _shards(task, checkpoint, "sketch", settings)
        if shards.missing():
            _fill(task, checkpoint, shards, _sketches(_fit_sketcher(task, checkpoint)))
        selves, sketches = (torch.from_numpy(shards.all(name)).double() for name in ("self_kernel", "sketch"))
        trajectory.append(_spread(checkpoint, sketched_kc(sketches, sketches[:m])))
        share = _share(task, selves)
        features.append(_roots(selves) @ sketches * share**0.5)
        own = own + selves * share
        if not task.options.keep_gradients:
            shards.remove()
    whole = torch.cat(features, -1)
    unit = normalised(whole, inverse_roots(own).roots)
    columns = task.self_columns()
    similarities = sketched_kc(unit, unit[:m])
    similarities[torch.arange(m), torch.arange(m)] = (~inverse_roots(own[:m]).dead).double()
    return Comparison(_count(task, similarities, columns), own, features=whole, trajectory=trajectory)


def _sketches(sketcher: Sketcher) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    return lambda jacobians, roots: {"sketch": sketcher(normalised(jacobians, roots))}


def _fit_sketcher(task: Task, checkpoint: Checkpoint) -> Sketcher:
    options = task.options
    rng = np.random.default_rng(options.seed)
    chosen = rng.permutation(task.positions[: task.references])[: options.landmarks]
    rows = []
    for _, batch in tqdm(
        batches(task.store, np.sort(chosen), options.batch), desc="landmarks", total=-(-len(chosen) // options.batch)
    ):
        jacobians = checkpoint.jacobians(batch)
        rows.append(normalised(jacobians, inverse_roots(self_products(jacobians)).roots))
    return Sketcher(torch.cat(rows), options.sketch_floats, options.seed)


def _linear(task: Task) -> Comparison:
    if len(task.checkpoints) > 1:
        raise ConfigError("similarity.checkpoints=mean needs backend=exact or sketch; linear counts with one network")
    (checkpoint,) = task.checkpoints
    options, counter = task.options, SoftCounter()
    steps = -(-task.references // options.batch)
    inside = batches(task.store, task.positions[: task.references], options.batch)
    for _, batch in tqdm(inside, desc="sum", total=steps, unit="batch"):
        counter.add(checkpoint.jacobians(batch))
    counts, selves = [], []
    steps = -(-len(task.positions) // options.batch)
    for _, batch in tqdm(batches(task.store, task.positions, options.batch), desc="count", total=steps, unit="batch"):
        jacobians = checkpoint.jacobians(batch)
        counts.append(counter.count(jacobians))
        selves.append(self_products(jacobians))
    return Comparison(soft_only(torch.cat(counts).numpy()), torch.cat(selves))


def _shards(task: Task, checkpoint: Checkpoint, kind: str, settings: dict[str, Any]) -> ShardStore:
    manifest = {
        **settings,
        "kind": kind,
        "model": checkpoint.digest,
        "metric": task.options.metric,
        "data": tiles_digest(task.store, task.positions),
        "readout": task.options.readout,
        "parameters": list(task.options.parameters),
        "p": checkpoint.engine.size,
    }
    return ShardStore(task.folder / f"{kind}_{checkpoint.name}", manifest, len(task.positions), task.options.batch)


def _fill(
    task: Task, checkpoint: Checkpoint, shards: ShardStore, keep: Callable[[Tensor, Tensor], dict[str, Tensor]]
) -> None:
    """Write what `keep` makes of the Jacobians and K(x, x)^-1/2, for the shards that are not there yet."""
    for index in tqdm(shards.missing(), desc=f"gradients {checkpoint.name}", unit="batch"):
        jacobians = checkpoint.jacobians(read_batch(task.store, task.positions[shards.span(index)]))
        selves = self_products(jacobians)
        arrays = {"self_kernel": selves, **keep(jacobians, inverse_roots(selves).roots)}
        shards.write(index, {name: values.numpy() for name, values in arrays.items()})


def _share(task: Task, selves: Tensor) -> float:
    """Weight of one checkpoint's kernel in the mean; a single one keeps its scale."""
    if len(task.checkpoints) == 1:
        return 1.0
    trace = float(torch.einsum("iaa->", selves[: task.references]))
    return 1 / (max(trace, torch.finfo(torch.float64).tiny) * len(task.checkpoints))


def _correlations(kernel: Tensor, selves: Tensor, references: int) -> Tensor:
    roots = inverse_roots(selves).roots
    return scalar(correlation_matrices(kernel, roots, roots[:references]))


def _roots(selves: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(selves)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT
    return root


def _count(task: Task, similarities: Tensor, columns: NDArray[np.int64]) -> Neighbours:
    options = task.options
    return count(similarities.numpy(), options.tau, options.alpha, options.nearest, columns)


def _spread(checkpoint: Checkpoint, similarities: Tensor) -> dict[str, Any]:
    """Quantiles over the reference tiles of kC (without the tile itself) and of N_S / m."""
    m = similarities.shape[1]
    inside = similarities[:m].numpy()
    pairs = inside[~np.eye(m, dtype=bool)] if m > 1 else inside.ravel()
    levels = (5, 25, 50, 75, 95)
    row: dict[str, Any] = {"checkpoint": checkpoint.name}
    row |= {f"kc_p{level:02d}": value for level, value in zip(levels, np.percentile(pairs, levels), strict=True)}
    density = np.percentile(inside.mean(1), levels)
    return row | {f"density_p{level:02d}": value for level, value in zip(levels, density, strict=True)}
