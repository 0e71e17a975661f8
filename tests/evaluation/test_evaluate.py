import json
import shutil
import time
from dataclasses import replace

import cv2
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch

from regnet import displacement
from regnet.baselines.registry import METHODS
from regnet.errors import ConfigError, InputError
from regnet.evaluation import predictions as predictions_module
from regnet.evaluation.cases import CaseMaker, SceneField, list_cases
from regnet.evaluation.options import EvaluateOptions, FamilyOptions
from regnet.evaluation.stage import evaluate_stage
from regnet.evaluation.tables import over_each
from regnet.models.checkpoint import build_model, save_checkpoint
from regnet.models.options import ModelOptions
from regnet.run import _nothing_failed
from regnet.tiles.options import NoiseOptions, PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore

SMOOTH = FamilyOptions("smooth", 6.0, 40.0)
GAP_PX = 16


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    options = EvaluateOptions(families=[SMOOTH])
    return folder, options, evaluate_stage(store, None, options, folder, seed=3)


def test_the_true_displacement_brings_moving_back(store):
    """What separates a right convention from a swapped or mirrored one: only the right one undoes the displacement."""
    case = list_cases(store, ["test"], [SMOOTH], 1, GAP_PX)[0]
    problem = CaseMaker(store, 0).problem(case)
    block = case.block
    plain = store.scene("pair").read(block.row - GAP_PX, block.col - GAP_PX, *problem.true.shape[1:])

    def left(field):
        pulled = displacement.warp(
            torch.from_numpy(problem.patch.moving)[None], torch.from_numpy(field)[None], "bicubic"
        )
        return np.abs(pulled[0].numpy() - plain.moving)[:, 20:-20, 20:-20].mean()

    before = left(np.zeros_like(problem.true))
    assert left(problem.true) < 0.15 * before
    assert left(-problem.true) > before
    assert left(problem.true[::-1].copy()) > 0.5 * before
    np.testing.assert_array_equal(problem.patch.fixed, plain.fixed)


def test_fields_of_a_scene_are_one_field_whatever_window_is_read():
    field = SceneField((300, 260), FamilyOptions("any", 8.0, 30.0), np.random.default_rng(1))
    whole = field.window(0, 0, 300, 260)
    np.testing.assert_allclose(field.window(40, 70, 90, 80), whole[:, 40:130, 70:150], atol=1e-4)
    assert np.hypot(*whole).max() == pytest.approx(8, rel=0.1)


def test_fine_fields_have_their_own_scale():
    lengths = []
    for sigma in (10.0, 40.0):
        field = SceneField((300, 300), FamilyOptions("any", 8.0, sigma), np.random.default_rng(1)).window(
            0, 0, 300, 300
        )
        lengths.append(field.std() / np.diff(field, axis=2).std())
    # For white noise through a Gaussian, deviation over the deviation of the gradient is sqrt(2) sigma.
    assert lengths == pytest.approx([np.sqrt(2) * 10, np.sqrt(2) * 40], rel=0.35)


def test_summary_has_what_is_promised(run):
    folder, _, summary = run
    assert json.loads((folder / "summary.json").read_text()).keys() == summary.keys()
    for part in ("evaluation", "evaluation_shifted", "evaluation_everything"):
        for method in ("none", "labels", "matcher_mind", "classical.phase"):
            row = summary[part]["smooth"][method]
            assert row["status"] == "ok"
            assert np.isfinite([row[name] for name in ("epe_mean_px", "epe_median_px", "epe_p95_px", "seconds")]).all()
            assert 0 <= row["pck_1px"] <= row["pck_3px"] <= 1
            assert row["peak_memory_mb"] > 50 or method == "labels" or np.isnan(row["peak_memory_mb"])
            assert row["epe_mean_m"] == pytest.approx(row["epe_mean_px"] * 10, rel=0.01)


