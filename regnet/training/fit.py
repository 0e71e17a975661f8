"""The fit loop: one-cycle Adam on noisy labels, validation, early stopping, best checkpoint, resume."""

from __future__ import annotations

import csv
import io
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from regnet.errors import ConfigError, InputError
from regnet.files import digest, remove, whole_path, write_json, write_text
from regnet.models import ModelOptions, load_checkpoint, model_for, save_checkpoint
from regnet.models.matcher import Matcher
from regnet.models.unet import UNet
from regnet.options import recipe
from regnet.ranks import Ranks
from regnet.similarity.familiarity import FAMILIARITY, remember
from regnet.tiles.store import TileSource
from regnet.training.alike import SimilarityTerm
from regnet.training.curve import draw_curve
from regnet.training.loss import supervised_loss
from regnet.training.options import TrainingOptions
from regnet.training.pair_shifts import PairShifts
from regnet.training.samples import Batch, TileCache, draw_batches
from regnet.training.trail import START, Trail
from regnet.training.validation import validation_epe

MODEL, LOG, CURVE, STATE, SUMMARY, CHECKPOINTS = (
    "model.safetensors",
    "log.csv",
    "loss.png",
    "last.pt",
    "summary.json",
    "checkpoints",
)

MOST_NORM = 1.0
"""Longer gradients are clipped to this length."""
MOST_GROUND = 512
"""So many training tiles tell the ground that is trained on."""


@dataclass
class Progress:
    """What a fit has come to, saved after every epoch so that a killed one goes on from there."""

    epoch: int = 0
    best_epe_px: float = float("inf")
    best_epoch: int = -1
    rates: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


