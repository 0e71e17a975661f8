"""Freed memory: kept while work goes on, given back when it is over."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource

import numpy as np
from regnet.heap import give_back, keep_freed

def resident_mb():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 2**20

keep_freed()
largest = np.ones(2**23)  # 64 MB; first, since it would be taken from a gap that is wide enough
with_largest = resident_mb()
del largest
without_largest = resident_mb()
arrays = [np.ones(2**20) for _ in range(32)]  # 8 MB each
last = np.ones(2**10)  # keeps the top of the heap where it is
full = resident_mb()
del arrays
freed = resident_mb()
give_back()
given = freed - resident_mb()
print(full - freed, given, with_largest - without_largest)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_freed_is_kept_until_it_is_given_back_but_for_the_largest_arrays():
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    kept, given, largest = map(float, said.split())
    assert kept < 16
    assert given > 200
    assert largest > 60
