"""The trunk of VGG16 up to relu3_3, an ImageNet network whose activations serve as perceptual features.

Source: Simonyan and Zisserman, ICLR 2015, table 1 (D); as a perceptual loss: Johnson et al., ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet.errors import InputError

URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
# Channels of the convolutions, each 3 x 3 and followed by ReLU; "pool" halves the sides. The numbers are those that the
# layers have in the files of weights.
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
POOLED_BEFORE = (5, 10)
# Mean and standard deviation of the input by convention, in its own order of the colours and its own range.
MOMENTS = {
    "torchvision": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": ((103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
}


class Vgg16(nn.Module):
    """Seven convolutions; `activations` gives what they see.

    Attributes:
        taps: numbers of the activations that serve as features: relu1_2, relu2_2, relu3_3.

    Args:
        convention: how the weights want their input. `torchvision`: red, green, blue in 0..1, less a mean, over a
            standard deviation. `caffe` (the authors' own): blue, green, red in 0..255, less a mean.
    """

    taps = (1, 3, 6)

    def __init__(self, convention: str = "torchvision") -> None:
        super().__init__()
        layers = {str(place): nn.Conv2d(*channels, 3, padding=1) for place, channels in CONVOLUTIONS.items()}
        self.features = nn.ModuleDict(layers)
        self._caffe = convention == "caffe"
        self._mean, self._deviation = (torch.tensor(values).view(3, 1, 1) for values in MOMENTS[convention])

    def prepared(self, images: Tensor) -> Tensor:
        """The input in the weights' convention, from red, green, blue in 0..1."""
        values = images.flip(1) * 255 if self._caffe else images
        return (values - self._mean) / self._deviation

    def activations(self, images: Tensor) -> Iterator[Tensor]:
        """Go through relu1_1 to relu3_3.

        Args:
            images: (B, 3, H, W), red, green, blue in 0..1.
        """
        x = self.prepared(images)
        for place, layer in self.features.items():
            if int(place) in POOLED_BEFORE:
                x = F.max_pool2d(x, 2)
            x = F.relu(layer(x))
            yield x


def load_vgg16(weights: Path | None = None, convention: str = "torchvision") -> Vgg16:
    """Build the trunk with weights from a file, or with torchvision's, fetched once and checked by their hash.

    Args:
        weights: file of a state dictionary with `features.<number>.weight` and `.bias`; None: torchvision's.
        convention: of the weights, see `Vgg16`; torchvision's own are `torchvision`.

    Raises:
        InputError: the file is missing or holds something else, or the weights cannot be fetched.
    """
    if weights is None and convention != "torchvision":
        raise InputError(f"convention={convention} needs a file of weights; those that are fetched are torchvision's")
    saved = _fetched() if weights is None else _read(weights)
    network = Vgg16(convention)
    try:
        network.load_state_dict({name: saved[name] for name in network.state_dict()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{weights or URL}: not the weights of VGG16 ({error}); give another file") from error
    return network.eval().requires_grad_(False)


def _fetched() -> dict[str, Tensor]:
    try:
        saved: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            URL, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise InputError(f"{URL}: cannot be fetched ({error}); give the file as weights=") from error
    return saved


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: there are no weights; check the path")
    try:
        saved: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InputError(f"{path}: cannot be read as weights ({type(error).__name__}); give another file") from error
    return saved
