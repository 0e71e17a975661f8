"""The report of the study `denoising_validation`: is the predicted denoising true, and whose noise was averaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from regnet.files import read_json, write_text
from regnet.report.page import Picture, Section, facts_of, inlined, render_page
from regnet.report.tables import cell, contest_table, estimator_table


def report_study(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `report.html` of what a study's folder holds.

    Args:
        folder: with summary.json, estimators.csv, contest/table.csv and the figures beside them.
        settings: what the study was made with.
    """
    summary = read_json(folder / "summary.json")
    duels = {
        f"{name}, {ways} own label": cell(summary["contest"][f"{ways}_own_label"][key])
        for ways in ("with", "without")
        for name, key in (("gradients over perceptual", "ratio"), ("regions that gradients win", "regions_won_share"))
    }
    sections = [
        Section(
            "Is the predicted denoising true?",
            f"{summary['replicas']} trainings from one start, on the same tiles, each on its own draw of label noise. "
            "The true factor of a tile is how much its prediction differs between them, over the size of the noise; an "
            "estimator predicts it without the truth. Noise transfer: the correlation of what its weights make of each "
            "draw with what became of the prediction.",
            [
                _picture(
                    folder, "factors", "True factors against predicted ones, with 90 % intervals: tiles, regions."
                ),
                _picture(folder, "estimators", "All estimators."),
            ],
            [estimator_table(pd.read_csv(folder / "estimators.csv"), summary["estimator"])],
            facts_of({key: value for key, value in summary.items() if key != "estimator"}),
        ),
        Section(
            "Whose noise was averaged: gradients and other eyes",
            "The best weights that each similarity gives, with the tile's own label and without it.",
            [
                _picture(folder / "contest", "scores", "Noise transfer of every similarity."),
                _picture(folder / "contest", "maps", "By tile, on one scale; right: the first less the second."),
                _picture(folder / "contest", "neighbours", "Tiles and those that each takes for the same."),
            ],
            [contest_table(pd.read_csv(folder / "contest" / "table.csv"))],
            duels,
        ),
        Section(
            "Label audit",
            "Some labels were moved far: how many of those listed are such, and how many are listed.",
            facts=facts_of(summary["audit"]),
        ),
    ]
    text = yaml.safe_dump(dict(settings), sort_keys=False)
    write_text(folder / "report.html", render_page(folder.resolve().parent.name, sections, {folder.name: text}))


def _picture(folder: Path, name: str, caption: str) -> Picture:
    return Picture(inlined(folder / f"{name}.png"), caption)
