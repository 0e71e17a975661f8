"""The stage on a prepared scene: the backends agree, it resumes, and it refuses what does not fit."""

import json
import shutil
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import torch

from regnet.errors import ConfigError, InputError
from regnet.files import read_json
from regnet.models import centre_offset, load_checkpoint, save_checkpoint
from regnet.options import check_options
from regnet.similarity import backends, tiles
from regnet.similarity.checkpoints import bounded_adam_scale, load_along, load_checkpoints
from regnet.similarity.gradients import Jacobians
from regnet.similarity.options import SimilarityOptions
from regnet.similarity.result import load_kernel
from regnet.similarity.stage import similarity_stage
from regnet.similarity.tiles import pick_tiles, read_batch

OPTIONS = SimilarityOptions(max_tiles=24, max_query_tiles=4, batch=12, nearest=3, precision="float64")


def neighbours(folder):
    return gpd.read_parquet(folder / "neighbours.parquet")


@pytest.fixture(scope="module")
def exact(scene, trained, tmp_path_factory):
    """Folder of what the exact backend makes of `OPTIONS`."""
    folder = tmp_path_factory.mktemp("exact")
    similarity_stage(scene, trained, OPTIONS, folder)
    return folder


def test_outputs_of_the_exact_backend(scene, trained, exact):
    table, kernel = neighbours(exact), load_kernel(exact / "kernel.zarr")
    assert table["reference"].sum() == 24
    assert set(table.loc[~table["reference"], "part"]) == {"validation", "test", "shifted"}
    assert table.crs == scene.index.crs
    positions = pick_tiles(scene, ["train"], 24, 0)
    _, jacobians = Jacobians(load_checkpoint(trained))(*read_batch(scene, positions))
    expected = torch.einsum("iap,jbp->iajb", jacobians.double(), jacobians.double()).numpy()
    np.testing.assert_allclose(kernel.blocks, expected, rtol=0, atol=1e-5 * expected.max())
    np.testing.assert_array_equal(kernel.tile_id, scene.index["tile_id"].to_numpy()[positions])
    nearest = np.load(exact / "nearest.npz")
    assert nearest["nearest_tile_id"].shape == (len(table), 3)
    assert not (nearest["nearest_tile_id"] == nearest["tile_id"][:, None])[:24].any()  # never itself
    assert (np.diff(nearest["kc"], axis=1) <= 0).all()
    summary = read_json(exact / "summary.json")
    assert summary["tiles"] == 24
    assert summary["dead_tiles"] == []
    assert not (exact / "gradients_model").exists()
    regions = pd.read_csv(exact / "regions.csv")
    assert regions["tiles"].sum() == len(table)
    first = regions.iloc[0]
    inside = table[(table["part"] == first["part"]) & (table["region"] == first["region"])]
    for name in ("n_soft", "n_tau", "n_alpha", "nearest_kc"):
        assert first[name] == pytest.approx(inside[name].mean())


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_precisions_of_the_products(scene, trained, exact, tmp_path, precision, tolerance):
    similarity_stage(scene, trained, replace(OPTIONS, precision=precision), tmp_path)
    rough, fine = neighbours(tmp_path), neighbours(exact)
    for name in ("n_soft", "n_alpha", "nearest_kc"):
        np.testing.assert_allclose(rough[name], fine[name], rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("backend", ["sketch", "linear"])
def test_the_backends_agree(scene, trained, exact, tmp_path, backend):
    similarity_stage(scene, trained, replace(OPTIONS, backend=backend), tmp_path)
    fine, other = neighbours(exact), neighbours(tmp_path)
    np.testing.assert_allclose(other["n_soft"], fine["n_soft"], rtol=2e-3)
    if backend == "sketch":  # every reference tile is a landmark, so that the sketch is complete
        np.testing.assert_allclose(other.loc[:23, "n_soft"], fine.loc[:23, "n_soft"], rtol=1e-5)
        whole, sketched = (load_kernel(folder / "kernel.zarr") for folder in (exact, tmp_path))
        product = np.einsum("iak,jbk->iajb", sketched.features, sketched.features)
        np.testing.assert_allclose(product, whole.blocks, atol=1e-5 * whole.blocks.max())
    else:
        assert other["n_tau"].isna().all()
        assert not (tmp_path / "kernel.zarr").exists()


@pytest.mark.parametrize("backend", ["exact", "sketch"])
def test_every_tile_is_wholly_like_itself(scene, trained, tmp_path, backend):
    similarity_stage(scene, trained, replace(OPTIONS, backend=backend, landmarks=3, tau=1, nearest=1), tmp_path)
    table = neighbours(tmp_path)
    np.testing.assert_array_equal(table["n_tau"], table["reference"])


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
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-5 * float(expected.max()))
    rows = pd.read_csv(tmp_path / "trajectory.csv")
    assert rows["checkpoint"].tolist() == ["epoch_000", "epoch_001"]
    assert (rows["kc_p05"] <= rows["kc_p95"]).all()
    assert (tmp_path / "trajectory.png").stat().st_size > 1000


