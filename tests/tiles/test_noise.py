import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet.errors import ConfigError
from regnet.geo.grid import Box
from regnet.tiles.labels import KnotField, make_noise, noise_covariance, systematic_shift
from regnet.tiles.options import NOISE_KINDS, NoiseOptions

SHAPE = (600, 800)
WHOLE = Box(0, 0, *SHAPE)
HOUSES = np.array([shapely.box(100, 100, 140, 130), shapely.box(300, 200, 360, 260), shapely.box(142, 100, 180, 130)])


def draw(kind: str, box: Box = WHOLE, pair: str = "a", **settings: float) -> np.ndarray:
    outlines = HOUSES if kind == "object" else None
    return make_noise(NoiseOptions(kind=kind, **settings), pair, SHAPE, outlines).read(box)  # type: ignore[arg-type]


def test_no_noise_is_zero_and_systematic_is_its_shift() -> None:
    assert not draw("none").any()
    shifted = draw("systematic", shift_dx_px=3.5, shift_dy_px=-1)
    assert shifted.shape == (2, *SHAPE)
    assert (shifted[0] == 3.5).all()
    assert (shifted[1] == -1).all()


@pytest.mark.parametrize("kind", sorted({*NOISE_KINDS} - {"none", "systematic"}))
def test_the_same_seed_draws_the_same_and_another_seed_or_pair_does_not(kind: str) -> None:
    box = Box(90, 90, 128, 128)
    first = draw(kind, box, seed=1)
    assert first.dtype == np.float32
    assert (first == draw(kind, box, seed=1)).all()
    assert np.abs(first - draw(kind, box, seed=2)).max() > 0.1
    assert np.abs(first - draw(kind, box, seed=1, pair="b")).max() > 0.1


@pytest.mark.parametrize("kind", ["smooth", "knots", "object"])
@settings(max_examples=15, deadline=None)
@given(row=st.integers(0, 500), col=st.integers(0, 700))
def test_overlapping_tiles_see_one_field(kind: str, row: int, col: int) -> None:
    box = Box(row, col, 64, 64)
    field = draw(kind)
    np.testing.assert_allclose(draw(kind, box)[:, :100, :100], field[:, *box.slices], atol=1e-5)


def test_knots_are_independent_and_of_the_size_asked_for() -> None:
    knots = draw("knots", sigma_px=4, spacing_px=8)[:, ::8, ::8]
    count = knots[0].size
    assert knots.std(axis=(1, 2)) == pytest.approx([4, 4], rel=4 / np.sqrt(2 * count))
    assert np.abs(knots.mean(axis=(1, 2))).max() < 4 * 4 / np.sqrt(count)
    for one, other in [(knots[0], knots[1]), (knots[0, 1:], knots[0, :-1]), (knots[1, :, 1:], knots[1, :, :-1])]:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(count)


def test_noise_at_knots_is_weaker_on_average_over_all_pixels() -> None:
    """By what the help says: Keys' weights, whose squares add up to less than one between knots, along both axes."""
    away = np.abs((np.arange(800) / 800)[:, None] - np.arange(-1, 3))  # from the four knots around
    near, far = 1.5 * away**3 - 2.5 * away**2 + 1, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
    share = np.square(np.where(away < 1, near, far)).sum(1).mean()  # of the variance, along one axis
    assert share == pytest.approx(0.8, abs=0.02)
    assert draw("knots", sigma_px=2, spacing_px=8).std() == pytest.approx(2 * share, rel=0.02)


def test_field_between_knots_is_cubic() -> None:
    # Cubic convolution with a = -1/2 gives back any parabola.
    rows, columns = np.mgrid[-1:11, -1:13] * 12.0
    knots = np.stack([0.02 * columns**2 - rows + 3, 0.01 * rows**2 + 0.5 * columns])
    field = KnotField(knots, 12).read(Box(5, 7, 90, 100))
    y, x = np.mgrid[5:95, 7:107].astype(float)
    np.testing.assert_allclose(field, [0.02 * x**2 - y + 3, 0.01 * y**2 + 0.5 * x], rtol=1e-5, atol=1e-4)


