import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from regnet.displacement import compose, gaussian, invert, random_field, smooth, warp, warp_valid


def field(seed, shape=(60, 72), peak=3.0, sigma=16.0):
    return torch.from_numpy(random_field(shape, peak, sigma, np.random.default_rng(seed)))[None]


def ramp(height=40, width=50):
    """Channel 0 holds the column, channel 1 the row of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((columns, rows))[None].float()


def test_warp_pulls_from_the_right_and_from_below():
    shift = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 40, 50)
    warped = warp(ramp(), shift)
    assert torch.allclose(warped[0, :, 10, 20], torch.tensor([23.0, 8.0]), atol=1e-3)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_warp_interpolates_between_pixel_centres(mode):
    shift = torch.tensor([0.25, 0.5]).view(1, 2, 1, 1).expand(1, 2, 40, 50)
    warped = warp(ramp(), shift, mode)
    assert torch.allclose(warped[0, :, 10, 20], torch.tensor([20.25, 10.5]), atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_compose_with_the_inverse_is_the_identity(seed):
    displacement = field(seed)
    inverse = invert(displacement)
    inner = (..., slice(12, -12), slice(12, -12))  # beyond the border the field is not known
    assert compose(displacement, inverse)[inner].abs().max() < 1e-2
    assert compose(inverse, displacement)[inner].abs().max() < 5e-2


def test_inverse_of_an_affine_displacement_is_known():
    x = ramp(60, 60)
    matrix = torch.tensor([[0.02, -0.05], [0.04, 0.03]])
    forward = torch.einsum("ij,bjhw->bihw", matrix, x - 30)
    expected = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(torch.eye(2) + matrix) - torch.eye(2), x - 30)
    inner = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(invert(forward)[inner], expected[inner], atol=1e-3)


def test_compose_is_two_warps_in_order():
    image = gaussian(torch.rand(1, 3, 60, 72, generator=torch.Generator().manual_seed(0)), 4.0)
    outer, inner = field(1, peak=4.0, sigma=12.0), field(2, peak=4.0, sigma=12.0)
    twice = warp(warp(image, outer), inner)
    once = warp(image, compose(outer, inner))
    window = (..., slice(10, -10), slice(10, -10))
    assert (twice - once)[window].abs().max() < 2e-3
    assert (warp(image, compose(inner, outer)) - twice)[window].abs().max() > 4e-3


def test_warp_valid_wants_every_pixel_that_is_read():
    valid = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    valid[..., 5, 5] = False
    still = warp_valid(valid, torch.zeros(1, 2, 20, 20))
    assert torch.equal(still, valid)
    half = warp_valid(valid, torch.full((1, 2, 20, 20), 0.5))
    assert int((~half).sum()) == 4 + 20 + 19


def test_smooth_keeps_constants_and_ignores_weightless_pixels():
    values = torch.full((1, 2, 40, 40), 3.0)
    values[..., 20, 20] = 1e3
    weight = torch.ones(1, 1, 40, 40)
    weight[..., 20, 20] = 0
    assert torch.allclose(smooth(values, 4.0, weight), torch.full_like(values, 3.0), atol=1e-2)
    assert smooth(values, 0.0) is values


@pytest.mark.parametrize("sigma", [3.0, 9.0, 24.0])
def test_gaussian_has_its_standard_deviation_and_keeps_the_sum(sigma):
    side = 2 * int(5 * sigma) + 1
    pulse = torch.zeros(1, 1, side, side)
    pulse[..., side // 2, side // 2] = 1
    blurred = gaussian(pulse, sigma)[0, 0].double()
    steps = torch.arange(side).double()
    mean = (blurred.sum(0) * steps).sum()
    assert float(blurred.sum()) == pytest.approx(1, abs=0.02)
    assert float(((blurred.sum(0) * (steps - mean) ** 2).sum()) ** 0.5) == pytest.approx(sigma, rel=0.06)


@pytest.mark.parametrize("sigma", [5.0, 20.0, 80.0])
def test_random_field_has_its_peak_and_its_smoothness(sigma):
    drawn = random_field((200, 160), 8.0, sigma, np.random.default_rng(3))
    assert drawn.shape == (2, 200, 160)
    assert np.hypot(*drawn).max() == pytest.approx(8, rel=1e-5)
    slope = np.abs(np.diff(drawn, axis=2)).max()
    assert slope < 8 * 1.5 / sigma


def test_random_field_repeats_with_its_seed():
    first, second = (random_field((50, 50), 5, 10, np.random.default_rng(9)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("shape", [(1, 1), (31, 33), (64, 100)])
def test_gaussian_is_the_convolution_whatever_the_size(shape):
    """Sides below, at and beyond those of the blocks that it runs by."""
    image = np.random.default_rng(0).normal(size=shape)
    wanted = gaussian_filter(image, 2.0, mode="constant", truncate=3.5)
    found = gaussian(torch.from_numpy(image)[None, None], 2.0)[0, 0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_bicubic_of_an_image_is_that_of_its_parts():
    """More pixels than are interpolated at once, and places far beyond the border."""
    image, field = torch.rand(2, 3, 40, 1000, dtype=torch.float64), 300 * torch.randn(2, 2, 40, 1000)
    from_there = field[..., 500:600] + torch.tensor([500.0, 0.0]).view(2, 1, 1)
    part = warp(image, from_there.double(), "bicubic")
    assert torch.allclose(warp(image, field.double(), "bicubic")[..., 500:600], part, atol=1e-4)


@pytest.mark.parametrize("place", [(-9.3, 4.2), (0.0, 0.0), (3.7, 2.2), (-0.4, 7.9), (11.0, 30.0), (10.6, 6.5)])
def test_bicubic_is_keys_kernel_over_sixteen_pixels(place):
    """Inside, at the border, where it is repeated, and far beyond."""
    image = np.random.default_rng(0).normal(size=(8, 12))
    x, y = place

    def kernel(t):
        t = abs(t)
        return 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0

    columns, rows = (range(math.floor(value) - 1, math.floor(value) + 3) for value in place)
    wanted = sum(
        image[min(max(row, 0), 7), min(max(column, 0), 11)] * kernel(x - column) * kernel(y - row)
        for row in rows
        for column in columns
    )
    displacement = torch.tensor([x, y], dtype=torch.float64).view(1, 2, 1, 1)
    found = warp(torch.from_numpy(image)[None, None], displacement, "bicubic")
    assert found.item() == pytest.approx(wanted, abs=1e-12)


def test_a_gaussian_first_taken_in_inference_serves_in_training():
    values = torch.rand(1, 1, 21, 21)
    with torch.inference_mode():
        gaussian(values, 1.37)
    values.requires_grad_()
    gaussian(values, 1.37).sum().backward()
    assert values.grad is not None
    assert values.grad[0, 0, 10, 10].item() == pytest.approx(1, abs=1e-3)
