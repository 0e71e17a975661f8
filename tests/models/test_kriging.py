import numpy as np
import pytest
import torch

from regnet.displacement import random_field
from regnet.models.kriging import _axis, krige

SHAPE = (20, 28)


def uncertain(shape=SHAPE, seed=0):
    """Values and how sure they are, each in its own directions."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(1, 2, *shape, generator=generator, dtype=torch.float64)
    root = torch.randn(1, 3, *shape, generator=generator, dtype=torch.float64)
    x, xy, y = root.unbind(1)
    weight = torch.stack((x * x + xy * xy, xy * (x + y), xy * xy + y * y), 1)
    weight[:, ::2] += 0.2
    return target, weight


def alike(like, weight=1.0):
    """A weight that is the same everywhere and in every direction."""
    return weight * torch.tensor([1.0, 0.0, 1.0], dtype=like.dtype)[:, None, None].expand(3, *like.shape[-2:])


def covariance(sigma, shape=SHAPE):
    """Of white noise of unit variance after a Gaussian: `exp(-d^2 / (4 sigma^2))` at a distance d, along each axis."""
    rows, columns = (np.arange(count)[:, None] - np.arange(count) for count in shape)
    both = zip((rows, columns), sigma, strict=True)
    along = [torch.from_numpy(np.exp(-((steps / width) ** 2) / 4)) for steps, width in both]
    return torch.kron(*along)


def slow(target, weight, sigma, noise):
    """Kriging of both components with an unknown mean, by the matrices of the textbook."""
    xx, xy, yy = (torch.diag(part) for part in weight[0].flatten(1))
    precision = torch.cat((torch.cat((xx, xy), 1), torch.cat((xy, yy), 1)))
    covariances = torch.block_diag(covariance(sigma), covariance(sigma))
    values = target.flatten()
    each = torch.block_diag(*2 * [torch.ones(len(xx), 1, dtype=values.dtype)])
    mean = each @ torch.linalg.solve(each.T @ precision @ each, each.T @ precision @ values)
    found = covariances @ torch.linalg.solve(covariances + noise * torch.linalg.inv(precision), values - mean)
    return (found + mean).reshape(target.shape)


@pytest.mark.parametrize(
    ("sigma", "noise"),
    [
        ((2.5, 2.5), 1.0),
        ((2.5, 2.5), 10.0),
        ((5.0, 5.0), 3.0),
        ((10.0, 10.0), 1.0),
        ((2.5, 8.0), 3.0),
        ((8.0, 2.5), 3.0),
    ],
)
def test_the_field_is_the_posterior_mean_of_the_textbook(sigma, noise):
    target, weight = uncertain()
    expected = slow(target, weight, sigma, noise)
    found = krige(target, weight, sigma, torch.tensor(noise, dtype=torch.float64), 1, SHAPE)
    assert float((expected - target.mean()).abs().max()) > 0.2
    assert torch.allclose(found, expected, atol=0.02 * float(expected.std()))


def test_the_process_has_unit_variance_and_its_covariance():
    axis = _axis(40, 1, 4.0, torch.device("cpu"), torch.float64)
    # Turned, the basis is the same: its products are the covariance along one axis.
    near = axis.squares @ axis.squares.T
    steps = np.arange(40)[:, None] - np.arange(40)
    assert torch.allclose(near, torch.from_numpy(np.exp(-((steps / 4.0) ** 2) / 4)), atol=2e-3)


def test_a_constant_is_found_and_goes_on_where_there_is_no_weight():
    target = torch.full((1, 2, *SHAPE), 1.5)
    weight = alike(target).clone()
    weight[..., 6:] = 0.0
    found = krige(target, weight, (4.0, 4.0), torch.tensor(0.5), 1, SHAPE)
    assert torch.allclose(found, torch.full_like(found, 1.5), atol=1e-5)


@pytest.mark.parametrize("step", [2, 4])
def test_squares_of_a_smooth_field_give_it_at_the_cells(step):
    """Squares that reach beyond the cells included; a square of `step` cells counts as that many."""
    shape = (37, 50)
    true = torch.from_numpy(random_field((40, 52), 3.0, 12.0, np.random.default_rng(0)))[None]
    squares = torch.nn.functional.avg_pool2d(true, step)
    found = krige(squares, alike(squares), (10.0, 10.0), torch.tensor(0.05), step, shape)
    assert found.shape == (1, 2, *shape)
    assert float((found - true[..., : shape[0], : shape[1]]).norm(dim=1).mean()) < 0.05


def test_what_one_direction_is_sure_of_goes_to_the_other_only_where_they_are_tied():
    """Values sure along the diagonal alone leave the field across it at its mean."""
    along = torch.from_numpy(random_field(SHAPE, 3.0, 6.0, np.random.default_rng(0)))[:1].double()
    target = torch.stack((along[0], along[0]))[None]
    across = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
    noisy = target + across * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = 0.5 * torch.ones(1, 3, *SHAPE, dtype=torch.float64)
    found = krige(noisy, weight, (5.0, 5.0), torch.tensor(0.05, dtype=torch.float64), 1, SHAPE)
    assert float((found - target).sum(1).abs().mean()) < 0.1 * float(target.sum(1).abs().mean())
    assert float((found * across).sum(1).std()) < 1e-6
    isotropic = krige(noisy, alike(noisy), (5.0, 5.0), torch.tensor(0.05, dtype=torch.float64), 1, SHAPE)
    assert float((isotropic * across).sum(1).std()) > 0.1


def test_more_noise_is_a_smoother_field():
    target, weight = uncertain()
    rough, smooth = (
        krige(target, weight, (2.5, 2.5), torch.tensor(noise, dtype=torch.float64), 1, SHAPE).std()
        for noise in (0.1, 30.0)
    )
    assert float(smooth) < 0.5 * float(rough)


@pytest.mark.parametrize("varied", [0.0, 1e-4, 1.0])
def test_gradients_are_finite_and_those_of_differences(varied):
    """Of values without variation too, where the solver has nothing to do."""
    target, weight = uncertain((6, 7))
    target = (2.0 + varied * target).requires_grad_()
    noise = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def norm(target, weight, noise):
        return krige(target, weight, (2.0, 2.0), noise, 1, (6, 7)).square().mean()

    single = [value.detach().float().requires_grad_() for value in (target, weight, noise)]
    assert all(bool(slope.isfinite().all()) for slope in torch.autograd.grad(norm(*single), single))
    if varied == 1.0:
        assert torch.autograd.gradcheck(norm, (target, weight.requires_grad_(), noise), atol=1e-5)


def test_what_is_kept_of_a_call_in_inference_serves_gradients_too():
    values = torch.randn(2, 11, 13)
    with torch.inference_mode():
        plain = krige(values, alike(values), (3.0, 3.0), torch.ones(()), 2, (21, 25))
    target = values.clone().requires_grad_()
    field = krige(target, alike(values), (3.0, 3.0), torch.ones(()), 2, (21, 25))
    torch.testing.assert_close(field.detach(), plain.clone())
    (gradient,) = torch.autograd.grad(field.sum(), target)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("sigma", [(2.0, 40.0), (5.0, 5.0), (10.0, 2.0)])
def test_32_bits_give_what_64_do_where_few_places_are_sure(sigma):
    """Where weights differ widely, rounding must not decide what the field is, nor its gradient."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(1, 2, 16, 16, generator=generator, dtype=torch.float64)
    root = torch.exp(3 * torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64) - 3)
    x, xy, y = (root * (torch.rand(root.shape, generator=generator) < 0.3)).unbind(1)
    weight = torch.stack((x * x + xy * xy, xy * (x + y), xy * xy + y * y), 1)
    found = []
    for dtype in (torch.float32, torch.float64):
        given = [part.to(dtype).requires_grad_() for part in (target, weight)]
        field = krige(*given, sigma, torch.tensor(0.05, dtype=dtype), 1, (16, 16))
        gradients = torch.autograd.grad(field[0, 0, 8, 8], given)
        found.append([part.detach().double() for part in (field, *gradients)])
    for single, double in zip(*found, strict=True):
        assert float((single - double).norm() / double.norm()) < 2e-3
