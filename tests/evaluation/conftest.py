"""One prepared pair for all tests of evaluate."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from scipy.ndimage import gaussian_filter

from regnet.tiles.options import NoiseOptions, PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore

GAP_PX = 16


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    noise = np.random.default_rng(0).normal(size=(480, 480))
    picture = sum(gaussian_filter(noise, sigma) * sigma for sigma in (1.5, 4, 10))
    picture = (2000 + 800 * picture / picture.std()).clip(1).astype(np.uint16)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "crs": "EPSG:32618", "height": 480, "width": 480}
    transform = Affine(10, 0, 5e5, 0, -10, 44e5)
    for name, image in (("fixed", picture), ("moving", 9000 - picture)):
        with rasterio.open(folder / f"{name}.tif", "w", transform=transform, **profile) as target:
            target.write(image.astype(np.uint16), 1)
    options = PrepareOptions(
        pairs=[PairOptions("pair", str(folder / "fixed.tif"), str(folder / "moving.tif"))],
        tile_px=64,
        stride_px=64,
        split=SplitOptions("blocks", 144, GAP_PX, 0.12, 0.25, 0.15),
        noise=NoiseOptions("systematic", shift_dx_px=3.0, shift_dy_px=-4.0),
        structure_threshold=0.12,  # so that some of the picture has none
    )
    prepare(options, folder / "prepare")
    return TileStore.open(folder / "prepare")
