"""The report of one registered pair: before and after, the displacement, its expected error, the tie points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import rasterio
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.enums import Resampling

from regnet.files import write_text
from regnet.geo.grid import Box
from regnet.geo.raster import GridRaster
from regnet.report import draw
from regnet.report.build import Picture, Section, inlined, render_page
from regnet.report.tables import Table
from regnet.tiles.pair import PairReader

LONGEST_PX, WINDOW_PX, SQUARES, WINDOWS = 700, 224, 4, 2
LISTED = 60
"""Tie points that the table shows, evenly drawn from all."""
DPI = 110
LEAST_SHOWN_PX, GROUPS = 0.01, 8
"""Least error that the plot of calibration shows, and the groups of places of like expectation."""
Errors = tuple[NDArray[np.float32], NDArray[np.float32]]


def report_registration(
    folder: Path,
    before: PairReader,
    after: PairReader | None,
    summary: Mapping[str, Any],
    ties: Any,
    errors: Errors | None,
) -> None:
    """Write `report.html` about a folder of finished outputs.

    Args:
        folder: holds displacement.tif; the report lands there.
        before: the pair as it was.
        after: the pair with moving in its new place; None if there is nothing to show of it.
        summary: what summary.json says.
        ties: GeoDataFrame of the tie points.
        errors: as stated and as made, (n,) each, px, at places that were displaced by a known field; None if none was.
    """
    grid = before.grid
    shape = max(1, round(grid.height / _step(before))), max(1, round(grid.width / _step(before)))
    with rasterio.open(folder / "displacement.tif") as source:
        field = source.read(out_shape=(3, *shape), resampling=Resampling.nearest)
    sections = [_overview(summary)]
    with mpl.rc_context(draw.STYLE):
        sections.append(_before_after(folder, before, after, field))
        sections += [
            _displacement(folder, before, ties),
            _error(folder, field, summary["bound_90_over_expected_error"]),
            _calibration(folder, errors, summary),
            *_familiarity(folder, before, ties, summary["familiarity"]),
            _ties(ties),
        ]
    settings = {"register": yaml.safe_dump(dict(summary["settings"]), sort_keys=False)}
    title = f"{Path(summary['settings']['moving']).name} onto {Path(summary['settings']['fixed']).name}"
    write_text(folder / "report.html", render_page(title, sections, settings))


def _overview(summary: Mapping[str, Any]) -> Section:
    """The summary in words and numbers."""
    said = _result(summary)
    said += [f"Global stage: {summary['global_stage']['reason']}.", *_common(summary["common_shift"])]
    said += [f"{note}." for note in summary["notes"]]
    names: tuple[str, ...] = ("status", "shift_median_px", "shift_median_m", "shift_p95_px", "expected_error_median_px")
    names += ("expected_error_median_m", "share_with_data", "gsd_m", "width_px", "height_px", "seconds")
    facts = {name: _text(summary[name]) for name in names}
    for status, count in (summary["polygons"] or {}).items():
        facts[f"features {status}"] = str(count)
    return Section("Overview", " ".join(said), facts=facts)


def _result(summary: Mapping[str, Any]) -> list[str]:
    """What was registered, and what is known of the rest."""
    share, outcome, place_px = (summary[name] for name in ("share_registered", "outcome", "in_place_px"))
    registered = f"{share:.0%} of the ground with data in both is registered; elsewhere nothing was moved."
    said = [registered if share > 0 else f"{outcome[0].upper()}{outcome[1:]}."]
    if place_px is not None:
        said.append(
            f"Matches of the ground that was left as it is say that it is off by no more than {place_px:.1f} px, nine "
            "times in ten."
        )
    return said


def _common(shift: Mapping[str, Any]) -> list[str]:
    """What was made of the shift of the whole pair, unless it was all believed."""
    if shift["share_taken"] >= 1 or shift["doubt_px"] == 0:
        return []
    dx, dy = shift["found_px"]
    return [
        f"The whole pair is found shifted by ({dx:.2f}, {dy:.2f}) px; images that agree as badly are found shifted by "
        f"{shift['doubt_px']:.2f} px (rms) when in place, so {shift['share_taken']:.0%} of it was "
        "taken. Errors are stated beside that shift."
    ]


def _before_after(folder: Path, before: PairReader, after: PairReader | None, field: NDArray[np.float32]) -> Section:
    """Windows with the largest displacement, as they were and as they are."""
    what = "lines of moving over fixed" if before.polygons is not None else "squares of fixed and moving in turn"
    section = Section(
        "Before and after", f"Windows at full resolution: {what}. Lines must go on from one to the other."
    )
    boxes = _windows(field, before.shape)
    if after is None or not boxes:
        section.note = "Nothing was moved, so there is nothing to compare."
        return section
    figure = draw.new_figure(7.5, 3.9 * len(boxes))
    grid = figure.subplots(len(boxes), 2, squeeze=False)
    for row, box in zip(grid, boxes, strict=True):
        for axes, reader, name in zip(row, (before, after), ("before", "after"), strict=True):
            shown = _together(reader, box)
            draw.picture(axes, shown, f"{name}, column {box.col}, row {box.row}")
            draw.scale_bar(axes, shown.shape[1], before.gsd_m)
    section.pictures.append(_picture(figure, folder, "Before and after registration."))
    return section


def _together(reader: PairReader, box: Box) -> NDArray[np.float32]:
    """One picture of both images of a window."""
    patch = reader.read(box.row, box.col, box.height, box.width)
    fixed = draw.display(patch.fixed, patch.fixed_valid)
    if reader.polygons is not None:
        return draw.outlines(fixed, patch.moving[1])
    moving = draw.display(patch.moving, patch.moving_valid)
    side = math.ceil(max(box.height, box.width) / SQUARES)
    rows, cols = np.ogrid[: box.height, : box.width]
    even = ((rows // side + cols // side) % 2 == 0)[..., None]
    # Grey on grey: the eye follows lines across the squares, not colours.
    return np.asarray(np.where(even, fixed.mean(-1, keepdims=True), moving.mean(-1, keepdims=True)).repeat(3, -1))


def _windows(field: NDArray[np.float32], shape: tuple[int, int]) -> list[Box]:
    """The windows with the largest mean displacement, apart from one another."""
    moved = np.where(np.isfinite(field[2]), np.hypot(field[0], field[1]), 0)
    scale = shape[0] / moved.shape[0]
    height, width = (min(WINDOW_PX, side) for side in shape)
    boxes: list[Box] = []
    step = max(1, round(WINDOW_PX / 2 / scale))
    candidates = [
        (float(moved[row : row + 2 * step, col : col + 2 * step].mean()), row, col)
        for row in range(0, max(moved.shape[0] - step, 1), step)
        for col in range(0, max(moved.shape[1] - step, 1), step)
    ]
    for length, row, col in sorted(candidates, reverse=True):
        top, left = min(int(row * scale), shape[0] - height), min(int(col * scale), shape[1] - width)
        apart = all(max(abs(box.row - top), abs(box.col - left)) >= WINDOW_PX for box in boxes)
        if length > 0 and apart and len(boxes) < WINDOWS:
            boxes.append(Box(top, left, height, width))
    return boxes


def _displacement(folder: Path, reader: PairReader, ties: Any) -> Section:
    """Arrows at the tie points that were believed, dots at the others, over fixed."""
    step = _step(reader)
    figure, axes = _over_fixed(reader, "Arrows from where fixed shows a place to where moving does")
    good = ties["status"].isin(["matched", "global stage only"]) & np.isfinite(ties["dx_px"])
    kept, lost = ties[good], ties[~good]
    axes.plot(lost["col"] / step, lost["row"] / step, ".", color=draw.VERMILION, markersize=2)
    if len(kept):
        longest = float(np.quantile(np.hypot(kept["dx_px"], kept["dy_px"]), 0.95))
        spacing = max(reader.shape) / step / max(math.sqrt(len(ties)), 1)
        factor = max(spacing, 8) / max(longest, 1e-6)
        places = (kept["col"] / step, kept["row"] / step, kept["dx_px"] * factor, kept["dy_px"] * factor)
        options: Any = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.0025}
        axes.quiver(*places, color=draw.SKY, **options)
        axes.set_title(f"{axes.get_title()}; 95 % of them are shorter than {longest:.2f} px")
    text = "Blue arrows: tie points that were believed, not to scale. Red dots: those that were rejected."
    return Section("Displacement", text, [_picture(figure, folder, "The displacement at the tie points.")])


def _error(folder: Path, field: NDArray[np.float32], bound_90: float) -> Section:
    """Map of the expected error and of the displacement's length."""
    known = np.isfinite(field[2])
    said = "Half of the end-point errors are expected to be below this, 90 % below "
    said += f"{bound_90:.3g} times this, px; grey where it abstained."
    section = Section("Expected error", said)
    if not known.any():
        section.note = "It abstained everywhere: no error is known."
        return section
    figure = draw.new_figure(7.5, 3.9)
    layers = (("expected error, px", field[2]), ("length of the displacement, px", np.hypot(field[0], field[1])))
    for axes, (name, values) in zip(figure.subplots(1, 2), layers, strict=True):
        limit = float(np.quantile(values[known], 0.98)) or 1.0
        shown = np.ma.masked_where(~known, values)
        drawn = draw.picture(axes, shown, name, cmap=draw.ERROR_COLOURS, vmin=0, vmax=limit)
        figure.colorbar(drawn, ax=axes, shrink=0.8, extend="max")
    section.pictures.append(_picture(figure, folder, "Expected error, and length of the displacement."))
    return section


