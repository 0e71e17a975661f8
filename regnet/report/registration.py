"""The report of one registered pair: before and after, the displacement, its expected error, the tie points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from numpy.typing import NDArray

from regnet import draw
from regnet.files import write_text
from regnet.report.before_after import before_after
from regnet.report.page import Section, facts_of, render_page
from regnet.report.tables import Table, cell
from regnet.report.view import View, as_picture, look
from regnet.tiles.pair import PairReader

LISTED = 60
"""Tie points that the table shows, evenly drawn from all."""
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
    view = look(before, folder / "displacement.tif")
    sections = [_overview(summary)]
    with mpl.rc_context(draw.STYLE):
        sections.append(before_after(folder, before, after, view))
        sections += [
            _displacement(folder, view, ties),
            _error(folder, view.field, summary["bound_90_over_expected_error"]),
            _calibration(folder, errors, summary),
            *_familiarity(folder, view, ties, summary["familiarity"]),
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
    facts = {name: cell(summary[name]) for name in names}
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
        "taken. What that leaves open is part of the expected errors."
    ]


def _displacement(folder: Path, view: View, ties: Any) -> Section:
    """Arrows at the tie points that were believed, dots at the others, over fixed."""
    figure, axes = view.figure("Arrows from where fixed shows a place to where moving does")
    good = ties["status"].isin(["matched", "global stage only"]) & np.isfinite(ties["dx_px"])
    kept, lost = ties[good], ties[~good & (ties["status"] != "no data")]
    edge: Any = {"edgecolor": "black", "linewidth": 0.6}  # on bright ground and on water alike
    axes.scatter(*view.places(lost), s=12, facecolor=draw.VERMILION, **edge)
    if len(kept):
        longest = float(np.quantile(np.hypot(kept["dx_px"], kept["dy_px"]), 0.95))
        spacing = math.sqrt(view.fixed[..., 0].size / (len(kept) + len(lost)))
        factor = min(max(spacing, 8), max(view.fixed.shape) / 10) / max(longest, 1e-6)
        options: Any = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004, "facecolor": draw.SKY}
        lengths = kept["dx_px"] * factor, kept["dy_px"] * factor
        arrows = axes.quiver(*view.places(kept), *lengths, **options, **edge)
        key_px = _round(longest)
        key = axes.quiverkey(arrows, 0.9, 0.05, key_px * factor, f"{key_px:g} px", labelpos="N")
        key.text.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})
        axes.set_title(f"{axes.get_title()}; 95 % of them are shorter than {longest:.2f} px")
    text = "Blue arrows: tie points that were believed, as long as the key tells. Red dots: those that were rejected."
    return Section("Displacement", text, [as_picture(figure, folder, "The displacement at the tie points.")])


def _round(length: float) -> float:
    """The greatest 1, 2 or 5 times a power of ten up to a length."""
    power = 10.0 ** math.floor(math.log10(max(length, 1e-6)))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= length)


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
    section.pictures.append(as_picture(figure, folder, "Expected error, and length of the displacement."))
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
    section.pictures.append(as_picture(figure, folder, caption))
    return section


def _familiarity(folder: Path, view: View, ties: Any, familiarity: Mapping[str, Any] | None) -> Iterator[Section]:
    """How familiar the ground is to the model, place by place; nothing where that is not known."""
    if familiarity is None:
        return
    said = (
        "Mean similarity kC of places of the pair to the tiles that the model was trained on, as its gradients tell it "
    )
    said += "(1: the same, 0: unrelated). It says where the model is at home, not how large its errors are."
    section = Section("Familiarity", said, facts=facts_of(familiarity))
    known = ties[np.isfinite(ties["familiarity"])]
    if len(known):
        figure, axes = view.figure("similarity to the training tiles")
        places, values = view.places(known), known["familiarity"]
        shown = axes.scatter(*places, s=12, c=values, cmap=draw.ERROR_COLOURS, vmin=0, vmax=1)
        figure.colorbar(shown, ax=axes, shrink=0.8)
        section.pictures.append(as_picture(figure, folder, "Familiarity of the place nearest to each tie point."))
    yield section


def _ties(ties: Any) -> Section:
    """How many tie points have each status, and an even draw of them."""
    counts = ties["status"].value_counts()
    rows = [[status, str(count), f"{count / len(ties):.0%}"] for status, count in counts.items()]
    tables = [Table("What became of the tie points", ["status", "points", "share"], rows, [False] * len(rows))]
    columns = ("status", "col", "row", "dx_px", "dy_px", "expected_error_px", "backward_px", "confidence")
    listed = ties.iloc[np.unique(np.linspace(0, len(ties) - 1, LISTED).round().astype(int))] if len(ties) else ties
    cells = [[cell(getattr(point, name)) for name in columns] for point in listed.itertuples()]
    tables.append(Table(f"{len(listed)} of {len(ties)} tie points", list(columns), cells, [False] * len(cells)))
    said = "Every point of tie_points.gpkg carries what became of it. A local affine outlier is far from what its "
    said += "neighbours say, and the way back doubts it; what a forward-backward outlier brings to its place is found "
    return Section("Tie points", f"{said}elsewhere on the way back, backward_px away.", tables=tables)
