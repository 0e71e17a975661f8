from dataclasses import replace

import numpy as np
import pytest
import torch

from regnet.displacement import gaussian, random_field, warp
from regnet.models import LevelOutput, Prediction
from regnet.tiles.patch import Tile
from regnet.training.loss import offset_cross_entropy, pool_target, supervised_loss
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


def level(logits, target_shape=(1, 2, 2, 2)):
    zeros = torch.zeros(target_shape)
    return LevelOutput(zeros, zeros, logits, 2)


def test_cross_entropy_is_least_at_the_target_offset():
    target = torch.tensor([2.0, -4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)  # offset (1, -2) in pixels of this level
    weight = torch.ones(1, 1, 2, 2)
    losses = []
    for index in range(25):
        logits = torch.full((1, 25, 2, 2), -10.0)
        logits[:, index] = 10.0
        losses.append(float(offset_cross_entropy(level(logits), target, weight)))
    assert int(np.argmin(losses)) == 0 * 5 + 3
    assert min(losses) < 1e-6


def test_targets_out_of_reach_do_not_count():
    target = torch.full((1, 2, 2, 2), 9.0)
    assert float(offset_cross_entropy(level(torch.randn(1, 25, 2, 2)), target, torch.ones(1, 1, 2, 2))) == 0


def test_squared_error_has_the_mean_label_as_its_minimum():
    batch = make_batch([tile(), tile()], PLAIN, np.random.default_rng(0))
    labels = torch.stack((torch.full((2, 96, 96), 1.0), torch.full((2, 96, 96), 2.0)))
    batch = replace(batch, target=labels, target_valid=torch.ones_like(batch.target_valid))
    offset = torch.zeros(1, 2, 1, 1, requires_grad=True)
    shown = offset.expand(2, 2, 96, 96)
    prediction = Prediction(shown, torch.ones(2, 1, 96, 96), [LevelOutput(shown, torch.zeros_like(shown), None, 1)])
    supervised_loss(prediction, batch, TrainingOptions()).backward()
    gradient_at_zero = offset.grad.clone()
    with torch.no_grad():
        offset += 1.5
    offset.grad = None
    shown = offset.expand(2, 2, 96, 96)
    prediction = Prediction(shown, torch.ones(2, 1, 96, 96), [LevelOutput(shown, torch.zeros_like(shown), None, 1)])
    supervised_loss(prediction, batch, TrainingOptions()).backward()
    assert offset.grad.abs().max() < 1e-4 < gradient_at_zero.abs().min()