def _calibration(folder: Path, errors: Errors | None, summary: Mapping[str, Any]) -> Section:
    """Errors of following a known displacement against what was expected of them."""
    said = "Windows of this pair were displaced by a known field and matched again: how far the answers are from the "
    said += "first ones carried along. What both have wrong alike, such as a shift between what two sensors show, is "
    section = Section("Expected and made errors", f"{said}not seen here.")
    if errors is None:
        section.note = "No window with enough data was tested."
        return section
    check, factor = summary["check"], summary["bound_90_over_expected_error"]
    section.facts = {"windows": str(check["windows"])}
    for level in (50, 90):
        section.facts[f"within the {level} % bound"] = f"{check[f'within_{level}']:.0%}"
    stated, made = (np.maximum(values, LEAST_SHOWN_PX) for values in errors)
    figure = draw.new_figure(5.5, 4.5)
    axes = figure.subplots()
    axes.loglog(stated, made, ".", color="0.75", markersize=2)
    ends = np.array([min(stated.min(), made.min()), max(stated.max(), made.max())])
    axes.plot(ends, ends, color=draw.SKY, label="50 % should lie below")
    axes.plot(ends, factor * ends, color=draw.VERMILION, label="90 % should lie below")
    order = np.argsort(stated)
    groups = np.array_split(order, min(GROUPS, len(order)))
    centres = [np.median(stated[group]) for group in groups]
    for share, colour in ((0.5, draw.SKY), (0.9, draw.VERMILION)):
        axes.plot(centres, [np.quantile(made[group], share) for group in groups], "o", color=colour)
    axes.set(xlabel="expected error, px", ylabel="error made, px")
    axes.legend()
    caption = "Errors made against errors expected. Dots: 50 % and 90 % of the errors of places of like expectation."
    section.pictures.append(_picture(figure, folder, caption))
    return section


