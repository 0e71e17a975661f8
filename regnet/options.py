"""One way to declare an option: its default, unit, range and meaning beside the field.

The rooms declare their options as frozen dataclasses whose fields are made by `option`; `regnet.config` composes them
into the Hydra schema, checks them with `check_options` and prints them in `--help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, field, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from regnet.errors import ConfigError

_KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
}
MOST = 2**31 - 1
"""Whole numbers are no larger, where their option does not say otherwise."""


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Declare a dataclass field with its meaning, unit and range of allowed values (both ends included)."""
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "choices": tuple(choices) if choices else None}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def recipe(options: Any) -> dict[str, Any]:
    """What an outcome depends on: all settings but those that say how much memory may be taken (unit MB)."""
    settings: dict[str, Any] = asdict(options)
    for spec in fields(options):
        if spec.metadata.get("unit") == "MB":
            del settings[spec.name]
    return settings


def check_options(options: Any, prefix: str = "") -> None:
    """Check every field of a dataclass tree against its declared range.

    Args:
        options: dataclass instance; nested dataclasses and lists of them are checked too.
        prefix: dotted path of `options` in the configuration, for messages.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    hints = get_type_hints(type(options))
    for spec in fields(options):
        value, key = getattr(options, spec.name), f"{prefix}{spec.name}"
        if is_dataclass(value):
            check_options(value, f"{key}.")
        elif isinstance(value, list | tuple) and get_origin(hints[spec.name]) is list:
            for position, item in enumerate(value):
                if is_dataclass(item):
                    check_options(item, f"{key}.{position}.")
                else:
                    _check_value(item, key, spec.metadata)
        else:
            if value == "" and spec.default is MISSING and spec.default_factory is MISSING:
                raise ConfigError(f"{key} is empty; give {key}=...")
            _check_type(value, key, hints[spec.name])
            _check_value(value, key, spec.metadata)


def check_names(names: Sequence[str], key: str) -> None:
    """Check names that tell things apart, in tables and as parts of file names.

    Raises:
        ConfigError: two are the same, or one has other characters than letters, digits, - and _.
    """
    for name in names:
        if names.count(name) > 1 or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"{key}: name {name!r} is not unique or not made of letters, digits, - and _")


def _check_type(value: Any, key: str, hint: Any) -> None:
    """Refuse what is not of the kind that is wanted; Hydra does it, but not Python."""
    if value is None and NoneType in get_args(hint):
        return
    several = get_origin(hint) is list
    kinds = [hint] if several else [kind for kind in get_args(hint) if kind is not NoneType] or [hint]
    right, wanted = _KINDS.get(kinds[0], (NoneType, "a list" if several else "a section of keys"))
    if not isinstance(value, right) or isinstance(value, bool) is not (right is bool):
        raise ConfigError(f"{key}={value!r} is not of the right type: it must be {wanted}")


def _check_value(value: Any, key: str, metadata: Any) -> None:
    if value is None or not metadata:
        return
    unit = f" {metadata['unit']}" if metadata["unit"] else ""
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(f"{key}={value!r} is not known; choose one of {', '.join(metadata['choices'])}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low, high = metadata["low"], metadata["high"]
    high = MOST if high is None and isinstance(value, int) and value > MOST else high
    if (low is not None and value < low) or (high is not None and value > high) or value != value:
        span = f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
        raise ConfigError(f"{key}={value} is out of range; it must be {span}{unit}")
