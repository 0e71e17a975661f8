"""Figures of the contest: which similarity says whose label noise was averaged, by how much, and where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from regnet.draw import BLUE, GREEN, ORANGE, PURPLE, display, new_figure, paint_tiles, picture, thumbnail
from regnet.tiles.store import Scene

KIND_COLOURS = {"gradient": BLUE, "perceptual": ORANGE, "pixels": GREEN, "features": PURPLE, "control": "#7f7f7f"}
_SCENE_PX = 500


def contest_figure(table: pd.DataFrame) -> Figure:
    """Noise transfer of the best weights of every similarity: with a tile's own label, and of the others alone.

    Args:
        table: columns similarity, kind, own, noise_transfer.
    """
    best = table.pivot_table("noise_transfer", ["kind", "similarity"], "own", aggfunc="max")
    best = best.sort_values(True).reset_index()
    figure = new_figure(7.5, 0.2 * len(best) + 1.0)
    axes = figure.subplots()
    colours = [KIND_COLOURS[kind] for kind in best["kind"]]
    axes.barh(best["similarity"], best[True], color=colours, alpha=0.4)
    if False in best:
        axes.barh(best["similarity"], best[False], color=colours, height=0.4)
    axes.set_xlabel("noise transfer: wide bars with the tile's own label, narrow ones without")
    axes.set_ylim(-0.6, len(best) - 0.4)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    there = [Patch(color=colour, label=kind) for kind, colour in KIND_COLOURS.items() if kind in set(best["kind"])]
    axes.legend(handles=there, loc="lower right", frameon=False)
    return figure


def transfer_maps_figure(
    scene: Scene, tiles: pd.DataFrame, transfer: Mapping[str, NDArray[np.floating]], tile_px: int
) -> Figure:
    """Noise transfer of two kinds of weights, tile by tile on one scale, and the first less the second.

    Args:
        scene: that the tiles are of.
        tiles: (n) with columns row, col.
        transfer: (n,) of each of two kinds.
        tile_px: side of a tile.
    """
    image, valid, step = thumbnail(scene, _SCENE_PX)
    grey = display(image.mean(0, keepdims=True), valid)
    extent = (0, grey.shape[1] * step, grey.shape[0] * step, 0)
    (one, first), (other, second) = transfer.items()
    panels = {one: first, other: second, f"{one} less {other}": first - second}
    figure = new_figure(7.5, 3.4)
    for axes, (title, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        alone = title in transfer
        shades = ScalarMappable(Normalize(0 if alone else -1, 1), "viridis" if alone else "RdBu")
        picture(axes, grey, title, extent=extent)
        paint_tiles(axes, tiles, values, shades, tile_px, tile_px)
        label = "noise transfer" if alone else f"blue: {one} explains more"
        figure.colorbar(shades, ax=axes, location="bottom", shrink=0.9, aspect=25, label=label)
    return figure
