"""Networks, trained or training-free, as matchers of windows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet.models.base import device_of
from regnet.models.checkpoint import check_channels, load_checkpoint, model_for
from regnet.models.matcher import Matcher
from regnet.models.options import ModelOptions
from regnet.models.unet import UNet
from regnet.registration.detail import at_detail
from regnet.registration.windows import Match
from regnet.tiles.patch import Patch

FREE_BYTES, MATCHER_BYTES, UNET_BYTES = (300, 15), (820, 20), (690, 12)
"""Memory of a pixel at the peak: whatever the bands, and for each band of the two images.

Measured with 2, 4, 16 and 26 bands in both images together: 270, 313, 415 and 647 bytes training-free, 614, 860, 903
and 1090 with learned descriptors; with 4 and 16, 605 and 695 in the U-Net."""


def load_network(
    model: str | None, descriptor: str, fixed_channels: Sequence[str], moving_channels: Sequence[str]
) -> Matcher | UNet:
    """Load a trained model, or build a training-free one if none is given.

    Args:
        model: path of a checkpoint.
        descriptor: of the training-free matcher: mind or ngf.
        fixed_channels: names of the bands that the model will be given.
        moving_channels: likewise.

    Raises:
        InputError: the checkpoint is missing, cut short or not regnet's.
        ConfigError: it was trained with other numbers of bands.
    """
    if model is None:
        return model_for(ModelOptions(descriptor=descriptor), fixed_channels, moving_channels)
    network = load_checkpoint(Path(model))
    check_channels(network, len(fixed_channels), len(moving_channels))
    return network


class NetworkMatcher:
    """Runs a network that maps (fixed, moving, fixed_valid, moving_valid) to a displacement and its confidence.

    Args:
        model: the network.
        detail_px: side of the smallest detail that the images show, px of a window. One that is not trained is shown
            windows at about that resolution; a trained one is at home at the one it was trained at.

    Attributes:
        trained: whether anything of it is learned.
        pixel_bytes: what a pixel of a window takes at the peak.
        pair_spread_px: what the network learned to expect of a shift that a whole pair has beside its labels, root mean
            square length; 0 where it was not trained on several pairs.
    """

    def __init__(self, model: Matcher | UNet, detail_px: float = 1.0) -> None:
        self._model = model.eval()
        self.trained = any(parameter.requires_grad for parameter in model.parameters())
        least, each = UNET_BYTES if isinstance(model, UNet) else MATCHER_BYTES if self.trained else FREE_BYTES
        self.pixel_bytes = least + each * (model.fixed_channels + model.moving_channels)
        self.pair_spread_px = float(model.pair_spread_px)
        self._device = device_of(model)
        # A GPU is filled by one window; others wait, so that its memory is bounded whatever the number of threads.
        self._turn = Lock() if self._device.type == "cuda" else nullcontext()
        self._matched = self._match if self.trained else at_detail(self._match, detail_px)

    def __call__(self, patch: Patch) -> Match:
        """Match one window; its quality has one channel, the network's confidence."""
        return self._matched(patch)

    @torch.inference_mode()
    def _match(self, patch: Patch) -> Match:
        with self._turn:
            prediction = self._model(*self._images(patch), *self._masks(patch))
            both = (prediction.displacement[0], prediction.confidence[0])
            return Match(*(values.float().cpu().numpy() for values in both))

    @torch.inference_mode()
    def backward(self, patch: Patch, found: NDArray[np.float32]) -> NDArray[np.float32]:
        """How far from where a displacement (2, H, W) brings them places of moving fit fixed, (H, W) px.

        Only a matcher can tell; of what another network says it is not known, and 0.
        """
        if not isinstance(self._model, Matcher):
            return np.zeros(found.shape[1:], np.float32)
        with self._turn:
            apart = self._model.backward(*self._images(patch), self._tensor(found), *self._masks(patch))
            return np.asarray(apart[0, 0].float().cpu().numpy())

    def _images(self, patch: Patch) -> tuple[Tensor, Tensor]:
        return self._tensor(patch.fixed), self._tensor(patch.moving)

    def _masks(self, patch: Patch) -> tuple[Tensor, Tensor]:
        return self._tensor(patch.fixed_valid[None]), self._tensor(patch.moving_valid[None])

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))[None].to(self._device)
