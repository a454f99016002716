import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import t as student_t
from torch import nn
from torch.nn import functional as F

from tests.criteria.models import SPECS, closed, make
from tests.criteria.test_parts import synthetic
from villani.criteria.orbits import exponents_of, orbits_of, predicted_psi, rescaled, threshold
from villani.criteria.parts import part_statistics, parts_of
from villani.criteria.symmetries import generators
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective


def found(objective):
    return generators(trace_loss(objective, next(objective.batches(0))))


def examined(objective, **options):
    """Orbits with their exponents by part, and the statistics of parts."""
    basis = found(objective)
    orbits = orbits_of(basis, objective.parameters)
    parts = parts_of(objective.parameters, [g.exponents for g in basis])
    statistics = part_statistics(objective, parts, range(len(objective.groups)), **options)
    return [(orbit, exponents_of(orbit, parts)) for orbit in orbits], statistics


def psi(objective, temperature):
    """Ψ_s at θ, exact."""
    parts = parts_of(objective.parameters, [])
    statistics = part_statistics(objective, parts, range(len(objective.groups)))
    zeros = np.zeros_like(statistics.norms)
    return predicted_psi(zeros, statistics, objective.parameters, objective.weight_decay, temperature, 1.0).value


def finite(function, *values, weight_decay=0.1):
    objective = closed(function, *values, weight_decay=weight_decay)
    objective.model.double()
    return Objective(objective.model, objective.groups, weight_decay, finite=True, loss_fn=lambda m, _: function(m.w))


class Separate(nn.Module):
    """Scalars as tensors of their own, in float64."""

    def __init__(self, *values):
        super().__init__()
        self.w = nn.ParameterList(nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in values)


def factors(link, *values, weight_decay):
    """L = link(w_1 ⋯ w_K)."""
    return Objective(
        Separate(*values), [0.0], weight_decay, finite=True, loss_fn=lambda m, _: link(math.prod(m.w[1:], start=m.w[0]))
    )


def binary(frequency):
    return lambda t: F.softplus(t) - frequency * t


class Gain(nn.Module):
    def __init__(self, gain, matrix):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.matrix = nn.Parameter(torch.tensor(matrix, dtype=torch.float64))


def softmax_regression(gain, matrix, weight_decay=0.2):
    """Lemma B with the data of T5."""
    x, y = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64), torch.tensor([0, 1, 2])
    return Objective(Gain(gain, matrix), [(x, y)], weight_decay, finite=True,
                     loss_fn=lambda m, g: F.cross_entropy(m.gain * (g[0] @ m.matrix.T), g[1]))  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_every_symmetry_of_every_architecture_leaves_the_loss_bit_for_bit(spec):
    objective = make(spec)
    basis = found(objective)
    before = [objective.loss(g) for g in range(2)]
    # LN1, LN2, QK, VO in each layer; up/down of SwiGLU or of ReLU; the final norm where the head is not tied
    layers = len(
        {
            name.split(".")[2]
            for name in (p.name for p in objective.parameters.parameters)
            if ".0." in name or ".1." in name
        }
    )
    in_layer, last = {"gpt-neo-125m?window=3": (4, 0), "gpt2": (4, 0), "opt-125m": (5, 0), "pythia-70m?heads=2": (4, 1),
                      "llama-160m?kv_heads=2": (5, 1),
                      "qwen2-125m?kv_heads=2": (5, 0), "mistral": (5, 1)}[spec]  # fmt: skip
    expected = layers * in_layer + last
    assert len(basis) == expected
    for g in basis:
        for scale in (2.0, 16.0):
            with rescaled(objective, g.exponents, scale):
                assert [objective.loss(g) for g in range(2)] == before
    wrong = dict(basis[0].exponents)
    del wrong[min(wrong)]
    with rescaled(objective, wrong, 2.0):
        assert objective.loss(0) != before[0]


def test_theorem_d_of_gpt_neo_is_found():
    objective = make("gpt-neo-125m?window=3")
    orbits = orbits_of(found(objective), objective.parameters)
    names = {orbit.name: orbit for orbit in orbits}
    layer = "transformer.h.0."
    wanted = "transformer.h.0: ln_1.weight, ln_1.bias, attn.attention.v_proj.weight ↑ attn.attention.out_proj.weight ↓"
    assert names[wanted].theorem == "D"
    exponents = {
        objective.parameters.parameters[i].name: e.unique().tolist() for i, e in names[wanted].exponents.items()
    }
    assert exponents[f"{layer}attn.attention.q_proj.weight"] == [-1]
    assert exponents[f"{layer}attn.attention.out_proj.weight"] == [-2]


