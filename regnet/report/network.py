"""A figure of the network: which tiles it takes for the same."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from regnet.draw import display, new_figure, outlines, picture, rows_that_fit
from regnet.report.folder import VECTOR_CHANNELS, RunFolder
from regnet.report.options import ReportOptions

_WIDTH_IN = 7.5


def nearest_figure(run: RunFolder, options: ReportOptions) -> Figure:
    """Tiles and those that the network takes for the same: fixed above, moving below, with their kC."""
    with np.load(run.file("similarity", "nearest.npz")) as saved:
        tile_id, nearest, similarity = saved["tile_id"], saved["nearest_tile_id"], saved["kc"]
    count = min(options.nearest, nearest.shape[1])
    row_in = _WIDTH_IN / (count + 1) * 2.15
    queries = min(options.queries, rows_that_fit(_WIDTH_IN, row_in))
    rows = np.unique(np.linspace(0, len(tile_id) - 1, queries).round().astype(int))
    figure = new_figure(_WIDTH_IN, row_in * len(rows))
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
