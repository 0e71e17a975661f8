from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from regnet.displacement import random_field
from regnet.models import field as module
from regnet.models.correlation import CELL, offset_grid
from regnet.models.field import NOISES, VIEWS, Choice, Evidence, statistics
from regnet.models.kriging import krige

SIDE, RADIUS = 96, 4


def field(sigma_px, seed=0, peak_px=3.0):
    """A displacement of cells (1, 2, h, w), px, as smooth as its sigma."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(random_field((SIDE, SIDE), peak_px, sigma_px / CELL, generator))[None]


def evidence(true, noise, seed=0):
    """A volume that peaks at the true offsets, under noise that is independent from cell to cell."""
    offsets = offset_grid(RADIUS)
    distance = (offsets[None, :, :, None, None] - true[:, :, None]).square().sum(1)
    volume = torch.exp(-distance / 2) / 2
    volume = volume + noise * torch.randn(volume.shape, generator=torch.Generator().manual_seed(seed))
    still = torch.zeros_like(true)
    return Evidence(volume * CELL**2, torch.full_like(volume, CELL**2), offsets, still)


def error_px(found, true):
    return float((found - true).norm(dim=1).mean())


def fit_field(known, begun=False, training=False):
    return module.fit_field(known, 1.0, begun, training=training)


def taking(monkeypatch, kind, noise):
    """Make the fit take one smoothness and noise, whatever predicts best."""

    def chosen(known, views, begun, training):
        looks = [module._Look.at(known, view, begun) for view in VIEWS]
        share = torch.eye(KINDS)[kind : kind + 1]
        return looks, Choice(share, torch.full_like(share, noise))

    monkeypatch.setattr(module, "_best_predicting", chosen)


SIGMAS = [sigmas for view in VIEWS for sigmas in view.sigmas_px]
KINDS = len(SIGMAS)


@pytest.mark.parametrize("sigma_px", [15.0, 30.0, 100.0])
@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_held_out_evidence_picks_about_the_best_smoothness(sigma_px, noise, monkeypatch):
    true = field(sigma_px)
    known = evidence(true, noise)
    chosen = error_px(fit_field(known), true)
    each = []
    with torch.no_grad():
        for kind, noise in product(range(KINDS), NOISES):
            taking(monkeypatch, kind, noise)
            each.append(error_px(fit_field(known), true))
    assert max(each) > 1.3 * min(each)
    assert chosen < 1.3 * min(each) + 0.03
    assert chosen < 0.85 * max(each)


def test_a_rough_field_is_followed_and_noise_alone_is_not(monkeypatch):
    rough, still = field(15.0), torch.zeros(1, 2, SIDE, SIDE)
    assert error_px(fit_field(evidence(rough, 0.1)), rough) < 0.25 * error_px(still, rough)
    noise = evidence(still, 1.0)
    assert error_px(fit_field(noise), still) < 0.15
    taking(monkeypatch, SIGMAS.index((10.0, 10.0)), NOISES[0])
    assert error_px(fit_field(noise), still) > 0.4


@pytest.mark.parametrize("axis", [0, 1])
def test_what_varies_along_one_axis_alone_is_averaged_along_the_other(axis, monkeypatch):
    """A sensor's jitter: fields that are as rough both ways have far more of the noise."""
    steps = torch.from_numpy(random_field((SIDE, 1), 3.0, 3.0, np.random.default_rng(3))).expand(2, SIDE, SIDE)
    true = (steps if axis == 0 else steps.mT)[None].contiguous()
    known = evidence(true, 0.5)
    chosen = error_px(fit_field(known), true)
    each = []
    for sigma, noise in product((20.0, 10.0), NOISES):
        taking(monkeypatch, SIGMAS.index((sigma, sigma)), noise)
        each.append(error_px(fit_field(known), true))
    assert chosen < 0.7 * min(each)


def test_the_base_is_smoothed_with_the_offsets():
    """A noisy base that the offsets take back again leaves the true field."""
    true = field(100.0)
    base = 0.5 * torch.randn(true.shape, generator=torch.Generator().manual_seed(1))
    known = evidence(true - base, 0.05)
    found = fit_field(replace(known, base=base))
    assert error_px(found + base, true) < 0.1


