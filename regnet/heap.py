"""What becomes of memory that the process has freed: with glibc, it can be told; elsewhere nothing is done."""

from __future__ import annotations

from regnet import clib

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8
_LARGEST = 1 << 25
"""Larger arrays are not taken from the heap, which grows by each for which no gap between others is wide enough."""


def keep_freed() -> None:
    """Keep what is freed, so that the pages of large arrays are not touched first time and again.

    Large arrays, but for the largest, then come from the heap, which stays mapped. All threads share it: heaps of their
    own would be too small for such arrays. To be called before the first thread starts.
    """
    for parameter, value in ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_ARENA_MAX, 1)):
        clib.call("mallopt", parameter, value)


def give_back() -> None:
    """Give back what is free, once work is over whose arrays the work to come does not need."""
    clib.call("malloc_trim", 0)
