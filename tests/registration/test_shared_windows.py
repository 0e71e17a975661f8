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
        if more:
            assert summaries[1]["adapt"]["used"] == summaries[0]["adapt"]["used"]


FAILING = """
import sys
from pathlib import Path
from regnet.errors import InputError, RegnetError
from regnet.ranks import FabricOptions, launch
from regnet.registration.options import RegisterOptions, WindowOptions
from regnet.registration.progress import Progress
from regnet.registration.register import register

ranks, save = launch(FabricOptions(devices=2)), Progress.save


def fails_once_it_has_saved(self, place, sums):
    save(self, place, sums)
    if ranks.rank == int(sys.argv[4]):
        raise InputError("a block cannot be read")


Progress.save = fails_once_it_has_saved
try:
    options = RegisterOptions(sys.argv[1], sys.argv[2], global_stage=False, windows=WindowOptions(128, 32))
    register(options, Path(sys.argv[3]), ranks)
except RegnetError as error:
    print(f"rank {ranks.rank}: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_the_other_and_nothing_is_left(shifted, tmp_path, torchrun, rank):
    (tmp_path / "work.py").write_text(FAILING)
    result = torchrun("work.py", *shifted, str(tmp_path / "out"), str(rank), folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"rank {rank}: a block cannot be read" in result.stdout
    assert f"rank {1 - rank}: another of the processes failed" in result.stdout
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_what_two_processes_cannot_do_is_refused(shifted, tmp_path, torchrun):
    missing = ("register", f"fixed={shifted[0]}", "moving=nowhere.tif", "output_dir=out", "fabric.devices=2")
    several = ("register", "--multirun", f"fixed={shifted[0]}", f"moving={shifted[1]}", "seed=1,2", "output_dir=out")
    for command, said in ((missing, "nowhere.tif"), (several, "2 processes started: of several pairs each takes one")):
        result = torchrun(*command, folder=tmp_path)
        assert result.returncode != 0
        assert f"regnet: {said}" in result.stderr
        assert "defect" not in result.stderr
        assert not (tmp_path / "out" / "displacement.tif").exists()
