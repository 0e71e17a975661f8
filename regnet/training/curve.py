"""The loss curve as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from regnet.files import write_figure


def draw_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw training loss and validation error over the epochs into a PNG."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    right = left.twinx()
    epochs = [row["epoch"] + 1 for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], color="#0072B2", marker="o", label="training loss")
    right.plot(epochs, [row["validation_epe_px"] for row in rows], color="#D55E00", marker="s", label="validation")
    left.set_xlabel("epoch")
    left.set_ylabel("training loss", color="#0072B2")
    right.set_ylabel("validation error against labels (px)", color="#D55E00")
    write_figure(path, figure, dpi=120)
