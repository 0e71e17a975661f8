"""Options of the denoising stage."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.options import option

RULES = ("residuals", "likelihood", "gcv")


@dataclass(frozen=True)
class DenoiseOptions:
    """How much label noise was averaged away, and how that is estimated and mapped."""

    noise_sigma_px: float | None = option(
        None,
        "standard deviation of the label noise a component; null: estimate it from the residuals",
        unit="px",
        low=0,
    )
    noise_range_px: float | None = option(
        None,
        "distance over which label noise is alike (Gaussian correlation); 0: independent tiles; null: as prepare drew "
        "the noise, independent where it drew none",
        unit="px",
        low=0,
    )
    smoothing: str = option(
        "mean",
        "the linearised smoother: ridge with the mean of the kernels along the training, in the metric of Adam's own "
        "steps (D = 1 / sqrt(v), not bounded as similarity.metric=adam is), or ridge or gradient flow with the kernel "
        "of the similarity stage",
        choices=["mean", "ridge", "flow"],
    )
    choose: str = option(
        "residuals",
        "how the amount of smoothing is found",
        choices=RULES,
    )
    retrainings: int = option(
        0,
        "trainings on the labels with noise drawn once more on top, which show how much of it is left; each takes as "
        "long as train does on the processor, which it uses whatever fabric.accelerator says",
        low=0,
        high=64,
    )
    region_px: int = option(
        0, "side of the grid cells that are summed up; 0: the blocks of the split", unit="px", low=0
    )
    regions: str | None = option(None, "vector file of polygons to sum up by, instead of a grid")
    memory_mb: float = option(1024, "memory that the products of Jacobians may take", unit="MB", low=16)
    audit_score: float = option(4.0, "labels with a score from here on are listed as doubtful", low=1)


@dataclass(frozen=True)
class DenoisingValidationOptions:
    """Is the predicted denoising true? Replicas of one small training on independent draws of label noise."""

    replicas: int = option(16, "trainings from one start, in one order, on independent label noise", low=2)
    retrainings: int = option(
        8, "trainings on the first one's labels with noise drawn once more on top, which set its factor right", low=4
    )
    tiles: int = option(600, "most training tiles", unit="tiles", low=8)
    noise_sigma_px: float = option(1.0, "label noise a component, one draw a tile", unit="px", low=1e-3)
    shift_px: float = option(3.0, "greatest shift of a tile a component; each tile keeps its own", unit="px", low=0)
    margin_px: int = option(4, "cut from each side of a tile after its shift", unit="px", low=0)
    epochs: int = option(8, "times that each tile is seen", low=1)
    batch: int = option(20, "tiles a step", low=1)
    learning_rate: float = option(8e-4, "peak of the one-cycle schedule (Adam)", low=1e-6, high=1)
    checkpoints: int = option(8, "kernels along the first replica's training, closer together early", low=2)
    region_px: int = option(400, "side of the grid cells for the figures by region", unit="px", low=1)
    region_tiles: int = option(5, "least tiles of a cell that counts as a region", unit="tiles", low=1)
    blunder_share: float = option(0.05, "labels that are moved far for the check of the audit", low=0, high=0.4)
    blunder_px: float = option(12.0, "how far they are moved", unit="px", low=0)
    seed: int = option(0, "seed of tiles, shifts, weights, order and noise", low=0)
