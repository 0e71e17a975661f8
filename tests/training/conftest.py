"""A small store of tiles whose labels are noisy, to train on in seconds."""

import pytest

from regnet.tiles.options import NoiseOptions


@pytest.fixture(scope="module")
def store(mini_store):
    """Tiles of the miniature pair, each label off by 3 px a component."""
    return mini_store(tile_px=64, stride_px=64, noise=NoiseOptions(kind="tile", sigma_px=3.0))