def test_smooth_field_has_the_deviation_and_correlation_of_its_gaussian() -> None:
    sigma, scale = 2.0, 12.0
    fields = np.stack([draw("smooth", seed=seed, sigma_px=sigma, smooth_sigma_px=scale) for seed in range(6)])
    assert fields.std() == pytest.approx(sigma, rel=0.06)
    for lag in (6, 12, 24):
        found = (fields[..., lag:] * fields[..., :-lag]).mean() / fields.var()
        # White noise through a Gaussian of s has the correlation exp(-lag^2 / (4 s^2)).
        assert found == pytest.approx(np.exp(-((lag / scale) ** 2) / 4), abs=0.06)


def test_every_tile_has_an_offset_of_its_own() -> None:
    boxes = [Box(row, col, 32, 32) for row in range(0, 568, 8) for col in range(0, 768, 16)]
    tiles = np.stack([draw("tile", box, sigma_px=1.5) for box in boxes])
    assert (tiles == tiles[:, :, :1, :1]).all()
    offsets = tiles[:, :, 0, 0]
    assert offsets.std(axis=0) == pytest.approx([1.5, 1.5], rel=0.06)
    assert abs(np.corrcoef(offsets[1:, 0], offsets[:-1, 0])[0, 1]) < 0.08


def test_every_object_has_an_offset_of_its_own_and_the_ground_none_of_theirs() -> None:
    field = draw("object", sigma_px=3, smooth_sigma_px=40)
    inside = [field[:, 101:129, 101:139], field[:, 201:259, 301:359], field[:, 101:129, 143:179]]
    for house in inside:
        assert np.ptp(house, axis=(1, 2)).max() == 0
    offsets = np.stack([house[:, 0, 0] for house in inside])
    assert len(np.unique(offsets)) == 6
    assert (field[:, 115, 98] == offsets[0]).all()  # grown a little ...
    assert (field[:, 115, 138] == offsets[0]).all()  # ... but not over a neighbour 2 px away,
    assert (field[:, 115, 144] == offsets[2]).all()
    ground = field[:, 400:, :]
    assert np.abs(np.diff(ground, axis=2)).max() < 0.5


def test_objects_need_polygons() -> None:
    with pytest.raises(ConfigError, match=r"prepare\.noise\.kind=object needs polygons, and pair a has a raster"):
        make_noise(NoiseOptions(kind="object"), "a", SHAPE)


def test_a_shift_comes_on_top_of_any_noise_but_none() -> None:
    box, shift = Box(90, 90, 64, 64), {"shift_dx_px": 2.0, "shift_dy_px": -1.0}
    for kind in NOISE_KINDS:
        added = draw(kind, box, **shift) - draw(kind, box)
        expected = (0.0, 0.0) if kind == "none" else (2.0, -1.0)
        assert systematic_shift(NoiseOptions(kind=kind, **shift)) == expected  # type: ignore[arg-type]
        np.testing.assert_allclose(added, np.broadcast_to(np.array(expected)[:, None, None], added.shape), atol=1e-5)


@pytest.mark.parametrize("kind", ["tile", "knots", "smooth", "object"])
def test_the_covariance_is_that_of_many_draws(kind: str) -> None:
    options = {"kind": kind, "sigma_px": 2.0, "spacing_px": 24, "smooth_sigma_px": 30.0}
    places = np.array([(50, 50), (50, 50), (58, 53), (120, 150), (129, 150), (140, 170), (50, 130)])
    pairs = np.array(["a"] * 6 + ["b"])
    on_object = np.array([True, True, True, False, False, False, False])
    house = np.array([shapely.box(40, 40, 70, 70)]) if kind == "object" else None
    labels = []
    for seed in range(200):
        noise = {
            pair: make_noise(NoiseOptions(**options, seed=seed), pair, (160, 200), house)  # type: ignore[arg-type]
            for pair in "ab"
        }
        labels.append([noise[pair].read(Box(*place, 1, 1))[:, 0, 0] for pair, place in zip(pairs, places, strict=True)])
    found = np.einsum("sid,sjd->ij", labels, labels) / (2 * len(labels)) / 2.0**2
    expected = noise_covariance(NoiseOptions(**options), pairs, *places.T, on_object)  # type: ignore[arg-type]
    if kind == "object":  # two labels on one object share its offset, which is not known of them
        found[2, :2] = found[:2, 2] = 0
    np.testing.assert_allclose(found, expected, atol=5 / np.sqrt(2 * len(labels)))
    assert np.linalg.eigvalsh(expected).min() > -1e-9
