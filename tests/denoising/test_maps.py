import geopandas as gpd
import numpy as np
import pytest

from regnet.denoising.maps import rasterise


@pytest.mark.parametrize(
    ("start", "tile_px", "cell_px", "cells"),
    [
        (0, 128, 64, [0, 1]),
        (100, 128, 64, [2, 3]),  # px 100 to 228: the centres 160 and 224, not 96
        (31, 128, 64, [0, 1]),
        (32, 128, 64, [0, 1]),
        (33, 128, 64, [1, 2]),
        (55, 56, 56, [1]),
        (10, 16, 64, [0]),  # covers no centre
        (60, 16, 64, [1]),
    ],
)
def test_a_tile_fills_the_cells_whose_centres_it_covers(start, tile_px, cell_px, cells):
    tiles = gpd.GeoDataFrame({"row": [start], "col": [0], "factor": [0.5]})
    (down,) = rasterise(tiles, ["factor"], (320, 320), tile_px, cell_px)
    assert np.flatnonzero(np.isfinite(down[:, 0])).tolist() == cells
    tiles = gpd.GeoDataFrame({"row": [0], "col": [start], "factor": [0.5]})
    (across,) = rasterise(tiles, ["factor"], (320, 320), tile_px, cell_px)
    assert np.flatnonzero(np.isfinite(across[0])).tolist() == cells


def test_tiles_that_overlap_are_averaged_and_unknown_ones_left_out():
    tiles = gpd.GeoDataFrame({"row": [0, 0, 0], "col": [0, 32, 32], "factor": [0.2, 0.6, np.nan]})
    (values,) = rasterise(tiles, ["factor"], (64, 128), 64, 32)
    np.testing.assert_allclose(values, [[0.2, 0.4, 0.6, np.nan]] * 2, rtol=1e-6)
