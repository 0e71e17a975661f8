"""Options of the denoising stage."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.options import option


@dataclass(frozen=True)
class DenoiseOptions:
    """How much label noise was averaged away, and how that is estimated and mapped."""

    noise_sigma_px: float | None = option(
        None,
        "standard deviation of the label noise a component; null: estimate it from the residuals",
        unit="px",
        low=0,
    )
    noise_range_px: float = option(
        0.0, "distance over which label noise is alike (Gaussian correlation); 0: independent tiles", unit="px", low=0
    )
    smoothing: str = option("ridge", "form of the linearised smoother", choices=["ridge", "flow"])
    choose: str = option(
        "residuals", "how the amount of smoothing is found", choices=["residuals", "likelihood", "gcv"]
    )
    region_px: int = option(
        0, "side of the grid cells that are summed up; 0: the blocks of the split", unit="px", low=0
    )
    regions: str | None = option(None, "vector file of polygons to sum up by, instead of a grid")
    audit_score: float = option(4.0, "labels with a score from here on are listed as doubtful", low=1)
