"""Packages whose names are loaded when they are first asked for, so that the command line answers without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def on_demand(
    package: str, names: Sequence[str], *modules: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's `__getattr__` and `__dir__` (PEP 562).

    Args:
        package: its `__name__`.
        names: its `__all__`.
        modules: its modules that hold these names.
    """

    def load(name: str) -> Any:
        """Give the object of a name from the first module that holds it."""
        if name in names:
            for module in modules:
                home = import_module(f"{package}.{module}")
                if hasattr(home, name):
                    return getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: sorted(names)
