"""What became of many pairs: a note in the folder of each, and a table over all of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regnet.files import read_json, whole_path, write_json

OUTCOME, EARLIER, TABLE = "outcome.json", "earlier_outcome.json", "pairs_summary.csv"
FAILED = "failed"
COLUMNS = (
    "folder",
    "row",
    "fixed",
    "moving",
    "status",
    "share_registered",
    "in_place_px",
    "shift_median_px",
    "shift_median_m",
    "expected_error_median_px",
    "expected_error_median_m",
    "error",
)
SHOWN = {
    "folder": "folder",
    "status": "status",
    "share_registered": "share",
    "in_place_px": "in place to, px",
    "shift_median_px": "shift, px",
    "expected_error_median_px": "expected error, px",
    "moving": "moving",
}


def write_outcome(folder: Path, given: Mapping[str, Any], code: int, error: str) -> None:
    """Note in the folder of a pair how its registration ended.

    Args:
        folder: of the pair.
        given: its `row`, `fixed` and `moving`.
        code: exit code.
        error: what went wrong, in one line; empty if nothing did.
    """
    told = {"folder": folder.name, "status": FAILED, "error": error}
    if not error:
        summary = read_json(folder / "summary.json")
        told |= {name: summary[name] for name in COLUMNS if name in summary}
    write_json(folder / OUTCOME, {**given, **told, "code": code})


def put_outcomes_aside(output_dir: Path) -> None:
    """Make the notes of an earlier command, which may have had other pairs, known as such."""
    for path in output_dir.glob(f"*/{OUTCOME}"):
        path.replace(path.with_name(EARLIER))


def gather_outcomes(output_dir: Path) -> list[dict[str, Any]]:
    """Read what became of the pairs in folders of `output_dir`."""
    return [read_json(path) for path in output_dir.glob(f"*/{OUTCOME}")]


def earlier_outcomes(output_dir: Path, pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Read what became of pairs in earlier commands: of those that are still these rows of a CSV, and not done anew."""
    found = [read_json(path) for path in output_dir.glob(f"*/{EARLIER}") if not path.with_name(OUTCOME).exists()]
    names = ("fixed", "moving")
    return [
        outcome
        for outcome in found
        if outcome["row"] < len(pairs) and all(outcome[name] == pairs[outcome["row"]][name] for name in names)
    ]


def write_table(output_dir: Path, outcomes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Write what became of pairs as a table; gives its rows in order."""
    rows = sorted(outcomes, key=lambda outcome: (len(outcome["folder"]), outcome["folder"]))
    with whole_path(output_dir / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def outcomes_text(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """The table as text for the terminal."""
    rows = [list(SHOWN.values()), *([_text(outcome.get(name)) for name in SHOWN] for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
