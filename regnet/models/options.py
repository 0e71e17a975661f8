"""Options of the models."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.options import option

DESCRIPTORS = ("mind", "ngf", "learned", "mind+learned", "ngf+learned")


@dataclass(frozen=True)
class ModelOptions:
    """What maps (fixed tile, moving tile) to a displacement."""

    name: str = option("matcher", "architecture", choices=("matcher", "unet"))
    descriptor: str = option(
        "mind+learned",
        "descriptor of each modality (matcher): mind (neighbourhood, with the gradient's direction), ngf (direction "
        "alone), learned, or learned beside a fixed one",
        choices=DESCRIPTORS,
    )
    levels: int = option(4, "pyramid levels; the coarsest is 1 / 2^(levels - 1)", low=1, high=6)
    radius_px: int = option(4, "reach of the correlation, in each level's pixels", unit="px", low=1, high=8)
    finest_radius_px: int = option(
        2, "the same on the finest level, where coarser ones lead up to it", unit="px", low=1, high=8
    )
    described_bands: int = option(
        0, "bands of moving, from the first, that the fixed descriptor sees; 0: all, of polygons the interior", low=0
    )
    descriptor_channels: int = option(16, "channels of a learned descriptor", low=1, high=256)
    descriptor_blocks: int = option(
        0,
        "dilated residual blocks by which a learned descriptor sees farther than 7 px, as speckle asks",
        low=0,
        high=12,
    )
    width: int = option(48, "channels of the hidden layers (unet)", low=4, high=512)
