"""The networks to compare by: the trained model, or checkpoints along its training, in a chosen metric."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from regnet import models
from regnet.errors import ConfigError, InputError
from regnet.models.base import device_of
from regnet.similarity.gradients import Jacobians
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.readouts import READOUTS
from regnet.similarity.store import model_digest

_START = "start"  # name of the checkpoint before the first step
_BOUND = 100.0  # Adam's metric is at most this many times its median


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
        """J D^1/2 of a batch, (n, d, p), on the network's device."""
        device = device_of(self.engine.model)
        _, jacobians = self.engine(*(values.to(device) for values in batch))
        return jacobians if self.scale is None else jacobians.mul_(self.scale)


def load_checkpoints(
    model_path: Path, options: SimilarityOptions, device: torch.device | None = None
) -> list[Checkpoint]:
    """Load the trained model, or with `checkpoints=mean` every checkpoint that training kept beside it.

    Raises:
        InputError: there are no checkpoints or no second moments where they are asked for.
    """
    folder = model_path.parent / "checkpoints"
    kept = sorted(folder.glob("epoch_*.safetensors"), key=_numbered)
    if options.checkpoints == "mean" and not kept:
        raise InputError(f"{folder}: holds no checkpoints; set similarity.checkpoints=last or train again")
    paths = kept if options.checkpoints == "mean" else [model_path]
    return [_load(path, path.stem, options, device) for path in paths]


def load_along(model_path: Path, options: SimilarityOptions, device: torch.device | None = None) -> list[Checkpoint]:
    """Load the networks that the patterns of `trajectory` find beside the trained model, in the patterns' order.

    Each is named by its place, `round_1/checkpoints/epoch_003.safetensors` as `round_1_epoch_003`. Those that
    `load_checkpoints` gives are left out.

    Raises:
        ConfigError: what is given is no pattern within the folder.
        InputError: a pattern finds none, or one has no second moments where they are asked for.
    """
    folder, found = model_path.parent, []
    for pattern in options.trajectory:
        try:
            paths = [path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("adam_v_")]
        except (NotImplementedError, ValueError) as error:
            raise ConfigError(
                f"similarity.trajectory={pattern}: is no pattern of files within {folder} ({error}); "
                "give one such as checkpoints/*.safetensors"
            ) from error
        if not paths:
            raise InputError(f"similarity.trajectory={pattern}: {folder} holds no such file; look what is there")
        found += sorted(paths, key=_numbered)
    compared = {model_path} if options.checkpoints == "last" else set(folder.glob("checkpoints/epoch_*.safetensors"))
    return [_load(path, _place(path, folder), options, device) for path in found if path not in compared]


def _load(path: Path, name: str, options: SimilarityOptions, device: torch.device | None) -> Checkpoint:
    model = models.load_checkpoint(path).to(device)
    engine = Jacobians(model, READOUTS[options.readout], options.parameters)
    scale = bounded_adam_scale(engine, _moments(path)) if options.metric == "adam" else None
    return Checkpoint(name, engine, model_digest(model), scale)


def _numbered(path: Path) -> list[str | int]:
    """Key that sorts round_10 behind round_9, and the start of a training before its epochs."""
    place = f"{path.parent}/{path.name.removeprefix(_START)}"
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", place)]


def _place(path: Path, folder: Path) -> str:
    return "_".join(part for part in path.relative_to(folder).with_suffix("").parts if part != "checkpoints")


def bounded_adam_scale(engine: Jacobians, moments: dict[str, Tensor]) -> Tensor:
    """Square root of Adam's metric `D = 1 / sqrt(v)`, bounded above, as a vector (p,) in the engine's order.

    Similarities have no unit, so D matters up to a factor, and no correction for the start of v is made; the bound
    keeps a few parameters that hardly ever had a gradient from deciding them. How far Adam's steps went is told by the
    metric without a bound, `regnet.denoising.along.adam_step_metric`. Where the bound is not met the two are the same
    but for that factor; in the first steps of a training it is met.

    Parameters without second moments, which the optimiser never moved, get 0.
    """
    named = dict(engine.model.named_parameters())
    parts = [moments.get(name, torch.zeros(named[name].shape)).flatten() for name in engine.names]
    metric = torch.cat(parts).to(named[engine.names[0]]).sqrt()
    moved = metric > 0
    inverse = torch.where(moved, 1 / metric.clamp_min(torch.finfo(metric.dtype).tiny), 0)
    middle = inverse[moved].median() if bool(moved.any()) else inverse.new_ones(())
    return inverse.clamp(max=_BOUND * float(middle)).sqrt()


def _moments(path: Path) -> dict[str, Tensor]:
    """Adam's second moments at a checkpoint; a model has the last that its training kept, the start the first."""
    folder = path.parent if path.parent.name == "checkpoints" else path.parent / "checkpoints"
    pattern = path.name.replace("epoch_", "adam_v_") if path.stem.startswith("epoch_") else "adam_v_*.safetensors"
    kept = sorted(folder.glob(pattern), key=_numbered)
    if not kept:
        raise InputError(f"{folder / pattern}: the optimiser's second moments are missing; set similarity.metric=plain")
    moments: dict[str, Tensor] = load_file(kept[0 if path.stem == _START else -1])
    return moments
