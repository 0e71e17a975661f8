import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from regnet.denoising.contest import (
    POWERS,
    by_kernel,
    by_nearest,
    by_weights,
    contestants_by,
    hold_contest,
    own_label,
    tell_neighbours,
)
from regnet.denoising.contest_maps import write_contest_maps
from regnet.denoising.operators import DenseKernel
from regnet.denoising.smoother import smoother
from regnet.denoising.validation import noise_transfer

N, D, R = 60, 2, 12
GROUPS = np.arange(N) % 6


def kernel_of(features):
    blocks = np.einsum("ik,jk,ab->iajb", features, features, np.eye(D))
    return DenseKernel(blocks)


@pytest.fixture(scope="module")
def world():
    """Six groups of tiles that a network smooths over; the truth differs between groups and a little within."""
    rng = np.random.default_rng(0)
    features = np.eye(6)[GROUPS] + 0.2 * rng.normal(size=(N, 6))
    found = smoother(kernel_of(features), 0.05)
    truth = rng.normal(size=(6, D))[GROUPS] * 3 + rng.normal(size=(N, D)) * 0.3
    noise = rng.normal(size=(R, N, D))
    predictions = np.stack([found.apply(truth + draw) for draw in noise])
    similarities = features @ features.T / np.outer(*[np.linalg.norm(features, axis=1)] * 2)
    strange = rng.normal(size=(N, 6))
    unlike = strange @ strange.T / np.outer(*[np.linalg.norm(strange, axis=1)] * 2)
    return found, truth, noise, predictions, similarities, unlike


@pytest.fixture(scope="module")
def contest(world):
    found, truth, noise, predictions, similarities, unlike = world
    entered = [
        *by_weights("smoother", "gradient", found.weights()),
        *contestants_by("kC", "gradient", similarities),
        *contestants_by("other", "perceptual", unlike),
    ]
    return hold_contest(entered, predictions, noise, [f"region_{place // 15}" for place in range(N)], truth)


def score(contest, name, column="noise_transfer"):
    return contest.table.set_index("name").loc[name, column]


def test_the_weights_that_made_the_predictions_explain_them_wholly(contest):
    assert score(contest, "smoother, with own") == pytest.approx(1)
    assert contest.best("gradient") == "smoother, with own"
    np.testing.assert_allclose(contest.tiles["smoother, with own"], 1)
    np.testing.assert_allclose(contest.regions["smoother, with own"], 1)
    assert score(contest, "smoother, without own") < 0.999


def test_scores_agree_with_the_noise_transfer_of_functions(world, contest):
    found, _, noise, predictions, _, _ = world

    def others(values):
        return found.apply(values) - np.einsum("iab,ib->ia", found.blocks(), values)

    by_function = noise_transfer(others, predictions, noise)
    assert score(contest, "smoother, without own") == pytest.approx(by_function)


def test_unlike_similarities_lose(contest):
    duel = contest.duel()
    assert duel["gradient"] == "smoother, with own"
    assert duel["ratio"] > 1.5
    assert duel["regions"] == 4
    assert duel["regions_won_share"] == 1
    # Neighbours by the right similarity say the same, and their labels differ less from a tile's own.
    for column in ("outputs_apart_px", "averaged_label_error_px"):
        near, far = (score(contest, f"{name}, 5 nearest, without own", column) for name in ("kC", "other"))
        assert near < 0.6 * far
    assert score(contest, "kC, 5 nearest, without own", "outputs_apart_px") < 0.5 * contest.outputs_apart_px
    assert score(contest, "other, 10 nearest, without own", "outputs_apart_px") > 0.7 * contest.outputs_apart_px


def test_nearest_and_kernel_weights_are_means():
    rng = np.random.default_rng(1)
    similarities = rng.uniform(0.1, 0.9, (9, 9))
    np.fill_diagonal(similarities, 1)
    entered = [*by_kernel("kernel", "pixels", similarities), *by_nearest("list", "pixels", similarities, 3)]
    for one in entered:
        weights = one.weights
        np.testing.assert_allclose(weights.sum(1), 1)
        assert (np.diag(weights) > 0).all() == one.own
        if one.name.startswith("list"):
            assert (np.count_nonzero(weights, axis=1) == 3).all()
    others = np.argsort(-(similarities - 2 * np.eye(9)), axis=1)[:, :3]
    listed = next(one for one in entered if one.name == "list, 3 nearest, without own").weights
    assert all(set(np.flatnonzero(row)) == set(wanted) for row, wanted in zip(listed, others, strict=True))


