"""The sharper of two images is blurred to the other's detail, noisy ones both are, and clear ones stay as they are."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from regnet.models import matcher, sharpness
from regnet.models.descriptors import structure
from regnet.models.options import ModelOptions
from regnet.models.sharpness import FLAT, well_blurred

SIDE = 128


def ground(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Detail of every size down to a pixel, of unit variance."""
    generator = np.random.default_rng(seed)
    layers = [gaussian_filter(generator.standard_normal((side, side)), sigma) * (sigma + 0.3) for sigma in (0, 1, 2, 4)]
    image = sum(layers)
    return np.asarray(image / image.std(), np.float32)


def seen(image: np.ndarray, blur_px: float, seed: int) -> Tensor:
    """What a sensor with some noise of its own sees, (1, 1, H, W)."""
    noise = 0.05 * np.random.default_rng(seed).standard_normal(image.shape)
    return torch.from_numpy((gaussian_filter(image, blur_px) + noise).astype(np.float32))[None, None]


def together(fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    weight = torch.ones_like(fixed)
    return well_blurred((fixed, weight), (moving, weight), structure)


def is_blurred(image: Tensor, original: Tensor, blur_px: float) -> bool:
    inner = slice(8, -8)
    expected = gaussian_filter(original[0, 0].numpy(), blur_px, mode="nearest")[inner, inner]
    return bool(np.allclose(image[0, 0].numpy()[inner, inner], expected, atol=2e-3))


def test_well_blurred_images_stay_as_they_are() -> None:
    fixed, moving = seen(ground(), 0.5, seed=1), -seen(ground(), 0.5, seed=2)
    one, other = together(fixed, moving)
    assert torch.equal(one, fixed)
    assert torch.equal(other, moving)


@pytest.mark.parametrize(("lacking_px", "blur_px"), [(0.7, 0.6), (1.2, 1.0)])
def test_the_sharper_image_is_blurred_whichever_it_is(lacking_px: float, blur_px: float) -> None:
    sharp, coarse = seen(ground(), 0.0, seed=1), seen(ground(), lacking_px, seed=2)
    one, other = together(sharp, coarse)
    assert is_blurred(one, sharp, blur_px)
    assert torch.equal(other, coarse)
    one, other = together(coarse, sharp)
    assert torch.equal(one, coarse)
    assert is_blurred(other, sharp, blur_px)


def test_noise_is_blurred_in_both_images() -> None:
    generator = np.random.default_rng(5)
    noisy = [seen(gaussian_filter(ground(), 1.0) + 0.4 * generator.standard_normal((SIDE, SIDE)), 0.0, 1) for _ in "12"]
    for image, original in zip(together(*noisy), noisy, strict=True):
        assert is_blurred(image, original, 1.0)


def test_each_pair_of_a_batch_is_seen_by_itself_and_as_vmap_sees_it() -> None:
    sharp, coarse = seen(ground(), 0.0, seed=1), seen(ground(), 0.8, seed=2)
    fixed, moving = torch.cat((sharp, sharp, coarse)), torch.cat((coarse, sharp, sharp))
    one, other = together(fixed, moving)
    blurred = [
        not torch.equal(*pair) for images in ((one, fixed), (other, moving)) for pair in zip(*images, strict=True)
    ]
    assert blurred == [True, False, False, False, False, True]
    alone = torch.func.vmap(lambda f, m: tuple(image[0] for image in together(f[None], m[None])))(fixed, moving)
    for image, expected in zip(alone, (one, other), strict=True):
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_ground_without_data_has_no_say() -> None:
    """Where moving has no data, fixed is far sharper."""
    fixed, moving = seen(ground(), 0.5, seed=1), seen(ground(), 0.5, seed=2)
    fixed[..., : SIDE * 3 // 4], moving[..., : SIDE * 3 // 4] = 3 * seen(ground(), 0.0, 3)[..., : SIDE * 3 // 4], 0
    weight = torch.ones_like(moving)
    weight[..., : SIDE * 3 // 4] = 0
    one, other = well_blurred((fixed, torch.ones_like(fixed)), (moving, weight), structure)
    assert torch.equal(one, fixed)
    assert torch.equal(other, moving)


def test_large_images_are_told_by_some_squares_of_them() -> None:
    side = 700
    sharp, coarse = seen(ground(side=side), 0.0, seed=1), seen(ground(side=side), 0.8, seed=2)
    looked_at = []

    def describe(image: Tensor) -> Tensor:
        looked_at.append(image.shape[0] * image.shape[2] * image.shape[3])
        return structure(image)

    weight = torch.ones_like(sharp)
    one, other = well_blurred((sharp, weight), (coarse, weight), describe)
    assert max(looked_at) < 0.15 * side**2
    assert is_blurred(one, sharp, 0.6)
    assert torch.equal(other, coarse)


def test_information_is_that_of_waves_that_are_a_known_phase_apart() -> None:
    """cos(phase) fits here and cos(phase +- k) a pixel aside, along x; along y everything fits alike."""
    k, phase = 0.4, 0.15
    x = torch.arange(SIDE, dtype=torch.float64).expand(1, 1, SIDE, SIDE)
    fixed, moving = (torch.cat((torch.cos(k * x + p), torch.sin(k * x + p)), 1) for p in (0.0, phase))
    slope, curvature = math.sin(phase) * math.sin(k), 2 * math.cos(phase) * (1 - math.cos(k))
    told = sharpness.information(fixed, moving, torch.ones_like(x))
    assert told.item() == pytest.approx(curvature**2 / (slope**2 + FLAT), rel=1e-3)


@pytest.mark.parametrize(("levels", "count"), [(1, 0), (3, 1)])
def test_images_are_blurred_only_where_coarser_levels_have_brought_them_together(
    monkeypatch: pytest.MonkeyPatch, levels: int, count: int
) -> None:
    calls = []
    monkeypatch.setattr(matcher, "well_blurred", lambda *args: calls.append(args) or well_blurred(*args))
    image = seen(ground(), 0.5, seed=1)
    with torch.no_grad():
        matcher.Matcher(ModelOptions(descriptor="mind", levels=levels), 1, 1).eval()(image, image)
    assert len(calls) == count