def _familiarity(
    folder: Path, reader: PairReader, ties: Any, familiarity: Mapping[str, Any] | None
) -> Iterator[Section]:
    """How familiar the ground is to the model, place by place; nothing where that is not known."""
    if familiarity is None:
        return
    said = (
        "Mean similarity kC of places of the pair to the tiles that the model was trained on, as its gradients tell it "
    )
    said += "(1: the same, 0: unrelated). It says where the model is at home, not how large its errors are."
    section = Section("Familiarity", said, facts={name: _text(value) for name, value in familiarity.items()})
    known = ties[np.isfinite(ties["familiarity"])]
    if len(known):
        figure, axes = _over_fixed(reader, "similarity to the training tiles")
        cols, rows = (known[name] / _step(reader) for name in ("col", "row"))
        shown = axes.scatter(cols, rows, s=12, c=known["familiarity"], cmap=draw.ERROR_COLOURS, vmin=0, vmax=1)
        figure.colorbar(shown, ax=axes, shrink=0.8)
        section.pictures.append(_picture(figure, folder, "Familiarity of the place nearest to each tie point."))
    yield section


def _over_fixed(reader: PairReader, title: str) -> tuple[Figure, Axes]:
    """A figure with an overview of fixed, to draw on; one pixel of it stands for `_step(reader)`."""
    step = _step(reader)
    coarse = reader.grid.coarser(reader.gsd_m * step)
    with GridRaster(reader.options.fixed, coarse, reader.options.fixed_bands) as raster:
        image, valid = raster.read(Box(0, 0, coarse.height, coarse.width))
    figure = draw.new_figure(7.5, 7.5 * max(coarse.height / coarse.width, 0.25) + 0.4)
    axes = figure.subplots()
    draw.picture(axes, draw.display(reader.fixed_scaling.normalise(image, valid), valid), title)
    draw.scale_bar(axes, coarse.width, reader.gsd_m * step)
    return figure, axes


def _ties(ties: Any) -> Section:
    """How many tie points have each status, and an even draw of them."""
    counts = ties["status"].value_counts()
    rows = [[status, str(count), f"{count / len(ties):.0%}"] for status, count in counts.items()]
    tables = [Table("What became of the tie points", ["status", "points", "share"], rows, [False] * len(rows))]
    columns = ("status", "col", "row", "dx_px", "dy_px", "expected_error_px", "backward_px", "confidence")
    listed = ties.iloc[np.unique(np.linspace(0, len(ties) - 1, LISTED).round().astype(int))] if len(ties) else ties
    cells = [[_text(getattr(point, name)) for name in columns] for point in listed.itertuples()]
    tables.append(Table(f"{len(listed)} of {len(ties)} tie points", list(columns), cells, [False] * len(cells)))
    said = "Every point of tie_points.gpkg carries what became of it. A local affine outlier is far from what its "
    said += "neighbours say, and the way back doubts it; what a forward-backward outlier brings to its place is found "
    return Section("Tie points", f"{said}elsewhere on the way back, backward_px away.", tables=tables)


def _step(reader: PairReader) -> float:
    """Pixels of the working grid that one pixel of an overview stands for."""
    return max(1.0, min(max(reader.shape) / LONGEST_PX, min(reader.shape)))


def _picture(figure: Figure, folder: Path, caption: str) -> Picture:
    scratch = folder / ".figure.png"
    draw.save(figure, scratch, DPI)
    source = inlined(scratch)
    scratch.unlink()
    return Picture(source, caption)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "–"
    return str(value)