class Fit:
    """One training run in one folder; `run` goes to its end, from the beginning or from where it was killed.

    Writes into the folder: model.safetensors (running mean of the weights at the epoch kept), familiarity.safetensors
    (what `register` tells familiar ground by), checkpoints/ (weights and Adam's second moments along the way), log.csv,
    loss.png, summary.json. A killed run goes on from its last epoch.

    Args:
        store: the tiles.
        model_options: of the network.
        options: of the training.
        folder: of the outputs; what a training with other settings left there is deleted at the start.
        model: a network to go on from, whose parameters without `requires_grad` stay; None for a fresh one.
        most_seconds: an epoch that would end later than this, counted over all runs of the training, is not begun.
        ranks: processes that share the tiles of each step, and where the network is trained; None: this one alone, on
            the processor. The first one writes. The gradient is the mean over all tiles, but what the loss judges by
            the residuals of a step, as the labels' noise, each process judges by its own tiles.

    Raises:
        InputError: no tiles to train or validate on, or nothing to train; from `run`, a loss that is no longer finite.
        ConfigError: more processes than tiles a step.
    """

    def __init__(
        self,
        store: TileSource,
        model_options: ModelOptions,
        options: TrainingOptions,
        folder: Path,
        model: Matcher | UNet | None = None,
        most_seconds: float = float("inf"),
        ranks: Ranks | None = None,
    ) -> None:
        self.options, self.folder, self.most_seconds = options, folder, most_seconds
        self.ranks = ranks or Ranks()
        self.device = self.ranks.device
        if options.batch < self.ranks.size:
            raise ConfigError(f"training.batch={options.batch}: {self.ranks.size} processes share it; make it as large")
        self.train_tiles, self.validation_tiles = store.tiles("train"), store.tiles("validation")
        if not len(self.train_tiles) or not len(self.validation_tiles):
            raise InputError(
                f"{store.name}: {len(self.train_tiles)} train and {len(self.validation_tiles)} validation tiles; "
                "both are needed: make the blocks or tiles smaller, or the shares larger"
            )
        torch.manual_seed(options.seed)
        self.model = (model or model_for(model_options, store.fixed_channels, store.moving_channels)).to(self.device)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not parameters:
            raise InputError(f"model.descriptor={model_options.descriptor}: has nothing to train; choose learned")
        self.optimiser = torch.optim.AdamW(
            parameters, lr=options.learning_rate, weight_decay=options.weight_decay, eps=1e-8
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, options.learning_rate, total_steps=options.epochs * options.steps + 1, pct_start=0.15
        )
        self.alike = SimilarityTerm(self.model, options) if options.alike.weight > 0 else None
        self.cache = TileCache(store, options.cache_mb)
        if isinstance(self.model, Matcher) and self.model.shift.requires_grad:
            self._see_ground(self.model)
        self.mean = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.settings = digest([asdict(model_options), recipe(options), store.manifest])
        self.trail = Trail(folder / CHECKPOINTS)
        self.shifts = PairShifts(store.pairs, common=options.flips)
        self.progress = Progress()

    def _see_ground(self, model: Matcher) -> None:
        """Show a network the ground that its shift will be learned on."""
        chosen = self.train_tiles[:: -(-len(self.train_tiles) // MOST_GROUND)]
        tiles = (self.cache[position] for position in chosen.tolist())
        model.ground.see(
            (
                torch.from_numpy(np.concatenate((tile.fixed, tile.moving)))[None].to(self.device),
                torch.from_numpy(tile.fixed_valid & tile.moving_valid)[None, None].to(self.device),
            )
            for tile in tiles
        )

    def run(self) -> None:
        """Train to the end, write model, log, curve and summary, and drop the resume state."""
        self._resume()
        self.ranks.barrier()  # all have seen where it stands
        if self.progress.epoch == 0 and self.ranks.main:
            self.trail.keep(START, self.model, self.optimiser, 0, 0.0)
        done, total, hidden = self.progress.epoch, self.options.epochs, not self.ranks.main
        with tqdm(total=total, initial=done, desc="train", unit="epoch", disable=hidden) as bar:
            for epoch in range(self.progress.epoch, self.options.epochs):
                if self._late() or self._settled():
                    break
                row = self._epoch(epoch)
                bar.set_postfix(loss=f"{row['loss']:.3f}", validation_px=f"{row['validation_epe_px']:.3f}")
                bar.update(1)
        if self.ranks.main:
            self._keep_waypoint()
            self._finish()

    def _finish(self) -> None:
        """Draw the curve, remember the tiles, sum up, and drop the resume state."""
        draw_curve(self.progress.rows, self.folder / CURVE)
        if self.options.familiarity_tiles:
            self._remember()
        seconds = [row["seconds"] for row in self.progress.rows]
        summary = {
            "epochs": self.progress.epoch,
            "best_epoch": self.progress.best_epoch,
            "validation_epe_px": self.progress.rows[self.progress.best_epoch]["validation_epe_px"],
            "train_tiles": len(self.train_tiles),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "pair_shifts_px": self.shifts.shifts_px(),
            "pair_spread_px": self.shifts.spread_px,
            "step_seconds": sum(seconds) / (len(seconds) * self.options.steps),
            "seconds": sum(seconds),
        }
        write_json(self.folder / SUMMARY, summary)
        remove(self.folder / STATE)

    def _late(self) -> bool:
        """Tell whether another epoch as long as the last would take more time than is given."""
        seconds: list[float] = [row["seconds"] for row in self.progress.rows]
        return self.ranks.told(sum(seconds) + sum(seconds[-1:]) > self.most_seconds)

    def _settled(self) -> bool:
        """Tell whether the last epochs, as many as `patience`, brought nothing better."""
        return self.progress.epoch - 1 - self.progress.best_epoch >= self.options.patience

    def _epoch(self, epoch: int) -> dict[str, Any]:
        totals = {"loss": 0.0, "draw_seconds": 0.0, "step_seconds": 0.0}
        begin = mark = time.perf_counter()
        # What the model draws in training is an epoch's own, so that a killed run goes on as it would have.
        torch.manual_seed(self.options.seed * 1_000_003 + epoch + self.ranks.rank * 1_000_000_007)
        batches = draw_batches(
            self.cache,
            self.train_tiles,
            self.options,
            self.options.steps,
            (self.options.seed, epoch),
            self.shifts.corrected,
            self.device,
        )
        pairs = np.random.default_rng((self.options.seed, epoch, 1))
        self.model.train()
        steps, hidden = self.options.steps, not self.ranks.main
        for batch in tqdm(batches, total=steps, desc=f"epoch {epoch}", unit="step", leave=False, disable=hidden):
            drawn = time.perf_counter()
            totals["draw_seconds"] += drawn - mark
            totals["loss"] += self._step(batch, pairs) / self.options.steps
            mark = time.perf_counter()
            totals["step_seconds"] += mark - drawn
        epe_px = self.ranks.told(self._validate() if self.ranks.main else 0.0)
        row = {"epoch": epoch, **totals, "validation_epe_px": epe_px, "seconds": time.perf_counter() - begin}
        self._keep(row)
        return row

    def _step(self, batch: Batch, pairs: np.random.Generator) -> float:
        chosen = slice(self.ranks.rank, None, self.ranks.size)
        own = batch.part(chosen)
        prediction = self.model(own.fixed, own.moving, own.fixed_valid, own.moving_valid)
        loss = supervised_loss(prediction, own, self.options)
        means = torch.zeros(len(batch), 5)
        means[chosen] = self.shifts.means(own, prediction.displacement)
        self.shifts.learn(batch, self.ranks.sum(means.to(self.device)).cpu())
        if self.alike is not None:
            loss = loss + self.alike(own, pairs)
        loss = loss * (len(own) / len(batch))
        whole = float(self.ranks.sum(loss.detach()))
        if not math.isfinite(whole):
            raise InputError(
                f"training.learning_rate={self.options.learning_rate}: the loss is not finite; choose a smaller one"
            )
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MOST_NORM)
        self.progress.rates += float(self.schedule.get_last_lr()[0]) * min(1.0, MOST_NORM / max(float(norm), 1e-12))
        self.optimiser.step()
        self.schedule.step()
        step = self.schedule.last_epoch
        decay = min(self.options.average, step / (step + 10))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.mean[key].lerp_(value, 1 - decay)
        return whole

    def _sum_gradients(self) -> None:
        """Give every rank the gradient of the whole step; none to what has none on any rank."""
        if self.ranks.size == 1:
            return
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        own = [torch.zeros_like(part) if part.grad is None else part.grad for part in learned]
        has = torch.tensor([float(part.grad is not None) for part in learned], device=self.device)
        summed = [has, *own]
        vector_to_parameters(self.ranks.sum(parameters_to_vector(summed)), summed)
        for parameter, anywhere, gradient in zip(learned, summed[0], summed[1:], strict=True):
            parameter.grad = gradient if anywhere else None

    def _remember(self) -> None:
        """Keep what the model is to know its training tiles by, as training draws them."""
        options, positions = self.options, self.train_tiles
        steps = -(-min(options.familiarity_tiles, len(positions)) // options.batch)
        seed = (options.seed, 1_000_006)
        drawn = draw_batches(self.cache, positions, options, steps, seed, self.shifts.corrected, self.device)
        model = load_checkpoint(self.folder / MODEL).to(self.device)
        with tqdm(drawn, total=steps, desc="familiarity", unit="batch") as batches:
            known = remember(model, ((batch.fixed, batch.moving) for batch in batches), len(positions))
        known.save(self.folder / FAMILIARITY)

    def _validate(self) -> float:
        """Mean end-point error against the labels of the validation tiles, under displacements that never change."""
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean)
        epe_px = validation_epe(self.model, self.cache, self.validation_tiles, self.options, self.shifts.several)
        self.model.load_state_dict(own)
        return epe_px

    def _keep(self, row: dict[str, Any]) -> None:
        progress, epoch = self.progress, row["epoch"]
        for spread in (self.model.pair_spread_px, self.mean["pair_spread_px"]):
            spread.fill_(self.shifts.spread_px)
        progress.rows.append(row)
        progress.epoch = epoch + 1
        epe_px = row["validation_epe_px"]
        progress.best_epe_px = min(progress.best_epe_px, epe_px)
        if epe_px <= progress.best_epe_px * (1 + self.options.tolerance):
            progress.best_epoch = epoch
        if self.ranks.main:
            self._write(epoch)

    def _write(self, epoch: int) -> None:
        """Write what an epoch came to."""
        progress = self.progress
        if progress.best_epoch == epoch:
            save_checkpoint(self.folder / MODEL, self.model, self.mean)
        if progress.epoch % math.ceil(self.options.epochs / self.options.checkpoints) == 0:
            self._keep_waypoint()
        text = io.StringIO()
        writer = csv.DictWriter(text, progress.rows[-1].keys())
        writer.writeheader()
        writer.writerows(progress.rows)
        write_text(self.folder / LOG, text.getvalue())
        state = {
            "settings": self.settings,
            "progress": asdict(progress),
            "model": self.model.state_dict(),
            "mean": self.mean,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "shifts": self.shifts.state(),
        }
        # Written by Python, whose errors of a full disk are told from defects.
        with whole_path(self.folder / STATE) as partial, io.BytesIO() as whole:
            torch.save(state, whole)
            partial.write_bytes(whole.getvalue())

    def _keep_waypoint(self) -> None:
        """Keep a checkpoint of the way so far: every few epochs, and at the end, wherever the training stopped."""
        name, steps = f"epoch_{self.progress.epoch - 1:03d}", self.progress.epoch * self.options.steps
        self.trail.keep(name, self.model, self.optimiser, steps, self.progress.rates)

    def _resume(self) -> None:
        state = _read_state(self.folder / STATE, self.device)
        if state is not None and state["settings"] == self.settings:
            self.progress = Progress(**state["progress"])
            self.model.load_state_dict(state["model"])
            self.mean = state["mean"]
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            self.shifts.load(state["shifts"])
            return
        if not self.ranks.main:
            return
        for name in (MODEL, FAMILIARITY, LOG, CURVE, STATE, SUMMARY, CHECKPOINTS):
            remove(self.folder / name)


def _read_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Where a training stands; None if it has not begun, or the file is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, device, weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError):
        return None
    return state
