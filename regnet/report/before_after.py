"""Windows of a pair before and after its registration, fixed and moving in one picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet import draw
from regnet.geo.grid import Box
from regnet.report.page import Section
from regnet.report.view import View, as_picture
from regnet.tiles.pair import PairReader

WINDOW_PX, SQUARES, WINDOWS = 224, 4, 2


def before_after(folder: Path, before: PairReader, after: PairReader | None, view: View) -> Section:
    """Windows with the largest displacement, as they were and as they are."""
    what = "lines of moving over fixed" if before.polygons is not None else "squares of fixed and moving in turn"
    section = Section(
        "Before and after", f"Windows at full resolution: {what}. Lines must go on from one to the other."
    )
    boxes = largest(view)
    if after is None or not boxes:
        section.note = "Nothing was moved, so there is nothing to compare."
        return section
    figure = draw.new_figure(7.5, 3.9 * len(boxes))
    grid = figure.subplots(len(boxes), 2, squeeze=False)
    for row, box in zip(grid, boxes, strict=True):
        shown = together(before, after, box)
        for axes, image, name in zip(row, shown, ("before", "after"), strict=True):
            draw.picture(axes, image, f"{name}, column {box.col}, row {box.row}")
            draw.scale_bar(axes, image.shape[1], before.gsd_m)
    section.pictures.append(as_picture(figure, folder, "Before and after registration."))
    return section


def together(before: PairReader, after: PairReader, box: Box) -> list[NDArray[np.float32]]:
    """Both images of a window in one picture, before and after; what is the same in both has the same shade."""
    patches = [reader.read(box.row, box.col, box.height, box.width) for reader in (before, after)]
    fixed, fixed_valid = patches[0].fixed, patches[0].fixed_valid
    if before.polygons is not None:
        return [draw.outlines(draw.display(fixed, fixed_valid), patch.moving[1]) for patch in patches]
    moving = np.concatenate([patch.moving for patch in patches], axis=1)
    shades = draw.evened(moving, np.concatenate([patch.moving_valid for patch in patches]))
    side = math.ceil(max(box.height, box.width) / SQUARES)
    rows, cols = np.ogrid[: box.height, : box.width]
    even = (rows // side + cols // side) % 2 == 0
    # Grey on grey: the eye follows lines across the squares, not colours.
    grey = draw.evened(fixed, fixed_valid)
    return [np.where(even, grey, half)[..., None].repeat(3, -1) for half in np.split(shades, 2)]


def largest(view: View) -> list[Box]:
    """The windows of the working grid with the largest mean displacement, apart from one another."""
    moved = np.where(np.isfinite(view.field[2]), np.hypot(view.field[0], view.field[1]), 0)
    height, width = (min(WINDOW_PX, side) for side in (view.seen.height, view.seen.width))
    boxes: list[Box] = []
    step = max(1, round(WINDOW_PX / 2 / view.step))
    candidates = [
        (float(moved[row : row + 2 * step, col : col + 2 * step].mean()), row, col)
        for row in range(0, max(moved.shape[0] - step, 1), step)
        for col in range(0, max(moved.shape[1] - step, 1), step)
    ]
    for length, row, col in sorted(candidates, reverse=True):
        top = _within(view.box.row + row * view.step, view.seen.row, view.seen.height - height)
        left = _within(view.box.col + col * view.step, view.seen.col, view.seen.width - width)
        apart = all(max(abs(box.row - top), abs(box.col - left)) >= WINDOW_PX for box in boxes)
        if length > 0 and apart and len(boxes) < WINDOWS:
            boxes.append(Box(top, left, height, width))
    return boxes


def _within(place: float, first: int, room: int) -> int:
    return min(max(int(place), first), first + room)
