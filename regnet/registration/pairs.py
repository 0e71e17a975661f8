"""Many pairs to register, named in a CSV."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from typing import Any

import yaml

from regnet.errors import ConfigError, InputError

PATHS = ("fixed", "moving")
"""Columns that every CSV of pairs has; their cells are taken as they are."""


def read_pairs(path: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read a CSV of pairs: the settings of `register`, row by row; empty cells are left out.

    Args:
        path: of the CSV.
        keys: names that a column may have, `section.key` for what lies in a section.

    Returns:
        Cells as text, but lists, mappings and null as what they mean in YAML.

    Raises:
        InputError: the file is missing, has no rows, lacks the columns fixed and moving, or a row has too many cells.
        ConfigError: a column is not a key, or a cell is no YAML.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV that can be read ({error}); check the path") from error
    if not rows or not set(PATHS) <= set(rows[0]):
        raise InputError(f"{path}: has no pairs; give columns fixed and moving, and one row a pair")
    for place, row in enumerate(rows):
        if None in row:
            raise InputError(f"{path}: row {place} has more cells than columns; put a cell with a comma in quotes")
    for name in rows[0]:
        if name not in keys:
            near = difflib.get_close_matches(name, keys, n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(keys)}"
            raise ConfigError(f"{path}: column {name} is not a key of register; {hint}")
    return [
        {name: _value(text, name, f"{path}: row {place}") for name, text in row.items() if text}
        for place, row in enumerate(rows)
    ]


def _value(text: str, name: str, where: str) -> Any:
    """What a cell means; the types of numbers and words are the schema's matter."""
    if name in PATHS or not (text == "null" or text.startswith(("[", "{"))):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {name}={text} cannot be read; write a list as [a, b]") from error
