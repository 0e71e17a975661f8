"""What `report` can be told: how large its figures are and how many tiles it shows."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.options import option


@dataclass(frozen=True)
class ReportOptions:
    """Everything that the report depends on beside the outputs of the other stages."""

    dpi: int = option(110, "resolution of the figures", unit="dots per inch", low=40, high=400)
    scene_px: int = option(900, "longest side of a scene in the figures", unit="px", low=200, high=4000)
    queries: int = option(4, "tiles shown with those that the network takes for the same", low=1, high=20)
    nearest: int = option(5, "nearest tiles shown beside each", low=1, high=12)
    error_limit_px: float = option(3.0, "end of the colour scale of error maps", unit="px", low=0.1)
    rgb: list[int] = option(
        [],
        "channels of fixed shown as red, green and blue, or one in grey, counted from 1; empty: the first three, or "
        "the mean of fewer",
        low=1,
    )
