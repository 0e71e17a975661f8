"""Figures of the network: how training went, and which tiles it takes for the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from regnet.report.draw import BLUE, VERMILION, display, new_figure, outlines, picture
from regnet.report.folder import VECTOR_CHANNELS, RunFolder
from regnet.report.options import ReportOptions


def loss_figure(run: RunFolder) -> Figure:
    """Training loss and validation error, epoch by epoch, each on its own axes."""
    log = pd.read_csv(run.file("train", "log.csv"))
    figure = new_figure(7.5, 2.8)
    left, right = figure.subplots(1, 2)
    curves = (
        (left, "loss", BLUE, "training loss"),
        (right, "validation_epe_px", VERMILION, "validation error against labels, px"),
    )
    for axes, column, colour, label in curves:
        axes.plot(log["epoch"] + 1, log[column], color=colour, marker="o", markersize=3)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
    return figure


def nearest_figure(run: RunFolder, options: ReportOptions) -> Figure:
    """Tiles and those that the network takes for the same: fixed above, moving below, with their kC."""
    with np.load(run.file("similarity", "nearest.npz")) as saved:
        tile_id, nearest, similarity = saved["tile_id"], saved["nearest_tile_id"], saved["kc"]
    rows = np.unique(np.linspace(0, len(tile_id) - 1, options.queries).round().astype(int))
    count = min(options.nearest, nearest.shape[1])
    figure = new_figure(7.5, 7.5 / (count + 1) * 2.15 * len(rows))
    grid = figure.subplots(2 * len(rows), count + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()  # shows nothing but pictures, also where a tile has fewer neighbours
    for place, row in enumerate(rows):
        near = np.flatnonzero(nearest[row, :count] >= 0)
        shown = run.store.positions([tile_id[row], *nearest[row, near]]).tolist()
        titles = ["query", *_labels(similarity[row, near])]
        for column, (position, title) in enumerate(zip(shown, titles, strict=True)):
            tile = run.store.tile(position)
            fixed = display(tile.fixed, tile.fixed_valid, options.rgb)
            picture(grid[2 * place, column], fixed, title)
            if run.store.moving_channels == VECTOR_CHANNELS:
                moving = outlines(fixed, tile.moving[VECTOR_CHANNELS.index("edge")])
            else:
                moving = display(tile.moving, tile.moving_valid)
            picture(grid[2 * place + 1, column], moving, "")
    return figure


def _labels(similarity: np.typing.NDArray[np.floating]) -> list[str]:
    return [f"kC {value:.2f}" for value in similarity]
