"""Plots of the denoising stage: where how much noise is left, and which labels are doubtful."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from shapely.geometry import box

from regnet.files import write_figure

_DPI = 130
_ARROWS = 30  # doubtful labels that are drawn, worst first


def draw_factors(path: Path, tiles: gpd.GeoDataFrame, regions: gpd.GeoDataFrame) -> None:
    """Draw the smoother's factor by tile and by region, and the distribution of both estimators.

    Args:
        path: PNG file.
        tiles: pair, geometry, factor, smoother_factor; the map shows the pair with most of them.
        regions: geometry, smoother_factor.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    by_tile, by_region, counts = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    most = max(0.02, float(np.nanpercentile(tiles["smoother_factor"], 98)))
    here, pair = _largest_pair(tiles)
    there = regions[regions.intersects(box(*here.total_bounds))]
    for axes, table, title in ((by_tile, here, "tiles"), (by_region, there, "regions")):
        table.plot("smoother_factor", ax=axes, vmin=0, vmax=most, cmap="viridis_r", legend=axes is by_region)
        _on_the_ground(axes, f"{pair}: share of the label noise left, {title}")
    bins = np.linspace(0, max(most * 1.3, 1.05 * float(np.nanmax(tiles["factor"]))), 31).tolist()
    for name, label in (("smoother_factor", "linearised smoother"), ("factor", "kernel mean")):
        counts.hist(tiles[name], bins=bins, alpha=0.6, label=label)
    counts.set_xlabel("share of the label noise left (1: no averaging)", fontsize=8)
    counts.set_ylabel("tiles", fontsize=8)
    counts.tick_params(labelsize=7)
    counts.legend(frameon=False, fontsize=8, loc="upper right")
    write_figure(path, figure, _DPI)


def draw_audit(path: Path, tiles: gpd.GeoDataFrame, least_score: float) -> None:
    """Draw how doubtful every label is, where, and what is suggested instead of the worst.

    Args:
        path: PNG file.
        tiles: pair, geometry, audit_score, doubtful, and label and suggested offsets in px.
        least_score: from which on a label is listed as doubtful.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    places, ranks, offsets = figure.subplots(1, 3)
    here, pair = _largest_pair(tiles)
    here.plot("audit_score", ax=places, vmin=0, vmax=max(least_score, 2.0), cmap="cividis", legend=True)
    _on_the_ground(places, f"{pair}: score of the label")
    ranked = tiles.sort_values("audit_score", ascending=False)
    ranks.plot(np.arange(1, len(ranked) + 1), ranked["audit_score"])
    ranks.axhline(least_score, color="tab:red", linewidth=1)
    ranks.set_xscale("log")
    ranks.set_title(f"{int(tiles['doubtful'].sum())} of {len(tiles)} labels from the line on are doubtful", fontsize=9)
    ranks.set_xlabel("rank", fontsize=8)
    ranks.set_ylabel("leave-one-out residual over its expected size", fontsize=8)
    worst = ranked.head(_ARROWS)
    for row in worst.itertuples():
        start, end = (row.label_dx_px, row.label_dy_px), (row.suggested_dx_px, row.suggested_dy_px)
        colour = "tab:red" if row.doubtful else "tab:gray"
        offsets.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.8})
    ends = worst[["label_dx_px", "label_dy_px", "suggested_dx_px", "suggested_dy_px"]].to_numpy()
    reach = 1.1 * float(np.abs(ends).max(initial=0.1))
    offsets.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal")
    offsets.set_title(f"label to suggested label, the {len(worst)} worst (red: doubtful)", fontsize=9)
    offsets.set_xlabel("dx, px", fontsize=8)
    offsets.set_ylabel("dy, px", fontsize=8)
    for axes in (ranks, offsets):
        axes.tick_params(labelsize=7)
    write_figure(path, figure, _DPI)


def _largest_pair(tiles: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, str]:
    """Tiles of the pair that has most, and its name: scenes far from each other do not fit on one map."""
    pair = str(tiles["pair"].value_counts().index[0])
    return tiles[tiles["pair"] == pair], pair


def _on_the_ground(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set(xlabel="", ylabel="")
