"""Kernels against scipy's sqrtm, in closed form, and by their properties."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor, nn

from regnet.errors import InputError, StoreError
from regnet.similarity.exact import block_rows, cross, gram, kc, kernel_blocks
from regnet.similarity.gradients import Jacobians
from regnet.similarity.kernel import (
    correlation_matrices,
    influence_matrices,
    inverse_roots,
    products,
    rotation_invariant,
    scalar,
    self_products,
    whitened,
)
from regnet.similarity.linear import SoftCounter
from regnet.similarity.neighbours import count, nearest_faiss, without_self
from regnet.similarity.readouts import binary, fisher, forward, log_probabilities
from regnet.similarity.sketch import Sketcher, sketched_kc


def make_jacobians(n: int = 12, d: int = 2, p: int = 200, seed: int = 0) -> Tensor:
    """Rows with a steep spectrum, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n * d, p, generator=generator, dtype=torch.float64)
    common = torch.randn(4, p, generator=generator, dtype=torch.float64)
    return (3 * torch.randn(n * d, 4, generator=generator, dtype=torch.float64) @ common + mix).reshape(n, d, p)


def kc_by_sqrtm(jacobians: Tensor) -> np.ndarray:
    """The reference: one pair at a time, matrix square roots by scipy."""
    rows = jacobians.double().numpy()
    roots = [np.linalg.inv(sqrtm(row @ row.T).real) for row in rows]
    d = rows.shape[1]
    pairs = list(zip(rows, roots, strict=True))
    return np.array([[np.trace(r @ a @ b.T @ s) / d for b, s in pairs] for a, r in pairs])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_kc_agrees_with_sqrtm(dtype, tolerance, d):
    jacobians = make_jacobians(d=d).to(dtype)
    expected = kc_by_sqrtm(jacobians)
    assert np.abs(kc(jacobians).numpy() - expected).max() < tolerance
    assert np.abs(kc(jacobians[:5], jacobians[3:], memory_mb=0.02).numpy() - expected[:5, 3:]).max() < tolerance
    roots = inverse_roots(self_products(jacobians)).roots
    matrices = correlation_matrices(gram(jacobians), roots, roots)
    assert np.abs(scalar(matrices).numpy() - expected).max() < tolerance


def test_the_kernel_of_a_linear_model_is_known():
    x = torch.randn(6, 3, dtype=torch.float64)
    _, jacobians = Jacobians(nn.Linear(3, 2).double(), forward)(x)
    expected = (x @ x.T + 1)[:, None, :, None] * torch.eye(2, dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(gram(jacobians), expected, rtol=0, atol=1e-12)
    cosine = (x @ x.T + 1) / ((x * x).sum(1) + 1).sqrt() / ((x * x).sum(1) + 1).sqrt()[:, None]
    torch.testing.assert_close(kc(jacobians), cosine, rtol=0, atol=1e-12)


def test_influence_moves_the_other_tile():
    """A step of the parameters that moves f(x) by v moves f(x') by KN v, for a model that is linear in them."""
    jacobians = make_jacobians(3)
    influence = influence_matrices(products(jacobians, jacobians), self_products(jacobians))
    v = torch.tensor([0.3, -1.2], dtype=torch.float64)
    step = jacobians[1].T @ torch.linalg.solve(jacobians[1] @ jacobians[1].T, v)
    torch.testing.assert_close(jacobians[1] @ step, v)
    torch.testing.assert_close(influence[2, :, 1] @ v, jacobians[2] @ step)


def test_one_output_is_the_cosine():
    jacobians = make_jacobians(d=1)
    unit = jacobians[:, 0] / jacobians[:, 0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(kc(jacobians), unit @ unit.T)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_kc_is_bounded_symmetric_and_one_on_the_diagonal(seed, d):
    jacobians = make_jacobians(6, d, 40, seed)
    similarity = kc(jacobians)
    assert float(similarity.abs().max()) <= 1 + 1e-12
    torch.testing.assert_close(similarity, similarity.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(6, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 6.3))
def test_the_rotation_invariant_form_ignores_turns_of_the_output(seed, angle):
    jacobians = make_jacobians(4, 2, 30, seed)
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float64)
    turned = jacobians.clone()
    turned[1] = turn @ turned[1]
    forms = []
    for rows in (jacobians, turned):
        roots = inverse_roots(self_products(rows)).roots
        forms.append(rotation_invariant(correlation_matrices(gram(rows), roots, roots)))
    torch.testing.assert_close(*forms, rtol=0, atol=1e-12)
    assert bool((forms[0] >= kc(jacobians) - 1e-12).all())


def test_the_rotation_invariant_form_is_the_largest_trace():
    blocks = torch.randn(5, 2, 5, 2, dtype=torch.float64)
    angles = torch.linspace(0, 2 * torch.pi, 2001, dtype=torch.float64)
    turns = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).reshape(-1, 2, 2)
    traces = torch.einsum("tab,ibja->tij", turns, blocks) / 2
    torch.testing.assert_close(rotation_invariant(blocks), traces.amax(0), rtol=0, atol=1e-5)
    flips = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)) @ turns
    either = torch.maximum(traces.amax(0), (torch.einsum("tab,ibja->tij", flips, blocks) / 2).amax(0))
    torch.testing.assert_close(rotation_invariant(blocks, reflections=True), either, rtol=0, atol=1e-5)
    solid = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    assert bool((rotation_invariant(solid) <= rotation_invariant(solid, reflections=True) + 1e-12).all())
    one = torch.tensor(-0.5, dtype=torch.float64).reshape(1, 1, 1, 1)
    assert float(rotation_invariant(one)) == -0.5
    assert float(rotation_invariant(one, reflections=True)) == 0.5