def test_the_rows_are_what_they_are_called(run, store):
    rows = run[2]["evaluation"]["smooth"]
    # The labels are off by (3, -4) px everywhere, so by 5 px, whatever the family.
    assert rows["labels"]["epe_mean_px"] == pytest.approx(5, abs=1e-4)
    case = list_cases(store, ["test"], [SMOOTH], 1, GAP_PX)
    maker = CaseMaker(store, 3)
    lengths = [np.hypot(*maker.problem(one).true)[one.own].mean() for one in case]
    assert min(lengths) - 0.2 < rows["none"]["epe_mean_px"] < max(lengths) + 0.2
    assert rows["matcher_mind"]["epe_mean_px"] < 0.4 * rows["none"]["epe_mean_px"]


def test_structure_and_what_lies_beside_it_are_everything(run):
    folder, _, summary = run
    table = pd.read_csv(folder / "table.csv").set_index(["part", "method", "within"])
    for part, tree in (("test", summary["evaluation"]), ("shifted", summary["evaluation_shifted"])):
        for method, row in tree["smooth"].items():
            whole, with_structure, beside = (
                table.loc[(part, method, within)] for within in ("everything", "structure", "beside")
            )
            assert whole["count"] == with_structure["count"] + beside["count"]
            assert row["beside"]["count"] == beside["count"]
            assert row["count"] == with_structure["count"]
            if row["status"] == "ok":
                assert beside["count"] > 0
                means, counts = zip(
                    *[(one["epe_mean_px"], one["count"]) for one in (with_structure, beside)], strict=True
                )
                assert np.average(means, weights=counts) == pytest.approx(whole["epe_mean_px"], rel=1e-4)
    text = (folder / "table.md").read_text()
    assert "Where the ground has structure:\n\n| part |" in text
    beside = summary["evaluation"]["smooth"]["none"]["beside"]
    assert f"| test | smooth | none | {beside['epe_mean_px']:.3f} |" in text.split("beside it:")[1]


def test_errors_are_divided_by_the_mask():
    errors, structure = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([[1, 0, 1], [0, 0, 0]], bool)
    found = {within: px.tolist() for within, px in over_each(errors, structure).items()}
    assert found == {"structure": [0, 2], "beside": [1, 3, 4, 5], "everything": [0, 1, 2, 3, 4, 5]}


def test_a_method_that_fails_says_so_and_is_no_zero(run):
    row = run[2]["evaluation"]["smooth"]["model"]
    assert "no trained model" in row["status"]
    assert np.isnan(row["epe_mean_px"])
    assert row["count"] == 0
    table = pd.read_csv(run[0] / "table.csv")
    assert table[table["method"] == "model"]["epe_mean_px"].isna().all()
    assert "no trained model" in (run[0] / "table.md").read_text()


def test_what_failed_is_tried_again_and_took_no_time_if_it_could_not_start(run, store, tmp_path, monkeypatch):
    row = run[2]["evaluation"]["smooth"]["model"]
    assert np.isnan(row["seconds"])
    able = []

    def moody(patch):
        if not able:
            raise cv2.error("too plain")
        return np.zeros((2, *patch.fixed_valid.shape), np.float32)

    monkeypatch.setitem(METHODS, "moody", moody)
    options = EvaluateOptions(families=[SMOOTH], parts=["test"], methods=["moody"])
    row = evaluate_stage(store, None, options, tmp_path)["evaluation"]["smooth"]["moody"]
    assert "too plain" in row["status"]
    assert row["seconds"] >= 0
    able.append(True)
    assert evaluate_stage(store, None, options, tmp_path)["evaluation"]["smooth"]["moody"]["status"] == "ok"


def test_a_model_that_is_there_and_damaged_is_refused(store, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build_model(ModelOptions(descriptor_channels=4, levels=2), 1, 1))
    path.write_bytes(path.read_bytes()[:400])
    options = EvaluateOptions(families=[SMOOTH], parts=["test"], methods=["none", "model"])
    with pytest.raises(InputError, match="cut short or not a regnet model"):
        evaluate_stage(store, path, options, tmp_path / "out")


