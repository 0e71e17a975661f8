"""The summary of a run: what its stages found, in one dictionary."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from regnet.files import STAMP, read_json

STAGES = ("train", "similarity", "denoise", "evaluate")


def collect_summary(run: Path) -> dict[str, Any]:
    """Gather the summaries of the stages that are whole.

    Returns:
        `evaluation.<family>.<method>.<metric>` (other parts: `evaluation_<part>`), `denoise.<name>`, `train.<name>`,
        `similarity.<name>` and `regnet`, the version.
    """
    summary: dict[str, Any] = {"regnet": version("regnet")}
    for stage in STAGES:
        path = run / stage / "summary.json"
        if path.is_file() and (run / stage / STAMP).is_file():
            found = read_json(path)
            found.pop("settings", None)
            if stage == "evaluate":
                summary.update(found)
            else:
                summary[stage] = found
    return summary
