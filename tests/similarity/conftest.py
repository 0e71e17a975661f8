"""A small prepared scene and a small model with checkpoints, made once."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter

from regnet.models import ModelOptions, build_model, save_checkpoint
from regnet.tiles.options import NoiseOptions, PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore


@pytest.fixture(scope="session")
def scene(tmp_path_factory) -> TileStore:
    """Textured bands against their negative, 16 px tiles, one noisy label a tile."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(0)
    bands = gaussian_filter(rng.normal(size=(2, 320, 320)), (0, 1.5, 1.5)).astype(np.float32)
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 10, 10)}
    for name, image in (("fixed", bands), ("moving", -bands[:1])):
        profile = {"driver": "GTiff", "width": 320, "height": 320, "count": len(image), "dtype": "float32", **place}
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
            target.write(image / image.std())
    pair = PairOptions(name="p", fixed=str(folder / "fixed.tif"), moving=str(folder / "moving.tif"))
    split = SplitOptions(block_px=96, gap_px=16)
    noise = NoiseOptions(kind="tile", sigma_px=1.0)
    options = PrepareOptions(pairs=[pair], tile_px=16, stride_px=32, split=split, noise=noise)
    prepare(options, folder / "prepare")
    return TileStore.open(folder / "prepare")


@pytest.fixture(scope="session")
def trained(scene, tmp_path_factory) -> Path:
    """A model with two checkpoints and the optimiser's second moments beside them.

    It is the U-Net, since a figure to compare to asks for a model that rounding does not move: the matcher's choice of
    smoothness has kinks.
    """
    folder = tmp_path_factory.mktemp("train")
    options = ModelOptions(name="unet", width=8, levels=1)
    for epoch in (0, 1):
        torch.manual_seed(epoch)
        model = build_model(options, len(scene.fixed_channels), len(scene.moving_channels))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        save_checkpoint(folder / "checkpoints" / f"epoch_{epoch:03d}.safetensors", model)
        moments = {name: torch.rand_like(value) for name, value in model.named_parameters()}
        save_file(moments, folder / "checkpoints" / f"adam_v_{epoch:03d}.safetensors")
    save_checkpoint(folder / "model.safetensors", model)
    return folder / "model.safetensors"
