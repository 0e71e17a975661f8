"""Neighbours side by side: what every similarity takes for most like a tile, as the paper shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regnet.draw import display, new_figure, picture, rows_that_fit
from regnet.report.folder import RunFolder
from regnet.report.options import ReportOptions

# Of every kind of eyes those that see both images are shown.
_SHOWN = ("kC", "both")
_QUERIES = 2  # each takes as many rows as there are similarities
_WIDTH_IN = 7.5


def run_neighbours_figure(run: RunFolder, options: ReportOptions) -> Figure:
    """Some tiles of a run beside those that gradients and other eyes take for most like them, with their outputs."""
    with np.load(run.file("evaluate", "neighbours.npz")) as saved:
        tile_id, names, nearest = saved["tile_id"], saved["name"].tolist(), saved["nearest_tile_id"]
    shown = [place for place, name in enumerate(names) if name.endswith(_SHOWN)]
    fit = rows_that_fit(_WIDTH_IN, _row_in(min(options.nearest, nearest.shape[2]))) // len(shown)
    wanted = max(1, min(options.queries, _QUERIES, fit))
    queries = np.unique(np.linspace(0, len(tile_id) - 1, wanted).round().astype(int))
    near = nearest[shown][:, queries, : options.nearest]
    ids, place_of = np.unique(np.concatenate([tile_id[queries], near.ravel()]), return_inverse=True)
    images = np.stack([run.store.tile(position).fixed for position in run.store.positions(ids).tolist()])
    outputs = run.table("similarity", "neighbours.parquet").set_index("tile_id")
    said = offsets(outputs.loc[ids, ["predicted_dx_px", "predicted_dy_px"]].to_numpy())
    asked, listed = place_of[: len(queries)], place_of[len(queries) :].reshape(near.shape)
    lists = {}
    for place, similarity in enumerate(shown):
        lists[names[similarity]] = np.zeros((len(ids), near.shape[2]), np.int64)
        lists[names[similarity]][asked] = listed[place]
    return side_by_side_figure(images, lists, asked.tolist(), options.rgb, dict.fromkeys(lists, said))


def offsets(values: NDArray[np.floating]) -> list[str]:
    """Offsets (n, 2) px as short texts, without negative zeros."""
    return [f"{dx:.1f}, {dy:.1f} px" for dx, dy in np.round(values, 1) + 0.0]


def side_by_side_figure(
    images: NDArray[np.float32],
    nearest: Mapping[str, NDArray[np.int64]],
    queries: Sequence[int],
    rgb: Sequence[int] = (),
    titles: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Draw, for every query, one row a similarity: the query, then its nearest tiles, best first.

    Args:
        images: (n, C, S, S) tiles, normalised.
        nearest: (n, k) positions of the nearest tiles, by the similarity's name.
        queries: positions of the tiles to show.
        rgb: bands for red, green and blue, counted from 1; the default of `display` if empty.
        titles: what is written over each of the n tiles of a similarity, for instance their outputs.

    Returns:
        The figure; draw within `matplotlib.rc_context(STYLE)`.
    """
    count = next(iter(nearest.values())).shape[1]
    rows = [(query, name) for query in queries for name in nearest]
    figure = new_figure(_WIDTH_IN, _row_in(count) * len(rows))
    grid = figure.subplots(len(rows), count + 1, squeeze=False)
    valid = np.ones(images.shape[2:], np.bool_)
    for cells, (query, name) in zip(grid, rows, strict=True):
        over = titles[name] if titles else [""] * len(images)
        for axes, place in zip(cells, (query, *nearest[name][query].tolist()), strict=True):
            picture(axes, display(images[place], valid, rgb), over[place])
        cells[0].set_ylabel(textwrap.fill(name, 20), fontsize=7)
    return figure


def _row_in(count: int) -> float:
    """Height of a row of a tile and `count` others, in."""
    return _WIDTH_IN / (count + 1) * 1.15