def test_weights_that_are_alike_for_every_output_do_as_the_same_written_out(world):
    _, truth, noise, predictions, similarities, _ = world
    alike = [*contestants_by("kC", "gradient", similarities), own_label(N)]
    full = [replace(one, weights=np.einsum("ij,ab->iajb", one.weights, np.eye(D))) for one in alike]
    one, other = (hold_contest(entered, predictions, noise, ["one"] * N, truth) for entered in (alike, full))
    pd.testing.assert_frame_equal(one.table, other.table)
    pd.testing.assert_frame_equal(one.tiles, other.tiles)


def test_contestants_take_little_more_memory_than_the_similarity():
    similarities = np.random.default_rng(2).uniform(0, 1, (400, 400))
    tracemalloc.start()
    for one in contestants_by("kC", "gradient", similarities):
        tell_neighbours(one, similarities, None, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * similarities.nbytes


def test_powers_of_a_similarity_take_part(contest):
    rows = contest.table[contest.table["similarity"] == "kC"]
    assert len(rows) == 2 * (len(POWERS) + 2)
    wide, narrow = by_kernel("kC", "gradient", np.array([[1, 0.5], [0.5, 1]]), 2)[0].weights
    np.testing.assert_allclose(wide, [0.8, 0.2])
    np.testing.assert_allclose(narrow, [0.2, 0.8])


def test_tiles_outside_all_regions_are_in_no_region(world):
    found, _, noise, predictions, *_ = world
    entered = by_weights("smoother", "gradient", found.weights())
    contest = hold_contest(entered, predictions, noise, ["one"] * 20 + [""] * (N - 20))
    assert contest.regions.index.tolist() == ["one"]
    assert len(contest.tiles) == N


def test_a_tile_that_is_like_no_other_has_no_weights():
    similarities = np.eye(5)
    similarities[3, 3] = 0
    with_own, without = by_kernel("kernel", "pixels", similarities)
    assert not without.weights.any()
    assert not with_own.weights[3].any()


def test_a_tile_s_own_label_alone_is_the_control(world):
    _, _, noise, predictions, *_ = world
    contest = hold_contest([own_label(N)], predictions, noise, ["one"] * N)
    assert score(contest, "own label alone") == pytest.approx(noise_transfer(lambda values: values, predictions, noise))
    assert contest.table["outputs_apart_px"].tolist() == [0]


def test_duels_are_held_with_and_without_own_label(contest):
    for own in (True, False):
        duel = contest.duel(own)
        assert ("with own" in duel["gradient"]) == own
        assert ("with own" in duel["perceptual"]) == own


def test_maps_show_both_and_their_difference(contest, tmp_path):
    places = np.arange(N)
    tiles = gpd.GeoDataFrame({"pair": "one", "row": places // 10 * 32, "col": places % 10 * 32})
    scene = SimpleNamespace(shape=(192, 320), crs=CRS.from_epsg(32618), transform=Affine(10, 0, 5e5, 0, -10, 4e6))
    (path,) = write_contest_maps(contest, tiles, {"one": scene}, 32, 32, tmp_path, own=False)
    with rasterio.open(path) as image:
        difference, gradient, perceptual = image.read()
        assert image.descriptions == ("difference", "gradient", "perceptual")
    np.testing.assert_allclose(difference, gradient - perceptual, atol=1e-6)
    best = contest.tiles[contest.best("gradient", own=False)].to_numpy()
    np.testing.assert_allclose(gradient.ravel(), best, atol=1e-6)
    assert (difference > 0).mean() > 0.9


def test_labels_without_a_truth_have_no_error(world):
    found, _, noise, predictions, *_ = world
    contest = hold_contest(by_weights("smoother", "gradient", found.weights()), predictions, noise, ["one"] * N)
    assert contest.table["averaged_label_error_px"].isna().all()
