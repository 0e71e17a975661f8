"""Several processes do what one does: they share the gradients, the products and the counts."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest

from regnet.errors import ConfigError
from regnet.files import read_json
from regnet.ranks import FabricOptions, Ranks, launch
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.result import load_kernel
from regnet.similarity.stage import similarity_stage

OPTIONS = SimilarityOptions(max_tiles=24, max_query_tiles=4, batch=5, nearest=3, memory_mb=16, keep_gradients=True)
WORK = """
import sys
from dataclasses import replace
from pathlib import Path
from regnet.ranks import FabricOptions, launch
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.stage import similarity_stage
from regnet.tiles.store import TileStore

store, model, folder = map(Path, sys.argv[1:])
ranks = launch(FabricOptions(devices=2))
assert ranks.size == 2
for backend in ("exact", "sketch", "linear"):
    options = SimilarityOptions(
        max_tiles=24, max_query_tiles=4, batch=5, nearest=3, memory_mb=16, keep_gradients=True, backend=backend
    )
    similarity_stage(TileStore.open(store), model, options, folder / backend, ranks)
    ranks.barrier()
"""


def test_alone_a_rank_has_all_the_work():
    ranks = launch(FabricOptions())
    assert ranks.main
    assert ranks.own([1, 2, 3]) == [1, 2, 3]


def test_what_was_started_has_to_fit_the_settings(monkeypatch):
    with pytest.raises(ConfigError, match=r"fabric.devices=2 .* 1 process started; start it by `torchrun --nproc-per"):
        launch(FabricOptions(devices=2))
    monkeypatch.setattr("regnet.ranks.started", lambda: 4)
    with pytest.raises(ConfigError, match="4 processes started; make their product 4"):
        launch(FabricOptions(devices=3))


@pytest.mark.slow
def test_a_process_whose_other_fails_ends_too(mini_settings, tmp_path):
    """As SLURM starts them: nothing but the connection tells that the first one, which prepares alone, has failed."""
    command = [str(Path(sys.executable).with_name("regnet")), "prepare", *mini_settings, "output_dir=out"]
    command += ["prepare.tile_px=512", "fabric.devices=2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = []
    for rank in ("0", "1"):
        of_rank = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **address, **of_rank, "TORCHELASTIC_RUN_ID": "one"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        both.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert "regnet: no tile of 512 px" in said[0]
    assert "regnet: another of the processes failed; its own message says why" in said[1]


@pytest.mark.slow
def test_two_processes_do_what_one_does(scene, trained, tmp_path, torchrun):
    (tmp_path / "work.py").write_text(WORK)
    result = torchrun("work.py", str(scene.folder), str(trained), str(tmp_path / "two"), folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    for backend in ("exact", "sketch", "linear"):
        one, two = tmp_path / "one" / backend, tmp_path / "two" / backend
        options = SimilarityOptions(**{**vars(OPTIONS), "backend": backend})
        similarity_stage(scene, trained, options, one, Ranks())
        tables = [gpd.read_parquet(folder / "neighbours.parquet") for folder in (one, two)]
        for name in ("tile_id", "n_soft", "n_tau", "n_alpha", "nearest_kc"):
            np.testing.assert_allclose(tables[1][name], tables[0][name], rtol=1e-4, err_msg=name)
        nearest = [np.load(folder / "nearest.npz")["nearest_tile_id"] for folder in (one, two)]
        np.testing.assert_array_equal(*nearest)
        if backend == "exact":
            blocks = [load_kernel(folder / "kernel.zarr").blocks for folder in (one, two)]
            np.testing.assert_allclose(blocks[1], blocks[0], rtol=0, atol=1e-5 * blocks[0].max())


@pytest.mark.slow
def test_two_processes_through_the_console(mini_run, mini_settings, tmp_path, torchrun):
    shutil.copytree(mini_run[0], tmp_path / "mini")
    shutil.rmtree(tmp_path / "mini" / "similarity")
    result = torchrun("run", *mini_settings, "output_dir=mini", "fabric.devices=2", folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    for stage, found in {"prepare": "skipped", "similarity": "writing", "denoise": "writing"}.items():
        assert result.stdout.count(f"{stage}: {found}") == 1  # the first rank alone speaks
    assert result.stdout.count("mean end-point error, px") == 1
    first, again = (read_json(folder / "summary.json") for folder in (mini_run[0], tmp_path / "mini"))
    assert again["similarity"]["n_soft_mean"] == pytest.approx(first["similarity"]["n_soft_mean"], rel=1e-4)
    assert again["denoise"]["factor_mean"] == pytest.approx(first["denoise"]["factor_mean"], rel=1e-3)
