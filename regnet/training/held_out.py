"""How far a network is from the truth on ground that it was not trained on: for tables, never for a choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from regnet.metrics import summarise
from regnet.models.base import device_of
from regnet.models.matcher import Matcher
from regnet.models.unet import UNet
from regnet.tiles.patch import Tile
from regnet.tiles.store import TileStore
from regnet.training.options import TrainingOptions
from regnet.training.samples import make_batch

MOST_TILES = 64
"""Tiles that are looked at, spread evenly over the part's tiles."""
Vectors = NDArray[np.floating]


@torch.no_grad()
def held_out_errors(store: TileStore, model: Matcher | UNet, options: TrainingOptions) -> Vectors:
    """Error vectors (k, 2) px of a model under one fixed draw of displacements, over pixels with structure.

    The tiles are those of the test part whose true offset is known, or of the validation part if there is no other; the
    draw is the same for every model and for every noise of the labels, so that errors can be compared.
    """
    device = device_of(model.eval())
    known = np.isfinite(store.index["true_dx_px"].to_numpy())
    tested, validated = (positions[known[positions]] for positions in map(store.tiles, ("test", "validation")))
    positions = tested if len(tested) else validated
    spread = np.linspace(0, len(positions) - 1, min(MOST_TILES, len(positions)))
    chosen = positions[spread.round().astype(int)]
    plain = replace(options, flips=False, photometric=0.0)
    generator = np.random.default_rng((options.seed, 1_000_005))
    errors = [np.empty((0, 2), np.float32)]
    for start in range(0, len(chosen), options.batch):
        tiles = [store.tile(int(position)) for position in chosen[start : start + options.batch]]
        batch = make_batch([_as_it_is(tile) for tile in tiles], plain, generator, device)
        predicted = model(batch.fixed, batch.moving, batch.fixed_valid, batch.moving_valid).displacement
        seen = batch.target_valid[:, 0].cpu().numpy() & np.stack([tile.structure for tile in tiles])
        errors.append((predicted - batch.target).permute(0, 2, 3, 1).cpu().numpy()[seen])
    return np.concatenate(errors)


def _as_it_is(tile: Tile) -> Tile:
    """A tile with its true offset for a label."""
    assert tile.true_offset is not None
    return replace(tile, label_offset=tile.true_offset)


def error_summary(errors: Vectors, name: str) -> dict[str, float]:
    """Of error vectors (k, 2) px: mean and median length, and the length of the mean vector, which is systematic."""
    found = summarise(np.linalg.norm(errors, axis=1))
    systematic_px = float(np.linalg.norm(errors.mean(0, dtype=np.float64))) if len(errors) else float("nan")
    return {
        f"{name}_epe_mean_px": found["epe_mean_px"],
        f"{name}_epe_median_px": found["epe_median_px"],
        f"{name}_systematic_px": systematic_px,
    }
