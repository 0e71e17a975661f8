"""Several processes share the windows of one registration."""

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from regnet.files import read_json


@pytest.mark.slow
def test_two_processes_register_as_one_does(shifted, tmp_path, regnet, torchrun):
    """Windows shared out, descriptors trained by the first: the same displacement, written and told once."""
    pair = [f"fixed={shifted[0]}", f"moving={shifted[1]}", "windows={window_px: 128, overlap_px: 32}"]
    for name, more in {"free": [], "adapted": ["adapt={enabled: true, steps: 2}"]}.items():
        one, two = tmp_path / f"{name}_one", tmp_path / f"{name}_two"
        alone = regnet("register", *pair, *more, f"output_dir={one}", folder=tmp_path)
        assert alone.returncode == 0, alone.stderr[-3000:]
        shared = torchrun("register", *pair, *more, f"output_dir={two}", "fabric.devices=2", folder=tmp_path)
        assert shared.returncode == 0, shared.stderr[-3000:]
        assert shared.stdout.count("registered 100% of the area") == 1
        fields = []
        for folder in (one, two):
            with rasterio.open(folder / "displacement.tif") as source:
                fields.append(source.read())
        np.testing.assert_allclose(fields[1], fields[0], atol=1e-4)
        assert abs(fields[0][0].mean() + 6) < 0.1
        summaries = [read_json(folder / "summary.json") for folder in (one, two)]
        assert summaries[1]["share_registered"] == summaries[0]["share_registered"]
        assert len(gpd.read_file(two / "tie_points.gpkg")) == len(gpd.read_file(one / "tie_points.gpkg"))
        assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
        assert not (two / ".unfinished").exists()


@pytest.mark.slow
def test_bad_input_to_two_processes_is_told(shifted, tmp_path, torchrun):
    result = torchrun(
        "register", f"fixed={shifted[0]}", "moving=nowhere.tif", "output_dir=out", "fabric.devices=2", folder=tmp_path
    )
    assert result.returncode != 0
    assert "nowhere.tif" in result.stderr
    assert not (tmp_path / "out" / "displacement.tif").exists()
