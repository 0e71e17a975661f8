"""What `evaluate` can be told: displacement families, parts, methods."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.baselines.options import BaselineOptions, NetworkOptions
from regnet.options import option
from regnet.registration.options import WindowOptions
from regnet.tiles.options import PARTS


@dataclass(frozen=True)
class FamilyOptions:
    """A family of random displacements: white noise through a Gaussian, scaled to its peak in each scene."""

    name: str = option(help="name of the family in tables and files")
    peak_px: float = option(help="longest displacement in a scene", unit="px", low=0)
    sigma_px: float = option(help="standard deviation of the Gaussian", unit="px", low=1)


@dataclass(frozen=True)
class NeighbourOptions:
    """Neighbours by the network's gradients beside those by other eyes."""

    networks: list[NetworkOptions] = option(
        [NetworkOptions()], "ImageNet networks whose perceptual distance is compared with the gradients"
    )
    rgb: list[int] = option(
        [],
        "channels of fixed that they see, counted from 1, all if empty: three are taken for red, green and blue, of "
        "any other number the mean is shown thrice; each is stretched from its 2nd to its 98th percentile",
        low=1,
    )
    kept: int = option(12, "nearest tiles kept by every similarity", unit="tiles", low=1)


@dataclass(frozen=True)
class EvaluateOptions:
    """Everything that the evaluate stage depends on."""

    families: list[FamilyOptions] = option(
        [FamilyOptions("smooth", 8.0, 80.0), FamilyOptions("rough", 8.0, 20.0)], "families of random displacements"
    )
    parts: list[str] = option(["test", "shifted"], "parts of the ground to evaluate on", choices=PARTS)
    methods: list[str] = option(
        ["none", "labels", "model", "matcher_mind", "perceptual", "classical.phase"],
        "rows of the table: none (before registration), labels (the training labels themselves), model, matcher_mind "
        "(training-free), perceptual (by an ImageNet network), classical.<name>",
    )
    check_points: str | None = option(
        None,
        "file of places whose true displacement is known: CSV with fixed_x, fixed_y, moving_x, moving_y, or lines from "
        "fixed to moving; they make one more family, check_points, of the pair as it lies",
    )
    context_px: int = option(
        32, "ground around a block that methods may see; never more than the gap between parts", unit="px", low=0
    )
    draws: int = option(1, "random displacements of each family for each block", low=1, high=100)
    baselines: BaselineOptions = option(BaselineOptions(), "settings of perceptual and classical.<name>")
    neighbours: NeighbourOptions = option(NeighbourOptions(), "whom gradients and other eyes take for neighbours")
    windows: WindowOptions = option(WindowOptions(), "windows of the networks' predictions, for large blocks")
