"""The words of a command line as Hydra takes them."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from regnet.config import keys, pair_rows
from regnet.errors import ConfigError

# Hydra's own flags that are passed on; those with a value take it from the next word.
FLAGS = {"--multirun", "-m", "--resolve", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
FLAGS_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-dir", "-cd"}

# A section that is switched by its own name: `adapt=true`, and `adapt=true,false` in a multirun.
SWITCHED = r"adapt=(true|false)(,(true|false))*"

# What makes a sweep of a value.
SWEPT = r",|^(choice|range|interval|glob|shuffle|sort|tag)\("


def hydra_arguments(arguments: list[str], schema: type) -> list[str]:
    """Put Hydra's flags after the overrides, wherever they were written; many pairs become a multirun.

    Args:
        arguments: words of the command line behind the command.
        schema: of the command's settings.

    Raises:
        ConfigError: a flag is not known, a key is added or deleted, or as `pair_rows`.
        InputError: as `pair_rows`.
    """
    flags, overrides = [], []
    arguments = _every_row(arguments)
    sweeps = not {"--multirun", "-m"}.isdisjoint(arguments)
    texts = {key.path for key in keys(schema) if key.kind == "text"}
    words = iter(arguments)
    for word in words:
        bare = word.partition("=")[0]
        if not word.startswith("-"):
            overrides.append(_override(word, texts, sweeps))
        elif bare in FLAGS:
            flags.append(word)
        elif bare in FLAGS_WITH_VALUE:
            flags += [word] if "=" in word else [word, next(words, "")]
        else:
            raise ConfigError(f"{word} is not a flag; settings are given as key=value, see `regnet <command> --help`")
    return overrides + _row_folders(overrides, sweeps) + flags


def _every_row(arguments: list[str]) -> list[str]:
    """Make a multirun over its rows of a CSV of pairs."""
    named = dict(word.partition("=")[::2] for word in arguments if not word.startswith("-"))
    if "pairs" not in named or "row" in named:
        return arguments
    rows = range(len(pair_rows(named["pairs"])))
    return [*arguments, f"row={','.join(map(str, rows))}", "--multirun"]


def _row_folders(overrides: list[str], sweeps: bool) -> list[str]:
    """Where nothing but rows of a CSV of pairs is swept, each lands in the folder of its own number."""
    if not sweeps or not any(word.startswith("pairs=") for word in overrides):
        return []
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    return ["hydra.sweep.subdir=${row}"] if swept <= {"row"} else []


def _override(word: str, texts: Container[str], sweeps: bool) -> str:
    """Refuse Hydra's additions and deletions, since the schema is closed; a text is taken as it is written.

    Unquoted, Hydra would take `2020_01` for a number and a bracket for its own grammar. In a multirun, commas between
    values and Hydra's `choice(...)` and the like stay its own, unless a file is called so or it is an SQL filter.
    """
    if word.startswith(("+", "~")) and not word.lstrip("+~").startswith("hydra"):
        raise ConfigError(f"{word}: keys can neither be added nor deleted; write key=value")
    if re.fullmatch(SWITCHED, word):
        return word.replace("=", ".enabled=", 1)
    key, equals, value = word.partition("=")
    if not equals or key not in texts or value == "null" or re.fullmatch(r"(['\"]).*\1", value, re.DOTALL):
        return word
    if sweeps and key != "where" and re.search(SWEPT, value) and not _exists(value):
        return word
    quoted = value.replace("'", "\\'")
    if quoted.endswith("\\"):
        quoted += "\\"
    return f"{key}='{quoted}'"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # no path can be so long
        return False
