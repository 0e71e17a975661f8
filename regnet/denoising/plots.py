"""Plots of the denoising stage: where how much noise is left, and which labels are doubtful."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from regnet.draw import BLUE, ORANGE, STYLE, display, new_figure, paint_tiles, picture, save, scale_bar, thumbnail
from regnet.tiles.store import TileStore

FACTOR_COLOURS, AUDIT_COLOURS = "viridis_r", "cividis"
_DPI = 110
_SCENE_PX = 900
_ARROWS = 30  # doubtful labels that are drawn, worst first


class _Ground(NamedTuple):
    """The scene of the pair with most tiles: scenes far from each other do not fit on one map.

    Attributes:
        pair: its name.
        tiles: those of the pair.
        grey: (h, w, 3) the scene reduced, 0 to 1.
        extent: of the picture, px of the scene: left, right, bottom, top.
    """

    pair: str
    tiles: pd.DataFrame
    grey: NDArray[np.float32]
    extent: tuple[int, int, int, int]


def draw_factors(path: Path, store: TileStore, tiles: gpd.GeoDataFrame, regions: gpd.GeoDataFrame) -> None:
    """Draw the smoother's factor by tile and by region, and distributions over the tiles.

    Args:
        path: PNG file.
        store: the tiles' scenes.
        tiles: pair, row, col, factor, smoother_factor, shift_px.
        regions: pair, geometry, smoother_factor.
    """
    ground = _ground(store, tiles)
    most = max(0.01, float(np.percentile(tiles["smoother_factor"], 98)))
    shades = ScalarMappable(Normalize(0, most), FACTOR_COLOURS)
    with mpl.rc_context(STYLE):
        figure = new_figure(10, 7.5)
        grid = figure.subplots(2, 2, height_ratios=(2, 1))
        for axes, what in zip(grid[0], ("tiles", "regions"), strict=True):
            _show(axes, store, ground, f"{ground.pair}: share of the label noise that is left, {what}")
        _paint(grid[0, 0], store, ground, "smoother_factor", shades)
        _paint_regions(grid[0, 1], store, ground, regions, shades)
        label = "denoising factor (1: no averaging)"
        figure.colorbar(shades, ax=grid[0], location="bottom", shrink=0.5, aspect=40, extend="max", label=label)
        _distributions(grid[1], tiles)
        save(figure, path, _DPI)


def draw_audit(path: Path, store: TileStore, tiles: gpd.GeoDataFrame, least_score: float) -> None:
    """Draw how doubtful every label is, where, and what is suggested instead of the worst.

    Args:
        path: PNG file.
        store: the tiles' scenes.
        tiles: pair, row, col, audit_score, doubtful, and label and suggested offsets in px.
        least_score: from which on a label is listed as doubtful.
    """
    ground = _ground(store, tiles)
    shades = ScalarMappable(Normalize(0, least_score), AUDIT_COLOURS)
    with mpl.rc_context(STYLE):
        figure = new_figure(10, 3.9)
        places, ranks, offsets = figure.subplots(1, 3)
        _show(places, store, ground, f"{ground.pair}: score of the label")
        _paint(places, store, ground, "audit_score", shades)
        label = "residual over its expected size"
        figure.colorbar(shades, ax=places, location="bottom", shrink=0.8, aspect=30, extend="max", label=label)
        ranked = tiles.sort_values("audit_score", ascending=False)
        ranks.plot(np.arange(1, len(ranked) + 1), ranked["audit_score"])
        ranks.axhline(least_score, color="tab:red", linewidth=1)
        ranks.set(xscale="log", xlabel="rank", ylabel="score", ylim=(0, None))
        ranks.set_title(f"{int(tiles['doubtful'].sum())} of {len(tiles)} labels from the line on are doubtful")
        _arrows(offsets, ranked.head(_ARROWS))
        save(figure, path, _DPI)


def _ground(store: TileStore, tiles: gpd.GeoDataFrame) -> _Ground:
    pair = str(tiles["pair"].value_counts().index[0])
    image, valid, step = thumbnail(store.scene(pair), _SCENE_PX)
    grey = display(image.mean(0, keepdims=True), valid)
    return _Ground(pair, tiles[tiles["pair"] == pair], grey, (0, grey.shape[1] * step, grey.shape[0] * step, 0))


def _show(axes: Axes, store: TileStore, ground: _Ground, title: str) -> None:
    picture(axes, ground.grey, title, extent=ground.extent)
    scale_bar(axes, ground.extent[1], store.scene(ground.pair).gsd_m)


def _paint(axes: Axes, store: TileStore, ground: _Ground, column: str, shades: ScalarMappable) -> None:
    paint_tiles(axes, ground.tiles, ground.tiles[column].to_numpy(), shades, store.tile_px, store.tile_px / 2)


def _paint_regions(
    axes: Axes, store: TileStore, ground: _Ground, regions: gpd.GeoDataFrame, shades: ScalarMappable
) -> None:
    """Paint the regions that hold tiles of the pair, in pixels of its scene."""
    scene = store.scene(ground.pair)
    own = regions[[ground.pair in pairs for pairs in regions["pairs"]]].to_crs(scene.crs)
    to_px = ~scene.transform
    outlines = own.geometry.affine_transform([to_px.a, to_px.b, to_px.d, to_px.e, to_px.c, to_px.f])
    outlines.plot(ax=axes, color=shades.to_rgba(own["smoother_factor"]), alpha=0.8, edgecolor="white", linewidth=0.5)
    axes.set(xlim=ground.extent[:2], ylim=ground.extent[2:], aspect="equal", xlabel="", ylabel="")


def _distributions(row: NDArray[np.object_], tiles: gpd.GeoDataFrame) -> None:
    """Histograms of both estimators of the factor and of the shift to the neighbours."""
    factors = {"linearised smoother": tiles["smoother_factor"], "kernel mean": tiles["factor"].dropna()}
    most = max(float(np.percentile(values, 98)) for values in factors.values() if len(values))
    bins = np.linspace(0, 1.05 * most, 31)
    for (name, values), colour in zip(factors.items(), (BLUE, ORANGE), strict=True):
        row[0].hist(values.clip(upper=bins[-1]), bins=bins.tolist(), color=colour, alpha=0.7, label=name)
    row[0].set(xlabel="denoising factor", ylabel="tiles")
    row[0].legend(frameon=False)
    row[1].hist(tiles["shift_px"].dropna(), bins=30, color=BLUE, alpha=0.7)
    row[1].set(xlabel="shift to what the neighbours say, px", ylabel="tiles")


def _arrows(axes: Axes, worst: gpd.GeoDataFrame) -> None:
    """Arrows from the labels to those that are suggested instead, px."""
    ends = worst[["label_dx_px", "label_dy_px", "suggested_dx_px", "suggested_dy_px"]].to_numpy()
    for (*start, dx, dy), doubtful in zip(ends.tolist(), worst["doubtful"], strict=True):
        colour = "tab:red" if doubtful else "tab:gray"
        axes.annotate("", (dx, dy), start, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.8})
    reach = 1.1 * float(np.abs(ends).max(initial=0.1))
    axes.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal", xlabel="dx, px", ylabel="dy, px")
    axes.set_title(f"label to suggested label, the {len(worst)} worst (red: doubtful)")
