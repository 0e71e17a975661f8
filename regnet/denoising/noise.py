"""What is known of the label noise: how alike it is from tile to tile, and what of it no averaging shows or removes."""

from __future__ import annotations

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray

from regnet.denoising.factor import spatial_correlation
from regnet.denoising.operators import Array
from regnet.denoising.options import DenoiseOptions
from regnet.tiles.labels import OBJECT_MARGIN_PX, noise_covariance, systematic_shift
from regnet.tiles.options import NoiseOptions
from regnet.tiles.store import TileStore

_WORDS = {
    "tile": "one offset a tile, independent of the others; all augmentations of a tile share it",
    "knots": "independent at knots every {spacing_px} px, cubic between",
    "smooth": "a random field, correlation exp(-(r / {twice:.0f} px)^2)",
    "object": "one offset an object, beside them a random field, correlation exp(-(r / {twice:.0f} px)^2)",
}


@dataclass(frozen=True)
class LabelNoise:
    """The noise of n labels.

    Attributes:
        correlation: (n, n) covariance between tiles in units of its variance, None where all are independent.
        model: in words.
        source: who says so.
        shift_px: (dx, dy) that all labels were given on top, px.
    """

    correlation: Array | None
    model: str
    source: str
    shift_px: tuple[float, float]

    def common_px(self, sigma_px: float, tiles: int) -> float:
        """Standard deviation of the mean of the tiles' noise, a component.

        No weights that sum to one leave less of independent noise; of correlated noise some can leave less.
        """
        mean = 1 / tiles if self.correlation is None else float(self.correlation.mean())
        return sigma_px * float(np.sqrt(max(mean, 0.0)))

    def not_averaged(self) -> str:
        """A sentence on what the averaging cannot see."""
        sentence = (
            "A shift that all labels share leaves no residual: it passes into the predictions whole, and neither the "
            "factors nor the noise told here count it."
        )
        if any(self.shift_px):
            dx, dy = self.shift_px
            sentence += f" These labels were given one of ({dx:g}, {dy:g}) px, {np.hypot(dx, dy):.2f} px long."
        return sentence


def label_noise(store: TileStore, rows: gpd.GeoDataFrame, options: DenoiseOptions) -> LabelNoise:
    """Find out what is known of the noise of some tiles' labels.

    Args:
        store: the tiles, with a note of the noise that `prepare` drew.
        rows: (n,) rows of its index.
        options: `noise_range_px`, if it is given by hand.
    """
    drawn = NoiseOptions(**store.manifest["options"]["noise"])
    shift = systematic_shift(drawn)
    pair = rows["pair"].to_numpy(dtype=str)
    row, col = (rows[name].to_numpy(dtype=np.int64) + store.tile_px // 2 for name in ("row", "col"))
    if options.noise_range_px:
        place = np.unique(pair, return_inverse=True)[1].astype(np.float64)
        correlation = spatial_correlation(col.astype(float), row.astype(float), place, options.noise_range_px)
        return LabelNoise(
            correlation, f"Gaussian correlation, range {options.noise_range_px:g} px", "denoise.noise_range_px", shift
        )
    if options.noise_range_px == 0 or drawn.kind not in _WORDS:
        source = "denoise.noise_range_px" if options.noise_range_px == 0 else "assumed, since prepare drew no noise"
        return LabelNoise(None, "independent tiles", source, shift)
    on_object = _on_object(store, pair, row, col) if drawn.kind == "object" else np.zeros(len(rows), bool)
    covariance = noise_covariance(drawn, pair, row, col, on_object)
    words = _WORDS[drawn.kind].format(spacing_px=drawn.spacing_px, twice=2 * drawn.smooth_sigma_px)
    alone = np.array_equal(covariance, np.eye(len(rows)))
    return LabelNoise(None if alone else covariance, words, "drawn by prepare", shift)


def _on_object(
    store: TileStore, pair: NDArray[np.str_], row: NDArray[np.integer], col: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Which pixels lie on an object or so near that its offset holds there."""
    reach = int(OBJECT_MARGIN_PX)
    side = 2 * reach + 1
    windows = [
        store.scene(name).read(int(y) - reach, int(x) - reach, side, side).moving[0]
        for name, y, x in zip(pair, row, col, strict=True)
    ]
    return np.array([bool((window > 0).any()) for window in windows])
