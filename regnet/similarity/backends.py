"""How a set of tiles is compared: all pairs exactly, from sketches, or by sums only. One interface: `compare`.

With several checkpoints the kernels are averaged, each divided by its trace: the network was smoothed by all of them
along the training, not by the last alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from regnet.errors import ConfigError
from regnet.similarity.checkpoints import Checkpoint
from regnet.similarity.exact import FunctionRows, cross, gram
from regnet.similarity.kernel import correlation_matrices, inverse_roots, normalised, scalar, self_products, whitened
from regnet.similarity.linear import SoftCounter
from regnet.similarity.neighbours import Neighbours, count, load_faiss, nearest_faiss, soft_only, without_self
from regnet.similarity.sketch import Sketcher, sketched_kc
from regnet.similarity.store import ShardStore
from regnet.similarity.task import (
    Comparison,
    Task,
    fill_shards,
    gathered,
    open_shards,
    own_blocks,
    progress,
)
from regnet.similarity.tiles import read_batch
from regnet.similarity.trajectory import spread

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
# What the exact backend holds at its peak, bytes: of each number of the kernel (the mean, a checkpoint's own, and what
# is made of them), and of each pair of tiles (kC, and what counting makes of it: a ranked copy, powers, an order).
_BYTES_A_NUMBER, _BYTES_A_PAIR = 24, 40
_BYTES_A_LANDMARK = 16  # of each number of a landmark's Jacobian: itself, the basis, and what fitting makes of them
_OUTPUTS = 2  # of every readout that the options offer
_ROWS = 64  # tiles whose kernels are normalised at a time


def compare(task: Task) -> Comparison:
    """Compare by the backend that the options name.

    Raises:
        ConfigError: the options contradict each other, or memory_mb is too little.
        InputError: faiss is needed and not installed.
    """
    options = task.options
    if options.backend == "linear" and (options.checkpoints != "last" or options.trajectory):
        raise ConfigError(
            "similarity.backend=linear counts with one network; set backend=exact or sketch for several checkpoints"
        )
    if options.search == "faiss" and options.backend != "sketch":
        raise ConfigError(f"similarity.search=faiss searches sketches; set backend=sketch, not {options.backend}")
    if options.search == "faiss":
        load_faiss()  # tells now, before the gradients, if it is missing
    return {"exact": _exact, "sketch": _sketch, "linear": _linear}[options.backend](task)


def _exact(task: Task) -> Comparison:
    m = task.references
    _blocks_mb(task, task.checkpoints[0].engine.size)
    trajectory = [spread(at.name, _correlations(*_kernel(task, at), m)) for at in task.along]
    kernel, own = torch.zeros(()), torch.zeros(())
    for checkpoint in task.checkpoints:
        part, selves = _kernel(task, checkpoint)
        trajectory.append(spread(checkpoint.name, _correlations(part, selves, m)))
        share = _share(task, selves)
        kernel, own = part.mul_(share).add_(kernel), own + selves * share
    similarities = _correlations(kernel, own, m).numpy()
    options = task.options
    found = count(similarities, options.tau, options.alpha, options.nearest, task.self_columns())
    return Comparison(found, own, blocks=kernel[:m], trajectory=trajectory)


def _kernel(task: Task, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """K of all tiles to the reference tiles, (n, d, m, d), and K(x, x), (n, d, d), in float64 by one network."""
    made = open_shards(task, checkpoint, "kernel", {"precision": task.options.precision, "references": task.references})
    if made.missing() or task.options.keep_gradients:
        _multiply(task, checkpoint, made)
    kernel, selves = (torch.from_numpy(made.all(name)) for name in ("kernel", "self_kernel"))
    return kernel, selves


def _multiply(task: Task, checkpoint: Checkpoint, made: ShardStore) -> None:
    """Write the kernel of one network, to go on from if killed: it takes far less room than the Jacobians, which go."""
    m = task.references
    shards = open_shards(task, checkpoint, "gradients", {})
    fill_shards(task, checkpoint, shards, lambda jacobians, _: {"jacobians": jacobians})
    selves = torch.from_numpy(shards.all("self_kernel"))
    kernel = _all_pairs(task, shards, (*selves.shape[:2], checkpoint.engine.size))
    places = torch.arange(m)
    kernel[places, :, places] = selves[:m]
    if task.ranks.main:
        for index in range(made.shards):
            rows = made.span(index)
            made.write(index, {"kernel": kernel[rows].numpy(), "self_kernel": selves[rows].numpy()})
        if not task.options.keep_gradients:
            shards.remove()
    task.ranks.barrier()


def _all_pairs(task: Task, shards: ShardStore, shape: tuple[int, int, int]) -> Tensor:
    """K of all tiles to the reference tiles, (n, d, m, d) float64; every rank multiplies its share of the blocks."""
    n, d, p = shape
    m, memory_mb, dtype = task.references, _blocks_mb(task, p), DTYPES[task.options.precision]

    def rows(start: int, stop: int) -> FunctionRows:
        def read(part: slice) -> Tensor:
            return torch.from_numpy(shards.rows("jacobians", slice(part.start + start, part.stop + start)))

        return FunctionRows((stop - start, d, p), read)

    share = task.ranks.rank, task.ranks.size
    whole = torch.empty(n, d, m, d, dtype=torch.float64)
    whole[:m] = gram(rows(0, m), memory_mb=memory_mb, dtype=dtype, share=share)
    if n > m:
        whole[m:] = cross(rows(m, n), rows(0, m), memory_mb=memory_mb, dtype=dtype, share=share)
    return task.ranks.sum(whole.to(task.ranks.device)).cpu()


def _blocks_mb(task: Task, p: int) -> float:
    """Memory left for the blocks of a product with p parameters beside the kernel, which is held whole.

    Raises:
        ConfigError: there is none.
    """
    n, m, options = len(task.positions), task.references, task.options
    held = n * m * (_BYTES_A_NUMBER * _OUTPUTS**2 + _BYTES_A_PAIR)
    needed = (held + 2 * _OUTPUTS * p * 8) / 2**20
    if needed > options.memory_mb:
        raise ConfigError(
            f"similarity.memory_mb={options.memory_mb:g} is too little for all pairs of {n} and {m} tiles, which take "
            f"{math.ceil(needed)} MB; raise it, lower similarity.max_tiles, or set similarity.backend=sketch"
        )
    return options.memory_mb - held / 2**20


def _sketch(task: Task) -> Comparison:
    m = task.references
    trajectory = []
    for at in task.along:
        _, sketches = _sketches(task, at)
        trajectory.append(spread(at.name, sketched_kc(sketches[:m], sketches[:m])))
    features, own = [], torch.zeros(())
    for checkpoint in task.checkpoints:
        selves, sketches = _sketches(task, checkpoint)
        trajectory.append(spread(checkpoint.name, sketched_kc(sketches[:m], sketches[:m])))
        share = _share(task, selves)
        features.append(_roots(selves) @ sketches * share**0.5)
        own = own + selves * share
    whole = torch.cat(features, -1)
    found = _count_sketches(task, normalised(whole, inverse_roots(own).roots))
    return Comparison(found, own, features=whole, trajectory=trajectory)


def _sketches(task: Task, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """K(x, x), (n, d, d), and sketches of the normalised Jacobians, (n, d, k), in float64 by one network."""
    options = task.options
    landmarks = _landmarks(task, checkpoint.engine.size)
    settings = {"floats": options.sketch_floats, "landmarks": landmarks, "seed": options.seed}
    shards = open_shards(task, checkpoint, "sketch", settings)
    if shards.missing():
        fill_shards(task, checkpoint, shards, _sketching(_sketcher(task, checkpoint, shards, landmarks)))
    selves, sketches = (torch.from_numpy(shards.all(name)).double() for name in ("self_kernel", "sketch"))
    return selves, sketches


def _landmarks(task: Task, p: int) -> int:
    """Number of landmarks: as many as the options want, if the memory holds the Jacobians in p parameters.

    Raises:
        ConfigError: it does not hold one.
    """
    options = task.options
    a_landmark_mb = _BYTES_A_LANDMARK * _OUTPUTS * p / 2**20
    if a_landmark_mb > options.memory_mb:
        raise ConfigError(
            f"similarity.memory_mb={options.memory_mb:g} is too little for a landmark of a sketch in {p} parameters, "
            f"which takes {math.ceil(a_landmark_mb)} MB; raise it, or choose fewer similarity.parameters"
        )
    return min(options.landmarks, task.references, int(options.memory_mb / a_landmark_mb))


def _sketching(sketcher: Sketcher) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    return lambda jacobians, roots: {"sketch": sketcher(normalised(jacobians, roots))}


def _sketcher(task: Task, checkpoint: Checkpoint, shards: ShardStore, landmarks: int) -> Sketcher:
    """The sketcher of these shards: read, or fitted to landmarks by the first rank and written beside the shards."""
    path = shards.folder / "sketcher.safetensors"
    if task.ranks.main and not path.is_file():
        options = task.options
        rng = np.random.default_rng(options.seed)
        chosen = np.sort(rng.permutation(task.positions[: task.references])[:landmarks])
        starts = progress(task, range(0, len(chosen), options.batch), "landmarks")
        batches = (read_batch(task.store, chosen[start : start + options.batch]) for start in starts)
        rows = torch.cat([whitened(checkpoint.jacobians(batch)) for batch in batches])
        Sketcher(rows, options.sketch_floats, options.seed).save(path)
    task.ranks.barrier()
    return Sketcher.load(path, task.ranks.device)


def _count_sketches(task: Task, unit: Tensor) -> Neighbours:
    """Count by blocks of rows, each rank its share."""
    m, options, columns = task.references, task.options, task.self_columns()
    k = min(options.nearest, m - 1)
    by_faiss = options.search == "faiss"
    parts = []
    # kC, and what counting makes of it: its ranked copy, its powers, its order.
    size = max(1, int(options.memory_mb * 2**20 / (5 * 8 * m)))
    for block in own_blocks(task, size, len(unit)):
        similarities = sketched_kc(unit[block], unit[:m])
        found = count(similarities.numpy(), options.tau, options.alpha, 0 if by_faiss else k, columns[block])
        if by_faiss:
            flat = unit.flatten(1).float().numpy() / unit.shape[1] ** 0.5
            nearest, kc = without_self(*nearest_faiss(flat[:m], flat[block], k + 1), columns[block], k)
            found = Neighbours(found.n_soft, found.n_tau, found.n_alpha, nearest, kc)
        parts.append((block, found))
    return gathered(task, parts, k)


def _linear(task: Task) -> Comparison:
    (checkpoint,) = task.checkpoints
    m, n, size = task.references, len(task.positions), task.options.batch

    def jacobians(block: slice) -> Tensor:
        return checkpoint.jacobians(read_batch(task.store, task.positions[block]))

    counter = SoftCounter()
    counter.add(torch.zeros_like(jacobians(slice(0, 1))))  # a sum of the right shape on ranks without tiles, too
    for block in progress(task, own_blocks(task, size, m), "sum"):
        counter.add(jacobians(block))
    counter.total = task.ranks.sum(counter.sums())
    d = len(counter.total)
    counts, selves = (torch.zeros(n, *shape, dtype=torch.float64, device=task.ranks.device) for shape in ((), (d, d)))
    for block in progress(task, own_blocks(task, size, n), "count"):
        rows = jacobians(block)
        counts[block], selves[block] = counter.count(rows), self_products(rows)
    counts, selves = task.ranks.sum(counts).cpu(), task.ranks.sum(selves).cpu()
    return Comparison(soft_only(counts.numpy()), selves)


def _share(task: Task, selves: Tensor) -> float:
    """Weight of one checkpoint's kernel in the mean; a single one keeps its scale."""
    if len(task.checkpoints) == 1:
        return 1.0
    trace = float(torch.einsum("iaa->", selves[: task.references]))
    return 1 / (max(trace, torch.finfo(torch.float64).tiny) * len(task.checkpoints))


def _correlations(kernel: Tensor, selves: Tensor, references: int) -> Tensor:
    """The kC of all tiles to the reference tiles, by blocks of rows."""
    roots = inverse_roots(selves).roots
    blocks = [slice(start, start + _ROWS) for start in range(0, len(kernel), _ROWS)]
    return torch.cat([scalar(correlation_matrices(kernel[rows], roots[rows], roots[:references])) for rows in blocks])


def _roots(selves: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(selves)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT
    return root
