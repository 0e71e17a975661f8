import pytest
import torch
import torch.nn.functional as F

from regnet.models.correlation import CELL, correlation_volume, count_volume, offset_grid


def slow_volume(fixed, moving, radius):
    height, width = fixed.shape[-2:]
    padded = F.pad(moving, (radius,) * 4)
    sums = [
        (fixed * padded[..., radius + dy : radius + dy + height, radius + dx : radius + dx + width]).sum(1)
        for dy in range(-radius, radius + 1)
        for dx in range(-radius, radius + 1)
    ]
    return F.avg_pool2d(torch.stack(sums, 1), CELL) * CELL**2


@pytest.mark.parametrize("radius", [1, 4])
def test_volume_is_that_of_the_loop_over_offsets(radius):
    torch.manual_seed(0)
    fixed, moving = torch.rand(2, 2, 5, 24, 16, dtype=torch.float64)
    assert torch.allclose(correlation_volume(fixed, moving, radius), slow_volume(fixed, moving, radius), atol=1e-10)


def test_weights_count_as_if_the_images_were_multiplied_by_them():
    """Taller than what is summed at once."""
    fixed, moving = torch.rand(2, 1, 16, 48, 256, dtype=torch.float64)
    weights = torch.rand(2, 1, 1, 48, 256, dtype=torch.float64)
    found = correlation_volume(fixed, moving, 4, (weights[0], weights[1]))
    assert torch.allclose(found, slow_volume(fixed * weights[0], moving * weights[1], 4), atol=1e-10)


@pytest.mark.parametrize("radius", [2, 4])
def test_counts_are_those_of_the_volume_of_the_masks(radius):
    """Shares of one and of nearly one, holes in either image, a partly valid pixel, and the border."""
    fixed, moving = torch.ones(2, 2, 1, 48, 32)
    fixed[0, :, 20:23, 5:9] = 0
    moving[1, :, 30, 30] = 0.5
    moving[1, :, :8] = 0
    moving[0] -= 1e-7
    with torch.inference_mode():
        counts = count_volume(fixed, moving, radius)
    assert torch.allclose(counts, slow_volume(fixed, moving, radius), atol=1e-4)
    assert counts[0, :, 5, 1].max() == pytest.approx(7)  # pixels that the hole leaves


def test_gradients_are_those_of_the_loop():
    torch.manual_seed(0)
    fixed, moving = (torch.rand(1, 2, 8, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    fast = torch.autograd.grad(correlation_volume(fixed, moving, 2).square().sum(), (fixed, moving))
    slow = torch.autograd.grad(slow_volume(fixed, moving, 2).square().sum(), (fixed, moving))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(fast, slow, strict=True))


def test_the_peak_lies_at_the_shift():
    torch.manual_seed(0)
    moving = F.normalize(torch.randn(1, 8, 32, 32), dim=1)
    fixed = moving.roll((-1, 2), (2, 3))  # fixed(x) = moving(x + (dx=-2, dy=1))
    volume = correlation_volume(fixed, moving, 3)[0, :, 3, 3]
    assert offset_grid(3)[:, volume.argmax()].tolist() == [-2, 1]
