"""The Hessian as a matrix against dense float64 matrices, for arrays and tensors, alone and in SciPy's hands."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from tests.conftest import dense, make_model, make_pool
from villani import HessianOperator, InputError, Objective


@pytest.fixture(scope="module")
def oracle():
    """∇²L and its Gauss–Newton part of GPT-2's pool, the objective, and the mask."""
    model, pool = make_model("gpt2"), make_pool(3)
    objective = Objective(model, pool, weight_decay=0.3, decay="hf")
    parts = [dense(model, group, second=True) for group in pool]
    tokens = sum(part.tokens for part in parts)
    hessian = sum(part.hessian for part in parts) / tokens
    gauss_newton = sum(part.gauss_newton for part in parts) / tokens
    mask = np.repeat(objective.parameters.decayed, objective.parameters.sizes)
    return objective, hessian, gauss_newton, 0.3 * np.diag(mask)


def draws(size, *columns):
    return np.random.default_rng(0).normal(size=(size, *columns))


def test_products_equal_dense_ones_in_every_form(oracle):
    objective, hessian, gauss_newton, decay = oracle
    d = len(hessian)
    assert 500 < d <= 10_000
    cases = [
        (HessianOperator(objective), hessian),
        (HessianOperator(objective, "gauss-newton"), gauss_newton),
        (HessianOperator(objective, matrix="objective"), hessian + decay),
        (HessianOperator(objective, "gauss-newton", "objective"), gauss_newton + decay),
    ]
    for operator, matrix in cases:
        assert operator.shape == (d, d)
        assert operator.dtype == torch.float64
        assert operator.device == torch.device("cpu")
        for v in (draws(d), draws(d, 3)):
            product = operator @ v
            assert isinstance(product, np.ndarray)
            np.testing.assert_allclose(product, matrix @ v, rtol=1e-9, atol=1e-10)
            tensor = operator @ torch.from_numpy(v)
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(tensor.numpy(), product)
            np.testing.assert_allclose(v.T @ operator, v.T @ matrix, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose((torch.from_numpy(v.T) @ operator).numpy(), v.T @ matrix, rtol=1e-9, atol=1e-10)
    assert (HessianOperator(objective) @ np.zeros((d, 0))).shape == (d, 0)


def test_rayleigh_quotient_from_either_side(oracle):
    objective, hessian, *_ = oracle
    v, operator = draws(len(hessian)), HessianOperator(objective)
    assert v @ operator @ v == pytest.approx(v @ hessian @ v, rel=1e-10)


def test_integers_strides_and_other_precisions(oracle):
    objective, hessian, *_ = oracle
    d, operator = len(hessian), HessianOperator(objective)
    whole = np.arange(d) % 3
    np.testing.assert_allclose(operator @ whole, hessian @ whole, rtol=1e-9, atol=1e-9)
    frozen = draws(d)
    frozen.flags.writeable = False
    for v in (draws(2 * d)[::-2], draws(d).astype(">f8"), frozen, draws(d, 2)[:, ::-1]):
        np.testing.assert_allclose(operator @ v, hessian @ v, rtol=1e-9, atol=1e-10)
    half = draws(d).astype(np.float32)
    product = operator @ half
    assert product.dtype == np.float64  # θ's
    np.testing.assert_allclose(product, hessian @ half, rtol=1e-9, atol=1e-10)
    tracked = torch.from_numpy(draws(d)).requires_grad_()
    assert not (operator @ tracked).requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_surroundings_do_not_matter(oracle, context):
    objective, hessian, *_ = oracle
    v, operator = draws(len(hessian)), HessianOperator(objective)
    with context():
        for given in (v, torch.from_numpy(v), torch.from_numpy(v).clone()):
            np.testing.assert_allclose(np.asarray(operator @ given), hessian @ v, rtol=1e-9, atol=1e-10)


def test_scipy_finds_the_eigenvalues_of_the_dense_matrix(oracle):
    objective, hessian, gauss_newton, decay = oracle
    for operator, matrix in (
        (HessianOperator(objective, matrix="objective"), hessian + decay),
        (HessianOperator(objective, "gauss-newton"), gauss_newton),
    ):
        linear = operator.to_scipy()
        assert (linear.shape, linear.dtype) == (matrix.shape, np.float64)
        values, vectors = eigsh(linear, k=3, which="LA", tol=1e-9)
        np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(matrix)[-3:], rtol=1e-7)
        np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-6 * values.max())
    v = draws(len(hessian), 2)
    np.testing.assert_allclose(HessianOperator(objective).to_scipy() @ v, hessian @ v, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(HessianOperator(objective).to_scipy().T @ v, hessian @ v, rtol=1e-9, atol=1e-10)


def test_product_is_at_the_present_parameters_and_leaves_them():
    """No graph of an earlier θ is used: half of a quartic's Hessian where θ is scaled."""

    class Quartic(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    model = Quartic()
    objective = Objective(model, [0, 1, 2], weight_decay=2.0, loss_fn=lambda m, g: (m.w**4).sum())
    operator, ones = HessianOperator(objective), np.ones(2)
    np.testing.assert_allclose(operator @ ones, [12.0, 48.0])
    np.testing.assert_allclose(HessianOperator(objective, matrix="objective") @ ones, [14.0, 50.0])
    with torch.no_grad():
        model.w.mul_(0.5)
    np.testing.assert_allclose(operator @ ones, [3.0, 12.0])
    assert model.w.tolist() == [0.5, 1.0]
    assert model.w.grad is None
    with pytest.raises(InputError, match="custom loss_fn"):
        HessianOperator(objective, "gauss-newton")


def test_float32_models_answer_in_float32():
    model = make_model("gpt2").float()
    pool = make_pool(2)
    operator = HessianOperator(Objective(model, pool))
    parts = [dense(make_model("gpt2"), group, second=True) for group in pool]
    hessian = sum(part.hessian for part in parts) / sum(part.tokens for part in parts)
    v = draws(len(hessian))
    product = operator @ v
    assert product.dtype == np.float32
    assert operator.to_scipy().dtype == np.float32
    assert np.linalg.norm(product - hessian @ v) < 1e-5 * np.linalg.norm(hessian @ v)
    assert "float32" in repr(operator)
    with pytest.raises(InputError, match="not finite in float32"):  # finite as float64 only
        operator @ np.full(len(v), 1e300)


BAD = {
    "a list": (lambda d: [1.0] * d, "v is a list"),
    "a number": (lambda d: 2.0, "v is a float"),
    "too short": (lambda d: np.ones(d - 1), "v has shape"),
    "a row": (lambda d: np.ones((1, d)), "v has shape"),
    "three axes": (lambda d: np.ones((d, 1, 1)), "v has shape"),
    "no axis": (lambda d: np.ones(()), "v has shape"),
    "complex": (lambda d: np.ones(d, dtype=complex), "expected real numbers"),
    "complex tensor": (lambda d: torch.ones(d, dtype=torch.complex64), "expected real numbers"),
    "objects": (lambda d: np.array([None] * d), "expected real numbers"),
    "text": (lambda d: np.array(["1"] * d), "expected real numbers"),
    "truth values": (lambda d: np.ones(d, dtype=bool), "expected real numbers"),
    "truth values of a tensor": (lambda d: torch.ones(d, dtype=torch.bool), "expected real numbers"),
    "masked": (lambda d: np.ma.masked_less(np.arange(d), 3.0), "v is a MaskedArray"),
    "sparse": (lambda d: torch.ones(d).to_sparse(), "dense torch tensor"),
    "NaN": (lambda d: np.full(d, np.nan), "not finite"),
    "infinity": (lambda d: torch.full((d, 2), torch.inf), "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_vectors_are_refused_in_a_line(oracle, name):
    objective, hessian, *_ = oracle
    make, words = BAD[name]
    with pytest.raises(InputError, match=words) as caught:
        HessianOperator(objective) @ make(len(hessian))
    assert "\n" not in str(caught.value)


def test_bad_options_are_refused_in_a_line(oracle):
    objective, *_ = oracle
    for arguments, words in (
        ((objective, "fisher"), "operator='fisher'"),
        ((objective, "hessian", "risk"), "matrix='risk'"),
        ((objective.model,), "objective is a GPT2LMHeadModel"),
    ):
        with pytest.raises(InputError, match=words):
            HessianOperator(*arguments)