def test_dead_and_floored_tiles_are_named_and_left_out():
    jacobians = make_jacobians(5)
    jacobians[2] = 0
    jacobians[3, 1] = jacobians[3, 0]  # both outputs move together
    roots = inverse_roots(self_products(jacobians))
    assert roots.dead.tolist() == [False, False, True, False, False]
    assert roots.floored.tolist() == [False, False, False, True, False]
    similarity = kc(jacobians)
    assert bool(torch.isfinite(similarity).all())
    assert float(similarity[2].abs().max()) == 0


def test_self_products_are_accumulated_in_float64():
    jacobians = make_jacobians(2, 2, 70_000).float()
    exact = jacobians.double() @ jacobians.double().mT
    torch.testing.assert_close(self_products(jacobians), exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("memory_mb", [0.001, 0.02, 1])
def test_blocks_are_streamed_within_memory_and_give_the_same(memory_mb):
    jacobians = make_jacobians(20)
    size = block_rows(jacobians.shape, memory_mb, 8)
    assert size == 1 or 2 * size * 400 * 8 + 2 * size * size * 4 * 8 <= memory_mb * 2**20
    seen = list(kernel_blocks(jacobians, memory_mb=memory_mb))
    assert all(right.start >= left.start for left, right, _ in seen)  # upper triangle only
    torch.testing.assert_close(gram(jacobians, memory_mb=memory_mb), products(jacobians, jacobians))
    torch.testing.assert_close(
        cross(jacobians[:7], jacobians, memory_mb=memory_mb), products(jacobians[:7], jacobians), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_within_a_set_are_just_symmetric(dtype):
    for n, p in ((7, 333), (33, 1001), (50, 20_001)):
        rows = torch.randn(n, 2, p, generator=torch.Generator().manual_seed(n))
        for memory_mb in (0.1, 1024):
            whole = gram(rows, memory_mb=memory_mb, dtype=dtype)
            assert torch.equal(whole, whole.permute(2, 3, 0, 1))
            traces = gram(rows, memory_mb=memory_mb, dtype=dtype, scalar=True)
            assert torch.equal(traces, traces.T)


def test_bfloat16_products_stay_close():
    jacobians = make_jacobians(10, p=4000)
    rough = kc(jacobians.float(), dtype=torch.bfloat16)
    assert float((rough.double() - kc(jacobians)).abs().max()) < 1e-2


def test_linear_counts_agree_with_all_pairs_in_any_order():
    jacobians = make_jacobians(30, p=300)
    jacobians[4] = 0
    counter = SoftCounter()
    for part in jacobians.flip(0).split(7):
        counter.add(part)
    counted = torch.cat([counter.count(part) for part in jacobians.split(11)])
    torch.testing.assert_close(counted, kc(jacobians).sum(1), rtol=1e-12, atol=1e-12)
    rough = SoftCounter()
    rough.add(jacobians.float())
    torch.testing.assert_close(rough.count(jacobians.float()), kc(jacobians).sum(1), rtol=1e-5, atol=1e-4)


def test_a_complete_sketch_is_exact_in_float64():
    jacobians = make_jacobians(12)
    unit = whitened(jacobians)
    sketches = Sketcher(unit, floats=64)(unit)
    assert sketches.shape == (12, 2, 32)
    assert float((sketched_kc(sketches, sketches) - kc(jacobians)).abs().max()) < 1e-12


def test_a_sketch_serves_tiles_that_are_not_landmarks():
    jacobians = make_jacobians(200, p=3000)
    unit = whitened(jacobians).float()
    sketcher = Sketcher(unit[:20], floats=512)
    sketches = sketcher(unit[20:])
    error = sketched_kc(sketches, sketches).double() - kc(jacobians[20:])
    off = ~torch.eye(180, dtype=torch.bool)
    assert float(error[off].square().mean().sqrt()) < 0.03
    plain = Sketcher(unit[:1], floats=512)(unit[20:])
    worse = sketched_kc(plain, plain).double() - kc(jacobians[20:])
    assert float(error[off].square().mean()) < 0.5 * float(worse[off].square().mean())


def test_a_sketcher_comes_back_the_same(tmp_path):
    torch.manual_seed(0)
    unit = whitened(torch.randn(40, 2, 60, dtype=torch.float64) @ torch.randn(60, 700, dtype=torch.float64)).float()
    sketcher = Sketcher(unit[:20], floats=256, seed=3)
    sketcher.save(tmp_path / "sketcher.safetensors")
    again = Sketcher.load(tmp_path / "sketcher.safetensors")
    assert 0 < again.shrinkage < 1
    assert torch.equal(again(unit[20:]), sketcher(unit[20:]))
    (tmp_path / "sketcher.safetensors").write_bytes(b"cut")
    for name in ("sketcher", "nothing"):
        with pytest.raises(StoreError, match=rf"{name}.safetensors: no sketcher, or a damaged one"):
            Sketcher.load(tmp_path / f"{name}.safetensors")


def test_shares_of_the_blocks_add_up():
    jacobians = make_jacobians(20)
    for way in (gram, lambda rows, **kw: cross(rows[:7], rows, **kw)):
        whole, parts = way(jacobians), [way(jacobians, memory_mb=0.02, share=(rank, 3)) for rank in range(3)]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
        assert all(bool(part.any()) for part in parts)


def test_folding_alone_is_unbiased():
    unit = whitened(make_jacobians(6, p=500))
    exact = sketched_kc(unit, unit)
    mean = torch.stack(
        [sketched_kc(*(Sketcher(unit[:1] * 0 + 1e-3, floats=40, seed=seed)(unit),) * 2) for seed in range(400)]
    ).mean(0)
    assert float((mean - exact).abs().max()) < 0.05


def test_more_numbers_than_parameters_are_padded():
    unit = whitened(make_jacobians(3, p=10))
    sketches = Sketcher(unit[:1], floats=64)(unit)
    assert sketches.shape == (3, 2, 32)
    torch.testing.assert_close(sketched_kc(sketches, sketches), sketched_kc(unit, unit), rtol=0, atol=1e-12)


def test_faiss_finds_what_all_pairs_find(monkeypatch):
    unit = whitened(make_jacobians(30))
    flat = unit.flatten(1).float().numpy() / 2**0.5
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'regnet\[knn\]'"):
        nearest_faiss(flat, flat, 3)
    monkeypatch.undo()
    pytest.importorskip("faiss")
    nearest, similarity = nearest_faiss(flat, flat[:5], 4)
    exact = sketched_kc(unit, unit).numpy()[:5]
    np.testing.assert_array_equal(nearest, np.argsort(-exact, 1)[:, :4])
    np.testing.assert_allclose(similarity, np.take_along_axis(exact, nearest, 1), atol=1e-5)


def test_faiss_searches_large_sets_by_their_cells():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    rows = (centres[rng.integers(40, size=4000)] + rng.normal(size=(4000, 16))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole, _ = nearest_faiss(rows, rows[:200], 10)
    cells, _ = nearest_faiss(rows, rows[:200], 10, exact_below=1000)
    found = [len(set(a) & set(b)) / 10 for a, b in zip(whole.tolist(), cells.tolist(), strict=True)]
    assert 0.9 < np.mean(found) < 1  # it does leave cells out


def test_a_tile_is_left_out_of_its_own_list():
    nearest = np.array([[3, 0, 2], [1, 3, 0], [5, 6, 7]])
    similarity = np.array([[1.0, 0.9, 0.8], [1.0, 1.0, 0.2], [0.3, 0.2, 0.1]])
    kept, kc = without_self(nearest, similarity, np.array([0, 1, -1]), 2)
    assert kept.tolist() == [[3, 2], [3, 0], [5, 6]]
    assert kc.tolist() == [[1.0, 0.8], [1.0, 0.2], [0.3, 0.2]]


def test_a_set_of_few_in_every_cell_is_searched_whole():
    pytest.importorskip("faiss")
    rows = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    nearest, similarity = nearest_faiss(rows, rows, 200, exact_below=100)
    assert (nearest >= 0).all()
    whole, expected = nearest_faiss(rows, rows, 200)
    np.testing.assert_array_equal(nearest, whole)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


def test_ends_of_the_counts():
    jacobians = make_jacobians(8)
    jacobians[2] = 0
    jacobians[5, 1] = jacobians[5, 0]  # floored: the kernel's own kC is a half
    columns = np.arange(8)
    live = columns != 2
    similarity = kc(jacobians).numpy()
    np.testing.assert_array_equal(count(similarity, 1.0, 2.0, 3, columns).n_tau, live)
    np.testing.assert_array_equal(count(similarity, -1.0, 2.0, 3, columns).n_tau, 7 * live)
    found = count(similarity, 0.0, 2.0, 7, columns)
    assert found.n_soft[5] == pytest.approx(similarity[5, columns != 5].sum() + 1)
    assert found.n_soft[2] == found.n_tau[2] == found.n_alpha[2] == 0
    assert (found.nearest[2] == -1).all()
    assert np.isnan(found.similarity[2]).all()
    for row in np.flatnonzero(live):
        assert set(found.nearest[row]) == {*np.flatnonzero(live & (columns != row)), -1}
        assert np.isnan(found.similarity[row, -1])
    unit = whitened(jacobians).flatten(1).numpy() / 2**0.5
    order = np.argsort(-(unit @ unit.T), axis=1, kind="stable")
    nearest, near = without_self(order, np.take_along_axis(unit @ unit.T, order, 1), columns, 7)
    np.testing.assert_array_equal(nearest, found.nearest)
    np.testing.assert_allclose(near, found.similarity, atol=1e-12)


def test_neighbour_counts_by_hand():
    similarity = np.array([[1.0, 0.6, -0.2], [0.6, 1.0, 0.5]])
    found = count(similarity, tau=0.5, alpha=2.0, k=5, self_columns=np.array([0, -1]))
    np.testing.assert_allclose(found.n_soft, [1.4, 2.1])
    np.testing.assert_array_equal(found.n_tau, [2, 3])
    np.testing.assert_allclose(found.n_alpha, [1.36, 1.61])
    assert found.nearest.tolist() == [[1, 2], [1, 0]]
    np.testing.assert_allclose(found.similarity, [[0.6, -0.2], [1.0, 0.6]])


def test_classification_readouts():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4).double(), torch.randn(5, 3, dtype=torch.float64)
    logits = model(x)
    p = torch.softmax(logits, 1)
    torch.testing.assert_close(log_probabilities(model, x).exp(), p)
    best = p.max(1).values
    torch.testing.assert_close(binary(model, x)[:, 0], torch.log(best / (1 - best)))
    metric = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    _, plain = Jacobians(model, forward)(x)
    _, weighted = Jacobians(model, fisher)(x)
    torch.testing.assert_close(
        self_products(weighted).diagonal(dim1=1, dim2=2).sum(1),
        torch.einsum("iab,ibp,iap->i", metric.detach(), plain, plain),
    )
