"""How similarity changes along the training, as a figure: first all is alike, later inputs are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from regnet.files import write_figure

LEVELS = (5, 25, 50, 75, 95)


def spread(name: str, similarities: Tensor) -> dict[str, Any]:
    """Quantiles over the m reference tiles of kC, without the tile itself, and of N_S / m.

    Args:
        name: of the checkpoint.
        similarities: (n, m) kC, the reference tiles first.
    """
    m = similarities.shape[1]
    inside = similarities[:m].numpy()
    pairs = inside[~np.eye(m, dtype=bool)] if m > 1 else inside.ravel()
    row: dict[str, Any] = {"checkpoint": name}
    for key, values in (("kc", pairs), ("density", inside.mean(1))):
        levels = zip(LEVELS, np.percentile(values, LEVELS), strict=True)
        row |= {f"{key}_p{level:02d}": value for level, value in levels}
    return row


def draw_trajectory(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the quantiles of kC and of the neighbour density N_S / n against the checkpoints.

    Args:
        rows: one a checkpoint: `checkpoint`, `kc_p05` ... `kc_p95`, `density_p05` ... `density_p95`.
        path: PNG file.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    places = range(len(rows))
    for axes, (key, title) in zip(
        figure.subplots(1, 2),
        {"kc": "similarity kC of pairs", "density": "neighbour density N_S / n"}.items(),
        strict=True,
    ):
        for low, high, shade in (("05", "95", 0.2), ("25", "75", 0.4)):
            bounds = ([row[f"{key}_p{level}"] for row in rows] for level in (low, high))
            axes.fill_between(places, *bounds, alpha=shade, color="tab:blue", linewidth=0)
        axes.plot(places, [row[f"{key}_p50"] for row in rows], color="tab:blue")
        axes.set_xticks(places, [str(row["checkpoint"]) for row in rows], rotation=30, ha="right")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    write_figure(path, figure)
