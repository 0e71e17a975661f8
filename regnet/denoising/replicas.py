"""Replicas of one small training: same start, same tiles, same order, independent draws of label noise.

The loss is the squared error of the very readout that the similarity engine differentiates, and every tile keeps its
own shift, so that the theory of the smoother applies without further assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from regnet.denoising.calibration import Retrainings
from regnet.denoising.operators import Array
from regnet.denoising.options import DenoisingValidationOptions
from regnet.displacement import warp
from regnet.errors import InputError
from regnet.files import digest, read_json, remove, whole_path, write_json
from regnet.models import ModelOptions, build_model
from regnet.models.base import centre_offset
from regnet.models.matcher import Matcher
from regnet.models.unet import UNet
from regnet.similarity.tiles import pick_tiles, read_batch
from regnet.tiles.store import TileStore
from regnet.training.trail import START, Trail

SETTINGS, TRAIL, PREDICTIONS = "settings.json", "trail", "predictions.npy"
_NOT_OF_REPLICAS = ("replicas", "retrainings", "region_px", "region_tiles", "blunder_share", "blunder_px")
_CHUNK = 50  # tiles a batch where nothing is trained


@dataclass(frozen=True)
class ShiftedTiles:
    """Tiles whose moving image was shifted by a known offset.

    Attributes:
        rows: (n) rows of the store's index.
        fixed: (n, Cf, S, S).
        moving: (n, Cm, S, S).
        offset: (n, 2) px, the true answer.
    """

    rows: gpd.GeoDataFrame
    fixed: Tensor
    moving: Tensor
    offset: Tensor

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Fixed and moving, some tiles at a time, in order."""
        for start in range(0, len(self.offset), _CHUNK):
            yield self.fixed[start : start + _CHUNK], self.moving[start : start + _CHUNK]


@dataclass(frozen=True)
class Replicas:
    """R trainings.

    Attributes:
        predictions: (R, n, 2) px after training.
        noise: (R, n, 2) px on the labels.
        trail: checkpoints along the first of them.
    """

    predictions: Array
    noise: Array
    trail: Trail


def shifted_tiles(store: TileStore, options: DenoisingValidationOptions) -> ShiftedTiles:
    """Draw training tiles and shift the moving image of each by its own constant offset.

    Raises:
        InputError: too few tiles, or tiles that the margin uses up.
    """
    positions = pick_tiles(store, ["train"], options.tiles, options.seed)
    side = store.tile_px - 2 * options.margin_px
    if len(positions) < 2 * options.batch or side < 8:
        raise InputError(
            f"{store.folder}: {len(positions)} train tiles of {side} px inside the margin; at least "
            f"{2 * options.batch} of 8 px are needed: prepare more or larger tiles, or lower denoising_validation.batch"
        )
    fixed, moving = read_batch(store, positions)
    generator = np.random.default_rng((options.seed, 1))
    drawn = generator.uniform(-options.shift_px, options.shift_px, (len(positions), 2)).astype(np.float32)
    offset = torch.from_numpy(drawn)
    back = -offset[:, :, None, None].expand(-1, -1, store.tile_px, store.tile_px)
    inside = slice(options.margin_px, store.tile_px - options.margin_px)
    return ShiftedTiles(
        rows=store.index.iloc[positions].reset_index(drop=True),
        fixed=fixed[:, :, inside, inside].contiguous(),
        moving=warp(moving, back, "bicubic")[:, :, inside, inside].contiguous(),
        offset=offset,
    )


def train_replicas(
    tiles: ShiftedTiles, model_options: ModelOptions, options: DenoisingValidationOptions, folder: Path
) -> Replicas:
    """Train the replicas that `folder` does not hold yet; one made with other settings is emptied first."""
    same = replace(options, **dict.fromkeys(_NOT_OF_REPLICAS, 0))
    settings = {"digest": digest([asdict(model_options), asdict(same), tiles.rows["tile_id"].tolist()])}
    if not (folder / SETTINGS).is_file() or read_json(folder / SETTINGS) != settings:
        remove(folder)
        write_json(folder / SETTINGS, settings)
    noise = label_noise(len(tiles.rows), options)
    predictions = []
    for replica in tqdm(range(options.replicas), desc="replicas"):
        labels = tiles.offset.double().numpy() + noise[replica]
        trail = Trail(folder / TRAIL) if replica == 0 else None
        path = folder / f"replica_{replica:02d}.npy"
        predictions.append(_trained(path, tiles, labels, model_options, options, trail))
    return Replicas(np.stack(predictions), noise, Trail(folder / TRAIL))


