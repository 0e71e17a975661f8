"""Tables: the accuracy of the methods as text for the terminal and as cells for the report."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True)
class Table:
    """A titled table of text cells; `best` marks the rows to set off."""

    title: str
    head: list[str]
    rows: list[list[str]]
    best: list[bool]


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
        rows: columns name, similarity, kind, own, outputs_apart_px, averaged_label_error_px.
    """
    others = rows[~rows["own"]].set_index("name")
    heads = {"outputs_apart_px": "outputs apart, px", "averaged_label_error_px": "averaged labels off, px"}
    ways = ("5 nearest", "10 nearest", "power 1")
    wanted = [(column, way) for column in heads for way in ways]
    cells = [
        [name, *(cell(float(others.loc[f"{name}, {way}, without own", column])) for column, way in wanted)]
        for name in others["similarity"].unique()
    ]
    head = ["similarity", *(f"{heads[column]}: {way}" for column, way in wanted)]
    return [Table("Neighbours without the tile itself", head, cells, [False] * len(cells))]


def accuracy_text(summary: Mapping[str, Any]) -> str:
    """Mean end-point error in px of every method (columns) in every part and family (rows), as aligned text."""
    lines: list[list[str]] = []
    methods: list[str] = []
    for section, families in summary.items():
        if section.startswith("evaluation") and not section.endswith("_everything"):
            part = section.removeprefix("evaluation").removeprefix("_") or "test"
            for family, rows in families.items():
                methods = methods or list(rows)
                lines.append([part, family, *(cell(rows.get(name, {}).get("epe_mean_px")) for name in methods)])
    if not lines:
        return "no evaluation in this run"
    lines.insert(0, ["part", "displacement", *methods])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(["mean end-point error, px", *text])


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
    """A number or a text as a cell; a dash for what is not known."""
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
