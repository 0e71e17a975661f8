"""The loss curve as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from regnet.draw import BLUE, STYLE, VERMILION, new_figure, save

_DPI = 120


def draw_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw training loss and validation error (px) over the epochs into a PNG, each on its own axes."""
    curves = (
        ("loss", BLUE, "training loss"),
        ("validation_epe_px", VERMILION, "validation error against labels, px"),
    )
    with mpl.rc_context(STYLE):
        figure = new_figure(7.5, 2.8)
        for axes, (column, colour, label) in zip(figure.subplots(1, 2), curves, strict=True):
            epochs = [row["epoch"] + 1 for row in rows]
            axes.plot(epochs, [row[column] for row in rows], color=colour, marker="o", markersize=3, clip_on=False)
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(bottom=0)
        save(figure, path, _DPI)