def test_errors_that_are_not_meant_for_users_are_not_swallowed(store, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setitem(METHODS, "broken", broken)
    with pytest.raises(ZeroDivisionError):
        evaluate_stage(store, None, EvaluateOptions(families=[SMOOTH], methods=["broken"]), tmp_path)


def test_cached_predictions_are_used_again_and_new_methods_run_alone(run, store, monkeypatch, tmp_path):
    folder, options, before = run
    folder = shutil.copytree(folder, tmp_path / "copy")
    ran = []
    original = predictions_module._run
    monkeypatch.setattr(predictions_module, "_run", lambda *job: (ran.append(job), original(*job))[1])
    assert (
        evaluate_stage(store, None, options, folder, seed=3)["evaluation"]["smooth"]["none"]
        == (before["evaluation"]["smooth"]["none"])
    )
    assert not ran
    monkeypatch.setitem(METHODS, "another", lambda patch: np.ones((2, *patch.fixed_valid.shape), np.float32))
    more = EvaluateOptions(families=[SMOOTH], methods=[*options.methods, "another"])
    evaluate_stage(store, None, more, folder, seed=3)
    assert len(ran) == len(list_cases(store, ["test", "shifted"], [SMOOTH], 1, GAP_PX))
    ran.clear()
    evaluate_stage(store, None, EvaluateOptions(families=[SMOOTH], methods=["none"]), folder, seed=4)
    assert ran


def test_maps_and_regions_agree_with_the_table(run, store):
    folder, _, summary = run
    regions = gpd.read_parquet(folder / "regions.parquet")
    none = regions[(regions["method"] == "none") & (regions["part"] == "test")]
    assert set(none["region"]) == set(store.blocks.query("part == 'test'")["block_id"])
    mean = np.average(none["epe_mean_px"], weights=none["count"])
    assert mean == pytest.approx(summary["evaluation"]["smooth"]["none"]["epe_mean_px"], rel=1e-4)
    with rasterio.open(folder / "maps" / "pair_smooth_none.tif") as image:
        errors = image.read(1)
        assert image.crs == store.scene("pair").crs
        assert image.tags()["units"] == "px"
    block = store.blocks.query("part == 'test'").iloc[0]
    row, col = int(block.row), int(block.col)
    assert np.isfinite(errors[row + 20 : row + block.height - 20, col + 20 : col + block.width - 20]).all()
    train = store.blocks.query("part == 'train'").iloc[0]
    assert np.isnan(errors[train.row : train.row + train.height, train.col : train.col + train.width]).all()


def test_difference_maps_are_differences(store, tmp_path):
    options = EvaluateOptions(families=[SMOOTH], methods=["none", "matcher_mind", "model"], parts=["test"])
    small = ModelOptions(descriptor="learned", descriptor_channels=4, width=4, levels=2)
    save_checkpoint(tmp_path / "model.safetensors", build_model(small, 1, 1))
    evaluate_stage(store, tmp_path / "model.safetensors", options, tmp_path)
    layers = {}
    for name in ("model", "matcher_mind", "model_minus_matcher_mind"):
        path = tmp_path / "maps" / f"pair_smooth_{name}.tif"
        with rasterio.open(path) as image:
            layers[name] = image.read(1)
            low, high = image.tags()["colour_scale_px"].split()
        style = path.with_suffix(".qml").read_text()
        assert f'classificationMin="{float(low):g}' in style
        assert f'classificationMax="{float(high):g}' in style
    known = np.isfinite(layers["model"])
    assert known.any()
    np.testing.assert_allclose(
        layers["model_minus_matcher_mind"][known], (layers["model"] - layers["matcher_mind"])[known], atol=1e-5
    )
    assert np.isnan(layers["model_minus_matcher_mind"][~known]).all()
    assert np.abs(layers["model_minus_matcher_mind"][known]).max() > 0.01


def test_methods_never_see_other_parts(store):
    for case in list_cases(store, ["test"], [SMOOTH], 1, GAP_PX):
        window = CaseMaker(store, 0).problem(case).patch.fixed.shape
        top, left = case.block.row - GAP_PX, case.block.col - GAP_PX
        for other in store.blocks.query("part == 'train'").itertuples():
            apart = (
                other.row >= top + window[1]
                or top >= other.row + other.height
                or other.col >= left + window[2]
                or left >= other.col + other.width
            )
            assert apart


def test_unknown_methods_and_empty_parts_are_refused(store, tmp_path):
    with pytest.raises(ConfigError, match=r"classical\.fase"):
        evaluate_stage(store, None, EvaluateOptions(methods=["classical.fase"]), tmp_path)
    with pytest.raises(ConfigError, match="methods is empty"):
        evaluate_stage(store, None, EvaluateOptions(methods=[]), tmp_path)
    store.blocks.loc[:, "kept"] = store.blocks["part"]
    try:
        store.blocks["part"] = "train"
        with pytest.raises(InputError, match="check the split"):
            evaluate_stage(store, None, EvaluateOptions(methods=["none"]), tmp_path)
    finally:
        store.blocks["part"] = store.blocks.pop("kept")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["smooth", "smooth"], "name 'smooth' is not unique"),
        (["a/b"], "name 'a/b' is not unique or not made of letters"),
        (["check_points"], "name 'check_points' is not unique"),
        ([], "families is empty, and there are no evaluate.check_points"),
    ],
)
def test_families_that_cannot_be_told_apart_are_refused(store, tmp_path, names, message):
    """The second of two families of one name would be given the predictions of the first."""
    families = [FamilyOptions(name, 6.0, sigma_px) for name, sigma_px in zip(names, (40.0, 80.0), strict=False)]
    with pytest.raises(ConfigError, match=message):
        evaluate_stage(store, None, EvaluateOptions(families=families, methods=["none"]), tmp_path)


