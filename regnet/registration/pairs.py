"""Many pairs to register, named in a CSV."""

from __future__ import annotations

import csv
from dataclasses import fields
from typing import Any

import yaml

from regnet.errors import ConfigError, InputError
from regnet.registration.options import RegisterOptions


def read_pairs(path: str) -> list[dict[str, Any]]:
    """Read a CSV of pairs: the options of `register`, row by row; empty cells are left out.

    Raises:
        InputError: the file is missing, has no rows, or lacks the columns fixed and moving.
        ConfigError: a column is not an option.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV that can be read ({error}); check the path") from error
    if not rows or not {"fixed", "moving"} <= set(rows[0]):
        raise InputError(f"{path}: has no pairs; give columns fixed and moving, and one row a pair")
    known = [spec.name for spec in fields(RegisterOptions)]
    for name in rows[0]:
        if name not in known:
            raise ConfigError(f"{path}: column {name} is not a key of register; choose among {', '.join(known)}")
    texts = [{name: value for name, value in row.items() if value} for row in rows]
    return [
        {name: value if name in ("fixed", "moving") else yaml.safe_load(value) for name, value in row.items()}
        for row in texts
    ]