def test_cells_without_evidence_take_the_field_around_them():
    true = field(100.0)
    known = evidence(true, 0.05)
    hole = torch.ones(1, 1, SIDE, SIDE)
    hole[..., 40:52, 40:52] = 0
    found = fit_field(known.part(hole))
    assert error_px(found[..., 40:52, 40:52], true[..., 40:52, 40:52]) < 0.2


def test_statistics_of_a_distribution_of_two_offsets():
    offsets = offset_grid(1)
    logits = torch.full((1, 9, 1, 1), -1e4)
    logits[:, [3, 5]] = 0.0  # dx -1 and +1 on the row in the middle, half each
    mean, covariance = statistics(logits, offsets)
    assert torch.allclose(mean, torch.zeros(1, 2, 1, 1))
    assert covariance.flatten().tolist() == pytest.approx([1.01, 0.0, 0.01])
    logits[:, [3, 5]], logits[:, [0, 8]] = -1e4, 0.0  # (-1, -1) and (1, 1)
    assert statistics(logits, offsets)[1].flatten().tolist() == pytest.approx([1.01, 1.0, 1.01])


@pytest.mark.parametrize("share", [-0.4, 0.0, 0.25, 0.5])
def test_a_pointed_peak_is_found_between_whole_offsets(share):
    """However sharp the distribution: without a fit through the neighbours it would be drawn to whole pixels."""
    offsets = offset_grid(3)
    true = torch.tensor([1.0 + share, -2.0 + share / 2]).view(1, 2, 1, 1)
    logits = -200 * (offsets[None, :, :, None, None] - true[:, :, None]).abs().sum(1)
    mean, _ = statistics(logits, offsets)
    assert torch.allclose(mean, true, atol=1e-3)


@pytest.mark.parametrize("shape", [(9, 8), (13, 30), (17, 41)])
def test_cells_that_make_no_whole_squares_are_found_too(shape):
    true = torch.full((1, 2, *shape), 1.25)
    assert error_px(fit_field(evidence(true, 0.05)), true) < 0.1


@pytest.mark.parametrize(("sigma_px", "fewer", "in_training"), [(100.0, 21, 9), (15.0, 9, 13)])
def test_only_fields_with_a_share_are_found_unless_each_samples_gradient_is_asked_for(
    monkeypatch, sigma_px, fewer, in_training
):
    """What is found is the same; a smooth field is not viewed through the last window."""
    known = evidence(field(sigma_px), 0.3)
    calls = []
    monkeypatch.setattr(module, "krige", lambda *args: calls.append(args) or krige(*args))

    def one(volume, count, base):
        return fit_field(replace(known, volume=volume[None], count=count[None], base=base[None]))[0]

    whole = torch.func.vmap(one)(known.volume, known.count, known.base)
    every = len(calls)
    for grad, count in ((False, every - fewer), (True, every)):
        calls.clear()
        with torch.set_grad_enabled(grad):
            assert torch.allclose(fit_field(known), whole, atol=1e-4)
        assert len(calls) == count
    calls.clear()
    assert error_px(fit_field(known, training=True), whole) < 0.01
    assert len(calls) == in_training
    assert not {args[2] for args in calls} & {known.in_cells(sigmas) for sigmas in module.JITTER_PX}


def test_an_edge_says_nothing_along_itself():
    """Ground that shows dx alone, between strips that show both: dy goes from strip to strip."""
    true = field(100.0)
    offsets = offset_grid(RADIUS)
    across = (offsets[0, :, None, None] - true[:, :1]).square()
    known = evidence(true, 0.05)
    edge = torch.exp(-across / 2) / 2 * CELL**2
    edge = edge + 0.02 * CELL**2 * torch.randn(edge.shape, generator=torch.Generator().manual_seed(1))
    both = (torch.arange(SIDE) % 24 < 8).float()
    volume = known.volume * both + edge * (1 - both)
    found = fit_field(replace(known, volume=volume))
    assert error_px(found, true) < 0.08


def test_alternatives_share_by_how_clear_the_lead_of_the_best_is():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 50, generator=generator)
    fits = noise - torch.tensor([0.0, 0.0, 3.0, -9.0])[:, None]
    tried = torch.tensor([[True, True, True, False]])
    shares = module._shares(fits, tried)[0]
    assert float(shares.sum()) == pytest.approx(1.0)
    assert float(shares[:2].min()) > 0.1
    assert float(shares[2]) < 1e-6
    assert float(shares[3]) == 0.0
    # Blocks that fit alike say nothing against each other.
    assert module._shares(torch.ones(1, 2, 5), tried[:, :2]).tolist() == [[0.5, 0.5]]


