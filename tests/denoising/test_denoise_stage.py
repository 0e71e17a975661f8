"""The stage on a prepared scene and a kernel that is known: tables, maps, regions, and what is refused."""

import re
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import zarr
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter
from shapely.geometry import box

from regnet.denoising.along import Along
from regnet.denoising.maps import QUANTITIES, write_style
from regnet.denoising.noise import label_noise
from regnet.denoising.operators import operator_of
from regnet.denoising.options import DenoiseOptions
from regnet.denoising.plots import draw_factors
from regnet.denoising.retraining import Seen
from regnet.denoising.stage import denoise_stage
from regnet.errors import InputError, StoreError
from regnet.files import read_json
from regnet.similarity.result import StoredKernel, load_kernel, save_kernel
from regnet.tiles.options import NoiseOptions, PairOptions, PrepareOptions, SplitOptions
from regnet.tiles.prepare import prepare
from regnet.tiles.store import TileStore
from regnet.training.options import TrainingOptions

SIGMA = 1.5
PLAIN = DenoiseOptions(smoothing="ridge")
PLACE = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 10, 10)}


@pytest.fixture(scope="module", params=[1, 2], ids=["one_pair", "two_pairs"])
def store(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.normal(size=(200, 256)), 1.5).astype(np.float32)
    for name in ("fixed", "moving"):
        profile = {"driver": "GTiff", "width": 256, "height": 200, "count": 1, "dtype": "float32", **PLACE}
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
            target.write(image / image.std(), 1)
    pairs = [
        PairOptions(name=f"p{k}", fixed=str(folder / "fixed.tif"), moving=str(folder / "moving.tif"))
        for k in range(request.param)
    ]
    options = PrepareOptions(
        pairs=pairs,
        tile_px=16,
        stride_px=16,
        split=SplitOptions(block_px=56, gap_px=8),
        noise=NoiseOptions(kind="tile", sigma_px=SIGMA),
    )
    prepare(options, folder / "prepare")
    return TileStore.open(folder / "prepare")


@pytest.fixture
def similarity(store, tmp_path):
    """A kernel of 12 directions, and the predictions that its ridge smoother makes of the labels."""
    rows = store.index.iloc[store.tiles("train")]
    phi = np.random.default_rng(1).normal(size=(len(rows), 2, 12))
    phi[:, :, :2] += 2 * np.eye(2)
    labels = rows[["label_dx_px", "label_dy_px"]].to_numpy(dtype=float)
    design = phi.reshape(-1, 12)
    weights = np.linalg.solve(design.T @ design + 1e-3 * np.eye(12), design.T @ labels.ravel())
    values = (design @ weights).reshape(labels.shape)
    own = np.einsum("iak,ibk->iab", phi, phi)
    kernel = StoredKernel(rows["tile_id"].to_numpy(dtype=np.int64), values, own, features=phi)
    save_kernel(tmp_path / "similarity" / "kernel.zarr", kernel)
    return tmp_path / "similarity"


def run(store, similarity, options=PLAIN, plots=False):
    """The stage's folder; plots take a second."""
    folder = similarity.parent / "denoise"
    with pytest.MonkeyPatch.context() as patch:
        for plot in () if plots else ("draw_factors", "draw_audit"):
            patch.setattr(f"regnet.denoising.stage.{plot}", lambda *_: None)
        denoise_stage(store, similarity.parent / "model.safetensors", similarity, options, TrainingOptions(), folder)
    return folder


