"""What a training leaves behind of its way: weights, Adam's second moments, and how far it had come."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from regnet.errors import InputError
from regnet.files import read_json, write_json
from regnet.models import save_checkpoint
from regnet.models.matcher import Matcher
from regnet.models.unet import UNet

TRAIL = "trail.json"
START = "start"


@dataclass(frozen=True)
class Waypoint:
    """One checkpoint along a training.

    Attributes:
        name: of its files.
        step: optimiser steps taken before it.
        rates: sum of the learning rates of those steps, each times the share of the gradient that clipping left.
    """

    name: str
    step: int
    rates: float


class Trail:
    """The checkpoints of one training in one folder, in the order in which they were kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def keep(self, name: str, model: Matcher | UNet, optimiser: torch.optim.Optimizer, step: int, rates: float) -> None:
        """Write weights and second moments of a model as it is now; a name that is there already is replaced."""
        save_checkpoint(self.path(name), model)
        second = second_moments(model, optimiser)
        if second:
            save_checkpoint(self._moments_path(name), model, second)
        before = [point for point in self.points() if point.name != name] if self._list.is_file() else []
        write_json(self._list, [asdict(point) for point in (*before, Waypoint(name, step, rates))])

    def points(self) -> list[Waypoint]:
        """All checkpoints, first to last.

        Raises:
            InputError: the folder holds none.
        """
        if not self._list.is_file():
            raise InputError(
                f"{self._list}: is missing, so the way of this training is not known; "
                "train again, or set denoise.smoothing=ridge"
            )
        return [Waypoint(**point) for point in read_json(self._list)]

    def path(self, name: str) -> Path:
        """File of the weights."""
        return self.folder / f"{name}.safetensors"

    def moments(self, name: str) -> dict[str, Tensor]:
        """Adam's running mean of the squared gradients by parameter, without bias correction; empty at the start."""
        path = self._moments_path(name)
        moments: dict[str, Tensor] = load_file(path) if path.is_file() else {}
        return moments

    @property
    def _list(self) -> Path:
        return self.folder / TRAIL

    def _moments_path(self, name: str) -> Path:
        return self.path(f"adam_v_{name.removeprefix('epoch_')}")


def second_moments(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's second moments by the names of the parameters; those that it never moved are left out."""
    return {
        name: optimiser.state[parameter]["exp_avg_sq"]
        for name, parameter in model.named_parameters()
        if parameter in optimiser.state
    }