@pytest.mark.parametrize(
    ("weight_decay", "frequency", "truth"),
    [(0.1, 0.5, 0.04), (0.1, 0.7, 0.0472135955), (0.1, 1.0, 0.220997512), (1.0, 0.5, 4), (1.0, 1.0, 4.82842712)],
)
def test_two_factors(weight_decay, frequency, truth):
    """T7, T8: the infimum over t of s*(t) is Lemma A's."""

    assert least_threshold(binary(frequency), weight_decay, 8) == pytest.approx(truth, rel=3e-9)


def least_threshold(link, weight_decay, bound):
    """The infimum of s* over t = w_1·w_2, |t| < bound."""
    objective = factors(link, 1.0, 0.5, weight_decay=weight_decay)
    basis = found(objective)
    orbits = orbits_of(basis, objective.parameters)
    parts = parts_of(objective.parameters, [g.exponents for g in basis])
    assert len(orbits) == 2

    def star(t):
        with torch.no_grad():
            objective.model.w[1].fill_(float(t))
        statistics = part_statistics(objective, parts, [0])
        values = [threshold(exponents_of(orbit, parts), statistics, weight_decay) for orbit in orbits]
        assert all(v.level == 1 and v.value <= v.upper for v in values)
        return min(v.value for v in values)

    grid = np.linspace(-bound, bound, 41)
    near = grid[np.argmin([star(t) for t in grid])]
    return minimize_scalar(star, bounds=(near - bound / 20, near + bound / 20), options={"xatol": 1e-7}).fun


@pytest.mark.parametrize(("frequency", "truth"), [(0.5, 0.04), (1.0, 0.180308514)])
def test_attention_score(frequency, truth):
    """T11."""

    def link(t):
        return binary(frequency)(2 * torch.tanh(t / 2))

    assert least_threshold(link, 0.1, 4) == pytest.approx(truth, rel=3e-9)


def test_reference_values_of_psi():
    """T1, T2, T9, T10, and Lemma E's closed form."""
    assert psi(finite(lambda w: 0 * w.sum(), 2.0, 0.0, 0.0), 0.5) == pytest.approx(-0.22, abs=1e-9)
    assert psi(finite(lambda w: binary(0.8)(w).sum(), 1.0), 0.04) == pytest.approx(-0.272496051, abs=1e-9)
    for s, truth in ((0.05, -5.2), (0.03, 8.13333333333), (0.04, -0.2)):
        assert psi(factors(binary(0.5), 0.0, 10.0, weight_decay=0.1), s) == pytest.approx(truth, abs=1e-9)
    assert psi(factors(binary(0.5), 0.0, 10.0, 10.0, weight_decay=1.0), 0.1) == pytest.approx(-503, abs=1e-9)


def test_softmax_regression_with_gain():
    """T5 and T6."""
    objective = softmax_regression(1.5, [[1.0, 0], [0, 1], [-1, 0.5]])
    _, statistics = examined(objective)
    assert objective.loss() == pytest.approx(1.25459738, abs=5e-9)
    assert statistics.gradient_norms().sum() == pytest.approx(0.625886656, abs=5e-10)
    assert statistics.mean_traces().sum() == pytest.approx(1.66773450, abs=5e-9)
    assert psi(objective, 0.7) == pytest.approx(-1.34475906, abs=5e-9)
    flat = softmax_regression(10.0, [[0.0, 0]] * 3)
    assert psi(flat, 0.7) == pytest.approx(-63.4105820, abs=5e-8)
    found, statistics = examined(flat)
    (star,) = [threshold(e, statistics, 0.2) for orbit, e in found if orbit.name == "gain ↑ matrix ↓"]
    assert star.value == pytest.approx(0.211666667, abs=5e-10)