def test_every_pair_of_a_batch_has_its_own_smoothness():
    pairs = [evidence(field(15.0), 0.1), evidence(field(100.0), 1.0, seed=1)]
    both = Evidence(
        torch.cat([pair.volume for pair in pairs]),
        torch.cat([pair.count for pair in pairs]),
        pairs[0].offsets,
        torch.cat([pair.base for pair in pairs]),
    )
    alone = torch.cat([fit_field(pair) for pair in pairs])
    assert torch.allclose(fit_field(both), alone, atol=1e-4)


@pytest.mark.parametrize(("cells", "drawn", "learned"), [(SIDE, False, True), (SIDE, True, False), (8, False, False)])
def test_caution_is_learned_only_where_the_noise_was_predicted(cells, drawn, learned):
    known = evidence(field(40.0), 0.3)
    known = replace(known, **{name: getattr(known, name)[..., :cells, :cells] for name in ("volume", "count", "base")})
    known.volume.requires_grad_()
    caution = torch.tensor(2.0, requires_grad=True)
    found = module.fit_field(known, caution, True, drawn).square().sum()
    slope, of_evidence = torch.autograd.grad(found, (caution, known.volume), allow_unused=True)
    assert of_evidence.abs().max() > 0
    assert (slope is not None and float(slope) != 0) == learned


def test_offsets_stay_near_what_coarser_levels_found():
    """Of two peaks as high the prior favours the nearer to the base: by e^2 to 1 if it is 2 px and the other 18 px^2
    from it, so that their mean is off by a share of 1 / (1 + e^2) of their distance."""
    near, far = torch.full((1, 2, SIDE, SIDE), 1.0), torch.full((1, 2, SIDE, SIDE), -3.0)
    two = torch.maximum(*(evidence(true, 0.0).volume for true in (near, far)))
    known = replace(evidence(near, 0.0), volume=two)
    assert error_px(fit_field(known, begun=True), near) == pytest.approx(4 * 2**0.5 / (1 + np.exp(2)), abs=0.15)
    assert error_px(fit_field(known, begun=False), near) > 1.0


def peaks_at(place, shape):
    """Evidence of one cell that peaks at an offset, by a function of the distances along x and y."""
    x, y = offset_grid(RADIUS) - torch.tensor(place)[:, None]
    volume = shape(x, y)[None, :, None, None]
    return Evidence(volume, torch.ones_like(volume), offset_grid(RADIUS), torch.zeros(1, 2, 1, 1))


def looked_up(known, places):
    fields = torch.tensor(places, dtype=torch.float32)[None, :, :, None, None]
    return module._look_up(module._widened(known), fields)[0, :, 0, 0]


def test_between_whole_offsets_slopes_are_straight_and_peaks_rise():
    """Where the slope is even there is nothing to add; a bend of 2 along each axis adds 2 t (1 - t)."""
    places = [(0.0, 0.0), (1.3, -2.6), (-3.8, 3.5), (4.0, -4.0)]
    slope = looked_up(peaks_at((0.0, 0.0), lambda x, y: 3 * x - 2 * y + x * y), places)
    torch.testing.assert_close(slope, torch.tensor([3 * x - 2 * y + x * y for x, y in places]), atol=1e-5, rtol=0)
    found = looked_up(
        peaks_at((0.3, -0.4), lambda x, y: -x.square() - y.square()), [(0.0, 0.0), (0.3, -0.4), (1.0, -1.0)]
    )
    # Bilinear, a parabola is t (1 - t) too low between whole offsets; the bend gives twice that back.
    torch.testing.assert_close(found, torch.tensor([-0.25, 0.21 + 0.24, -0.85]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [lambda x, y: -x.abs() - y.abs(), lambda x, y: -x.square() - y.square()])
@pytest.mark.parametrize("place", [(0.3, 0.0), (-0.2, 0.4), (1.6, -2.3), (0.5, 0.5)])
def test_evidence_speaks_for_where_its_peak_is_rather_than_for_the_whole_offset_beside(shape, place):
    whole = tuple(map(round, place))
    there, beside = looked_up(peaks_at(place, shape), [place, whole])
    assert there > beside
