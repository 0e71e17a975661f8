from dataclasses import replace

import numpy as np
import pytest
import torch

from regnet.displacement import gaussian, random_field, warp
from regnet.models import LevelOutput, Prediction
from regnet.models.correlation import offset_grid
from regnet.tiles.patch import Tile
from regnet.training.loss import (
    LEAST_SHARED,
    label_noise,
    offset_cross_entropy,
    pool_target,
    shared_share,
    supervised_loss,
    variance_loss,
)
from regnet.training.options import TrainingOptions
from regnet.training.samples import make_batch

PLAIN = TrainingOptions(flips=False, photometric=0.0, peak_px=4.0, shift_px=1.0, sigma_low_px=20, sigma_high_px=40)


def tile(seed=0, side=96):
    """A tile whose moving, pulled by its label, is fixed."""
    noise = torch.randn(1, 2, 2 * side, 2 * side, generator=torch.Generator().manual_seed(seed))
    moving = gaussian(noise, 4.0)[..., :side, :side] * 10
    label = torch.from_numpy(random_field((side, side), 2.0, 20.0, np.random.default_rng(seed)))
    fixed = warp(moving, label[None], "bicubic")
    everywhere = np.ones((side, side), bool)
    return Tile(
        fixed=fixed[0].numpy(),
        moving=moving[0].numpy(),
        fixed_valid=everywhere,
        moving_valid=everywhere,
        structure=everywhere,
        label_offset=label.numpy(),
        true_offset=None,
    )


@pytest.mark.parametrize("flips", [False, True])
def test_pulling_moving_by_the_target_gives_fixed(flips):
    options = replace(PLAIN, flips=flips)
    for seed in range(6):
        batch = make_batch([tile(seed)], options, np.random.default_rng(seed))
        pulled = warp(batch.moving, batch.target, "bicubic")
        valid = batch.target_valid.expand_as(pulled)
        inner = (..., slice(8, -8), slice(8, -8))
        error = (pulled - batch.fixed)[inner][valid[inner]].abs().mean()
        unpulled = (batch.moving - batch.fixed)[inner][valid[inner]].abs().mean()
        assert error < 0.03
        assert error < 0.1 * unpulled


def test_target_is_invalid_where_it_points_outside():
    options = replace(PLAIN, peak_px=0.0, shift_px=3.0)
    batch = make_batch([tile()], options, np.random.default_rng(5))
    target = batch.target[0].mean((1, 2))
    assert target.abs().max() > 0.5
    assert 0.8 < batch.target_valid.float().mean() < 1


def test_the_same_seed_draws_the_same_batch():
    first, second = (make_batch([tile()], TrainingOptions(), np.random.default_rng(4)) for _ in range(2))
    assert torch.equal(first.moving, second.moving)
    assert torch.equal(first.target, second.target)


def test_pooling_leaves_invalid_pixels_out():
    target = torch.ones(1, 2, 8, 8)
    target[..., 0, 0] = 100
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    valid[..., 0, 0] = False
    pooled, share = pool_target(target, valid, (2, 2))
    assert torch.allclose(pooled, torch.ones(1, 2, 2, 2))
    assert share[0, 0].tolist() == [[15 / 16, 1.0], [1.0, 1.0]]


def test_a_tile_of_no_whole_number_of_cells_is_pooled_over_the_cells_that_the_model_has():
    ramp = torch.arange(200.0).expand(1, 2, 200, 200)  # which the model pads to 7 cells of 32 px
    pooled, share = pool_target(ramp, torch.ones(1, 1, 200, 200, dtype=torch.bool), (7, 7))
    assert torch.allclose(pooled[0, 0, 0, :6], 32 * torch.arange(6.0) + 15.5)
    assert share[0, 0, 0].tolist() == [1.0] * 6 + [8 / 32]


def level(target_shape=(1, 2, 2, 2), scale=2):
    zeros = torch.zeros(target_shape)
    return LevelOutput(zeros, zeros, (), scale)


