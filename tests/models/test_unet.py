"""The U-Net: what it is shown, that it learns, and that it knows where it is right."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from regnet.displacement import gaussian, warp
from regnet.models import ModelOptions, build_model
from regnet.models.constraint import normal_equations, windowed_steps
from regnet.tiles.patch import Tile
from regnet.training.loss import supervised_loss
from regnet.training.options import TrainingOptions
from regnet.training.samples import make_batch

SIDE = 64
BIAS = (1.5, -1.0)
"""What the labels say beside what the images show: nothing but training tells the network."""


def tile(seed):
    """Two modalities of one ground, which below the diagonal show nothing of each other."""
    generator = torch.Generator().manual_seed(seed)
    ground, other = (gaussian(torch.randn(1, 1, SIDE, SIDE, generator=generator), 1.5) * 5 for _ in range(2))
    below = torch.ones(SIDE, SIDE, dtype=torch.bool).tril()
    everywhere = np.ones((SIDE, SIDE), bool)
    return Tile(
        fixed=torch.cat((ground, ground.square()), 1)[0].numpy(),
        moving=torch.where(below, other, -ground)[0].numpy(),
        fixed_valid=everywhere,
        moving_valid=everywhere,
        structure=everywhere,
        label_offset=np.broadcast_to(np.float32(BIAS)[:, None, None], (2, SIDE, SIDE)).copy(),
        true_offset=None,
    )


OPTIONS = TrainingOptions(
    flips=False, peak_px=3.0, shift_px=1.0, sigma_low_px=20, sigma_high_px=60, photometric=0.1, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def learned():
    """A small network after 80 steps on made-up ground."""
    torch.manual_seed(0)
    model = build_model(ModelOptions(name="unet", width=16, levels=2), 2, 1).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=OPTIONS.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, OPTIONS.learning_rate, total_steps=81)
    generator = np.random.default_rng(0)
    for step in range(80):
        batch = make_batch([tile(4 * step + i) for i in range(4)], OPTIONS, generator)
        loss = supervised_loss(model(batch.fixed, batch.moving, batch.fixed_valid, batch.moving_valid), batch, OPTIONS)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def unseen():
    """Ground and displacements that it was not trained on."""
    plain = replace(OPTIONS, photometric=0.0)
    return make_batch([tile(10_000 + i) for i in range(8)], plain, np.random.default_rng(1))


@torch.no_grad()
def errors(model, batch):
    found = model(batch.fixed, batch.moving, batch.fixed_valid, batch.moving_valid)
    return (found.displacement - batch.target).norm(dim=1), found.confidence[:, 0]


def test_it_learns_what_the_images_show_and_what_the_labels_say_beside(learned, unseen):
    above = torch.ones(SIDE, SIDE, dtype=torch.bool).triu(8)
    error = errors(learned, unseen)[0][:, above].mean()
    untrained = errors(build_model(learned.options, 2, 1).eval(), unseen)[0][:, above].mean()
    beside = unseen.target - unseen.target.mean((0, 2, 3), keepdim=True)
    assert error < 0.4 * unseen.target.norm(dim=1)[:, above].mean()
    assert error < 0.6 * beside.norm(dim=1)[:, above].mean()
    assert error < 0.6 * untrained


def test_it_is_more_confident_where_it_is_right(learned, unseen):
    error, confidence = errors(learned, unseen)
    quarters = error.flatten()[confidence.flatten().argsort()].chunk(4)
    assert quarters[0].mean() > 1.15 * quarters[-1].mean()
    assert quarters[0].mean() > quarters[1].mean() > quarters[2].mean()


def test_confidence_of_a_pair_does_not_depend_on_the_others_of_its_batch(learned, unseen):
    with torch.no_grad():
        together = learned(unseen.fixed, unseen.moving).confidence[2]
        alone = learned(unseen.fixed[2:3], unseen.moving[2:3]).confidence[0]
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_invalid_pixels_hold_does_not_matter(learned, unseen):
    valid = unseen.fixed_valid.clone()
    valid[..., 20:40, 20:40] = False
    found = []
    for value in (0.0, 50.0):
        images = [image.masked_fill(~valid, value) for image in (unseen.fixed, unseen.moving)]
        with torch.no_grad():
            found.append(learned(*images, valid, valid))
    assert torch.equal(found[0].displacement, found[1].displacement)
    assert torch.equal(found[0].confidence, found[1].confidence)


@pytest.mark.parametrize("shift", [(0.4, 0.0), (-0.2, 0.3)])
def test_the_constraint_finds_a_small_shift(shift):
    ground = gaussian(torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)), 3.0)
    true = torch.tensor(shift).view(1, 2, 1, 1).expand(1, 2, 64, 64)
    fixed, moving = warp(ground, true, "bicubic") * 50, ground * 50
    steps = windowed_steps(normal_equations(fixed, moving, torch.ones(1, 1, 64, 64)), (2.0, 6.0))
    assert steps.shape == (1, 2, 2, 64, 64)
    assert (steps - true[:, None]).norm(dim=2)[..., 8:-8, 8:-8].mean() < 0.05


def test_without_structure_or_weight_the_constraint_asks_for_no_step():
    flat, ground = torch.ones(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    for fixed, moving, weight in ((flat, 2 * flat, 1.0), (ground, ground.flip(-1), 0.0)):
        equations = normal_equations(fixed, moving, torch.full((1, 1, 32, 32), weight))
        assert not windowed_steps(equations, (2.0,)).any()


def test_before_training_the_variance_is_one_px_squared():
    model = build_model(ModelOptions(name="unet", width=8, levels=1), 2, 1).eval()
    found = model(torch.rand(1, 2, 32, 32), torch.rand(1, 1, 32, 32))
    assert torch.allclose(found.confidence, torch.full((1, 1, 32, 32), 1 / (1 + math.exp(0))))
