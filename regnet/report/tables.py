"""Tables: the accuracy of the methods as text for the terminal and as cells for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

HEADS = {
    "epe_mean_px": "mean, px",
    "epe_median_px": "median, px",
    "epe_p95_px": "95 %, px",
    "ce90_px": "ce90, px",
    "epe_mean_m": "mean, m",
    "beside": "mean beside structure, px",
    "pck_1px": "within 1 px",
    "pck_3px": "within 3 px",
    "seconds": "seconds",
    "peak_memory_mb": "memory, MB",
    "status": "status",
}


ROUND_HEADS = {
    "round": "round",
    "labels_epe_mean_px": "labels, mean px",
    "labels_systematic_px": "of it systematic, px",
    "corrected_epe_mean_px": "corrected labels, mean px",
    "corrected_systematic_px": "of it systematic, px",
    "trusted_share": "tiles corrected",
    "moved_px": "labels moved by, px",
    "model_epe_mean_px": "model on held-out ground, mean px",
    "model_epe_median_px": "median, px",
    "model_systematic_px": "systematic, px",
}


ESTIMATOR_HEADS = {
    "trainings": "trainings",
    "noise_transfer": "noise transfer",
    "spearman": "Spearman, tiles",
    "slope": "slope, tiles",
    "coverage": "in 90 % interval, tiles",
    "predicted_mean": "mean factor",
    "region_spearman": "Spearman, regions",
    "region_slope": "slope, regions",
    "region_coverage": "in 90 % interval, regions",
}
CONTEST_HEADS = {
    "noise_transfer": "noise transfer",
    "noise_transfer_tile_median": "median of tiles",
    "noise_transfer_region_mean": "mean of regions",
    "outputs_apart_px": "outputs apart, px",
    "averaged_label_error_px": "averaged labels off, px",
}


REGION_HEADS = {
    "region": "region",
    "tiles": "tiles",
    "smoother_factor": "factor",
    "factor": "factor by the kernel mean",
    "smoother_noise_px": "noise left, px",
    "loo_residual_px": "labels off from what others suggest, px",
    "doubtful_share": "share of doubtful labels",
}
AUDIT_HEADS = {
    "tile_id": "tile",
    "pair": "pair",
    "region": "region",
    "label_dx_px": "label dx, px",
    "label_dy_px": "label dy, px",
    "suggested_dx_px": "suggested dx, px",
    "suggested_dy_px": "suggested dy, px",
    "audit_score": "score",
}
_WORST = 12
"""Rows of the tables that show the worst of something."""
STAR = "* over the blocks that it did not fail on"
_LEAST = 0.001
"""Smaller numbers would show no digit."""


@dataclass(frozen=True)
class Table:
    """A titled table of text cells; `best` marks the rows to set off."""

    title: str
    head: list[str]
    rows: list[list[str]]
    best: list[bool]


def unknown_text(pairs: Sequence[str]) -> str:
    """What errors under known displacements are worth for pairs whose true offset nobody knows; empty without any."""
    if not pairs:
        return ""
    whose = f"pair {pairs[0]}" if len(pairs) == 1 else f"pairs {', '.join(pairs)}"
    return (
        f"Nobody knows the true offset of {whose}: errors under known displacements take it for aligned as it lies, so "
        "that what it is off by counts as an error too."
    )


def accuracy_tables(summary: Mapping[str, Any]) -> list[Table]:
    """One table a part and family of displacements, over ground with structure; one column is of all ground beside it.

    The least mean error is the best, among the methods that had an answer everywhere.
    """
    tables = []
    for section, families in summary.items():
        if not section.startswith("evaluation") or section.endswith("_everything"):
            continue
        part = section.removeprefix("evaluation").removeprefix("_") or "test"
        for family, methods in families.items():
            shown = {name: {**row, "beside": row.get("beside", {}).get("epe_mean_px")} for name, row in methods.items()}
            rows = [[name, *(cell(row.get(key)) for key in HEADS)] for name, row in shown.items()]
            means = [row.get("epe_mean_px") if row.get("status") == "ok" else None for row in methods.values()]
            least = min((mean for mean in means if mean is not None), default=None)
            best = [mean is not None and mean == least for mean in means]
            tables.append(Table(f"{part} part, {family} displacements", ["method", *HEADS.values()], rows, best))
    return tables


def round_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Errors of labels and model against the truth, round by round, if the training had rounds."""
    rounds = summary.get("train", {}).get("rounds", [])
    if not rounds:
        return []
    rows = [[cell(row.get(key)) for key in ROUND_HEADS] for row in rounds]
    title = "Rounds: errors against the truth, which training never sees; systematic is the mean vector's length"
    return [Table(title, list(ROUND_HEADS.values()), rows, [False] * len(rows))]


