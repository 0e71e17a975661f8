"""Registration without training on real pairs whose alignment is known."""

from __future__ import annotations

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from regnet.config import default_data_root
from regnet.registration.options import RegisterOptions
from regnet.registration.register import register

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
