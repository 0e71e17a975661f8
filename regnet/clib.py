"""Functions of the C library that Python does not offer."""

from __future__ import annotations

import ctypes
import sys


def call(name: str, *numbers: int) -> None:
    """Call a function of the C library by name, where there is one of that name; elsewhere nothing is done."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*numbers)
