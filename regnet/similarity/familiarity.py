"""How familiar a tile is to a network: N_S, the soft number of its neighbours among the tiles it was trained on.

N_S is linear in the training tiles (`linear`), so that the sum of their normalised gradients, one vector a component of
the displacement, tells it of any tile that is seen later. It is kept beside the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from regnet.errors import InputError
from regnet.models.base import device_of
from regnet.similarity.gradients import Jacobians
from regnet.similarity.kernel import whitened
from regnet.similarity.linear import SoftCounter
from regnet.similarity.readouts import centre_offset
from regnet.similarity.store import model_digest
from regnet.tensors import write_tensors

FAMILIARITY = "familiarity.safetensors"
"""Its file, beside the model's."""
MOST_PX = 128
"""Larger tiles are cut to this side around their centre: gradients take longer than a prediction."""


@dataclass(frozen=True)
class Familiarity:
    """What is remembered of the tiles that a network was trained on.

    Attributes:
        total: (d, p) sum of the normalised Jacobians of `len(own)` training tiles, as training drew them.
        own: (n,) mean similarity kC of each of these tiles to the others, -1 to 1.
        trained: number of all tiles that were trained on.
        side_px: of a tile.
        digest: hash of the network's weights.
    """

    total: Tensor
    own: Tensor
    trained: int
    side_px: int
    digest: str

    def save(self, path: Path) -> None:
        """Write it, whole or not at all; the sum in bfloat16, whose error averages out over the parameters.

        Raises:
            OutputError: full disk or read-only folder.
        """
        settings = {"trained": str(self.trained), "side_px": str(self.side_px), "digest": self.digest}
        write_tensors(path, {"total": self.total.bfloat16(), "own": self.own}, settings)

    @classmethod
    def load(cls, path: Path) -> Familiarity:
        """Read what `save` wrote.

        Raises:
            InputError: it is damaged or something else.
        """
        try:
            with safe_open(path, "pt") as stream:
                settings = stream.metadata()
                total, own = (stream.get_tensor(name) for name in ("total", "own"))
            return cls(total.double(), own, int(settings["trained"]), int(settings["side_px"]), settings["digest"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({type(error).__name__}); train again, or delete it") from error


class FamiliarityMeter:
    """Tells how familiar tiles are to a network.

    Args:
        model: the trained network.
        known: what is remembered of its training.

    Raises:
        InputError: the network has no parameters, or other weights than those that are remembered.
    """

    def __init__(self, model: nn.Module, known: Familiarity) -> None:
        if model_digest(model) != known.digest:
            raise InputError(f"{FAMILIARITY}: is of other weights than the model beside it; delete it, or train again")
        self._engine, self._counter = Jacobians(model, centre_offset), SoftCounter()
        self._device = device_of(model)
        self._counter.total, self._tiles = known.total.to(self._device), len(known.own)

    def __call__(self, fixed: Tensor, moving: Tensor) -> NDArray[np.float64]:
        """Mean similarity kC of tiles, (n, C, S, S) each, to the training tiles: (n,), -1 to 1; 0 without gradient."""
        _, jacobians = self._engine(fixed.to(self._device), moving.to(self._device))
        return np.asarray(self._counter.count(jacobians).cpu().numpy() / self._tiles)


def remember(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], trained: int) -> Familiarity:
    """Sum up what tiles a network was trained on.

    Args:
        model: the trained network.
        batches: fixed (n, Cf, S, S) and moving (n, Cm, S, S) of some of the tiles.
        trained: number of all of them.
    """
    engine, counter, rows = Jacobians(model, centre_offset), SoftCounter(), []
    side_px = 0
    for batch in batches:
        fixed, moving = (centred(images) for images in batch)
        side_px = fixed.shape[-1]
        _, jacobians = engine(fixed, moving)
        counter.add(jacobians)
        # Kept until the sum is whole, at half the size: no tile needs to be differentiated twice.
        rows.append(whitened(jacobians).bfloat16())
    total = counter.sums()
    own = torch.cat([(part * (total.float() - part)).sum((1, 2)) / part.shape[1] for part in rows]).cpu()
    return Familiarity(total.cpu(), own / max(len(own) - 1, 1), trained, side_px, model_digest(model))


def centred(images: Tensor) -> Tensor:
    """Images (n, C, S, S) cut to at most `MOST_PX` around the centre."""
    side = min(images.shape[-1], MOST_PX)
    start = (images.shape[-1] - side) // 2
    return images[..., start : start + side, start : start + side]
