"""The stage on a prepared scene: the backends agree, it resumes, and it refuses what does not fit."""

import json
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import torch

from regnet.errors import InputError, OutputError, StoreError
from regnet.files import read_json
from regnet.models import load_checkpoint
from regnet.similarity import backends, tiles
from regnet.similarity.checkpoints import load_checkpoints, optimiser_scale
from regnet.similarity.gradients import Jacobians
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.result import load_kernel
from regnet.similarity.stage import similarity_stage
from regnet.similarity.store import ShardStore, arrays_digest, model_digest
from regnet.similarity.tiles import pick_tiles, read_batch

OPTIONS = SimilarityOptions(max_tiles=24, max_query_tiles=4, batch=12, nearest=3, precision="float64")


def neighbours(folder):
    return gpd.read_parquet(folder / "neighbours.parquet")


def test_outputs_of_the_exact_backend(scene, trained, tmp_path):
    similarity_stage(scene, trained, OPTIONS, tmp_path)
    table, kernel = neighbours(tmp_path), load_kernel(tmp_path / "kernel.zarr")
    assert table["reference"].sum() == 24
    assert set(table.loc[~table["reference"], "part"]) == {"validation", "test", "shifted"}
    assert table.crs == scene.index.crs
    positions = pick_tiles(scene, ["train"], 24, 0)
    _, jacobians = Jacobians(load_checkpoint(trained))(*read_batch(scene, positions))
    expected = torch.einsum("iap,jbp->iajb", jacobians.double(), jacobians.double()).numpy()
    np.testing.assert_allclose(kernel.blocks, expected, rtol=0, atol=1e-5 * expected.max())
    np.testing.assert_array_equal(kernel.tile_id, scene.index["tile_id"].to_numpy()[positions])
    nearest = np.load(tmp_path / "nearest.npz")
    assert nearest["nearest_tile_id"].shape == (len(table), 3)
    assert not (nearest["nearest_tile_id"] == nearest["tile_id"][:, None])[:24].any()  # never itself
    assert (np.diff(nearest["kc"], axis=1) <= 0).all()
    summary = read_json(tmp_path / "summary.json")
    assert summary["tiles"] == 24
    assert summary["dead_tiles"] == []
    assert not (tmp_path / "gradients_model").exists()
    assert pd.read_csv(tmp_path / "regions.csv")["tiles"].sum() == len(table)


@pytest.mark.parametrize("backend", ["sketch", "linear"])
def test_the_backends_agree(scene, trained, tmp_path, backend):
    similarity_stage(scene, trained, OPTIONS, tmp_path / "exact")
    similarity_stage(scene, trained, replace(OPTIONS, backend=backend), tmp_path / backend)
    exact, other = neighbours(tmp_path / "exact"), neighbours(tmp_path / backend)
    np.testing.assert_allclose(other["n_soft"], exact["n_soft"], rtol=2e-3)
    if backend == "sketch":  # every reference tile is a landmark, so that the sketch is complete
        np.testing.assert_allclose(other.loc[:23, "n_soft"], exact.loc[:23, "n_soft"], rtol=1e-5)
        whole, sketched = (load_kernel(tmp_path / name / "kernel.zarr") for name in ("exact", "sketch"))
        product = np.einsum("iak,jbk->iajb", sketched.features, sketched.features)
        np.testing.assert_allclose(product, whole.blocks, atol=1e-5 * whole.blocks.max())
    else:
        assert other["n_tau"].isna().all()
        assert not (tmp_path / "linear" / "kernel.zarr").exists()


@pytest.mark.parametrize("backend", ["exact", "sketch"])
def test_the_mean_over_checkpoints(scene, trained, tmp_path, backend):
    options = replace(OPTIONS, backend=backend, checkpoints="mean", metric="adam")
    similarity_stage(scene, trained, options, tmp_path)
    loaded = load_checkpoints(trained, options)
    assert [checkpoint.name for checkpoint in loaded] == ["epoch_000", "epoch_001"]
    batch = read_batch(scene, pick_tiles(scene, ["train"], 24, 0))
    expected = 0
    for checkpoint in loaded:
        jacobians = checkpoint.jacobians(batch).double()
        kernel = torch.einsum("iap,jbp->iajb", jacobians, jacobians)
        expected = expected + kernel / torch.einsum("iaia->", kernel) / 2
    stored = load_kernel(tmp_path / "kernel.zarr")
    found = stored.blocks if backend == "exact" else np.einsum("iak,jbk->iajb", stored.features, stored.features)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5 * float(expected.max()))
    rows = pd.read_csv(tmp_path / "trajectory.csv")
    assert rows["checkpoint"].tolist() == ["epoch_000", "epoch_001"]
    assert (rows["kc_p05"] <= rows["kc_p95"]).all()
    assert (tmp_path / "trajectory.png").stat().st_size > 1000


def test_the_optimisers_metric_is_bounded_and_leaves_out_what_never_moved():
    model = torch.nn.Linear(3, 1)
    engine = Jacobians(model, lambda net, x: net(x))
    scale = optimiser_scale(engine, {"weight": torch.tensor([[1.0, 4.0, 1e-30]])})
    np.testing.assert_allclose(scale.square().numpy(), [1, 0.5, 100, 0], rtol=1e-6)


