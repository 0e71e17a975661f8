"""Training samples drawn on the fly from stored tiles: random displacement, flips, photometric change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet.displacement import compose, invert, random_field, warp, warp_valid
from regnet.models.base import CPU
from regnet.tiles.store import Tile, TileSource
from regnet.training.options import TrainingOptions


@dataclass(frozen=True)
class Batch:
    """Tiles with a known random displacement on top of their labels.

    Attributes:
        fixed: (B, Cf, S, S).
        moving: (B, Cm, S, S).
        fixed_valid: (B, 1, S, S) bool.
        moving_valid: (B, 1, S, S) bool.
        target: (B, 2, S, S) px, what the labels say after the random displacement.
        target_valid: (B, 1, S, S) bool, where fixed and the moving pixel that the target points to are valid.
        undisplaced: (B, Cm, S, S) moving before the random displacement.
        turns: (B, 2, 2), what flips and turns did to displacements.
        pairs: name of each tile's pair.
    """

    fixed: Tensor
    moving: Tensor
    fixed_valid: Tensor
    moving_valid: Tensor
    target: Tensor
    target_valid: Tensor
    undisplaced: Tensor
    turns: Tensor
    pairs: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def part(self, chosen: slice) -> Batch:
        """Some of the tiles."""
        return Batch(**{name: values[chosen] for name, values in vars(self).items()})


class TileCache:
    """Tiles of a store by position, kept decoded while they fit into the memory allowed."""

    def __init__(self, store: TileSource, megabytes: int) -> None:
        self._store, self._room = store, megabytes * 2**20
        self._kept: dict[int, Tile] = {}

    def __getitem__(self, position: int) -> Tile:
        tile = self._kept.get(position)
        if tile is None:
            tile = self._store.tile(position)
            if self._room >= tile.nbytes:
                self._room -= tile.nbytes
                self._kept[position] = tile
        return tile


def draw_batches(
    cache: TileCache,
    positions: NDArray[np.integer],
    options: TrainingOptions,
    steps: int,
    seed: tuple[int, ...],
    correct: Callable[[Tile], Tile] = lambda tile: tile,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    """Draw `steps` batches; the same seed gives the same batches.

    Args:
        cache: the tiles.
        positions: which tiles to draw from; all are seen once before one is seen again.
        options: sizes and augmentation.
        steps: number of batches.
        seed: e.g. (seed, epoch).
        correct: what is done to a tile's label before it is drawn.
        device: where batches are made.
    """
    generator = np.random.default_rng(seed)
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < options.batch:
            queue.extend(int(p) for p in generator.permutation(positions))
        chosen, queue = queue[: options.batch], queue[options.batch :]
        yield make_batch([correct(cache[position]) for position in chosen], options, generator, device)


def make_batch(
    tiles: list[Tile], options: TrainingOptions, generator: np.random.Generator, device: torch.device = CPU
) -> Batch:
    """Augment tiles, displace moving by a random field, and carry the labels along.

    With the drawn displacement t, moving is pulled by the inverse of t, so that pulling the result by
    `compose(t, label)` gives what pulling moving by the label gives.
    """
    turned = [_turn(tile, generator, options.flips) for tile in tiles]
    fixed, moving, fixed_valid, moving_valid, label, turns = (
        torch.stack(parts).to(device) for parts in zip(*turned, strict=True)
    )
    drawn = torch.stack([_draw((fixed.shape[-2], fixed.shape[-1]), options, generator) for _ in tiles]).to(device)
    back = invert(drawn, iterations=12)
    target = compose(drawn, label)
    displaced_valid = warp_valid(moving_valid, back)
    return Batch(
        fixed=recolour(fixed, options.photometric, generator),
        moving=recolour(warp(moving, back, "bicubic"), options.photometric, generator),
        fixed_valid=fixed_valid,
        moving_valid=displaced_valid,
        target=target,
        target_valid=fixed_valid & warp_valid(displaced_valid, target),
        undisplaced=moving,
        turns=turns,
        pairs=tuple(tile.pair for tile in tiles),
    )


def _draw(shape: tuple[int, int], options: TrainingOptions, generator: np.random.Generator) -> Tensor:
    sigma = float(generator.uniform(options.sigma_low_px, max(options.sigma_high_px, options.sigma_low_px)))
    peak = generator.uniform(0, options.peak_px)
    field = random_field(shape, peak, sigma, generator)
    shift = generator.uniform(-options.shift_px, options.shift_px, 2).astype(np.float32)
    return torch.from_numpy(field + shift[:, None, None])


def _turn(tile: Tile, generator: np.random.Generator, flips: bool) -> tuple[Tensor, ...]:
    """One of the eight symmetries of the square, applied to the images and, as vectors, to the label; its matrix."""
    turn = Turn.draw(generator, flips)
    arrays = (tile.fixed, tile.moving, tile.fixed_valid[None], tile.moving_valid[None])
    images = [turn.image(torch.from_numpy(np.ascontiguousarray(array))) for array in arrays]
    label = turn.image(torch.from_numpy(np.ascontiguousarray(tile.label_offset)))
    return (*images, torch.einsum("ij,jhw->ihw", turn.matrix(), label), turn.matrix())


@dataclass(frozen=True)
class Turn:
    """One of the eight symmetries of the square: a mirror image along x or none, then quarter turns."""

    quarters: int = 0
    mirror: bool = False

    @classmethod
    def draw(cls, generator: np.random.Generator, flips: bool) -> Turn:
        """Any of the eight, or the identity without flips."""
        return cls(int(generator.integers(4)), bool(generator.integers(2))) if flips else cls()

    def image(self, image: Tensor) -> Tensor:
        """Turn (..., S, S)."""
        turned: Tensor = (image.flip(-1) if self.mirror else image).rot90(self.quarters, (-2, -1))
        return turned

    def matrix(self) -> Tensor:
        """What it does to a displacement's (dx, dy): (2, 2)."""
        mirrored = torch.diag(torch.tensor([-1.0 if self.mirror else 1.0, 1.0]))
        quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        turn: Tensor = torch.linalg.matrix_power(quarter, self.quarters)
        return turn @ mirrored


def recolour(image: Tensor, spread: float, generator: np.random.Generator) -> Tensor:
    """Draw another gain and offset for every band of every image (B, C, H, W); a spread of 0 leaves them."""
    if spread == 0:
        return image
    draws = generator.standard_normal((2, *image.shape[:2], 1, 1)).astype(np.float32)
    gain, offset = torch.from_numpy(draws).to(image.device) * spread
    recoloured: Tensor = image * torch.exp(gain) + offset * 0.5
    return recoloured
