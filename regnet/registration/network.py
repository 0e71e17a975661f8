"""Networks, trained or training-free, as matchers of windows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regnet.registration.windows import Match
from regnet.tiles.patch import Patch


class NetworkMatcher:
    """Runs a network that maps (fixed, moving, fixed_valid, moving_valid) to a displacement and its confidence."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval()
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    @torch.inference_mode()
    def __call__(self, patch: Patch) -> Match:
        """Match one window; its quality has one channel, the network's confidence."""
        prediction = self._model(
            self._tensor(patch.fixed),
            self._tensor(patch.moving),
            self._tensor(patch.fixed_valid[None]),
            self._tensor(patch.moving_valid[None]),
        )
        return Match(prediction.displacement[0].float().cpu().numpy(), prediction.confidence[0].float().cpu().numpy())

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))[None].to(self._device)