def test_it_goes_on_where_it_was_killed(scene, trained, tmp_path, monkeypatch):
    options = replace(OPTIONS, backend="sketch")
    similarity_stage(scene, trained, options, tmp_path / "whole")
    calls = []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read_batch(*args)

    monkeypatch.setattr(backends, "read_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        similarity_stage(scene, trained, options, tmp_path / "cut")
    with pytest.raises(StoreError, match=r"cut short, \d+ of \d+ shards are missing"):
        ShardStore.open(tmp_path / "cut" / "sketch_model")
    (tmp_path / "cut" / "sketch_model" / ".partial-shard_00002").mkdir()
    with pytest.raises(StoreError, match="metric='plain', but now metric='adam'"):
        similarity_stage(scene, trained, replace(options, metric="adam"), tmp_path / "cut")
    similarity_stage(scene, trained, options, tmp_path / "cut")
    shards = -(-len(neighbours(tmp_path / "whole")) // OPTIONS.batch)
    assert len(calls) == 3 + shards - 2  # two shards were not computed again
    pd.testing.assert_frame_equal(neighbours(tmp_path / "cut"), neighbours(tmp_path / "whole"))


def test_one_tile(scene, trained, tmp_path):
    similarity_stage(scene, trained, replace(OPTIONS, max_tiles=1, max_query_tiles=0), tmp_path)
    row = neighbours(tmp_path).iloc[0]
    assert row["n_soft"] == pytest.approx(1)
    assert row["n_tau"] == 1
    assert np.isnan(row["nearest_kc"])


def test_a_bad_tile_is_named(scene, trained, tmp_path, monkeypatch):
    position = int(pick_tiles(scene, ["train"], 24, 0)[3])
    honest = type(scene).tile

    def spoilt(self, place):
        tile = honest(self, place)
        if place == position:
            tile.moving[0, 3, 3] = np.nan
        return tile

    monkeypatch.setattr(type(scene), "tile", spoilt)
    name = scene.index["tile_id"].iloc[position]
    with pytest.raises(InputError, match=f"tile {name}: input 1 holds NaN"):
        similarity_stage(scene, trained, OPTIONS, tmp_path)


def test_no_tiles_and_no_checkpoints_are_refused(scene, trained, tmp_path):
    with pytest.raises(InputError, match="parts=nowhere: the store has no such tile"):
        similarity_stage(scene, trained, replace(OPTIONS, parts=["nowhere"]), tmp_path)
    alone = tmp_path / "model.safetensors"
    alone.write_bytes(trained.read_bytes())
    with pytest.raises(InputError, match="holds no checkpoints"):
        similarity_stage(scene, alone, replace(OPTIONS, checkpoints="mean"), tmp_path)
    with pytest.raises(InputError, match="second moments are missing"):
        similarity_stage(scene, alone, replace(OPTIONS, metric="adam"), tmp_path)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    store = ShardStore(tmp_path / "store", {"a": 1}, 4, 2)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarr.open_group", full)
    with pytest.raises(OutputError, match="shard_00001: cannot be written"):
        store.write(1, {"x": np.zeros((2, 3))})
    assert store.missing() == [0, 1]


def test_the_store_keeps_rows_and_refuses_others(tmp_path):
    values = np.arange(30.0).reshape(10, 3)
    store = ShardStore(tmp_path / "store", {"model": "abc"}, 10, 4)
    for index in store.missing():
        store.write(index, {"x": values[store.span(index)]})
    again = ShardStore.open(tmp_path / "store")
    np.testing.assert_array_equal(again.all("x"), values)
    for part in (slice(0, 10), slice(3, 5), slice(4, 8), slice(9, 10)):
        np.testing.assert_array_equal(again.rows("x", part), values[part])
    with pytest.raises(StoreError, match="made with model='abc', but now model='def'"):
        ShardStore(tmp_path / "store", {"model": "def"}, 10, 4)
    with pytest.raises(StoreError, match="damaged"):
        again.read(0, "y")
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"without manifest\.json"):
        ShardStore(tmp_path / "store", {"model": "abc"}, 10, 4)
    with pytest.raises(StoreError, match="there is no similarity store"):
        ShardStore.open(tmp_path / "store")
    with pytest.raises(StoreError, match="there is no kernel"):
        load_kernel(tmp_path / "kernel.zarr")


def test_digests_see_every_weight_and_shape():
    model = torch.nn.Linear(2, 2)
    before = model_digest(model)
    assert before == model_digest(model)
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert before != model_digest(model)
    assert arrays_digest(np.zeros((2, 3))) != arrays_digest(np.zeros((3, 2)))


def test_the_draw_of_tiles_sees_every_region(scene):
    regions = scene.index["region"]
    every = set(regions[scene.index["part"] == "train"])
    drawn = pick_tiles(scene, ["train"], len(every), 3)
    assert set(regions.iloc[drawn]) == every
    np.testing.assert_array_equal(drawn, pick_tiles(scene, ["train"], len(every), 3))
    assert tiles.tiles_digest(scene, drawn) != tiles.tiles_digest(scene, drawn[:-1])
    json.dumps(tiles.tiles_digest(scene, drawn))
