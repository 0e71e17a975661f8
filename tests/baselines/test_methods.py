import importlib.util
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regnet import displacement
from regnet.baselines.grey import bytes_band, grey_band
from regnet.baselines.grid import from_points
from regnet.baselines.options import BaselineOptions, ElastixOptions, NetworkOptions
from regnet.baselines.perceptual import Stretch, distance, features, load_network
from regnet.baselines.registry import find_method
from regnet.errors import ConfigError, InputError
from regnet.tiles.patch import Patch

SHAPE = (320, 352)
SHIFT = (4.0, -2.5)  # dx, dy: both signs and a different size, so that a swap or a sign cannot pass
# How much of the error before a smooth field may leave: one affine transform for the whole image cannot follow it.
LEFT = {
    "classical.phase": 0.3,
    "classical.ecc": 0.95,
    "classical.sift": 0.95,
    "classical.klt": 0.15,
    "classical.dis": 0.15,
    "classical.tvl1": 0.3,
    "perceptual": 0.3,
    **({"classical.bspline": 0.3} if importlib.util.find_spec("SimpleITK") else {}),
}


# elastix takes half a minute for each of these.
NAMES = [
    *sorted(LEFT),
    *([pytest.param("classical.elastix", marks=pytest.mark.slow)] if importlib.util.find_spec("itk") else []),
]


def texture(channels, seed=0):
    noise = np.random.default_rng(seed).normal(size=(1, *SHAPE))
    band = gaussian_filter(noise, (0, 2, 2)) * 10 + gaussian_filter(noise, (0, 8, 8)) * 30
    gains = np.linspace(1, 0.5, channels)[:, None, None]
    return (band * gains).astype(np.float32)


def pair(field):
    """Fixed and moving whose true displacement is `field`: moving(x + field(x)) = fixed(x)."""
    fixed = texture(3)
    pull = displacement.invert(torch.from_numpy(field)[None])
    moving = displacement.warp(torch.from_numpy(fixed[:2])[None], pull, "bicubic")[0].numpy()
    valid = displacement.warp_valid(torch.ones(1, 1, *SHAPE, dtype=torch.bool), pull)[0, 0].numpy()
    return Patch(fixed, moving, np.ones(SHAPE, bool), valid, valid)


@cache
def shifted_pair():
    return pair(np.broadcast_to(np.float32(SHIFT)[:, None, None], (2, *SHAPE)).copy())


@cache
def bent_pair():
    true = displacement.random_field(SHAPE, 6, 60, np.random.default_rng(3))
    return pair(true), true


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_shift_comes_out_with_its_signs(name):
    found = find_method(name)(shifted_pair())
    assert found.dtype == np.float32
    assert found.shape == (2, *SHAPE)
    inner = found[:, 40:-40, 40:-40]
    assert abs(np.median(inner[0]) - SHIFT[0]) < 0.25
    assert abs(np.median(inner[1]) - SHIFT[1]) < 0.25


@pytest.mark.skipif(importlib.util.find_spec("itk") is None, reason="needs the extra classical")
def test_elastix_in_short_finds_the_shift_too():
    whole, here = shifted_pair(), np.s_[..., 100:228, 100:228]
    small = Patch(**{key: np.ascontiguousarray(values[here]) for key, values in vars(whole).items()})
    quick = BaselineOptions(elastix=ElastixOptions(iterations=60))
    found = find_method("classical.elastix", quick)(small)
    assert np.median(found[:, 16:-16, 16:-16], (1, 2)) == pytest.approx(SHIFT, abs=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_a_smooth_field_is_found_better_than_by_doing_nothing(name):
    images, true = bent_pair()
    found = find_method(name)(images)
    before = np.hypot(*true)[40:-40, 40:-40].mean()
    after = np.hypot(*(found - true))[40:-40, 40:-40].mean()
    assert after < LEFT.get(name, 0.3) * before


def test_perceptual_registration_lowers_the_distance_that_it_is_after():
    images, true = bent_pair()
    network = load_network(NetworkOptions())

    def apart(field):
        moved = displacement.warp(torch.from_numpy(images.moving)[None], torch.from_numpy(field)[None])[0].numpy()
        shown = [
            Stretch.fit(image, images.moving_valid)(image[None], images.moving_valid[None], grey=True)
            for image in (images.fixed, moved)
        ]
        return float(distance(*(features(network, image) for image in shown)))

    before, after, best = (apart(field) for field in (0 * true, find_method("perceptual")(images), true))
    assert after < best + 0.3 * (before - best)


@pytest.mark.parametrize("name", NAMES)
def test_garbage_in_masked_pixels_changes_little(name):
    patch, hole = shifted_pair(), np.s_[100:160, 120:200]
    moving, moving_valid = patch.moving.copy(), patch.moving_valid.copy()
    moving_valid[hole] = False
    clean = find_method(name)(replace(patch, moving_valid=moving_valid))
    moving[:, *hole] = 1e4
    dirty = find_method(name)(replace(patch, moving=moving, moving_valid=moving_valid))
    np.testing.assert_allclose(dirty, clean, atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_image_is_a_failure_and_not_a_zero(name):
    with pytest.raises(InputError):
        find_method(name)(replace(shifted_pair(), fixed=np.ones((3, *SHAPE), np.float32)))


def test_a_missing_package_is_named(monkeypatch):
    for package, name in (("SimpleITK", "classical.bspline"), ("itk", "classical.elastix")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=r"regnet\[classical\]"):
            find_method(name)(shifted_pair())


def test_nothing_is_zero_and_unknown_names_are_refused():
    assert not find_method("none")(shifted_pair()).any()
    with pytest.raises(ConfigError, match=r"classical\.phase"):
        find_method("classical.fase")


def test_grey_band_is_the_component_of_most_contrast_and_keeps_its_sign():
    bright = texture(1)[0]
    image = np.stack([bright, 3 * bright, np.random.default_rng(1).normal(size=SHAPE).astype(np.float32) * 0.01])
    valid = np.ones(SHAPE, bool)
    valid[:10] = False
    band = grey_band(image, valid)
    assert np.corrcoef(band[valid], bright[valid])[0, 1] > 0.999
    assert band[valid].std() == pytest.approx(1, rel=1e-4)
    assert not band[:10].any()
    assert bytes_band(image, valid).dtype == np.uint8


def test_points_spread_to_every_pixel():
    points, shifts = np.array([[10.0, 20.0], [200.0, 250.0]]), np.array([[1.0, -1.0], [3.0, 2.0]])
    field = from_points(points, shifts, SHAPE, 5.0)
    assert field[:, 20, 10] == pytest.approx([1, -1], abs=1e-3)
    assert field[:, 250, 200] == pytest.approx([3, 2], abs=1e-3)
    assert np.isfinite(field).all()
    assert field[0].min() >= 1 - 1e-4
    assert field[0].max() <= 3 + 1e-4