def test_cross_entropy_is_least_at_the_target_offset():
    target = torch.tensor([2.0, -4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)  # offset (1, -2) in pixels of this level
    weight = torch.ones(1, 1, 2, 2)
    losses = []
    for index in range(25):
        logits = torch.full((1, 25, 2, 2), -10.0)
        logits[:, index] = 10.0
        losses.append(float(offset_cross_entropy(logits, level(), target, weight)))
    assert int(np.argmin(losses)) == 0 * 5 + 3
    assert min(losses) < 0.01


def test_labels_known_to_be_noisy_leave_the_distribution_sharp():
    """If nothing is known of noise of 1 px, a peak as wide as the noise fits the labels best, else a sharp one."""
    target = torch.randn(1, 2, 40, 40, generator=torch.Generator().manual_seed(0)).clamp(-3.9, 3.9)
    distance = offset_grid(4).square().sum(0).view(1, 81, 1, 1)
    best = []
    for noise_px in (0.0, 1.0):
        losses = [
            float(
                offset_cross_entropy(
                    (-distance / (2 * spread**2)).expand(1, 81, 40, 40),
                    level((1, 2, 40, 40), 1),
                    target,
                    torch.ones(1, 1, 40, 40),
                    noise_px,
                )
            )
            for spread in (0.2, 0.5, 1.0, 1.5)
        ]
        best.append(int(np.argmin(losses)))
    assert best[0] == 2
    assert best[1] < 2


def test_noise_of_the_labels_is_seen_in_the_residuals():
    noise = 1.5 * torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    wrong = torch.zeros(2, 2, 64, 64)
    wrong[..., :6] = 50.0
    weight = torch.ones(2, 1, 64, 64)
    assert label_noise(wrong, noise, weight) == pytest.approx(1.5, rel=0.2)
    weight[..., :6] = 0
    assert label_noise(wrong, noise, weight) == pytest.approx(1.5, rel=0.03)


def test_targets_out_of_reach_do_not_count():
    target = torch.full((1, 2, 2, 2), 9.0)
    assert float(offset_cross_entropy(torch.randn(1, 25, 2, 2), level(), target, torch.ones(1, 1, 2, 2))) == 0


def test_an_error_that_whole_tiles_share_counts_by_how_noisy_it_is():
    """Labels off by 3 px as a whole drown nothing; labels that are as noisy within tiles count in full."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.ones(50, 1, 16, 16)
    shared = 3 * torch.randn(50, 2, 1, 1, generator=generator)
    within = 0.5 * torch.randn(50, 2, 16, 16, generator=generator)
    assert shared_share(within, shared, weight) == pytest.approx((0.5 / 3) ** 2, rel=0.3)
    assert shared_share(10 * within, shared, weight) == 1.0
    assert shared_share(0 * within, shared, weight) == LEAST_SHARED


def test_squared_error_has_the_mean_label_as_its_minimum():
    batch = make_batch([tile(), tile()], PLAIN, np.random.default_rng(0))
    labels = torch.stack((torch.full((2, 96, 96), 1.0), torch.full((2, 96, 96), 2.0)))
    batch = replace(batch, target=labels, target_valid=torch.ones_like(batch.target_valid))
    offset = torch.zeros(1, 2, 1, 1, requires_grad=True)
    shown = offset.expand(2, 2, 96, 96)
    prediction = Prediction(shown, torch.ones(2, 1, 96, 96), [LevelOutput(shown, torch.zeros_like(shown), (), 1)])
    supervised_loss(prediction, batch, TrainingOptions()).backward()
    gradient_at_zero = offset.grad.clone()
    with torch.no_grad():
        offset += 1.5
    offset.grad = None
    shown = offset.expand(2, 2, 96, 96)
    prediction = Prediction(shown, torch.ones(2, 1, 96, 96), [LevelOutput(shown, torch.zeros_like(shown), (), 1)])
    supervised_loss(prediction, batch, TrainingOptions()).backward()
    assert offset.grad.abs().max() < 1e-4 < gradient_at_zero.abs().min()


def test_the_likeliest_variance_is_that_of_the_errors():
    """Two fifths of the ground are exact, so that no noise is seen, and three fifths are off by 2 px."""
    target = torch.zeros(1, 2, 10, 10)
    found = torch.zeros(1, 2, 10, 10)
    found[:, 0, 4:] = 2.0
    found.requires_grad_()
    weight = torch.ones(1, 1, 10, 10)
    log_variance = torch.full((1, 1, 10, 10), float(np.log(4)), requires_grad=True)
    variance_loss(found, log_variance, target, weight).backward()
    assert found.grad is None
    assert log_variance.grad[..., 4:, :].abs().max() < 1e-6
    assert log_variance.grad[..., :4, :].min() > 0  # too large there


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_label_noise_is_found_from_any_share_of_the_residuals(share):
    noise = 1.5 * torch.randn(1, 2, 200, 200, generator=torch.Generator().manual_seed(0))
    found, weight = torch.zeros_like(noise), torch.ones(1, 1, 200, 200)
    assert label_noise(found, noise, weight, share) == pytest.approx(1.5, rel=0.05)


def test_known_noise_of_the_labels_is_not_the_field_s_variance():
    """Under labels off by 2 px a component, an exact field is to be surer than one that takes the noise for its own."""
    noise = 2 * torch.randn(1, 2, 100, 100, generator=torch.Generator().manual_seed(0))
    sure, unsure = (torch.full((1, 1, 100, 100), value) for value in (-2.0, float(np.log(8))))
    found, weight = torch.zeros_like(noise), torch.ones(1, 1, 100, 100)
    assert variance_loss(found, sure, noise, weight) < variance_loss(found, unsure, noise, weight)