def neighbour_tables(rows: pd.DataFrame) -> list[Table]:
    """What neighbours by every similarity say, a tile's own label left out.

    Args:
        rows: columns name, similarity, kind, own, outputs_apart_px, averaged_label_error_px (not shown where it is NaN
            for all).
    """
    others = rows[~rows["own"]].set_index("name")
    heads = {"outputs_apart_px": "outputs apart, px", "averaged_label_error_px": "averaged labels off, px"}
    ways = ("5 nearest", "10 nearest", "power 1")
    wanted = [(column, way) for column in heads if others[column].notna().any() for way in ways]
    cells = [
        [name, *(cell(float(others.loc[f"{name}, {way}, without own", column])) for column, way in wanted)]
        for name in others["similarity"].unique()
    ]
    head = ["similarity", *(f"{heads[column]}: {way}" for column, way in wanted)]
    return [Table("Neighbours without the tile itself", head, cells, [False] * len(cells))]


def region_table(regions: pd.DataFrame) -> Table:
    """What is left of the noise by region, most first.

    Args:
        regions: columns of `REGION_HEADS`, as `denoise` writes them.
    """
    return _worst(
        regions.sort_values("smoother_factor", ascending=False), REGION_HEADS, "regions, those with most noise left"
    )


def audit_table(tiles: pd.DataFrame) -> Table:
    """The labels that fit worst, and what the other tiles suggest instead; doubtful ones are set off.

    Args:
        tiles: columns doubtful and those of `AUDIT_HEADS`, as `denoise` writes them.
    """
    ranked = tiles.sort_values("audit_score", ascending=False)
    return _worst(
        ranked, AUDIT_HEADS, "labels, those that fit worst; doubtful ones are marked", ranked["doubtful"].tolist()
    )


def _worst(ranked: pd.DataFrame, heads: Mapping[str, str], title: str, marked: Sequence[bool] | None = None) -> Table:
    """The first rows of a table that has the worst first; the title tells how many there are."""
    cells = [[cell(value) for value in row] for row in ranked[list(heads)].head(_WORST).itertuples(index=False)]
    marks = [False] * len(ranked) if marked is None else marked
    return Table(f"{len(cells)} of {len(ranked)} {title}", list(heads.values()), cells, list(marks[: len(cells)]))


def accuracy_text(summary: Mapping[str, Any]) -> str:
    """Mean end-point error in px of every method (columns) in every part and family (rows), as aligned text.

    A star marks the mean of a method that failed on some blocks, mostly the harder ones.
    """
    lines: list[list[str]] = []
    methods: list[str] = []
    for section, families in summary.items():
        if section.startswith("evaluation") and not section.endswith("_everything"):
            part = section.removeprefix("evaluation").removeprefix("_") or "test"
            for family, rows in families.items():
                methods = methods or list(rows)
                lines.append([part, family, *(_starred_mean(rows.get(name, {})) for name in methods)])
    if not lines:
        return "no evaluation in this run"
    lines.insert(0, ["part", "displacement", *methods])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    starred = any("*" in line for line in text)
    return "\n".join(["mean end-point error, px", *text, *([STAR] if starred else [])])


def _starred_mean(row: Mapping[str, Any]) -> str:
    mean = cell(row.get("epe_mean_px"))
    return f"{mean}*" if mean != cell(None) and row.get("status") != "ok" else mean


def estimator_table(rows: pd.DataFrame, best: str) -> Table:
    """Scores of the estimators of the denoising; `best` is the one that has everything."""
    cells = [[row["estimator"], *(cell(row[key]) for key in ESTIMATOR_HEADS)] for row in rows.to_dict("records")]
    of_best = (rows["estimator"] == best).tolist()
    return Table("Estimators against replicas", ["estimator", *ESTIMATOR_HEADS.values()], cells, of_best)


def contest_table(rows: pd.DataFrame) -> Table:
    """The best weights of every similarity, with the tile's own label and without.

    Args:
        rows: columns name, similarity, kind, own, noise_transfer and the keys of `CONTEST_HEADS`.
    """
    best = rows.loc[rows.groupby(["similarity", "own"])["noise_transfer"].idxmax()]
    best = best.sort_values("noise_transfer", ascending=False)
    cells = [[row["name"], row["kind"], *(cell(row[key]) for key in CONTEST_HEADS)] for row in best.to_dict("records")]
    first = best.groupby(["kind", "own"])["noise_transfer"].transform("max") == best["noise_transfer"]
    return Table("Weights", ["weights", "kind", *CONTEST_HEADS.values()], cells, first.tolist())


def cell(value: Any) -> str:
    """A number, a text or a list of these as a cell; a dash for what is not known."""
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value == 0 or abs(value) >= _LEAST else f"{value:.2e}"
