"""Figures of denoising: where, and by how much, the labels' noise was averaged away."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from regnet.report.draw import BLUE, ORANGE, display, new_figure, paint_tiles, picture, scale_bar, thumbnail
from regnet.report.folder import AbsentError, RunFolder
from regnet.report.options import ReportOptions

FACTOR_COLOURS = "viridis_r"


def factor_map_figure(run: RunFolder, options: ReportOptions) -> Figure:
    """The denoising factor of every tile on the scene with the most tiles."""
    tiles = run.table("denoise", "tiles.parquet")
    tiles = tiles[np.isfinite(tiles["smoother_factor"])]
    if tiles.empty:
        raise AbsentError("No tile has a denoising factor.")
    pair = tiles["pair"].value_counts().index[0]
    scene = run.store.scene(pair)
    image, valid, step = thumbnail(scene, options.scene_px)
    grey = display(image.mean(0, keepdims=True), valid)
    figure = new_figure(7.5, 6.4)
    axes = figure.subplots()
    extent = (0, grey.shape[1] * step, grey.shape[0] * step, 0)
    picture(axes, grey, f"{pair}: noise left in the prediction, per px of label noise", extent=extent)
    most = max(0.05, float(np.percentile(tiles["smoother_factor"], 98)))
    shades = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, most), FACTOR_COLOURS)
    here = tiles[tiles["pair"] == pair]
    paint_tiles(axes, here, here["smoother_factor"].to_numpy(), shades, run.store.tile_px, run.store.tile_px / 2)
    scale_bar(axes, extent[1], scene.gsd_m)
    figure.colorbar(
        shades, ax=axes, location="bottom", shrink=0.5, aspect=40, label="denoising factor (1: no averaging)"
    )
    return figure


def histogram_figure(run: RunFolder) -> Figure:
    """Distribution over tiles of the denoising factor, and of the shift to the neighbours."""
    tiles = run.table("denoise", "tiles.parquet")
    figure = new_figure(7.5, 2.8)
    left, right = figure.subplots(1, 2)
    bins = np.linspace(0, 1, 31).tolist()
    left.hist(tiles["smoother_factor"].clip(0, 1), bins=bins, color=BLUE, alpha=0.7, label="linearised smoother")
    left.hist(tiles["factor"].clip(0, 1), bins=bins, color=ORANGE, alpha=0.7, label="kernel mean")
    left.set_xlabel("denoising factor")
    left.set_ylabel("tiles")
    left.legend(frameon=False)
    right.hist(tiles["shift_px"].dropna(), bins=30, color=BLUE, alpha=0.7)
    right.set_xlabel("shift to what the neighbours say, px")
    right.set_ylabel("tiles")
    return figure
