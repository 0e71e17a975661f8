"""Training in rounds: train, correct the labels with the network's own predictions, train again.

Source: Girard, Charpiat and Tarabalka, IGARSS 2019, section 2: the network that was trained on noisy labels is better
than they are, since it averaged their noise away, so that it can correct them, and the next one learns from less noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from regnet.displacement import warp, warp_valid
from regnet.files import (
    copy_whole,
    digest,
    inherited,
    is_stamped,
    next_folder,
    read_json,
    remove,
    whole_path,
    write_json,
    write_stamp,
)
from regnet.metrics import epe
from regnet.models import ModelOptions, load_checkpoint
from regnet.models.base import device_of
from regnet.models.matcher import Matcher
from regnet.models.unet import UNet
from regnet.options import recipe
from regnet.ranks import Ranks
from regnet.similarity.familiarity import FAMILIARITY
from regnet.tiles.patch import Patch
from regnet.tiles.store import TileStore
from regnet.training.fit import CHECKPOINTS, CURVE, LOG, MODEL, STATE, SUMMARY, Fit
from regnet.training.held_out import Vectors, error_summary, held_out_errors
from regnet.training.options import TrainingOptions

CORRECTED, CORRECTION, ROUNDS = "corrected.zarr", "correction.json", "rounds.csv"
SHIFTS = 4  # known shifts under which a prediction has to stay the same
MOST_PIXELS = 4_000_000  # whose errors are held for their median; of more, a share


def train_rounds(
    store: TileStore,
    model_options: ModelOptions,
    options: TrainingOptions,
    folder: Path,
    ranks: Ranks | None = None,
) -> None:
    """Train `options.rounds` times, each on the labels that the one before corrected.

    A single round fills `folder` as `Fit` does. Each of several rounds so fills `round_<k>/`, beside the labels that it
    corrected (`corrected.zarr`) and the errors of labels and model (`correction.json`); `rounds.csv` has them round by
    round, and what the last one made is copied to `folder`. Rounds end early once the labels move by less than
    `options.settled_px` on average.

    What stood in `folder` before stays until all of it is there: until then the training lies in the hidden folder
    `.next-<name>` beside it, where a killed one goes on from its last epoch.

    Several ranks share the tiles of each step, and call this all together.

    Raises:
        InputError, ConfigError: as `Fit` does.
    """
    ranks = ranks or Ranks()
    settings = {"settings": digest([asdict(model_options), recipe(options), store.manifest])}
    if is_stamped(folder, settings):
        return
    with next_folder(folder, ranks.main) as place:
        # Whole and not yet in its place: killed just then, or the disk was full.
        whole = is_stamped(place, settings)
        ranks.barrier()  # all have seen what is there
        if not whole:
            if options.rounds == 1:
                if ranks.main:
                    _forget(place, 1)
                    remove(place / ROUNDS)
                Fit(store, model_options, options, place, ranks=ranks).run()
            else:
                _train_several(store, model_options, options, place, folder, ranks)
            if ranks.main:
                write_stamp(place, settings)


def trained_on(store: TileStore, folder: Path) -> TileStore:
    """The tiles with the labels that the model in a training's folder learned from.

    Those of several rounds' last one are what the round before corrected.
    """
    rounds = len(list(folder.glob("round_*")))
    return store.with_labels(folder / f"round_{rounds - 1}" / CORRECTED) if rounds > 1 else store


def _train_several(
    store: TileStore,
    model_options: ModelOptions,
    options: TrainingOptions,
    folder: Path,
    earlier: Path,
    ranks: Ranks,
) -> None:
    """Train in rounds; those that an earlier training had alike are taken from its folder."""
    rows: list[dict[str, Any]] = []
    # How many rounds there are to be changes none of them: more can be added.
    options_of_one = replace(options, rounds=1, settled_px=0.0)
    settings = {"settings": digest([asdict(model_options), recipe(options_of_one), store.manifest])}
    for number in range(1, options.rounds + 1):
        place, stamp = folder / f"round_{number}", {**settings, "round": number}
        if not ranks.told(ranks.main and inherited(place, earlier / place.name, stamp)):
            _train_one(store, model_options, options_of_one, place, stamp, ranks)
        trained = read_json(place / SUMMARY)
        told = {name: value for name, value in trained.items() if name != "pair_shifts_px"}
        rows.append({"round": number, **told, **read_json(place / CORRECTION)})
        store = store.with_labels(place / CORRECTED)
        if rows[-1]["moved_px"] < options.settled_px:
            break
    ranks.barrier()  # all have read what the rounds came to
    if not ranks.main:
        return
    _forget(folder, len(rows) + 1)
    for name in (MODEL, FAMILIARITY, LOG, CURVE, CHECKPOINTS, STATE):
        remove(folder / name)
        if (made := folder / f"round_{len(rows)}" / name).exists():
            copy_whole(made, folder / name)
    with whole_path(folder / ROUNDS) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    write_json(folder / SUMMARY, {**trained, "rounds": rows})


def _train_one(
    store: TileStore,
    model_options: ModelOptions,
    options: TrainingOptions,
    folder: Path,
    stamp: Mapping[str, Any],
    ranks: Ranks,
) -> None:
    """Train one round; when it returns all ranks find what it came to."""
    fit = Fit(store, model_options, options, folder, ranks=ranks)
    fit.run()
    if ranks.main:
        model = load_checkpoint(folder / MODEL).to(ranks.device)
        found = error_summary(held_out_errors(store, model, options), "model")
        shifts = fit.shifts.shifts_px()
        write_json(folder / CORRECTION, {**correct(store, model, options, folder / CORRECTED, shifts), **found})
        write_stamp(folder, stamp)
    ranks.barrier()


@torch.no_grad()
def correct(
    store: TileStore, model: Matcher | UNet, options: TrainingOptions, path: Path, shifts: Mapping[str, list[float]]
) -> dict[str, float]:
    """Replace the training tiles' labels by predictions, where these follow known shifts of the moving image.

    Args:
        store: tiles with their labels as they are.
        model: predicts.
        options: `trust_px`, `shift_px` and `seed`.
        path: Zarr array that the labels of all tiles go to; tiles that are not trusted or not trained on keep theirs.
        shifts: what the labels of each pair were found to be off by in common (dx, dy, px), which the labels keep: it
            is the pair's own, and no averaging tells whether images or labels have it.

    Returns:
        moved_px (mean length of the change, over the pixels of the training tiles), trusted_share, and the
        `error_summary` of the labels before (`labels`) and after (`corrected`), over pixels with structure and known
        truth.
    """
    generator = np.random.default_rng((options.seed, 1_000_004))
    errors: dict[str, list[Vectors]] = {"labels": [], "corrected": []}
    trusted, moved = 0, 0.0
    learned_from = store.tiles("train").tolist()
    every = -(-len(learned_from) * store.tile_px**2 // MOST_PIXELS)
    with whole_path(path) as partial:
        labels = store.copy_labels(partial)
        for position in tqdm(learned_from, desc="correct labels", unit="tile"):
            tile = store.tile(position)
            known = generator.uniform(-options.shift_px, options.shift_px, (SHIFTS, 2)).astype(np.float32)
            predicted = under_shifts(tile, model, torch.from_numpy(known))
            predicted -= torch.tensor(shifts.get(tile.pair, (0.0, 0.0)))[:, None, None]
            mean = predicted.mean(0)
            corrected = tile.label_offset
            if float((predicted - mean).square().sum(1).mean().sqrt()) <= options.trust_px:
                labels[position] = corrected = mean.numpy()
                trusted += 1
            moved += float(epe(corrected, tile.label_offset).mean())
            if tile.true_offset is not None:
                for name, label in (("labels", tile.label_offset), ("corrected", corrected)):
                    errors[name].append((label - tile.true_offset)[:, tile.structure].T[::every])
    found = {"moved_px": moved / len(learned_from), "trusted_share": trusted / len(learned_from)}
    for name, parts in errors.items():
        found |= error_summary(np.concatenate([np.empty((0, 2)), *parts]), name)
    return found


def under_shifts(tile: Patch, model: Matcher | UNet, shifts: Tensor) -> Tensor:
    """Predictions of one tile with its moving image shifted by (k, 2) px, less the shifts: (k, 2, S, S) px."""
    device = device_of(model)
    size = (len(shifts), *tile.fixed.shape[-2:])
    drawn = shifts[:, :, None, None].expand(-1, -1, *size[1:]).to(device)
    arrays = (tile.fixed, tile.moving, tile.fixed_valid[None], tile.moving_valid[None])
    fixed, moving, fixed_valid, moving_valid = (
        torch.from_numpy(array).to(device).expand(size[0], -1, -1, -1) for array in arrays
    )
    prediction = model(fixed, warp(moving, -drawn, "bicubic"), fixed_valid, warp_valid(moving_valid, -drawn))
    result: Tensor = (prediction.displacement - drawn).cpu()
    return result


def _forget(folder: Path, first: int) -> None:
    """Delete what rounds from this one on left in an earlier run."""
    while (place := folder / f"round_{first}").is_dir():
        remove(place)
        first += 1
