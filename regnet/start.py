"""Entry point of the console script: what has to be set before torch is loaded, then the command."""

from __future__ import annotations

import ctypes
import os
import sys

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8


def main() -> int:
    """Prepare the process and run the command; returns the exit code."""
    # Threads that spin while they wait make two busy processes several times slower than one after the other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux":
        # Large arrays come from the heap, which stays mapped, so that their pages are not touched first time and again.
        # All threads share it: heaps of their own would be too small for such arrays.
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
            library.mallopt(_M_ARENA_MAX, 1)
    from regnet.cli import main as command

    return command()
