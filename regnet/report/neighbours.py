"""Neighbours side by side: what every similarity takes for most like a tile, as the paper shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regnet.report.draw import display, new_figure, picture


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
    figure = new_figure(7.5, 7.5 / (count + 1) * 1.15 * len(rows))
    grid = figure.subplots(len(rows), count + 1, squeeze=False)
    valid = np.ones(images.shape[2:], np.bool_)
    for cells, (query, name) in zip(grid, rows, strict=True):
        over = titles[name] if titles else [""] * len(images)
        shown = [(query, name), *((int(place), over[int(place)]) for place in nearest[name][query])]
        for axes, (place, title) in zip(cells, shown, strict=True):
            picture(axes, display(images[place], valid, rgb), title)
    return figure