def test_the_optimisers_metric_is_bounded_and_leaves_out_what_never_moved():
    model = torch.nn.Linear(3, 1)
    engine = Jacobians(model, lambda net, x: net(x))
    scale = bounded_adam_scale(engine, {"weight": torch.tensor([[1.0, 4.0, 1e-30]])})
    np.testing.assert_allclose(scale.square().numpy(), [1, 0.5, 100, 0], rtol=1e-6)


def test_landmarks_keep_to_the_memory(scene, trained, tmp_path, monkeypatch):
    p = load_checkpoints(trained, OPTIONS)[0].engine.size
    monkeypatch.setattr(backends, "_BYTES_A_LANDMARK", 16 * 2**20 / (2 * p) / 5.5)
    options = replace(OPTIONS, backend="sketch", memory_mb=16, keep_gradients=True)
    similarity_stage(scene, trained, options, tmp_path)
    assert read_json(tmp_path / "sketch_model" / "manifest.json")["landmarks"] == 5
    monkeypatch.setattr(backends, "_BYTES_A_LANDMARK", 17 * 2**20 / (2 * p))
    with pytest.raises(
        ConfigError, match=rf"memory_mb=16 is too little for a landmark of a sketch in {p} .* takes 17 MB"
    ):
        similarity_stage(scene, trained, options, tmp_path)


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


def test_the_draw_of_tiles_sees_every_region(scene):
    regions = scene.index["region"]
    every = set(regions[scene.index["part"] == "train"])
    drawn = pick_tiles(scene, ["train"], len(every), 3)
    assert set(regions.iloc[drawn]) == every
    np.testing.assert_array_equal(drawn, pick_tiles(scene, ["train"], len(every), 3))
    assert tiles.tiles_digest(scene, drawn) != tiles.tiles_digest(scene, drawn[:-1])
    json.dumps(tiles.tiles_digest(scene, drawn))


@pytest.mark.parametrize("readout", ["mean_offset", "sum_offset"])
def test_another_readout_and_some_parameters(scene, trained, tmp_path, readout):
    options = replace(OPTIONS, readout=readout, parameters=["heads.*", "*.bias"], max_query_tiles=0)
    similarity_stage(scene, trained, options, tmp_path)
    model, batch = load_checkpoint(trained), read_batch(scene, pick_tiles(scene, ["train"], 24, 0))

    def reduced(net, *images):
        field = net(*images).displacement
        return field.mean((2, 3)) if readout == "mean_offset" else field.sum((2, 3))

    engine = Jacobians(model, reduced, options.parameters)
    assert 0 < engine.size < Jacobians(model).size
    _, jacobians = engine(*batch)
    expected = torch.einsum("iap,jbp->iajb", jacobians.double(), jacobians.double()).numpy()
    stored = load_kernel(tmp_path / "kernel.zarr")
    np.testing.assert_allclose(stored.blocks, expected, rtol=0, atol=1e-5 * expected.max())
    with torch.no_grad():  # what is compared to the labels stays the prediction at their place
        np.testing.assert_allclose(stored.values, centre_offset(model, *batch).numpy(), atol=1e-5)


