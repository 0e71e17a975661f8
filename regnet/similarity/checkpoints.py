"""The networks to compare by: the trained model, or checkpoints along its training, in a chosen metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from regnet import models
from regnet.errors import InputError
from regnet.similarity.gradients import Jacobians
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.readouts import READOUTS
from regnet.similarity.store import model_digest

_BOUND = 100.0  # the optimiser's metric is at most this many times its median


@dataclass(frozen=True)
class Checkpoint:
    """One network with its Jacobians.

    Attributes:
        name: for files and tables.
        engine: gives the Jacobians.
        digest: hash of its weights.
        scale: (p,) square root of the metric D in `J D J^T`, or None for the plain `J J^T`.
    """

    name: str
    engine: Jacobians
    digest: str
    scale: Tensor | None = None

    def jacobians(self, batch: Sequence[Tensor]) -> Tensor:
        """J D^1/2 of a batch, (n, d, p)."""
        _, jacobians = self.engine(*batch)
        return jacobians if self.scale is None else jacobians.mul_(self.scale)


def load_checkpoints(model_path: Path, options: SimilarityOptions) -> list[Checkpoint]:
    """Load the trained model, or with `checkpoints=mean` every checkpoint that training kept beside it.

    Raises:
        InputError: there are no checkpoints or no second moments where they are asked for.
    """
    folder = model_path.parent / "checkpoints"
    kept = sorted(folder.glob("epoch_*.safetensors"))
    paths = kept if options.checkpoints == "mean" else [model_path]
    if not paths:
        raise InputError(f"{folder}: holds no checkpoints; set similarity.checkpoints=last or train again")
    loaded = []
    for path in paths:
        engine = Jacobians(models.load_checkpoint(path), READOUTS[options.readout], options.parameters)
        beside = path if options.checkpoints == "mean" else (kept[-1] if kept else folder / "epoch_last.safetensors")
        scale = optimiser_scale(engine, _moments(beside)) if options.metric == "adam" else None
        loaded.append(Checkpoint(path.stem, engine, model_digest(engine.model), scale))
    return loaded


def optimiser_scale(engine: Jacobians, moments: dict[str, Tensor]) -> Tensor:
    """Square root of Adam's metric `D = 1 / sqrt(v)`, bounded above, as a vector (p,) in the engine's order.

    Parameters without second moments, which the optimiser never moved, get 0.
    """
    named = dict(engine.model.named_parameters())
    parts = [moments.get(name, torch.zeros_like(named[name])).flatten() for name in engine.names]
    metric = torch.cat(parts).to(named[engine.names[0]].dtype).sqrt()
    moved = metric > 0
    inverse = torch.where(moved, 1 / metric.clamp_min(torch.finfo(metric.dtype).tiny), 0)
    middle = inverse[moved].median() if bool(moved.any()) else inverse.new_ones(())
    return inverse.clamp(max=_BOUND * float(middle)).sqrt()


def _moments(checkpoint: Path) -> dict[str, Tensor]:
    path = checkpoint.with_name(checkpoint.name.replace("epoch_", "adam_v_"))
    if not path.is_file():
        raise InputError(f"{path}: the optimiser's second moments are missing; set similarity.metric=plain")
    moments: dict[str, Tensor] = load_file(path)
    return moments
