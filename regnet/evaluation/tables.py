"""From errors to rows: by part, family and method, whole and by region, in px and in metres."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from regnet import metrics
from regnet.evaluation.predictions import Outcome
from regnet.report.tables import cell

# The sets of pixels that errors are summarised over, all valid in fixed and in moving.
PIXELS = STRUCTURE, BESIDE, EVERYTHING = ("structure", "beside", "everything")
METRES = ("epe_mean", "epe_median", "epe_p95")
SHOWN = {
    "part": "part",
    "family": "family",
    "method": "method",
    "epe_mean_px": "mean, px",
    "epe_median_px": "median, px",
    "epe_p95_px": "95 %, px",
    "epe_mean_m": "mean, m",
    "epe_median_m": "median, m",
    "epe_p95_m": "95 %, m",
    "ce90_px": "ce90, px",
    **{f"pck_{limit}px": f"within {limit} px" for limit in metrics.PCK_PX},
    "seconds": "seconds",
    "peak_memory_mb": "peak memory, MB",
    "status": "status",
}
TITLES = {STRUCTURE: "Where the ground has structure", BESIDE: "Everywhere beside it"}
OF_METHOD = ("seconds", "peak_memory_mb", "status")
"""What is the method's, whatever the pixels."""


@dataclass(frozen=True)
class Errors:
    """End-point errors of some pixels of one scene, with the length of a pixel on the ground."""

    px: NDArray[np.float32]
    gsd_m: float


def summary_row(
    errors: list[Errors], seconds: float, failures: list[str], blocks: int, peak_mb: float = float("nan")
) -> dict[str, Any]:
    """Summarise the errors of a method.

    Args:
        errors: of every block where the method gave an answer.
        seconds: wall time over all blocks.
        failures: messages from the blocks where it gave none.
        blocks: how many there are.
        peak_mb: largest resident memory of the process in any of them; NaN if not known.

    Returns:
        What `regnet.metrics.summarise` gives, `<metric>_m` beside it, `seconds`, `peak_memory_mb` and `status`: ok, or
        why and where the method failed.
    """
    px = np.concatenate([part.px.ravel() for part in errors]) if errors else np.zeros(0, np.float32)
    metres = np.concatenate([part.px.ravel() * part.gsd_m for part in errors]) if errors else px
    row: dict[str, Any] = dict(metrics.summarise(px))
    on_ground = metrics.summarise(metres)
    row.update({f"{name}_m": on_ground[f"{name}_px"] for name in METRES})
    status = "ok"
    if failures:
        status = f"failed in {len(failures)} of {blocks} blocks: {failures[0]}"
    return {**row, "seconds": seconds, "peak_memory_mb": peak_mb, "status": status}


def over_each(errors_px: NDArray[np.float32], structure: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    """Errors over what has structure, over everything beside it, and over both, each (n,)."""
    return {STRUCTURE: errors_px[structure], BESIDE: errors_px[~structure], EVERYTHING: errors_px.ravel()}


def select(outcome: Outcome, within: str) -> NDArray[np.float32]:
    """Errors of one outcome over one set of pixels; the outcome must not be a failure."""
    if outcome.errors_px is None:
        raise ValueError("a failed outcome has no errors")
    return over_each(outcome.errors_px, outcome.structure)[within]


def method_rows(outcomes: Iterable[Outcome], gsd_m: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows of one method in one part under one family.

    Args:
        outcomes: of every block and draw.
        gsd_m: length of a pixel on the ground, by pair.

    Returns:
        Rows of the whole part (`within` tells over which pixels) and rows of its regions (the blocks, over structure).
    """
    cases = list(outcomes)
    failures = [outcome.failure for outcome in cases if outcome.failure]
    done = [outcome for outcome in cases if not outcome.failure]
    seconds, peak_mb = sum(outcome.seconds for outcome in cases), max(outcome.peak_mb for outcome in cases)
    first = cases[0]
    key = {"part": first.case.part, "family": first.case.family.name, "method": first.method}
    rows = []
    for within in PIXELS:
        errors = [Errors(select(outcome, within), gsd_m[outcome.case.block.pair]) for outcome in done]
        rows.append({**key, "within": within, **summary_row(errors, seconds, failures, len(cases), peak_mb)})
    regions = []
    for block in dict.fromkeys(outcome.case.block.block_id for outcome in cases):
        here = [outcome for outcome in cases if outcome.case.block.block_id == block]
        pair = here[0].case.block.pair
        errors = [Errors(select(one, STRUCTURE), gsd_m[pair]) for one in here if not one.failure]
        summary = summary_row(
            errors,
            sum(one.seconds for one in here),
            [one.failure for one in here if one.failure],
            len(here),
            max(one.peak_mb for one in here),
        )
        regions.append({**key, "region": block, "pair": pair, **summary, "geometry": here[0].case.block.geometry})
    return rows, regions


def summary_tree(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Arrange the rows as `evaluation.<family>.<method>.<metric>`.

    Returns:
        `evaluation` (the test part over structure), `evaluation_<part>` for the other parts, and
        `evaluation_everything` (the test part without the structure mask). What a method reaches beside the structure
        is below `<method>.beside`, its errors alone.
    """
    tree: dict[str, Any] = {}
    for row in rows:
        name = "evaluation" if row["part"] == "test" else f"evaluation_{row['part']}"
        if row["within"] == EVERYTHING:
            name += "_everything"
        metrics_of = {key: value for key, value in row.items() if key not in ("part", "family", "method", "within")}
        method = tree.setdefault(name, {}).setdefault(row["family"], {}).setdefault(row["method"], {})
        if row["within"] == BESIDE:
            method[BESIDE] = {key: value for key, value in metrics_of.items() if key not in OF_METHOD}
        else:
            method |= metrics_of
    return tree


def markdown(rows: list[dict[str, Any]]) -> str:
    """The tables over the structure and beside it as Markdown; a failed method has dashes and says why."""
    texts = []
    for within, title in TITLES.items():
        lines = ["| " + " | ".join(SHOWN.values()) + " |", "| " + " | ".join("---" for _ in SHOWN) + " |"]
        chosen = [row for row in rows if row["within"] == within]
        lines += ["| " + " | ".join(cell(row[name]).replace("|", "/") for name in SHOWN) + " |" for row in chosen]
        texts.append("\n".join([f"{title}:", "", *lines]) + "\n")
    return "\n".join(texts)


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """All rows as a table for CSV."""
    return pd.DataFrame(rows)