def test_the_search_by_faiss_finds_what_all_pairs_find(scene, trained, tmp_path):
    pytest.importorskip("faiss")
    options = replace(OPTIONS, backend="sketch", memory_mb=16)
    for search in ("exact", "faiss"):
        similarity_stage(scene, trained, replace(options, search=search), tmp_path / search)
    exact, faiss = (np.load(tmp_path / search / "nearest.npz") for search in ("exact", "faiss"))
    np.testing.assert_array_equal(faiss["nearest_tile_id"], exact["nearest_tile_id"])
    np.testing.assert_allclose(faiss["kc"], exact["kc"], atol=1e-5)
    assert not (faiss["nearest_tile_id"] == faiss["tile_id"][:, None]).any()
    pd.testing.assert_frame_equal(neighbours(tmp_path / "faiss"), neighbours(tmp_path / "exact"), atol=1e-5)


def test_too_little_memory_for_all_pairs_is_told_before_any_work(scene, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "_BYTES_A_NUMBER", 10_000)
    with pytest.raises(ConfigError, match=r"memory_mb=16 is too little for all pairs of 36 and 24 tiles, .* 3\d MB"):
        similarity_stage(scene, trained, replace(OPTIONS, memory_mb=16), tmp_path)
    assert not list(tmp_path.iterdir())


def test_contradicting_options_are_refused(scene, trained, tmp_path):
    with pytest.raises(ConfigError, match="search=faiss searches sketches; set backend=sketch, not exact"):
        similarity_stage(scene, trained, replace(OPTIONS, search="faiss"), tmp_path)
    for several in ({"checkpoints": "mean"}, {"trajectory": ["checkpoints/epoch_*.safetensors"]}):
        with pytest.raises(ConfigError, match="backend=linear counts with one network"):
            similarity_stage(scene, trained, replace(OPTIONS, backend="linear", **several), tmp_path)


@pytest.mark.parametrize("backend", ["exact", "sketch"])
def test_similarity_along_epochs_and_rounds(scene, trained, tmp_path, backend):
    train = tmp_path / "train"
    shutil.copytree(trained.parent, train)
    for number in (2, 10):
        shutil.copytree(trained.parent, train / f"round_{number}")
    patterns = ["checkpoints/*.safetensors", "round_*/model.safetensors", "model.safetensors"]
    options = replace(OPTIONS, backend=backend, trajectory=patterns)
    similarity_stage(scene, train / "model.safetensors", options, tmp_path / "along")
    rows = pd.read_csv(tmp_path / "along" / "trajectory.csv").set_index("checkpoint")
    assert rows.index.tolist() == ["epoch_000", "epoch_001", "round_2_model", "round_10_model", "model"]
    assert (tmp_path / "along" / "trajectory.png").stat().st_size > 1000
    similarity_stage(scene, train / "model.safetensors", replace(options, trajectory=[]), tmp_path / "alone")
    shutil.copytree(tmp_path / "along", tmp_path / "again")
    similarity_stage(scene, train / "model.safetensors", replace(options, trajectory=[]), tmp_path / "again")
    assert not list((tmp_path / "again").glob("trajectory.*"))  # which were of the run before
    pd.testing.assert_frame_equal(neighbours(tmp_path / "along"), neighbours(tmp_path / "alone"))
    table = neighbours(tmp_path / "alone")
    density = table.loc[table["reference"], "n_soft"] / 24
    # The last checkpoint, the trained model and its copies are one network.
    for name in ("epoch_001", "round_2_model", "round_10_model", "model"):
        assert rows.loc[name, "density_p50"] == pytest.approx(density.median(), abs=1e-6)
    assert rows.loc["epoch_000", "density_p50"] != pytest.approx(density.median(), abs=1e-6)
    with pytest.raises(InputError, match=r"trajectory=round_3/\*: .* holds no such file"):
        similarity_stage(scene, trained, replace(options, trajectory=["round_3/*"]), tmp_path / "none")


