from copy import copy
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from regnet.baselines.options import BaselineOptions, PhaseOptions
from regnet.baselines.registry import METHODS
from regnet.errors import InputError
from regnet.evaluation.check_points import COLUMNS, read_check_points, sparse_truth
from regnet.evaluation.memory import peak_memory
from regnet.evaluation.options import EvaluateOptions, FamilyOptions
from regnet.evaluation.stage import evaluate_stage

SMOOTH = FamilyOptions("smooth", 6.0, 40.0)


@pytest.fixture(scope="module")
def points(store):
    """Ten points in the first test block, in moving 3 px right and 1.5 px up of where fixed has them."""
    block = store.blocks.query("part == 'test'").iloc[0]
    rows = block.row + 30 + 5 * np.arange(10) + 0.25
    cols = block.col + 40 + 4 * np.arange(10) + 0.5
    transform = store.scene("pair").transform
    places = [(*(transform @ (c, r)), *(transform @ (c + 3, r - 1.5))) for r, c in zip(rows, cols, strict=True)]
    return pd.DataFrame(places, columns=list(COLUMNS)), np.floor(np.stack([rows, cols], 1))


def save_lines(path, table, crs, to):
    lines = [shapely.LineString([row[:2], row[2:]]) for row in table[list(COLUMNS)].to_numpy()]
    gpd.GeoDataFrame(geometry=lines, crs=crs).to_crs(to).to_file(path)
    return path


def test_points_from_a_table_and_from_lines_are_the_same(store, points, tmp_path):
    table, pixels = points
    table.to_csv(tmp_path / "points.csv", index=False)
    lines = save_lines(tmp_path / "lines.gpkg", table, store.blocks.crs, 4326)
    for path in (tmp_path / "points.csv", lines):
        found = read_check_points(path, store)["pair"]
        np.testing.assert_array_equal(found[:, :2], pixels)
        np.testing.assert_allclose(found[:, 2:], np.broadcast_to([3, -1.5], (10, 2)), atol=1e-4)


def test_pairs_are_told_by_their_names_and_not_as_numbers(store, points, tmp_path):
    places = copy(store)
    places.pairs, places._scenes = ["047"], {"047": store.scene("pair")}
    points[0].assign(pair="047").to_csv(tmp_path / "points.csv", index=False)
    assert len(read_check_points(tmp_path / "points.csv", places)["047"]) == 10
    places.pairs, places._scenes = ["47"], {"47": store.scene("pair")}
    lines = gpd.read_file(save_lines(tmp_path / "lines.gpkg", points[0], store.blocks.crs, store.blocks.crs))
    lines.assign(pair=47).to_file(tmp_path / "numbered.gpkg")
    assert len(read_check_points(tmp_path / "numbered.gpkg", places)["47"]) == 10


def test_points_beside_the_parts_are_refused(store, points, tmp_path):
    """Else the table would lack them without a word."""
    points[0].to_csv(tmp_path / "points.csv", index=False)
    options = EvaluateOptions(families=[SMOOTH], methods=["none"], parts=["validation", "shifted"])
    with pytest.raises(InputError, match="no point lies in the parts validation, shifted"):
        evaluate_stage(store, None, replace(options, check_points=str(tmp_path / "points.csv")), tmp_path / "run")


def test_empty_lines_are_refused(store, points, tmp_path):
    lines = gpd.read_file(save_lines(tmp_path / "lines.gpkg", points[0], store.blocks.crs, store.blocks.crs))
    lines.geometry = [*lines.geometry[:-1], shapely.LineString()]
    lines.to_file(tmp_path / "one_empty.gpkg")
    with pytest.raises(InputError, match="empty lines"):
        read_check_points(tmp_path / "one_empty.gpkg", store)


def test_the_truth_of_a_window_is_known_at_its_points_alone():
    points = np.array([[12.0, 21, 1, 2], [12, 21, 3, 4], [40, 20, 5, 6]])
    truth = sparse_truth(points, 10, 20, (5, 6))
    assert truth[:, 2, 1].tolist() == [2, 3]
    assert np.isfinite(truth[0]).sum() == 1


def test_check_points_are_a_family_of_the_pair_as_it_lies(store, points, tmp_path, monkeypatch):
    def constant(patch):
        return np.broadcast_to(np.float32([3, 0])[:, None, None], (2, *patch.fixed_valid.shape))

    monkeypatch.setitem(METHODS, "constant", constant)
    points[0].to_csv(tmp_path / "points.csv", index=False)
    options = EvaluateOptions(
        families=[SMOOTH],
        methods=["none", "constant"],
        parts=["test"],
        check_points=str(tmp_path / "points.csv"),
    )
    summary = evaluate_stage(store, None, options, tmp_path / "run")
    rows = summary["evaluation"]["check_points"]
    assert rows["none"]["epe_mean_px"] == pytest.approx(np.hypot(3, 1.5), rel=1e-5)
    assert rows["constant"]["epe_mean_px"] == pytest.approx(1.5, rel=1e-5)
    assert rows["constant"]["epe_mean_m"] == pytest.approx(15, rel=0.01)
    assert rows["none"]["count"] == summary["evaluation_everything"]["check_points"]["none"]["count"] == 10
    assert summary["evaluation"]["smooth"]["none"]["count"] > 1000
    assert "check_points" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="moving_x"), "columns are missing"),
        (lambda table: table.assign(moving_x="east"), "not numbers"),
        (lambda table: table + 1e6, "no point lies"),
        (lambda table: table.assign(pair="other"), "no point lies"),
    ],
)
def test_files_that_are_no_check_points_are_refused(store, points, tmp_path, change, message):
    change(points[0]).to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(InputError, match=message):
        read_check_points(tmp_path / "points.csv", store)


def test_points_instead_of_lines_are_refused(store, points, tmp_path):
    ends = gpd.points_from_xy(points[0]["fixed_x"], points[0]["fixed_y"], crs=store.blocks.crs)
    gpd.GeoDataFrame(geometry=ends).to_file(tmp_path / "points.gpkg")
    with pytest.raises(InputError, match="other things than lines"):
        read_check_points(tmp_path / "points.gpkg", store)
    with pytest.raises(InputError, match="cannot be read"):
        read_check_points(tmp_path / "absent.csv", store)


def test_settings_of_one_method_leave_the_others_predictions(store, tmp_path):
    def times(tile_px):
        options = EvaluateOptions(
            families=[SMOOTH],
            methods=["none", "classical.phase"],
            parts=["test"],
            baselines=BaselineOptions(phase=PhaseOptions(tile_px=tile_px)),
        )
        summary = evaluate_stage(store, None, options, tmp_path)["evaluation"]["smooth"]
        saved = {
            name: [path.stat().st_mtime_ns for path in sorted((tmp_path / "predictions" / name).glob("*.npz"))]
            for name in options.methods
        }
        return saved, summary["classical.phase"]["epe_mean_px"]

    (first, wide), (second, narrow), (third, _) = times(96), times(24), times(24)
    assert first["none"] == second["none"]
    assert first["classical.phase"] != second["classical.phase"]
    assert wide != narrow
    assert second == third


def test_peak_memory_is_that_of_what_ran():
    peak = peak_memory()
    before = peak()
    if np.isnan(before):
        pytest.skip("this system keeps no mark of the peak memory")
    block = np.ones(25_000_000)
    during = peak()
    del block
    assert during - before == pytest.approx(200, abs=40)
    assert peak() == pytest.approx(during, abs=5)
