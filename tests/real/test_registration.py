"""Registration without training on real pairs whose alignment is known."""

from __future__ import annotations

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine

from regnet.config import default_data_root
from regnet.registration.matching import KEEP_PX
from regnet.registration.options import RegisterOptions
from regnet.registration.overall import FINEST_PX, farthest, find_overall, rescaled
from regnet.registration.register import register
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def fields():
    folder = Path(default_data_root()) / "fields"
    if not folder.is_dir():
        message = f"{folder} is not there; set REGNET_DATA to the folder of the data sets"
        pytest.fail(message) if os.environ.get("REGNET_REQUIRE_DATA") == "1" else pytest.skip(message)
    return folder


def test_parcels_drawn_in_the_wrong_place_go_back(fields, tmp_path):
    """Parcels pushed 60 m east and 40 m north, so 6 px to the right and 4 px up, go 6 px left and 4 px down."""
    parcels = gpd.read_file(fields / "fields.shp")
    pushed = parcels.set_geometry(parcels.geometry.translate(60, 40))
    pushed.to_file(tmp_path / "pushed.gpkg")
    share = register(RegisterOptions(str(fields / "image.tif"), str(tmp_path / "pushed.gpkg")), tmp_path / "out")
    assert share > 0.8
    result = gpd.read_file(tmp_path / "out" / "registered.gpkg")
    moved = result[result["regnet_status"] == "moved"]
    assert len(moved) > 0.8 * len(parcels)
    assert moved["regnet_dx_px"].median() == pytest.approx(-6, abs=0.6)
    assert moved["regnet_dy_px"].median() == pytest.approx(4, abs=0.6)
    left = moved.geometry.centroid.distance(parcels.geometry.loc[moved.index].centroid, align=False)
    assert np.median(left) < 10
    with rasterio.open(tmp_path / "out" / "displacement.tif") as field:
        dx, dy, error = field.read()
    known = np.isfinite(error)
    # The field points from fixed to moving: to where the pushed parcels are.
    assert np.median(dx[known]) == pytest.approx(6, abs=0.6)
    assert np.median(dy[known]) == pytest.approx(-4, abs=0.6)


@pytest.fixture(scope="module")
def sample(sample_scene):
    """Visible bands and short-wave infrared of the sample scene at a low resolution: reader, px of its pixels, size."""
    visible = "|".join(str(sample_scene / f"s2_B0{band}.jp2") for band in (2, 3, 4))
    pair = PairOptions("sample", visible, str(sample_scene / "s2_B11.jp2"))
    with rasterio.open(sample_scene / "s2_B02.jp2") as source:
        size = source.shape
    with PairReader(pair, 10.0 * max(size) / FINEST_PX) as reader:
        yield reader, size[0] / reader.shape[0], size


@pytest.mark.parametrize("draw", range(3))
def test_shift_rotation_and_scale_of_the_sample_scene_are_found_to_2_px(sample, draw):
    reader, ratio, size = sample
    generator = np.random.default_rng(draw)
    angle, stretch = np.deg2rad(generator.uniform(-5, 5)), generator.uniform(0.95, 1.05)
    turn = stretch * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array(size[::-1]) / 2
    true = np.column_stack([turn, middle - turn @ middle + generator.uniform(-64, 64, 2)])
    off = Affine(*rescaled(true, 1 / ratio).ravel().tolist())
    found = find_overall(reader.pulled(~off).read(0, 0, *reader.shape), ratio, KEEP_PX)
    assert found.found, found.reason
    assert farthest(found.matrix, true, size) < 2


def test_the_sample_scene_is_in_place(sample):
    reader, ratio, _ = sample
    found = find_overall(reader.read(0, 0, *reader.shape), ratio, KEEP_PX)
    assert not found.found
    assert found.reason.startswith("no shift, rotation or scale of the whole pair")
    assert found.error_px < 0.5
