"""Eigenpairs against dense float64 matrices, awkward spectra, memory, and kills."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import make_model, make_pool
from villani.curvature.basis import Basis
from villani.curvature.lanczos import Ends, krylov
from villani.curvature.operators import Curvature
from villani.curvature.pairs import examine, ritz_pairs
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.work.work import Work


def matrix(values, seed=0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return (q * np.asarray(values)) @ q.T


def opened(folder) -> Work:
    work = Work(folder)
    work.open("spectrum", "a matrix", {"seed": 0}, {})
    return work


def solve(h, ends, dtype=torch.float64, **rest):
    tensor = torch.from_numpy(h).to(dtype)
    return ritz_pairs(lambda v: tensor @ v, len(h), dtype, ends, **rest)


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-1, 1, 120),
        [5, 5 - 1e-4, 5 - 2e-4, *np.linspace(-1, 1, 117)],  # a cluster
        [3, 2, 1, -1, *np.zeros(116)],  # of low rank
        -np.linspace(1, 2, 120),  # no positive one
        np.zeros(120),
    ],
    ids=["dense", "cluster", "rank 4", "negative", "zero"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_awkward_spectra(values, dtype):
    truth = np.sort(values)
    pairs, ritz = solve(matrix(values), Ends(4, 3, 1e-8 if dtype == torch.float64 else 2e-5, length=24), dtype)
    found = np.array([pair.value for pair in pairs])
    assert ritz.converged
    wide = dtype == torch.float64
    assert np.allclose(found, np.concatenate([truth[::-1][:4], truth[:3]]), atol=1e-9 if wide else 1e-5)
    vectors = torch.stack([pair.vector for pair in pairs]).double()
    assert torch.allclose(vectors @ vectors.T, torch.eye(7, dtype=torch.float64), atol=1e-11 if wide else 5e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("outliers", "most"), [([], 20), ([1.5, 1.3], 40), ([30.0, -20.0, 5.0], 90)])
def test_columns_stay_orthogonal_though_seldom_compared(outliers, most, dtype, monkeypatch):
    """Beyond where a recurrence by itself loses it, and where converged vectors bring rounding back fast."""
    h = torch.from_numpy(matrix([*outliers, *np.linspace(-1, 1, 400 - len(outliers))])).to(dtype)
    compared = 0
    dots = Basis.dots

    def counted(self, vector, first=0):
        nonlocal compared
        compared += 1
        return dots(self, vector, first)

    monkeypatch.setattr(Basis, "dots", counted)
    with Basis(400, dtype) as basis:
        krylov(lambda v: h @ v, basis, Ends(3, 2, 1e-12, most=90, length=100))
        assert 2 <= compared <= most
        gram = np.array([dots(basis, basis.column(i)) for i in range(len(basis))])
    off = np.abs(gram - np.eye(len(gram))).max()
    assert off <= 4 * torch.finfo(dtype).eps ** 0.75


def test_a_start_orthogonal_to_the_first_eigenvector_finds_it():
    values = np.array([9.0, *np.linspace(-1, 1, 79)])
    h = np.diag(values)
    start = torch.ones(80, dtype=torch.float64)
    start[0] = 0.0
    pairs, _ = solve(h, Ends(1, 0, 1e-6), start=start)
    assert pairs[0].value == pytest.approx(9.0)


def test_a_null_space_is_not_taken_for_an_end():
    """The start is nearly a null vector here, with a Ritz value of 0 and a small residual after two products."""
    values = torch.zeros(4000, dtype=torch.float64)
    values[:8] = torch.tensor([9.0, -10, -9.5, -9, -8.5, -8, -7.5, -7])
    pairs, ritz = ritz_pairs(lambda v: values * v, 4000, torch.float64, Ends(1, 0, 0.1))
    assert ritz.converged
    assert pairs[0].value == pytest.approx(9, abs=0.1)


def test_bounds_hold_before_convergence():
    """However early it stops, an eigenvalue lies within each residual, and ends are bounded from the inside."""
    truth = np.sort(np.random.default_rng(3).normal(size=150))
    h = matrix(truth)
    for most in (6, 12, 30):
        pairs, ritz = solve(h, Ends(3, 2, 1e-9, most=most))
        assert not ritz.converged
        assert ritz.products == most
        for pair in pairs:
            assert np.abs(truth - pair.value).min() <= pair.residual + 1e-12
        assert all(pair.value <= truth[-1 - i] + 1e-12 for i, pair in enumerate(pairs[:3]))
        assert all(pair.value >= truth[i] - 1e-12 for i, pair in enumerate(pairs[3:]))


def test_any_number_of_interruptions_gives_the_same_bits(tmp_path):
    h = torch.from_numpy(matrix(np.linspace(-1, 1, 150))).float()
    ends = Ends(3, 2, 1e-4, length=16)

    class Stop(Exception):
        pass

    def run(folder, every):
        left = every

        def product(v):
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop
            return h @ v

        with opened(folder) as work, Basis(150, torch.float32, directory=folder / "basis") as basis:
            ritz = krylov(product, basis, ends, work=work)
            return [pair.value for pair in examine(product, basis, ritz, [150], work=work, directory=folder)]

    whole = run(tmp_path / "whole", 10**6)
    for _ in range(100):
        try:
            pieces = run(tmp_path / "pieces", 7)
            break
        except Stop:
            continue
    assert pieces == whole
    for i in range(5):
        assert np.array_equal(*(np.load(tmp_path / name / f"vector-{i:02d}.npy") for name in ("whole", "pieces")))


def test_units_in_memory_hold_what_the_recurrence_was(tmp_path):
    """T goes on changing in place; what is kept of it does not, and a stopped run goes on from it."""
    h = torch.from_numpy(matrix(np.linspace(-1, 1, 60))).float()
    ends, work, count = Ends(2, 2, 1e-3, length=12), Work(), 0

    def product(v):
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        return h @ v

    with Basis(60, torch.float32, directory=tmp_path) as basis, pytest.raises(KeyboardInterrupt):
        krylov(product, basis, ends, work=work)
    counts = [int(work.get(f"product/{i}")["counts"][1]) for i in range(19)]
    assert counts == list(range(1, 20))
    first = work.get("product/0")["projected"]
    assert np.count_nonzero(first) == 3  # one α, and β on either side of it
    with Basis(60, torch.float32, directory=tmp_path) as basis:
        again = krylov(product, basis, ends, work=work)
    with Basis(60, torch.float32) as basis:
        whole = krylov(lambda v: h @ v, basis, ends, work=work)  # without a directory nothing is taken up
    assert np.array_equal(again.values, whole.values)
    assert again.products == whole.products == count - 1  # the one that was stopped was done again


def test_lost_columns_are_told(tmp_path):
    h = torch.from_numpy(matrix(np.linspace(-1, 1, 60))).float()
    with opened(tmp_path) as work:
        with Basis(60, torch.float32, directory=tmp_path / "basis") as basis:
            krylov(lambda v: h @ v, basis, Ends(2, 2, 1e-3), work=work)
        for path in (tmp_path / "basis").iterdir():
            path.unlink()
        with (
            Basis(60, torch.float32, directory=tmp_path / "basis") as basis,
            pytest.raises(InputError, match="has lost the vectors"),
        ):
            krylov(lambda v: h @ v, basis, Ends(2, 2, 1e-3), work=work)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (Ends(-1, 2), "top=-1"),
        (Ends(0, 0), "at least one"),
        (Ends(tolerance=0.0), "tolerance=0.0"),
        (Ends(5, 2, length=8), "basis=8"),
        (Ends(5, 2, most=3), "most=3"),
    ],
)
def test_bad_wishes_are_refused(ends, message):
    with pytest.raises(InputError, match=message):
        solve(np.eye(30), ends)


def test_bad_operators_are_refused():
    objective = Objective(torch.nn.Linear(3, 1), [torch.randn(4, 3)] * 3, loss_fn=lambda m, x: m(x).square().mean())
    with pytest.raises(InputError, match="no Gauss–Newton"):
        Curvature(objective, "gauss-newton")
    with pytest.raises(InputError, match="weight_decay=-1"):
        Curvature(objective, weight_decay=-1.0)
    with pytest.raises(InputError, match="not finite"):
        ritz_pairs(lambda v: v * float("nan"), 30, torch.float32)


def test_agrees_with_curvlinops_and_scipy():
    """A 2-million-parameter matrix would take minutes here; benchmarks/eigen_against_peers.py has it."""
    from curvlinops import GGNLinearOperator
    from scipy.sparse.linalg import eigsh
    from torch import nn

    model = make_model("gpt2").eval()
    pool = make_pool(1)
    objective = Objective(model, pool)
    ids = pool[0]["input_ids"]

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, ids):
            return self.inner(ids, use_cache=False).logits[:, :-1].reshape(-1, 11)

    theirs = GGNLinearOperator(
        Logits().eval(), nn.CrossEntropyLoss(), objective.parameters.tensors,
        [(ids, ids[:, 1:].reshape(-1))], check_deterministic=False,
    )  # fmt: skip
    ours, _ = ritz_pairs(Curvature(objective, "gauss-newton"), theirs.shape[1], torch.float64, Ends(5, 0, 1e-7))
    wanted = eigsh(theirs.to_scipy(), k=5, which="LA", return_eigenvectors=False)[::-1]
    assert np.allclose([pair.value for pair in ours], wanted, rtol=1e-6)


def test_survives_sigkill(tmp_path):
    """A real kill in the middle of a product, from outside."""
    h = torch.from_numpy(matrix(np.linspace(-1, 1, 100))).float()

    def run(folder, die_at=10**9):
        count = 0

        def product(v):
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return h @ v

        with opened(folder) as work, Basis(100, torch.float32, directory=folder / "basis") as basis:
            return krylov(product, basis, Ends(3, 2, 1e-4, length=14), work=work)

    whole = run(tmp_path / "whole")
    for die_at in (9, 13, 2):
        child = os.fork()
        if child == 0:
            run(tmp_path / "killed", die_at)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    again = run(tmp_path / "killed")
    assert np.array_equal(whole.values, again.values)
    assert np.array_equal(whole.weights, again.weights)


def test_the_products_to_come_are_foreseen():
    """Half-way, the told number is right to a quarter where residuals fall evenly; at first it is a basis full."""
    told = []
    h = torch.from_numpy(np.diag(np.concatenate([np.linspace(0, 1, 400), [1.3]])))
    with Basis(401, torch.float64) as basis:
        work = Work(progress=SimpleNamespace(stage=None, advance=lambda *at: told.append(at)))
        ritz = krylov(lambda v: h @ v, basis, Ends(1, 0, 1e-9, length=60), work=work)
    assert [done for done, _ in told] == list(range(1, ritz.products + 1))
    assert told[0][1] == 61
    assert abs(told[ritz.products // 2][1] - ritz.products) <= ritz.products / 4


@pytest.mark.parametrize("other", [10.0, 1e3, 1e5])
@pytest.mark.parametrize("flip", [1, -1])
def test_each_end_has_a_tolerance_of_its_own(other, flip):
    """The top of 1, 0.999, 0.998, … beside −other: relative to that, 0.955 and worse would pass for the second."""
    values = np.concatenate([1 - 1e-3 * np.arange(20), np.linspace(0.9, -0.5, 170), [-other, -0.7 * other]])
    h = matrix(flip * values)
    ends = Ends(4, 2, 1e-3, 1500) if flip > 0 else Ends(2, 4, 1e-3, 1500)
    pairs, ritz = solve(h, ends)
    small = pairs[:4] if flip > 0 else pairs[2:]
    assert ritz.converged
    assert max(pair.residual for pair in small) <= 1e-3
    assert np.allclose([flip * pair.value for pair in small], values[:4], atol=4e-3)  # not by residual alone
    order = sorted(flip * values, reverse=flip > 0)
    for pair, truth in zip(small, order, strict=False):  # Cauchy interlacing: what is proved of the rank
        assert flip * (truth - pair.value) >= -1e-9 * other


def test_an_end_that_is_nothing_is_held_to_the_other():
    """Of a positive matrix with many zeros the lower end is 0 as far as the tolerance of the upper one tells."""
    values = np.concatenate([np.linspace(1, 2, 30), np.logspace(0, -9, 120), np.zeros(50)])
    pairs, ritz = solve(matrix(values), Ends(2, 2, 1e-3, 200))
    assert ritz.converged
    assert all(abs(pair.value) <= 2e-3 * 2 for pair in pairs[2:])
    own, ritz = solve(matrix(np.concatenate([[1.0, 1.01, 1.2], np.linspace(1.5, 100, 197)])), Ends(2, 2, 1e-3, 500))
    assert ritz.converged
    assert np.allclose([pair.value for pair in own[2:]], [1, 1.01], atol=1e-3)  # something, if small beside 100