def test_tables_and_summary(store, similarity):
    folder = run(store, similarity)
    tiles, summary = gpd.read_parquet(folder / "tiles.parquet"), read_json(folder / "summary.json")
    assert len(tiles) == len(store.tiles("train"))
    assert tiles["factor"].gt(0).all()
    assert summary["noise_sigma_px"] == pytest.approx(SIGMA, rel=0.15)
    assert summary["noise_sigma_source"] == "estimated from the residuals"
    assert summary["factor_mean"] == pytest.approx(tiles["factor"].mean())
    assert summary["remarks"] == []
    assert summary["stationarity_residual_px"] < 0.05 < summary["shift_mean_px"]
    assert summary["effective_parameters"] == pytest.approx(12, abs=0.2)
    expected = np.sqrt(12 / (2 * len(tiles)))  # a projection on 12 of 2 n directions
    assert np.sqrt((tiles["smoother_factor"] ** 2).mean()) == pytest.approx(expected, rel=0.02)
    np.testing.assert_allclose(tiles["smoother_noise_px"], tiles["smoother_factor"] * summary["noise_sigma_px"])
    np.testing.assert_allclose(tiles["suggested_dx_px"], tiles["label_dx_px"] - tiles["loo_residual_dx_px"], atol=1e-6)
    for key in ("spearman", "slope", "noise_transfer"):
        assert summary[key] is None
    worst = gpd.read_parquet(folder / "audit.parquet")
    assert len(worst) == summary["doubtful_labels"] == int(tiles["doubtful"].sum())
    assert worst["audit_score"].is_monotonic_decreasing


def test_regions_sum_up_their_tiles_and_plots_are_drawn(store, similarity):
    folder = run(store, similarity, plots=True)
    tiles, regions = (gpd.read_parquet(folder / f"{name}.parquet") for name in ("tiles", "regions"))
    summary = read_json(folder / "summary.json")
    assert regions["effective_parameters"].sum() == pytest.approx(summary["effective_parameters"])
    one = regions.iloc[0]
    inside = tiles[tiles["region"] == one["region"]]
    lengths = np.hypot(inside["loo_residual_dx_px"], inside["loo_residual_dy_px"])
    assert one["loo_residual_px"] == pytest.approx(lengths.mean())
    assert one["smoother_noise_px"] == pytest.approx(inside["smoother_noise_px"].mean())
    for name in ("factor.png", "audit.png"):
        assert (folder / name).stat().st_size > 10_000


def test_regions_are_painted_on_the_map_of_their_pair(store, similarity, tmp_path):
    folder = run(store, similarity)
    tiles, regions = (gpd.read_parquet(folder / f"{name}.parquet") for name in ("tiles", "regions"))
    own = tiles.groupby("region")["pair"].unique()
    assert [set(pairs) for pairs in regions["pairs"]] == [set(own[region]) for region in regions["region"]]
    drawn = {}
    for changed in (None, *store.pairs):
        others = np.array([changed not in pairs for pairs in regions["pairs"]])
        other = regions.assign(smoother_factor=regions["smoother_factor"].where(others, 1))
        draw_factors(tmp_path / "factor.png", store, tiles, other)
        drawn[changed] = (tmp_path / "factor.png").read_bytes()
    # Both pairs lie at one place; one of them is shown.
    assert sum(picture != drawn[None] for picture in drawn.values()) == 1


def test_styles_show_what_is_better_in_green(tmp_path):
    for rising, first in ((False, "#1a9850"), (True, "#d73027")):
        write_style(tmp_path / "map.tif", -1, 1, rising)
        items = re.findall(r'<item value="(.+?)".*color="(.+?)"', (tmp_path / "map.qml").read_text())
        assert [value for value, _ in items] == ["-1", "0.0", "1"]
        assert items[0][1] == first


def test_a_given_noise_is_written_down_as_given(store, similarity):
    summary = read_json(run(store, similarity, replace(PLAIN, noise_sigma_px=2.0)) / "summary.json")
    assert summary["noise_sigma_px"] == 2.0
    assert summary["noise_sigma_source"] == "given"


def test_noise_that_is_alike_nearby_averages_less(store, similarity):
    alone = read_json(run(store, similarity) / "summary.json")
    alike = read_json(run(store, similarity, replace(PLAIN, noise_range_px=60)) / "summary.json")
    assert alike["factor_mean"] > 1.3 * alone["factor_mean"]
    assert alike["noise_model"] == "Gaussian correlation, range 60 px"
    assert alone["noise_model"].startswith("one offset a tile")


