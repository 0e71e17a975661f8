"""What is compared, and the gradients that it takes: in shards on disk, each written by one of the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from regnet.errors import StoreError
from regnet.files import remove
from regnet.ranks import Ranks
from regnet.similarity.checkpoints import Checkpoint
from regnet.similarity.kernel import inverse_roots, self_products
from regnet.similarity.neighbours import Neighbours
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.store import MANIFEST, ShardStore
from regnet.similarity.tiles import read_batch, tiles_digest
from regnet.tiles.store import TileStore

KINDS = ("gradients", "kernel", "sketch")
"""What shards hold."""
_KEPT = {"exact": "gradients", "sketch": "sketch", "linear": None}  # by backend, with keep_gradients


@dataclass(frozen=True)
class Task:
    """What is compared: reference tiles first, then query tiles.

    Attributes:
        store: the tiles.
        positions: (n,) in the store's index.
        references: how many of them, from the front, make the reference set.
        checkpoints: networks to compare by.
        along: networks whose similarities are only summed up, to show how they changed in training.
        options: how.
        folder: for what is kept on disk.
        ranks: who shares the work.
    """

    store: TileStore
    positions: NDArray[np.int64]
    references: int
    checkpoints: list[Checkpoint]
    along: list[Checkpoint]
    options: SimilarityOptions
    folder: Path
    ranks: Ranks

    def self_columns(self) -> NDArray[np.int64]:
        """Where each tile stands in the reference set, -1 for query tiles."""
        places = np.arange(len(self.positions))
        return np.where(places < self.references, places, -1)

    @cached_property
    def data_digest(self) -> str:
        """Hash of which tiles these are and what they show."""
        return tiles_digest(self.store, self.positions)


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


def open_shards(task: Task, checkpoint: Checkpoint, kind: str, settings: dict[str, Any]) -> ShardStore:
    """Open the shards of one checkpoint, or begin them: also where there are some of another model, tiles or settings.

    Args:
        task: what is compared.
        checkpoint: by which network.
        kind: one of `KINDS`.
        settings: what the shards depend on beside the network, the tiles and the readout.
    """
    manifest = {
        **settings,
        "kind": kind,
        "model": checkpoint.digest,
        "metric": "plain" if checkpoint.scale is None else "adam",
        "data": task.data_digest,
        "readout": task.options.readout,
        "parameters": list(task.options.parameters),
        "p": checkpoint.engine.size,
    }
    folder, sizes = _shard_folder(task, checkpoint, kind), (len(task.positions), task.options.batch)
    if not task.ranks.main:
        task.ranks.barrier()  # the first rank writes the manifest
        return ShardStore(folder, manifest, *sizes)
    try:
        shards = ShardStore(folder, manifest, *sizes)
    except StoreError:
        remove(folder)
        shards = ShardStore(folder, manifest, *sizes)
    task.ranks.barrier()
    return shards


def fill_shards(
    task: Task, checkpoint: Checkpoint, shards: ShardStore, keep: Callable[[Tensor, Tensor], dict[str, Tensor]]
) -> None:
    """Write what `keep` makes of the Jacobians and K(x, x)^-1/2, for the shards that are not there yet.

    Every rank writes its share of the missing shards, and waits for the others.
    """
    missing = shards.missing()
    task.ranks.barrier()  # all have seen which are missing
    for index in progress(task, task.ranks.own(missing), f"gradients {checkpoint.name}"):
        jacobians = checkpoint.jacobians(read_batch(task.store, task.positions[shards.span(index)]))
        selves = self_products(jacobians)
        arrays = {"self_kernel": selves, **keep(jacobians, inverse_roots(selves).roots)}
        shards.write(index, {name: values.cpu().numpy() for name, values in arrays.items()})
    task.ranks.barrier()


def remove_shards(task: Task) -> None:
    """Delete all shards in the folder, those of earlier runs too, but for those that these settings keep."""
    kind, networks = _KEPT[task.options.backend], (*task.along, *task.checkpoints)
    kept = [_shard_folder(task, network, kind) for network in networks if kind and task.options.keep_gradients]
    for folder in (path.parent for kind in KINDS for path in task.folder.glob(f"{kind}_*/{MANIFEST}")):
        if folder not in kept:
            remove(folder)


def _shard_folder(task: Task, checkpoint: Checkpoint, kind: str) -> Path:
    return task.folder / f"{kind}_{checkpoint.name}"


def progress(task: Task, items: Any, title: str) -> Any:
    """Show the progress of the first rank."""
    return tqdm(items, desc=title, unit="batch", disable=not task.ranks.main)


def own_blocks(task: Task, size: int, n: int) -> list[slice]:
    """This rank's share of the runs of `size` of n tiles."""
    starts = task.ranks.own(range(0, n, size))
    return [slice(start, min(start + size, n)) for start in starts]


def gathered(task: Task, parts: Sequence[tuple[slice, Neighbours]], k: int) -> Neighbours:
    """Put together what all ranks counted for their blocks, with k nearest neighbours a tile."""
    n = len(task.positions)
    whole = Neighbours(np.zeros(n), np.zeros(n), np.zeros(n), np.zeros((n, k), np.int64), np.zeros((n, k)))
    for block, part in parts:
        for name, values in vars(whole).items():
            values[block] = getattr(part, name)
    return Neighbours(**{name: _summed(task, values) for name, values in vars(whole).items()})


def _summed(task: Task, values: NDArray[Any]) -> NDArray[Any]:
    total: NDArray[Any] = task.ranks.sum(torch.from_numpy(values).to(task.ranks.device)).cpu().numpy()
    return total
