"""Columns in memory and on disk: numpy's algebra, the same bits wherever they lie, and what survives a kill."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.curvature.test_lanczos import matrix
from villani.curvature.basis import Basis, dot, norm
from villani.curvature.lanczos import Ends, krylov
from villani.curvature.operators import Budget

SIZE = 200_003  # several chunks, the last of them short


def test_where_columns_lie_moves_no_bit(tmp_path):
    h = torch.from_numpy(matrix(np.linspace(-1, 1, 150))).float()
    found = []
    for budget, directory in ((Budget(), None), (Budget(0), None), (Budget(0), tmp_path)):
        with Basis(150, torch.float32, directory=directory, budget=budget) as basis:
            ritz = krylov(lambda v: h @ v, basis, Ends(3, 2, 1e-4, length=16))
            assert ritz.products > 40  # several restarts
            found.append(basis.combination(ritz.weights[:, 0]))
            basis.release(3)
            assert torch.equal(basis.combination(ritz.weights[:, 0]), found[-1])
            assert len(basis) - basis.in_memory >= 3
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert [path.name for path in tmp_path.iterdir()] == [f"basis-{basis.generation}"]


MEMORY = """
import sys, torch
from functools import partial
from villani.curvature.basis import Basis
from villani.curvature.lanczos import Ends, krylov
from villani.curvature.operators import Budget
from villani.work.memory import peak_memory
peak = partial(peak_memory, torch.device("cpu"))
size = 9_000_000  # so large that malloc gives every vector back when it is freed
diagonal = torch.linspace(-1, 1, size) ** 3
diagonal * diagonal  # what a product takes
before = peak()
limit = before + int(sys.argv[1]) * 2**20
with Basis(size, torch.float32, budget=Budget(limit, peak)) as basis:
    krylov(lambda v: diagonal * v, basis, Ends(1, 1, 1e-6, most=7, length=40))
print(basis.in_memory, peak() - limit)
"""


def test_memory_stays_within_its_budget(tmp_path):
    """8 columns of 36 MB in a budget of 200 MB: some are held, the rest are read where they are needed."""
    ballast = torch.ones(150_000_000)  # what this process has had counts for none of the other's
    found = subprocess.run([sys.executable, "-c", MEMORY, "200"], capture_output=True, text=True, check=True)
    del ballast
    held, above = map(int, found.stdout.split())
    assert 1 <= held <= 7
    assert above <= 0


def columns(count, size=SIZE):
    return np.random.default_rng(0).normal(size=(count, size))


@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "on disk"])
def test_algebra_is_that_of_a_matrix(limit):
    rows, v = columns(4), np.random.default_rng(1).normal(size=SIZE)
    with Basis(SIZE, torch.float64, budget=Budget(limit)) as basis:
        for row in rows:
            basis.append(torch.from_numpy(row))
        assert len(basis) == 4
        assert basis.in_memory == (4 if limit is None else 0)
        assert np.array_equal(basis.column(2), rows[2])
        vector = torch.from_numpy(v.copy())
        assert basis.dots(vector) == pytest.approx(rows @ v)
        assert basis.dots(vector, 2) == pytest.approx(rows[2:] @ v)
        weights = np.array([0.5, -2.0])
        basis.subtract(vector, weights, 1)
        assert np.allclose(vector, v - weights @ rows[1:3], rtol=1e-12)
        mix = np.array([1.0, 2.0, 0.0, -1.0])
        whole = mix @ rows
        assert np.allclose(basis.combination(mix), whole / np.linalg.norm(whole), rtol=1e-12, atol=1e-14)
        turn = np.random.default_rng(2).normal(size=(4, 2))
        basis.turn(turn)
        assert len(basis) == 2
        assert np.allclose(basis.column(1), rows.T @ turn[:, 1], rtol=1e-12, atol=1e-14)


def test_a_generation_is_taken_up_again_and_older_ones_are_forgotten(tmp_path):
    rows = columns(3, 1000)
    with Basis(1000, torch.float64, directory=tmp_path) as basis:
        for row in rows:
            basis.append(torch.from_numpy(row))
        basis.turn(np.eye(3)[:, ::-1].copy())
        assert len(list(tmp_path.iterdir())) == 2, "the old one stays until it is settled"
    with Basis(1000, torch.float64, directory=tmp_path) as basis:
        basis.restore(1, 2)
        assert len(basis) == 2
        assert basis.column(0).tolist() == rows[2].tolist()
        assert [path.name for path in tmp_path.iterdir()] == ["basis-1"]
        with pytest.raises(OSError, match="basis-1"):
            basis.restore(1, 4)


def test_lengths_and_products_are_in_float64():
    """Where float32 adds up to something else: 10⁸ ones and small numbers."""
    a = torch.full((3_000_000,), 0.1)
    exact = float(np.float32(0.1))
    assert norm(a) == pytest.approx((3e6 * exact**2) ** 0.5, rel=1e-12)
    assert dot(a, a) == pytest.approx(3e6 * exact**2, rel=1e-12)
    assert dot(torch.ones(3), torch.arange(3.0)) == 3
