"""A small store of tiles whose labels are noisy, to train on in seconds."""

import pytest

from regnet.tiles.options import NoiseOptions, PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore


@pytest.fixture(scope="module")
def store(mini_pair, tmp_path_factory):
    """Tiles of the miniature pair, each label off by 3 px a component."""
    folder = tmp_path_factory.mktemp("store") / "prepare"
    options = PrepareOptions(
        pairs=[PairOptions("mini", *(str(path) for path in mini_pair))],
        tile_px=64,
        stride_px=64,
        split=SplitOptions(rule="columns", test_share=0.3, validation_share=0.2, gap_px=8),
        noise=NoiseOptions(kind="tile", sigma_px=3.0),
    )
    prepare(options, folder)
    return TileStore.open(folder)
