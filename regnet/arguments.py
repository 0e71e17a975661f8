"""The words of a command line as Hydra takes them."""

from __future__ import annotations

import re
from pathlib import Path

from regnet.config import pair_rows
from regnet.errors import ConfigError

# Hydra's own flags that are passed on; those with a value take it from the next word.
FLAGS = {"--multirun", "-m", "--resolve", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
FLAGS_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-dir", "-cd"}

# A section that is switched by its own name: `adapt=true`, and `adapt=true,false` in a multirun.
SWITCHED = r"adapt=(true|false)(,(true|false))*"


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Put Hydra's flags after the overrides, wherever they were written; many pairs become a multirun.

    Raises:
        ConfigError: a flag is not known, a key is added or deleted, or as `pair_rows`.
        InputError: as `pair_rows`.
    """
    flags, overrides = [], []
    words = iter(_every_row(arguments))
    for word in words:
        bare = word.partition("=")[0]
        if not word.startswith("-"):
            overrides.append(_override(word))
        elif bare in FLAGS:
            flags.append(word)
        elif bare in FLAGS_WITH_VALUE:
            flags += [word] if "=" in word else [word, next(words, "")]
        else:
            raise ConfigError(f"{word} is not a flag; settings are given as key=value, see `regnet <command> --help`")
    return overrides + flags


def _every_row(arguments: list[str]) -> list[str]:
    """Make a multirun over its rows of a CSV of pairs."""
    named = dict(word.partition("=")[::2] for word in arguments if not word.startswith("-"))
    if "pairs" not in named or "row" in named:
        return arguments
    rows = range(len(pair_rows(named["pairs"])))
    return [*arguments, f"row={','.join(map(str, rows))}", "--multirun"]


def _override(word: str) -> str:
    """Refuse Hydra's additions and deletions, since the schema is closed; quote files that exist, and SQL filters."""
    if word.startswith(("+", "~")) and not word.lstrip("+~").startswith("hydra"):
        raise ConfigError(f"{word}: keys can neither be added nor deleted; write key=value")
    if re.fullmatch(SWITCHED, word):
        word = word.replace("=", ".enabled=", 1)
    key, _, value = word.partition("=")
    is_filter = key == "where" and value != "null" and not re.fullmatch(r"(['\"]).*\1", value)
    if (is_filter or Path(value).exists()) and not re.fullmatch(r"[\w./\\-]*", value):
        return f"{key}='" + value.replace("'", "\\'") + "'"
    return word
