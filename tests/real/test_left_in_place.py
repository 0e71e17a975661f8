"""On real pairs in place: what is said where nothing was moved."""

import json

import rasterio
from rasterio.windows import Window

from regnet.registration.options import RegisterOptions
from regnet.registration.register import register


def crop(source, path, row, col, side=320):
    with rasterio.open(source) as opened:
        window = Window(col, row, side, side)
        profile = opened.profile | {"driver": "GTiff", "transform": opened.window_transform(window)}
        with rasterio.open(path, "w", **profile | {"height": side, "width": side}) as target:
            target.write(opened.read(window=window))
    return str(path)


def registered(tmp_path, fixed, moving, **settings):
    register(RegisterOptions(fixed, moving, check_windows=0, **settings), tmp_path / "out")
    return json.loads((tmp_path / "out" / "summary.json").read_text())


def test_near_infrared_of_the_sample_scene_lies_in_place(sample_scene, tmp_path):
    red, infrared = (
        crop(sample_scene / f"s2_{band}.jp2", tmp_path / f"{band}.tif", 600, 600) for band in ("B04", "B08")
    )
    found = registered(tmp_path, red, infrared)
    assert found["share_registered"] < 0.2
    assert found["in_place_px"] < 1.5


def test_of_radar_in_place_it_is_not_known(data_root, tmp_path):
    optical, radar = (
        crop(data_root / "s1s2" / f"270_{name}.tif", tmp_path / f"{name}.tif", 100, 100) for name in ("s2", "s1")
    )
    found = registered(tmp_path, optical, radar, moving_transform="log")
    assert found["in_place_px"] is None