def test_labels_alone_are_told_of(store, tmp_path):
    """They are off by the shift of 3 and -4 px, whatever the family."""
    options = EvaluateOptions(families=[SMOOTH], methods=["labels"])
    found = evaluate_stage(store, None, options, tmp_path)
    assert found["evaluation"]["smooth"]["labels"]["epe_mean_px"] == pytest.approx(5)
    assert gpd.read_parquet(tmp_path / "regions.parquet").empty


def test_a_method_that_leaves_pixels_out_has_failed(store, tmp_path, monkeypatch):
    """Else its errors would be those of the pixels that it chose."""

    def choosy(patch):
        field = np.zeros((2, *patch.fixed_valid.shape), np.float32)
        field[:, ::2] = np.nan
        return field

    monkeypatch.setitem(METHODS, "choosy", choosy)
    options = EvaluateOptions(families=[SMOOTH], methods=["choosy"], parts=["test"])
    row = evaluate_stage(store, None, options, tmp_path)["evaluation"]["smooth"]["choosy"]
    assert row["status"].startswith("failed in ")
    assert row["count"] == 0


def test_labels_without_a_known_truth_are_no_failure(store, tmp_path):
    """Another try would find out no more; and what the errors of the others are worth is said."""
    options = PrepareOptions(**store.manifest["options"])
    pairs = [PairOptions(**{**pair, "truth": "unknown"}) for pair in options.pairs]
    split, noise = SplitOptions(**options.split), NoiseOptions(**options.noise)
    prepare(replace(options, pairs=pairs, split=split, noise=noise), tmp_path / "prepare")
    unknown = TileStore.open(tmp_path / "prepare")
    found = evaluate_stage(
        unknown, None, EvaluateOptions(families=[SMOOTH], methods=["none", "labels"]), tmp_path / "evaluate"
    )
    row = found["evaluation"]["smooth"]["labels"]
    assert row["status"] == "the true offset of the training tiles is not known"
    assert row["count"] == 0
    assert _nothing_failed(tmp_path)
    assert "Nobody knows the true offset of pair pair:" in (tmp_path / "evaluate" / "table.md").read_text()


def test_seconds_are_measured(store, tmp_path, monkeypatch):
    def slow(patch):
        time.sleep(0.05)
        return np.zeros((2, *patch.fixed_valid.shape), np.float32)

    monkeypatch.setitem(METHODS, "slow", slow)
    options = EvaluateOptions(families=[SMOOTH], methods=["slow"], parts=["test"])
    rows = evaluate_stage(store, None, options, tmp_path)
    blocks = len(store.blocks.query("part == 'test'"))
    assert 0.05 * blocks <= rows["evaluation"]["smooth"]["slow"]["seconds"] < 0.05 * blocks + 2
