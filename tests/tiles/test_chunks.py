"""Chunks that are kept: the same windows as Zarr's own, within the memory, and none decoded twice."""

import numpy as np
import pytest
import zarr

from regnet.geo.grid import Box
from regnet.tiles.chunks import Chunks

BOXES = [
    Box(0, 0, 50, 70),
    Box(3, 5, 10, 20),
    Box(15, 31, 2, 2),
    Box(48, 64, 2, 6),
    Box(16, 32, 16, 16),
    Box(9, 9, 0, 4),
]


@pytest.fixture(params=[(), (3,)], ids=["flat", "bands"])
def array(request, tmp_path):
    values = np.random.default_rng(0).normal(size=(*request.param, 50, 70)).astype(np.float32)
    group = zarr.open_group(tmp_path / "arrays.zarr", mode="w")
    return group.create_array("scene/fixed", data=values, chunks=(*request.param, 16, 16))


@pytest.mark.parametrize("memory_mb", [0, 0.003, 1])
def test_windows_are_those_of_zarr(array, memory_mb):
    chunks = Chunks(memory_mb)
    for box in BOXES * 2:
        found = chunks.window(array, box)
        np.testing.assert_array_equal(found, array[..., *box.slices])
        found[:] = 7  # what was given is nobody else's
        assert sum(values.nbytes for values in chunks._kept.values()) <= memory_mb * 2**20


def test_what_is_kept_is_not_decoded_again(array, monkeypatch):
    chunks, whole = Chunks(), Box(0, 0, 50, 70)
    before = chunks.window(array, whole)
    monkeypatch.setattr(zarr.Array, "__getitem__", None)
    np.testing.assert_array_equal(chunks.window(array, whole), before)
    small = Chunks(0.5 * before.nbytes / 2**20)
    with pytest.raises(TypeError):
        small.window(array, whole)
