"""Figures of the ground: the split, before and after, errors of every method, and the overview of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch as LegendPatch
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from regnet.draw import (
    ERROR_COLOURS,
    PART_COLOURS,
    display,
    edges,
    new_figure,
    outlines,
    picture,
    scale_bar,
    thumbnail,
)
from regnet.report.folder import VECTOR_CHANNELS, AbsentError, Example, RunFolder
from regnet.report.options import ReportOptions

# Methods that a before-and-after figure shows, the best first; the first that ran is taken.
AFTER = ("model", "matcher_mind")
BEFORE = "none"

# Side of the windows that are shown before and after: small enough to see single pixels move.
WINDOW_PX = 208


def split_figure(run: RunFolder, options: ReportOptions) -> Figure:
    """Paint the parts on the scenes (at most six)."""
    pairs = run.store.pairs[:6]
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    figure = new_figure(7.5, 6.5 if columns == 1 else 3.0 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, pair in zip(grid, pairs, strict=False):
        scene = run.store.scene(pair)
        image, valid, step = thumbnail(scene, options.scene_px)
        shown = display(image, valid, options.rgb)
        picture(axes, shown, pair)
        blocks = run.store.blocks[run.store.blocks["pair"] == pair]
        for block in blocks.itertuples():
            colour = PART_COLOURS[block.part]
            corner = (block.col / step - 0.5, block.row / step - 0.5)
            size = (block.width / step, block.height / step)
            axes.add_patch(Rectangle(corner, *size, facecolor=colour, alpha=0.35, edgecolor="none"))
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=1.5))
        scale_bar(axes, shown.shape[1], scene.gsd_m * step)
    for axes in grid[len(pairs) :]:
        axes.remove()
    there = [part for part in PART_COLOURS if (run.store.blocks["part"] == part).any()]
    handles = [LegendPatch(color=PART_COLOURS[part], alpha=0.6, label=part) for part in there]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(there), frameon=False)
    return figure


def before_after_figure(run: RunFolder, family: str, options: ReportOptions) -> Figure:
    """Evaluated ground before and after: the lines of moving over fixed."""
    examples = run.examples(family, WINDOW_PX)[:2]
    method = _after(examples[0])
    figure = new_figure(7.5, 3.9 * len(examples))
    grid = figure.subplots(len(examples), 2, squeeze=False)
    for (left, right), example in zip(grid, examples, strict=True):
        _overlay(left, example, example.patch.moving, run, options, f"{example.part}: before")
        if method in example.warped:
            _overlay(right, example, example.warped[method], run, options, f"{example.part}: after, {method}")
        else:
            right.set_axis_off()
    return figure


def error_figure(run: RunFolder, family: str, options: ReportOptions) -> Figure:
    """Errors of every method on the same ground and one colour scale."""
    examples = run.examples(family, 512)
    methods = list(dict.fromkeys(method for example in examples for method in example.errors_px))
    if not methods:
        raise AbsentError("Every method failed on this ground; the table says why.")
    columns = min(len(methods), 4)
    strips = -(-len(methods) // columns)
    height, width = examples[0].patch.structure.shape
    figure = new_figure(7.5, (7.5 / columns * height / width + 0.5) * strips * len(examples) + 0.6)
    grid = figure.subplots(strips * len(examples), columns, squeeze=False)
    shown: Any = None
    for place, example in enumerate(examples):
        cells = grid[place * strips : (place + 1) * strips].ravel()
        for axes, method in zip(cells, methods, strict=False):
            if method in example.errors_px:
                errors = _counted(example, method)
                title = f"{example.part}: {method}\n{np.nanmean(errors):.2f} px"
                shown = picture(axes, errors, title, cmap=ERROR_COLOURS, vmin=0, vmax=options.error_limit_px)
        scale_bar(cells[0], example.patch.structure.shape[1], example.gsd_m)
        for axes in cells[len(methods) :]:
            axes.set_axis_off()
    figure.colorbar(shown, ax=grid, location="bottom", shrink=0.5, aspect=40, extend="max", label="end-point error, px")
    return figure


def overview_figure(run: RunFolder, family: str, options: ReportOptions) -> Figure:
    """The picture of a run: ground before and after, and the error before, training-free and of the model."""
    example = run.examples(family, WINDOW_PX)[0]
    method = _after(example)
    figure = new_figure(10, 7.4)
    grid = figure.subplots(2, 3)
    fixed = display(example.patch.fixed, example.patch.fixed_valid, options.rgb)
    seen = "trained on" if example.part == "train" else "not trained on"
    picture(grid[0, 0], fixed, f"fixed, {example.part} part, {seen}")
    scale_bar(grid[0, 0], fixed.shape[1], example.gsd_m)
    _overlay(grid[0, 1], example, example.patch.moving, run, options, "lines of moving over fixed, before")
    _overlay(grid[0, 2], example, example.warped[method], run, options, f"lines of moving over fixed, after ({method})")
    shown: Any = None
    for axes, name in zip(grid[1], _three(example), strict=True):
        if name is None:
            axes.set_axis_off()
            continue
        errors = _counted(example, name)
        label = {BEFORE: "before", "matcher_mind": "training-free"}.get(name, name)
        title = f"error, {label}: {np.nanmean(errors):.2f} px"
        shown = picture(axes, errors, title, cmap=ERROR_COLOURS, vmin=0, vmax=options.error_limit_px)
    figure.colorbar(shown, ax=grid, location="bottom", shrink=0.4, aspect=40, extend="max", label="end-point error, px")
    return figure


def _three(example: Example) -> list[str | None]:
    names = [name for name in (BEFORE, "matcher_mind", "model") if name in example.errors_px]
    return [*names, *[None] * (3 - len(names))]


def _counted(example: Example, method: str) -> NDArray[np.float32]:
    """Errors of a method where the ground has structure, which is what the tables count; NaN elsewhere."""
    return np.where(example.patch.structure, example.errors_px[method], np.float32(np.nan))


def _after(example: Example) -> str:
    there = [method for method in (*AFTER, *example.warped) if method in example.warped and method != BEFORE]
    if not there:
        raise AbsentError("No method registered this ground; the table says which were asked to, and why they failed.")
    return there[0]


def _overlay(
    axes: Axes, example: Example, moving: NDArray[np.float32], run: RunFolder, options: ReportOptions, title: str
) -> None:
    patch = example.patch
    fixed = display(patch.fixed, patch.fixed_valid, options.rgb)
    vector = run.store.moving_channels == VECTOR_CHANNELS
    lines = moving[VECTOR_CHANNELS.index("edge")] if vector else edges(moving, patch.moving_valid)
    shown = outlines(fixed, lines)
    picture(axes, shown, title)
    scale_bar(axes, shown.shape[1], example.gsd_m)
