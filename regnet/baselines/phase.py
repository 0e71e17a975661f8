"""Phase correlation of overlapping tiles, as AROSICS and many others do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.registration import phase_cross_correlation

from regnet.baselines.grey import grey_bands
from regnet.baselines.grid import by_tiles
from regnet.tiles.patch import Patch


def phase_correlation(
    patch: Patch,
    *,
    tile_px: int,
    upsample: int,
    max_shift_px: float,
    min_valid: float,
) -> NDArray[np.float32]:
    """Estimate the displacement tile by tile by phase correlation (Guizar-Sicairos et al. 2008) of the grey bands.

    Invalid pixels take the mean of their tile, and a Hann window hides the tile's border.

    Args:
        patch: the pair.
        tile_px: side of a tile, px.
        upsample: shifts are found to 1 / upsample px.
        max_shift_px: a tile with a longer shift is not believed.
        min_valid: a tile with a smaller share of pixels valid in both is left out.

    Returns:
        (2, H, W) px, bilinear between the tiles' centres.

    Raises:
        InputError: no tile could be matched.
    """
    one, two = grey_bands(patch)
    both = patch.fixed_valid & patch.moving_valid

    def match(rows: slice, cols: slice) -> tuple[float, float] | None:
        """Shift dx, dy of one tile, px; None if it holds too little data or none that varies."""
        valid = both[rows, cols]
        tiles = [_windowed(band[rows, cols], valid) for band in (one, two)]
        if valid.mean() < min_valid or not all(tile.any() for tile in tiles):
            return None
        shift, _, _ = phase_cross_correlation(*tiles, upsample_factor=upsample)
        # scikit-image gives (row, column) of the push: fixed(x) = moving(x - shift).
        return -float(shift[1]), -float(shift[0])

    return by_tiles(both.shape, tile_px, match, max_shift_px)


def _windowed(tile: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    centred = np.where(valid, tile - tile[valid].mean() if valid.any() else 0, 0)
    return np.asarray(centred * np.outer(np.hanning(tile.shape[0]), np.hanning(tile.shape[1])))