@pytest.mark.parametrize("count", [2, 3])
def test_expansions_equal_psi_on_the_orbit(count):
    """Theorems C and D: the right side at θ, the left side at θ_R."""
    values = (0.7, -1.3, 0.9)[:count]
    objective = factors(binary(0.8), *values, weight_decay=0.3)
    found, statistics = examined(objective)
    assert any(orbit.theorem == "CD"[count - 2] for orbit, _ in found)
    for orbit, exponents in found:
        for scale in (2.0, 4.0, 64.0):
            predicted = predicted_psi(exponents, statistics, objective.parameters, 0.3, 0.1, scale).value
            with rescaled(objective, orbit.exponents, scale):
                assert psi(objective, 0.1) == pytest.approx(predicted, rel=1e-9)


def test_expansion_of_a_small_gpt_neo():
    """On a language model, sampled: gradients and traces of parts scale as the orbit says, from exact traces too."""
    objective = make("gpt-neo-125m?window=3", width=8, layers=1, heads=2)
    objective.model.double()
    double = Objective(objective.model, [g.ids for g in objective.groups], 0.1, finite=True)
    basis = found(double)
    parts = parts_of(double.parameters, [g.exponents for g in basis])
    gradient = part_statistics(double, parts, [0, 1], probes=2)
    for orbit in orbits_of(basis, double.parameters):
        exponents = exponents_of(orbit, parts)
        with rescaled(double, orbit.exponents, 4.0):
            moved = part_statistics(double, parts, [0, 1], probes=2)
        assert moved.losses == pytest.approx(gradient.losses, rel=1e-12)
        assert moved.gradient_norms() == pytest.approx(gradient.gradient_norms() / 16.0**exponents, rel=1e-8)


@pytest.mark.thorough
def test_statistics_of_parts_are_unbiased_and_cover():
    """A population of groups: the one-sided bound holds at its level, and the means are right."""
    generator = torch.Generator().manual_seed(0)
    population = torch.randn(20000, generator=generator).double()

    def loss(m, g):
        return binary(0.5)(m.w[0] * m.w[1]) + 0.3 * g * m.w[0] * m.w[1] + 0.2 * g * (m.w[0] * m.w[1]) ** 2

    model = Separate(1.2, 0.4)
    t = 0.48
    slope = 1 / (1 + math.exp(-t)) - 0.5 + (0.3 + 0.4 * t) * float(population.mean())
    bend = math.exp(-t) / (1 + math.exp(-t)) ** 2 + 0.4 * float(population.mean())
    truth = (0.01 + slope**2) / bend
    held = 0
    for trial in range(100):
        chosen = population[torch.randint(len(population), (24,), generator=generator)]
        objective = Objective(model, list(chosen), 0.1, loss_fn=loss)
        if trial == 0:
            basis = found(objective)
            (orbit,) = [o for o in orbits_of(basis, objective.parameters) if o.name == "w.0 ↑ w.1 ↓"]
            parts = parts_of(objective.parameters, [g.exponents for g in basis])
        statistics = part_statistics(objective, parts, range(24))
        star = threshold(exponents_of(orbit, parts), statistics, 0.1)
        held += star.upper >= truth
    assert held / 100 >= 0.95
    assert star.directions == pytest.approx(1)  # one parameter shrinks: the limits are taken apart, which is wider


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_bound_of_s_star_holds_with_few_directions(rank):
    """The jackknife alone is below ‖γ‖²/Δ_B L of Theorem D in 9 to 14 % of such draws."""
    rng = np.random.default_rng(rank)
    for size in (0.3, 3.0):
        gradient, misses = np.full(rank, np.sqrt(size / 4 / rank)), 0
        for _ in range(150):
            groups = gradient + rng.normal(size=(4, rank)) / np.sqrt(rank)
            found = threshold(np.array([1.0, -2.0]), synthetic(groups, 1 + 0.1 * rng.normal(size=4)), 1.0)
            misses += found.upper < gradient @ gradient
        assert misses / 150 <= 0.05
    unknown = threshold(np.array([1.0, -2.0]), replace(synthetic(groups, np.ones(4)), gram=None), 1.0)
    assert unknown.directions is None
    quantile = student_t.ppf(1 - 0.05 / 8, 3)  # a quarter of a quarter less, one in four of 5 %, both tails
    length = np.linalg.norm(groups.mean(axis=0))
    spread = np.sqrt(groups.var(axis=0, ddof=1).sum() / 4)
    assert unknown.upper == pytest.approx((length + quantile * spread) ** 2)
