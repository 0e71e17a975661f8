"""What `prepare` can be told: the pairs, the working grid, the tiles, the split and the noise of the labels."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.options import option

PARTS = ("train", "validation", "test", "shifted")
SPLIT_RULES = ("blocks", "columns", "pairs")
NOISE_KINDS = ("none", "smooth", "knots", "tile", "object", "systematic")


@dataclass(frozen=True)
class PairOptions:
    """One fixed raster and what moves onto it: a raster or a vector layer."""

    name: str = option(help="name of the pair, unique in a run; letters, digits, - and _")
    fixed: str = option(help="fixed raster; several files joined by | are stacked as bands")
    moving: str = option(help="moving raster (files joined by | are stacked) or vector file of polygons")
    fixed_bands: list[int | str] = option(
        [], "bands of fixed to use, by number from 1 or by description; empty: all", low=1
    )
    moving_bands: list[int | str] = option(
        [], "bands of moving to use, by number from 1 or by description; empty: all", low=1
    )
    fixed_transform: str = option("none", "log: logarithm of the values, for SAR amplitude", choices=("none", "log"))
    moving_transform: str = option("none", "log: logarithm of the values, for SAR amplitude", choices=("none", "log"))
    layer: str | None = option(None, "layer of a vector file; null: its only or first one")
    where: str | None = option(None, "filter of the vector's features, as in SQL's WHERE")
    part: str | None = option(None, "the whole pair belongs to this part (split.rule=pairs)", choices=PARTS)
    truth: str = option(
        "identity",
        "identity: the pair is co-registered, so the true offset is zero; unknown: nobody knows it",
        choices=("identity", "unknown"),
    )


@dataclass(frozen=True)
class SplitOptions:
    """How the ground is divided into parts that share no pixel and lie a gap apart."""

    rule: str = option(
        "blocks",
        "blocks: square blocks, every kind of ground in each part; columns: train in the west, test in the east; "
        "pairs: whole pairs, by their own `part`",
        choices=SPLIT_RULES,
    )
    block_px: int = option(352, "side of a block", unit="px", low=16)
    gap_px: int = option(32, "distance between two parts", unit="px", low=0)
    validation_share: float = option(0.12, "share of the ground with structure", low=0, high=0.8)
    test_share: float = option(0.25, "share of the ground with structure", low=0, high=0.8)
    shifted_share: float = option(
        0.15, "share of the ground with structure: that most unlike the rest (blocks only)", low=0, high=0.5
    )


@dataclass(frozen=True)
class NoiseOptions:
    """Noise added to the true offset to make the labels."""

    kind: str = option(
        "none",
        "smooth: a random field; knots: independent at the knots of a grid, cubic between; tile: one offset a tile; "
        "object: one offset a vector object, smooth beside; systematic: the shift below and nothing else",
        choices=NOISE_KINDS,
    )
    sigma_px: float = option(
        2.0, "standard deviation of each component (kind knots: at the knots, 0.8 of it on average)", unit="px", low=0
    )
    spacing_px: int = option(24, "distance of the knots (kind knots)", unit="px", low=2)
    smooth_sigma_px: float = option(80.0, "Gaussian that smooths the field (kinds smooth, object)", unit="px", low=4)
    shift_dx_px: float = option(0.0, "shift of all labels to the right, beside the noise (not kind none)", unit="px")
    shift_dy_px: float = option(0.0, "shift of all labels down, beside the noise (not kind none)", unit="px")
    seed: int = option(0, "seed of the noise alone: another seed is another draw on the same tiles", low=0)


@dataclass(frozen=True)
class PrepareOptions:
    """Everything that the prepare stage depends on."""

    pairs: list[PairOptions] = option([], "pairs to prepare")
    gsd_m: float | None = option(None, "ground sampling distance of the working grid; null: fixed's", unit="m", low=0)
    tile_px: int = option(128, "side of a tile", unit="px", low=16, high=1024)
    stride_px: int = option(64, "step between tiles", unit="px", low=1)
    min_valid: float = option(0.9, "share of a tile that must be valid in both images", low=0, high=1)
    min_structure: float = option(0.2, "share of a tile that must have structure", low=0, high=1)
    structure_fine_px: float = option(
        2.0, "Gaussian taken over fixed's brightness first, so that noise and waves are no structure", unit="px", low=0
    )
    structure_sigma_px: float = option(
        8.0, "Gaussian window of the local standard deviation that makes the structure mask", unit="px", low=0.5
    )
    structure_threshold: float = option(
        0.033, "structure is where that deviation exceeds this; brightness is 0 to 1 from 2nd to 98th percentile", low=0
    )
    split: SplitOptions = option(SplitOptions(), "how the ground is divided into parts")
    noise: NoiseOptions = option(NoiseOptions(), "noise of the labels")
    seed: int = option(0, "seed of the split", low=0)
    memory_mb: int = option(512, "memory for blocks of the rasters", unit="MB", low=64)