def retrain_replica(
    tiles: ShiftedTiles,
    replicas: Replicas,
    model_options: ModelOptions,
    options: DenoisingValidationOptions,
    folder: Path,
) -> Retrainings:
    """Train the first replica some times more, on its labels with noise drawn once more on top: no truth is needed.

    Args:
        tiles: what the network sees.
        replicas: only the labels of the first of them are looked at.
        model_options: network.
        options: how many, and the size of the noise.
        folder: of the replicas; retrainings that it does not hold yet are trained.
    """
    labels = tiles.offset.double().numpy() + replicas.noise[0]
    noise, predictions = [], []
    for place in tqdm(range(options.retrainings), desc="retrainings"):
        drawn = np.random.default_rng((options.seed, 5, place)).normal(0, options.noise_sigma_px, labels.shape)
        noise.append(drawn)
        trail = retraining_trail(folder, place)
        predictions.append(_trained(trail.folder / PREDICTIONS, tiles, labels + drawn, model_options, options, trail))
    return Retrainings(np.stack(noise), np.stack(predictions))


def retraining_trail(folder: Path, place: int) -> Trail:
    """Checkpoints along one of the retrainings that `folder` holds."""
    return Trail(folder / f"noisier_{place:02d}")


def _trained(
    path: Path,
    tiles: ShiftedTiles,
    labels: Array,
    model_options: ModelOptions,
    options: DenoisingValidationOptions,
    trail: Trail | None = None,
) -> NDArray[np.float64]:
    """Predictions of a training, kept in a file so that it is done once."""
    if not path.is_file():
        predictions = train_once(tiles, labels, model_options, options, trail)
        with whole_path(path) as partial, partial.open("wb") as stream:
            np.save(stream, predictions)
    return np.asarray(np.load(path), np.float64)


def label_noise(tiles: int, options: DenoisingValidationOptions) -> NDArray[np.float64]:
    """The draws of all replicas, (R, n, 2) px; replica r has the same draw whatever their number."""
    return np.stack(
        [
            np.random.default_rng((options.seed, 2, replica)).normal(0, options.noise_sigma_px, (tiles, 2))
            for replica in range(options.replicas)
        ]
    )


def train_once(
    tiles: ShiftedTiles,
    labels: Array,
    model_options: ModelOptions,
    options: DenoisingValidationOptions,
    trail: Trail | None = None,
) -> NDArray[np.float32]:
    """Train from the start that the seed gives on labels (n, 2) px, and give the predictions after it, (n, 2) px."""
    torch.manual_seed(options.seed)
    model = build_model(model_options, tiles.fixed.shape[1], tiles.moving.shape[1])
    fit_readout(model, tiles, torch.from_numpy(labels).float(), options, trail)
    return predict(model, tiles)


def fit_readout(
    model: Matcher | UNet,
    tiles: ShiftedTiles,
    labels: Tensor,
    options: DenoisingValidationOptions,
    trail: Trail | None = None,
) -> None:
    """Minimise the squared error of the readout by one-cycle Adam, in an order that depends on the seed alone.

    Args:
        model: trained in place.
        tiles: what it sees.
        labels: (n, 2) px.
        options: epochs, batch and learning rate.
        trail: where checkpoints are kept, closer together early, where the kernel changes fastest.
    """
    order = np.random.default_rng((options.seed, 3))
    steps_an_epoch = len(labels) // options.batch
    batches = [
        torch.from_numpy(chunk)
        for _ in range(options.epochs)
        for chunk in order.permutation(len(labels))[: steps_an_epoch * options.batch].reshape(-1, options.batch)
    ]
    keep = {round(share**1.5 * len(batches)) for share in np.linspace(0, 1, options.checkpoints)[1:].tolist()}
    optimiser = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=len(batches) + 1, pct_start=0.15
    )
    rates = 0.0
    # What is trained is the function that the similarity engine differentiates, and the same in every replica.
    model.eval()
    if trail is not None:
        remove(trail.folder)
        trail.keep(START, model, optimiser, 0, rates)
    for step, batch in enumerate(tqdm(batches, desc="fit", unit="step", leave=False), 1):
        error = centre_offset(model, tiles.fixed[batch], tiles.moving[batch]) - labels[batch]
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(error.square().sum(1).mean())
        rates += float(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
        if trail is not None and step in keep:
            trail.keep(f"step_{step:06d}", model, optimiser, step, rates)


@torch.no_grad()
def predict(model: Matcher | UNet, tiles: ShiftedTiles) -> NDArray[np.float32]:
    """Readout of every tile, (n, 2) px."""
    parts = [centre_offset(model, fixed, moving) for fixed, moving in tiles.batches()]
    return torch.cat(parts).numpy()