def test_along_a_training_from_its_start_each_network_in_its_own_metric(trained, tmp_path):
    train = tmp_path / "train"
    shutil.copytree(trained.parent, train)
    for folder in (train, train / "round_1"):
        shutil.copytree(trained.parent / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
        shutil.copyfile(trained, folder / "model.safetensors")
        shutil.copyfile(trained, folder / "checkpoints" / "start.safetensors")
    for number in (999, 1000):
        for name in ("epoch", "adam_v"):
            copied = train / "round_1" / "checkpoints" / f"{name}_{number}.safetensors"
            shutil.copyfile(copied.with_name(f"{name}_{number % 2:03d}.safetensors"), copied)
    patterns = ["checkpoints/*.safetensors", "round_1/model.safetensors"]
    options = replace(OPTIONS, metric="adam", trajectory=patterns)
    along = load_along(train / "model.safetensors", options)
    assert [at.name for at in along] == ["start", "epoch_000", "epoch_001", "round_1_model"]
    of_epoch = {0: along[1].scale, 1: along[2].scale}
    assert not torch.equal(of_epoch[0], of_epoch[1])
    # The start is before the first moments, which are the nearest; a model has the last of its own training.
    assert torch.equal(along[0].scale, of_epoch[0])
    assert torch.equal(along[3].scale, of_epoch[0])
    assert torch.equal(load_checkpoints(train / "model.safetensors", options)[0].scale, of_epoch[1])
    assert all(at.scale is None for at in load_along(train / "model.safetensors", replace(options, metric="plain")))


def test_what_is_no_pattern_of_checkpoints_is_refused(trained):
    for pattern in (f"{trained.parent}/*.safetensors", ""):
        with pytest.raises(ConfigError, match=r"similarity\.trajectory=.* is no pattern of files within"):
            load_along(trained, replace(OPTIONS, trajectory=[pattern]))
    with pytest.raises(InputError):  # folders, to which later versions of Python add the files in them
        load_along(trained, replace(OPTIONS, trajectory=["**"]))


def test_a_tile_is_compared_once(scene, trained, tmp_path):
    for key in ("parts", "query_parts"):
        with pytest.raises(ConfigError, match=rf"similarity\.{key}=test,test names test twice, .* name each part once"):
            similarity_stage(scene, trained, replace(OPTIONS, **{key: ["test", "test"]}), tmp_path)
        with pytest.raises(ConfigError, match=f"{key}='tests' is not known; choose one of train, validation, test, sh"):
            check_options(replace(OPTIONS, **{key: ["tests"]}))
    assert not list(tmp_path.iterdir())


def test_parts_of_the_reference_set_are_no_queries(scene, trained, tmp_path):
    similarity_stage(scene, trained, replace(OPTIONS, parts=["train", "test"]), tmp_path)
    table = neighbours(tmp_path)
    assert set(table.loc[table["reference"], "part"]) == {"train", "test"}
    assert set(table.loc[~table["reference"], "part"]) == {"validation", "shifted"}
    assert table["tile_id"].is_unique


def test_duplicates_and_dead_tiles_in_the_stage(scene, trained, tmp_path, monkeypatch):
    positions = pick_tiles(scene, ["train"], 24, 0)
    honest = type(scene).tile

    def twice(self, place):
        return honest(self, int(positions[0]) if place == positions[1] else place)

    monkeypatch.setattr(type(scene), "tile", twice)
    for backend in ("exact", "sketch"):
        similarity_stage(scene, trained, replace(OPTIONS, backend=backend), tmp_path / backend)
        nearest, ids = np.load(tmp_path / backend / "nearest.npz"), scene.index["tile_id"].to_numpy()[positions]
        assert nearest["nearest_tile_id"][:2, 0].tolist() == [ids[1], ids[0]]
        np.testing.assert_allclose(nearest["kc"][:2, 0], 1, atol=1e-5)
    constant = load_checkpoint(trained)
    with torch.no_grad():
        for parameter in constant.parameters():
            parameter.zero_()
    save_checkpoint(tmp_path / "dead" / "model.safetensors", constant)
    flat = replace(OPTIONS, parameters=["encode_*"], tau=-1)
    similarity_stage(scene, tmp_path / "dead" / "model.safetensors", flat, tmp_path / "none")
    table = neighbours(tmp_path / "none")
    assert table["dead"].all()
    assert (table[["n_soft", "n_tau"]] == 0).all(axis=None)
    assert (np.load(tmp_path / "none" / "nearest.npz")["nearest_tile_id"] == -1).all()
    assert read_json(tmp_path / "none" / "summary.json")["dead_tiles"] == table["tile_id"].tolist()