def with_noise(store, **noise):
    """The same tiles, said to have been drawn with other noise."""
    other = copy(store)
    options = store.manifest["options"]
    other.manifest = {**store.manifest, "options": {**options, "noise": {**options["noise"], **noise}}}
    return other


def test_the_noise_that_prepare_drew_is_taken_as_it_is(store, similarity):
    rows = store.index.iloc[store.tiles("train")]
    assert label_noise(store, rows, PLAIN).correlation is None
    twice = label_noise(store, rows.iloc[[0, 0, 1]], PLAIN).correlation  # two augmentations of one tile
    np.testing.assert_array_equal(twice, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    smooth = with_noise(store, kind="smooth", smooth_sigma_px=40.0)
    found = read_json(run(smooth, similarity) / "summary.json")
    by_hand = read_json(run(smooth, similarity, replace(PLAIN, noise_range_px=40 * 2**0.5)) / "summary.json")
    assert (found["noise_model_source"], by_hand["noise_model_source"]) == (
        "drawn by prepare",
        "denoise.noise_range_px",
    )
    for key in ("factor_mean", "smoother_factor_mean", "noise_sigma_px", "common_noise_px"):
        assert found[key] == pytest.approx(by_hand[key])
    assumed = label_noise(with_noise(store, kind="none"), rows, PLAIN)
    assert (assumed.correlation, assumed.source) == (None, "assumed, since prepare drew no noise")
    assert label_noise(smooth, rows, replace(PLAIN, noise_range_px=0.0)).correlation is None


def test_noise_of_objects_is_alike_beside_them_only(store):
    objects = with_noise(store, kind="object", smooth_sigma_px=1000.0)
    rows = store.index.iloc[:2].assign(pair=store.pairs[0], row=[0, 100], col=[0, 100])
    patch = store.scene(store.pairs[0]).read(0, 0, 16, 16)
    for level, alike in ((0.0, True), (1.0, False)):
        moving = np.full_like(patch.moving, level)
        objects.scene = lambda _, moving=moving: SimpleNamespace(read=lambda *_: SimpleNamespace(moving=moving))
        correlation = label_noise(objects, rows, PLAIN).correlation
        assert correlation is None if not alike else correlation[0, 1] > 0.9


def test_what_no_averaging_removes_is_named(store, similarity):
    plain = read_json(run(store, similarity) / "summary.json")
    assert plain["common_noise_px"] == pytest.approx(plain["noise_sigma_px"] / plain["tiles"] ** 0.5)
    assert plain["systematic_shift_px"] == [0, 0]
    assert plain["not_averaged"].startswith("A shift that all labels share leaves no residual")
    assert "given" not in plain["not_averaged"]
    shifted = read_json(run(with_noise(store, shift_dx_px=3.0, shift_dy_px=-4.0), similarity) / "summary.json")
    assert shifted["systematic_shift_px"] == [3, -4]
    assert shifted["not_averaged"].endswith("given one of (3, -4) px, 5.00 px long.")
    assert shifted["noise_sigma_px"] == plain["noise_sigma_px"]  # which is why it has to be named


def test_maps_lie_where_the_tiles_are(store, similarity):
    folder = run(store, similarity)
    tiles = gpd.read_parquet(folder / "tiles.parquet")
    names = read_json(folder / "summary.json")["maps"]
    assert names == (["factor.tif"] if len(store.pairs) == 1 else ["factor_p0.tif", "factor_p1.tif"])
    for pair, name in zip(store.pairs, names, strict=True):
        with rasterio.open(folder / name) as raster:
            assert raster.crs == store.scene(pair).crs
            assert raster.descriptions == QUANTITIES
            assert (raster.bounds.left, raster.bounds.top) == (5e5, 5e6)
            own = tiles[tiles["pair"] == pair]
            points = own.geometry.centroid
            sampled = [value[0] for value in raster.sample(zip(points.x + 1, points.y - 1, strict=True))]
            band = raster.read(1)
        assert np.corrcoef(sampled, own["factor"])[0, 1] > 0.8  # tiles that overlap share cells
        assert np.isnan(band).any()
        assert (folder / name).with_suffix(".qml").read_text().startswith("<!DOCTYPE qgis")


@pytest.mark.parametrize("region_px", [0, 64])
def test_regions_hold_their_tiles(store, similarity, region_px):
    folder = run(store, similarity, replace(PLAIN, region_px=region_px))
    tiles, regions = (gpd.read_parquet(folder / f"{name}.parquet") for name in ("tiles", "regions"))
    assert regions["tiles"].sum() == len(tiles)
    column = "cell" if region_px else "region"
    for row in regions.itertuples():
        own = tiles[tiles[column] == row.region]
        assert row.factor == pytest.approx(own["factor"].mean())
        assert own.geometry.centroid.within(row.geometry.buffer(0.2)).all()
    assert regions.crs == tiles.crs


def test_the_users_own_regions(store, similarity, tmp_path):
    tiles = gpd.read_parquet(run(store, similarity) / "tiles.parquet")
    west, south, east, north = tiles.total_bounds
    middle = (west + east) / 2
    halves = gpd.GeoSeries([box(west, south, middle, north), box(middle, south, east, north)])
    path = tmp_path / "halves.gpkg"
    gpd.GeoDataFrame(geometry=halves, crs=tiles.crs).to_crs("EPSG:4326").to_file(path)
    regions = gpd.read_parquet(run(store, similarity, replace(PLAIN, regions=str(path))) / "regions.parquet")
    assert len(regions) == 2
    assert [set(pairs) for pairs in regions["pairs"]] == [set(store.pairs)] * 2  # all lie at one place
    assert len(tiles) - 12 <= regions["tiles"].sum() <= len(tiles)  # a centre may lie on the line
    far = tmp_path / "far.gpkg"
    gpd.GeoDataFrame(geometry=halves.translate(1e5), crs=tiles.crs).to_file(far)
    with pytest.raises(InputError, match="covers no tile"):
        run(store, similarity, replace(PLAIN, regions=str(far)))
    with pytest.raises(InputError, match="no such file"):
        run(store, similarity, replace(PLAIN, regions=str(tmp_path / "none.gpkg")))


def test_regions_keep_their_attributes_and_may_be_geoparquet(store, similarity, tmp_path):
    tiles = gpd.read_parquet(run(store, similarity) / "tiles.parquet")
    whole = gpd.GeoDataFrame({"region": ["all"], "owner": ["me"]}, geometry=[box(*tiles.total_bounds)], crs=tiles.crs)
    whole.to_parquet(tmp_path / "whole.parquet")
    regions = run(store, similarity, replace(PLAIN, regions=str(tmp_path / "whole.parquet"))) / "regions.parquet"
    (row,) = gpd.read_parquet(regions).itertuples()
    assert (row.region_attribute, row.owner, row.tiles) == ("all", "me", len(tiles))
    (tmp_path / "plain.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"plain\.csv"):
        run(store, similarity, replace(PLAIN, regions=str(tmp_path / "plain.csv")))


def test_labels_are_those_of_the_last_round_and_doubtful_those_that_were_given(store, similarity):
    before = gpd.read_parquet(run(store, similarity) / "tiles.parquet")
    rows = store.index.iloc[store.positions(before["tile_id"].tolist())]
    shape = (len(store), 2, store.tile_px, store.tile_px)
    corrected = np.ascontiguousarray(np.broadcast_to(np.float32([0.25, -0.5])[:, None, None], shape))
    for number in (1, 2):
        place = similarity.parent / f"round_{number}" / "corrected.zarr"
        zarr.create_array(place, data=corrected * np.float32(number))
    folder = run(store, similarity, replace(PLAIN, noise_sigma_px=SIGMA))
    tiles, summary = gpd.read_parquet(folder / "tiles.parquet"), read_json(folder / "summary.json")
    np.testing.assert_allclose(tiles[["trained_label_dx_px", "trained_label_dy_px"]], [[0.25, -0.5]] * len(tiles))
    np.testing.assert_allclose(tiles["label_dx_px"], rows["label_dx_px"])
    np.testing.assert_allclose(tiles["suggested_dx_px"], tiles["label_dx_px"] - tiles["loo_residual_dx_px"], atol=1e-6)
    assert summary["noise_sigma_source"] == "estimated from the residuals"  # what was given is of the labels before
    assert not np.allclose(tiles["smoother_factor"], before["smoother_factor"])


def test_retrainings_set_the_factors_right(store, similarity, monkeypatch):
    def seen(learned, positions, predictions, kernel, model, training, sigma_px, count, folder):
        assert (sigma_px, count, folder) == (SIGMA, 3, similarity.parent / "denoise")
        noise = np.random.default_rng(0).normal(0, sigma_px, (count, len(positions), 2))
        return Seen(noise, 0.03 * noise)

    monkeypatch.setattr("regnet.denoising.stage.retrain_model", seen)
    folder = run(store, similarity, replace(PLAIN, retrainings=3, noise_sigma_px=SIGMA))
    tiles = gpd.read_parquet(folder / "tiles.parquet")
    assert (tiles["smoother_factor"] ** 2).mean() ** 0.5 == pytest.approx(0.03)
    (said,) = read_json(folder / "summary.json")["remarks"]
    assert said.startswith("3 retraining(s) on labels with more noise changed the predictions by 0.030 times as much")


def test_what_the_figures_do_not_say_is_said(store, similarity):
    stored = load_kernel(similarity / "kernel.zarr")
    n = len(stored.tile_id) // 4
    silent = StoredKernel(
        stored.tile_id[:n], 0 * stored.values[:n], stored.self_kernel[:n], features=stored.features[:n]
    )
    save_kernel(similarity / "kernel.zarr", silent)
    few, none = read_json(run(store, similarity) / "summary.json")["remarks"]
    assert few.startswith(f"{n} of {len(store.tiles('train'))} training tiles were compared")
    assert f"about {(n / len(store.tiles('train'))) ** 0.5:.2f} times as much" in few
    assert "finds no trace" in none


def test_a_kernel_of_other_tiles_is_refused(store, similarity, tmp_path):
    with pytest.raises(StoreError, match="there is no kernel"):
        denoise_stage(store, tmp_path, tmp_path / "nowhere", DenoiseOptions(), TrainingOptions(), tmp_path / "out")
    kernel = StoredKernel(np.array([10**9]), np.zeros((1, 2)), np.eye(2)[None], features=np.ones((1, 2, 3)))
    save_kernel(similarity / "kernel.zarr", kernel)
    with pytest.raises(StoreError, match="made from other tiles"):
        run(store, similarity)


def test_both_forms_of_the_smoother_run(store, similarity):
    for smoothing in ("ridge", "flow"):
        for choose in ("residuals", "likelihood", "gcv"):
            options = replace(DenoiseOptions(), smoothing=smoothing, choose=choose)
            summary = read_json(run(store, similarity, options) / "summary.json")
            assert summary["smoother_rule"] == f"{smoothing}, {choose}"
            assert 0 < summary["effective_parameters"] <= 12.001


def test_the_kernels_along_the_training_are_taken_on_labels_as_they_are(store, similarity, monkeypatch):
    """Kernels of one shape at every checkpoint are the kernel itself, whatever was predicted before training."""
    stored = load_kernel(similarity / "kernel.zarr")
    matrix = operator_of(stored).blocks().reshape(2 * len(stored.values), -1)
    along = Along([matrix, 3 * matrix], [], [np.full(stored.values.shape, 5.0), stored.values], [1.0])
    monkeypatch.setattr("regnet.denoising.stage.kernels_along", lambda *_, **__: along)
    found, plain = (
        gpd.read_parquet(run(store, similarity, options) / "tiles.parquet") for options in (DenoiseOptions(), PLAIN)
    )
    np.testing.assert_allclose(found["smoother_factor"], plain["smoother_factor"], rtol=1e-6)
    np.testing.assert_allclose(found["suggested_dx_px"], plain["suggested_dx_px"], atol=1e-6)
