"""The study of replicas from a prepared store to its tables and figures, and what its audit counts."""

import html
import re
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio

from regnet.baselines.options import NetworkOptions
from regnet.denoising.blunders import precision_at_recall
from regnet.denoising.estimators import CONSTANT, TRAINING, calibrated_name
from regnet.denoising.options import DenoisingValidationOptions
from regnet.denoising.replicas import shifted_tiles
from regnet.errors import ConfigError, InputError
from regnet.evaluation.options import NeighbourOptions
from regnet.evaluation.validation import run_denoising_validation
from regnet.files import read_json, write_stamp
from regnet.models import ModelOptions
from regnet.report.summary import collect_summary

SMALL = ModelOptions(levels=1, width=4, descriptor_channels=4, radius_px=2)
OPTIONS = DenoisingValidationOptions(
    replicas=4, retrainings=4, tiles=12, shift_px=1, epochs=1, batch=4, checkpoints=3, region_px=64, region_tiles=1
)

MEAN_KERNEL = "ridge, mean kernel, Adam's metric"


@pytest.fixture(scope="module")
def store(mini_store):
    return mini_store(tile_px=32, stride_px=16)


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "denoising_validation"
    run_denoising_validation(store, SMALL, OPTIONS, NeighbourOptions(), folder)
    return folder


def test_the_study_writes_its_tables_and_figures(folder):
    table = pd.read_csv(folder / "estimators.csv").set_index("estimator")
    best = calibrated_name(4)
    assert {best, MEAN_KERNEL, TRAINING, CONSTANT} <= set(table.index)
    assert table.loc[best, "trainings"] == 5
    assert table.loc[best, "noise_transfer"] != table.loc[MEAN_KERNEL, "noise_transfer"]
    assert 0 <= table.loc[best, "coverage"] <= 1
    assert np.isnan(table.loc[MEAN_KERNEL, "coverage"])
    assert table.loc[CONSTANT, "predicted_mean"] == pytest.approx(12**-0.5, rel=1e-3)
    tiles = gpd.read_parquet(folder / "tiles.parquet")
    assert len(tiles) == 12
    assert tiles["true_factor"].gt(0).all()
    regions = pd.read_csv(folder / "regions.csv")
    for factors in (tiles, regions):
        assert (factors[f"low: {best}"] < factors[f"factor: {best}"]).all()
        assert (factors[f"high: {best}"] > factors[f"factor: {best}"]).all()
    assert regions["tiles"].sum() == 12
    squared = (regions["true_factor"] ** 2 * regions["tiles"]).sum() / 12
    assert squared == pytest.approx((tiles["true_factor"] ** 2).mean(), rel=1e-6)
    assert (folder / "factors.png").stat().st_size > 10_000
    assert (folder / "estimators.png").stat().st_size > 10_000
    summary = read_json(folder / "summary.json")
    assert summary["denoise"]["factor_mean"] == pytest.approx(table.loc[best, "predicted_mean"], rel=1e-2)
    assert 0 < summary["audit"]["precision_at_recall_60"] <= 1
    assert {"precision", "recall"} <= set(summary["audit"])
    write_stamp(folder, {})
    assert collect_summary(folder.parent)["denoise"] == summary["denoise"]


def test_the_study_has_a_report_of_its_own(folder):
    page = (folder / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/webp;base64,', page)) == 5
    best = read_json(folder / "summary.json")["contest"]["with_own_label"]
    for text in (calibrated_name(4), best["gradient"], best["perceptual"], "precision_at_recall_60", "retrainings: 4"):
        assert html.escape(text, quote=True).replace("&#x27;", "&#39;") in page


def test_the_study_holds_the_contest(folder, store):
    contest, summary = folder / "contest", read_json(folder / "summary.json")["contest"]
    table = pd.read_csv(contest / "table.csv").set_index("name")
    assert {"gradient", "perceptual", "pixels", "features", "control"} == set(table["kind"])
    for own, key in ((True, "with_own_label"), (False, "without_own_label")):
        for kind in ("gradient", "perceptual"):
            scores = table[(table["kind"] == kind) & (table["own"] == own)]["noise_transfer"]
            assert summary[key][f"noise_transfer_{kind}"] == pytest.approx(scores.max(), rel=1e-3)
            assert scores[summary[key][kind]] == scores.max()
    estimators = pd.read_csv(folder / "estimators.csv").set_index("estimator")["noise_transfer"]
    for name in (TRAINING, calibrated_name(4)):
        assert table.loc[f"{name}, with own", "noise_transfer"] == pytest.approx(estimators[name], rel=1e-3)
    best = summary["with_own_label"]["gradient"]
    tiles, regions = pd.read_csv(contest / "tiles.csv"), pd.read_csv(contest / "regions.csv")
    assert len(tiles) == 12
    assert set(regions["region"]) == set(pd.read_csv(folder / "regions.csv")["region"])
    with rasterio.open(contest / "noise_transfer_mini.tif") as raster:
        (row, col, value) = tiles.loc[5, ["row", "col", best]]
        assert raster.crs == store.scene("mini").crs
        assert raster.read(2)[int(row) // 32, int(col) // 32] != 0
        assert np.nanmax(raster.read(2)) <= 1
        assert np.isfinite(value)
    for name in ("scores.png", "maps.png", "neighbours.png", "others/noise_transfer_mini.qml"):
        assert (contest / name).stat().st_size > 500


@pytest.mark.parametrize(
    ("options", "neighbours", "error", "message"),
    [
        (replace(OPTIONS, region_tiles=13), NeighbourOptions(), ConfigError, r"region_tiles=13: no cell of 64 px"),
        (OPTIONS, NeighbourOptions(networks=[]), ConfigError, r"networks=\[\]"),
        (OPTIONS, NeighbourOptions(rgb=[4]), ConfigError, r"neighbours\.rgb=\[4\]"),
        (OPTIONS, NeighbourOptions([NetworkOptions("vgg16", convention="caffe")]), InputError, "convention=caffe"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_training(
    store, tmp_path, monkeypatch, options, neighbours, error, message
):
    monkeypatch.setattr("regnet.denoising.study.train_replicas", lambda *_: pytest.fail("a training was begun"))
    with pytest.raises(error, match=message):
        run_denoising_validation(store, SMALL, options, neighbours, tmp_path)


def test_moving_is_shifted_by_the_offset_that_is_told(store):
    tiles = shifted_tiles(store, DenoisingValidationOptions(tiles=6, batch=2, shift_px=0))
    whole = store.tile(int(tiles.rows["tile_id"].iloc[0]))
    assert tiles.offset.abs().max() == 0
    np.testing.assert_allclose(tiles.fixed[0], whole.fixed[:, 4:-4, 4:-4])
    np.testing.assert_allclose(tiles.moving[0], whole.moving[:, 4:-4, 4:-4], atol=1e-5)


def test_too_few_tiles_are_refused(store):
    with pytest.raises(InputError, match=r"6 train tiles.*denoising_validation\.batch"):
        shifted_tiles(store, DenoisingValidationOptions(tiles=6, batch=4))


def test_precision_at_recall():
    order, wrong = np.array([4, 1, 7, 3, 0, 2, 5, 6]), np.array([4, 7, 0, 6, 2])
    assert precision_at_recall(order, wrong, 0.6) == pytest.approx(3 / 5)
    assert precision_at_recall(order, wrong, 0.2) == 1
