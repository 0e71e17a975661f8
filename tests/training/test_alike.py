"""The similarity term: its closed forms, its value, its gradient, and what it leaves as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from regnet.errors import ConfigError
from regnet.models import ModelOptions, build_model
from regnet.similarity.gradients import Jacobians
from regnet.similarity.kernel import correlation_matrices, inverse_roots, products, scalar, self_products
from regnet.similarity.readouts import forward
from regnet.training.alike import (
    SimilarityTerm,
    inverse_root,
    similarity_in_training,
    similarity_of_pairs,
    turned_back,
)
from regnet.training.options import AlikeOptions, TrainingOptions
from regnet.training.samples import Batch, Turn

OPTIONS = TrainingOptions(alike=AlikeOptions(weight=0.5, pairs=2))


def small(name, levels=2):
    torch.manual_seed(0)
    options = ModelOptions(name=name, descriptor="learned", levels=levels, width=8, descriptor_channels=4)
    model = build_model(options, 2, 1)
    for parameter in model.parameters():  # zeros at the start would hide what depends on them
        nn.init.normal_(parameter, std=0.1)
    return model


def batch(count=3, side=32):
    generator = torch.Generator().manual_seed(1)
    fixed, moving = (torch.randn(count, bands, side, side, generator=generator) for bands in (2, 1))
    valid = torch.ones(count, 1, side, side, dtype=torch.bool)
    target, turns = torch.zeros(count, 2, side, side), torch.eye(2).expand(count, 2, 2)
    return Batch(fixed, moving, valid, valid, target, valid, moving, turns, ("",) * count)


@pytest.mark.parametrize("d", [1, 2])
def test_the_closed_inverse_root_is_that_of_the_eigendecomposition(d):
    torch.manual_seed(0)
    rows = torch.randn(50, d, 7, dtype=torch.float64) * torch.logspace(-6, 6, 50, dtype=torch.float64)[:, None, None]
    kernels = torch.cat((rows @ rows.mT, 4 * torch.eye(d, dtype=torch.float64)[None]))
    expected = inverse_roots(kernels).roots
    assert torch.allclose(inverse_root(kernels), expected, rtol=1e-10, atol=0)


def test_the_closed_inverse_root_has_a_derivative_at_equal_eigenvalues():
    kernel = torch.eye(2, dtype=torch.float64)[None].requires_grad_()
    assert torch.autograd.gradcheck(inverse_root, (kernel,))
    nearly = (torch.tensor([[1.0, 1], [1, 1]], dtype=torch.float64)[None]).requires_grad_()
    inverse_root(nearly).sum().backward()
    assert torch.isfinite(nearly.grad).all()


def test_a_dead_tile_is_alike_to_nothing_and_gives_no_gradient():
    dead = torch.zeros(1, 2, 5, requires_grad=True)
    found = similarity_of_pairs(dead, torch.randn(1, 2, 5))
    found.sum().backward()
    assert float(found.detach()) == 0
    assert torch.isfinite(dead.grad).all()


def test_the_value_is_the_similarity_engine_s():
    model, draws = small("unet").eval(), batch(4)
    back = torch.stack([Turn(quarter, mirror=bool(quarter % 2)).matrix().T for quarter in range(4)])
    inputs = [draws.fixed, draws.moving, draws.fixed_valid, draws.moving_valid, back]
    names = ["decode.0.second.weight", "heads.0.weight", "heads.0.bias"]
    found = similarity_in_training(model, turned_back, names, inputs)
    _, jacobians = Jacobians(model, turned_back, names)(*inputs)
    roots = inverse_roots(self_products(jacobians)).roots
    kc = scalar(correlation_matrices(products(jacobians, jacobians).double(), roots, roots))
    assert found.detach().numpy() == pytest.approx([float(kc[0, 2]), float(kc[1, 3])], abs=1e-5)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_gradient_is_that_of_finite_differences(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    x = torch.randn(4, 3, dtype=torch.float64)

    def kc():
        return similarity_in_training(model, forward, ["2.weight", "2.bias"], [x]).sum()

    kc().backward()
    weight = model[0].weight  # not among the parameters that the kernel is taken in
    for place in ((0, 0), (3, 2)):
        values = []
        for step in (1e-6, -2e-6):
            weight.data[place] += step
            values.append(float(kc()))
        weight.data[place] += 1e-6
        assert float(weight.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-9)
        assert abs(float(weight.grad[place])) > 1e-4


def test_a_turned_tile_is_the_tile_itself_to_a_network_without_direction():
    """Of two equal images the field of a network of one pixel's reach is turned back to what it was."""

    class Pointwise(nn.Module):
        def forward(self, fixed, moving, *_):
            level = type("Level", (), {"displacement": fixed * moving})
            return type("Prediction", (), {"levels": [level]})

    field = torch.randn(1, 2, 6, 6)
    expected = field[..., 2:4, 2:4].mean((2, 3))
    for quarters, mirror in ((0, True), (1, False), (3, True)):
        turn = Turn(quarters, mirror)
        turned = torch.einsum("ij,bjhw->bihw", turn.matrix(), turn.image(field))
        ones = torch.ones_like(turned)
        found = turned_back(Pointwise(), turned, ones, ones, ones, turn.matrix().T[None])
        assert torch.allclose(found, expected, atol=1e-6)


def test_a_step_down_the_term_makes_tiles_more_alike():
    model, draws = small("unet").train(), batch()
    term = SimilarityTerm(model, OPTIONS)
    before = term(draws, np.random.default_rng(5))
    assert -0.5 <= float(before.detach()) <= 0.5
    before.backward()
    norm = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
    assert norm > 1e-4
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 / norm * parameter.grad
    assert float(term(draws, np.random.default_rng(5)).detach()) < float(before.detach())


def test_the_term_s_gradient_on_the_matcher():
    """On one level, where nothing is cut off from the gradient."""
    model, draws = small("matcher", levels=1).train().double(), batch()
    images = ("fixed", "moving", "target", "undisplaced")
    draws = replace(draws, **{name: getattr(draws, name).double() for name in images})
    term = SimilarityTerm(model, OPTIONS)

    def value():
        torch.manual_seed(0)
        return term(draws, np.random.default_rng(5))

    value().backward()
    out = model.describe_moving.out
    slope = out.weight.grad / out.weight.grad.norm()
    found = []
    with torch.no_grad():
        for step in (1e-7, -2e-7):
            out.weight += step * slope
            found.append(float(value().detach()))
    assert (found[0] - found[1]) / 2e-7 == pytest.approx(float(out.weight.grad.norm()), rel=1e-4)


def test_the_term_leaves_the_model_s_own_draws_alone():
    model, draws = small("matcher").train(), batch()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    SimilarityTerm(model, OPTIONS)(draws, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_alike_is_refused():
    with pytest.raises(ConfigError, match=r"training\.alike: nothing is alike"):
        SimilarityTerm(small("unet"), replace(OPTIONS, photometric=0.0, flips=False))
    with pytest.raises(ConfigError, match=r"alike\.parameters=\['nothing'\]: .* called .*segment\.bias"):
        SimilarityTerm(small("unet"), replace(OPTIONS, alike=AlikeOptions(parameters=["nothing"])))
