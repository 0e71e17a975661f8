import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from scipy.ndimage import gaussian_filter

from regnet.models.base import Prediction
from regnet.registration import register as module
from regnet.registration.options import RegisterOptions

CRS = "EPSG:32618"
GSD = 10.0
ORIGIN = (500_000.0, 4_400_000.0)


def texture(shape, seed=0):
    """Blobs of several sizes, uint16, mean 2000."""
    noise = np.random.default_rng(seed).normal(size=shape)
    blobs = sum(gaussian_filter(noise, sigma) * sigma for sigma in (1.5, 4, 12))
    return (2000 + 800 * blobs / blobs.std()).clip(1, 60000).astype(np.uint16)


def write_raster(path, bands, origin=ORIGIN, gsd=GSD, crs=CRS, **profile):
    bands = np.atleast_3d(bands) if bands.ndim == 3 else bands[None]
    transform = Affine.translation(*origin) @ Affine.scale(gsd, -gsd)
    options = {"driver": "GTiff", "count": len(bands), "dtype": bands.dtype, "crs": crs, "transform": transform}
    with rasterio.open(path, "w", height=bands.shape[1], width=bands.shape[2], **options | profile) as target:
        target.write(bands)
    return str(path)


@pytest.fixture(scope="session")
def scene():
    """A picture larger than the rasters cut from it, so that shifted ones have no empty border."""
    return texture((360, 400))


def write_shifted(folder, scene, height, width):
    """Fixed, and moving that shows the same ground 6 columns to the left and 4 rows down of where fixed shows it.

    moving(x + (-6, 4)) = fixed(x): the true displacement is dx = -6, dy = +4 px.
    """
    fixed, moving = (scene[row : row + height, col : col + width] for row, col in ((50, 50), (50 - 4, 50 + 6)))
    images = {"fixed": fixed, "moving": (9000 - moving).astype("uint16")}
    return tuple(write_raster(folder / f"{name}.tif", image) for name, image in images.items())


@pytest.fixture(scope="session")
def shifted(tmp_path_factory, scene):
    """Files of a shifted pair, 256 x 288 px."""
    return write_shifted(tmp_path_factory.mktemp("pair"), scene, 256, 288)


@pytest.fixture(scope="session")
def small(tmp_path_factory, scene):
    """As `shifted`, in 128 x 128 px."""
    return write_shifted(tmp_path_factory.mktemp("small"), scene, 128, 128)


TRUE = (-6.0, 4.0)


@pytest.fixture(scope="session")
def done(tmp_path_factory, shifted):
    """A registration of `shifted`: its folder, and the share that was registered."""
    folder = tmp_path_factory.mktemp("done")
    return folder, module.register(RegisterOptions(*shifted, tie_spacing_px=24), folder)


class Still(torch.nn.Module):
    """Answers that nothing moves, at once."""

    pair_spread_px = 0.0
    fixed_channels = moving_channels = 1

    def forward(self, fixed, moving, fixed_valid, moving_valid):
        return Prediction(torch.zeros(1, 2, *fixed.shape[-2:]), torch.ones(1, 1, *fixed.shape[-2:]))


@pytest.fixture
def quick(monkeypatch):
    """Where the field does not matter: no time is spent on matching."""
    monkeypatch.setattr(module, "load_network", lambda *_: Still())
    monkeypatch.setattr(module, "look_overall", lambda *_: module.NOT_SOUGHT)
