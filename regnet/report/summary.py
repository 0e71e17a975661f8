"""The summary of a run: what its stages found, in one dictionary."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from regnet.files import STAMP, read_json


def collect_summary(run: Path) -> dict[str, Any]:
    """Gather the summaries of the stages and studies that are whole.

    Returns:
        `evaluation.<family>.<method>.<metric>` (other parts: `evaluation_<part>`), `denoise.<name>`, `train.<name>`,
        `similarity.<name>`, `<study>.<name>` and `regnet`, the version. What a study has under `denoise` joins what
        the stage found.
    """
    summary: dict[str, Any] = {"regnet": version("regnet")}
    for path in sorted(run.glob("[!.]*/summary.json")):
        if (path.parent / STAMP).is_file():
            found = read_json(path)
            found.pop("settings", None)
            if "denoise" in found:
                summary["denoise"] = summary.get("denoise", {}) | found.pop("denoise")
            if path.parent.name == "evaluate":
                summary.update(found)
            else:
                summary[path.parent.name] = found
    return summary
