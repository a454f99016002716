"""Truths: the identities on every case of the catalogue, extensions to d dimensions, digits, refusals."""

import math
import subprocess
import sys

import numpy as np
import pytest

from villani.errors import InputError
from villani.theory.catalogue import CATALOGUE, named
from villani.theory.exact import relative_entropy, solve
from villani.theory.potential import potential


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_identities_hold_on_every_case(name, truths):
    """E‖∇F‖² = E ΔF/β, E⟨θ,∇F⟩ = d/β, E Ψ_s = −½ E ΔF (THEORY.md §1)."""
    case = named(name).potential
    truth = truths(name)
    assert truth.moments.psi < 0
    assert max(truth.moments.identity_errors(case.beta, case.dimension).values()) < 1e-8
    assert truth.error < (1e-6 if case.core == 2 else 1e-8)
    assert truth.poincare >= truth.moments.top_variance * (1 - 1e-9)


def test_a_ridge_adds_gaussian_coordinates():
    core = solve(potential("(w**2-1)**2/4", weight_decay=0.2, beta=6))
    whole = solve(potential("(w**2-1)**2/4", weight_decay=0.2, beta=6, dimension=5))
    assert whole.gaps == pytest.approx(sorted([*core.gaps, 1.2])[:3])
    assert whole.log_sobolev == pytest.approx(max(core.log_sobolev, 1 / 1.2))
    assert whole.moments.norm_squared == pytest.approx(core.moments.norm_squared + 4 / 1.2)
    assert whole.moments.laplacian == pytest.approx(core.moments.laplacian + 0.8)
    assert whole.moments.psi == pytest.approx(core.moments.psi - 0.4)
    assert whole.log_normaliser == pytest.approx(core.log_normaliser + 2 * math.log(2 * math.pi / 1.2))


def test_copies_keep_the_constants_and_add_the_rest():
    one = solve(potential("log(1+exp(-9*w**2))", weight_decay=0.2, beta=6), sobolev=False)
    many = solve(potential("log(1+exp(-9*w**2))", weight_decay=0.2, beta=6, dimension=7, shape="copies"), sobolev=False)
    assert many.gaps == one.gaps
    for name in ("loss", "gradient_squared", "laplacian", "radial_force", "norm_squared", "psi"):
        assert getattr(many.moments, name) == pytest.approx(7 * getattr(one.moments, name), rel=1e-12)
    law, whole = potential("log(1+exp(-9*w**2))", weight_decay=0.2, beta=6), many.log_normaliser
    assert whole == pytest.approx(7 * one.log_normaliser)
    copies = potential("log(1+exp(-9*w**2))", weight_decay=0.2, beta=6, dimension=7, shape="copies")
    assert relative_entropy(copies, many).value == pytest.approx(7 * relative_entropy(law, one).value, rel=1e-10)


@pytest.mark.parametrize("scale", [1e-2, 3.0])
def test_dilation(scale):
    """θ = cφ: C_P and C_LS are divided by c², λ is multiplied by it, and KL does not change (THEORY.md §2.3, 2)."""
    before = potential("log(1+exp(-a*w**2)) + b*w", weight_decay=0.3, beta=5, parameters={"a": 4.0, "b": 0.1})
    after = potential(
        "log(1+exp(-a*w**2)) + b*w", weight_decay=0.3 * scale**2, beta=5,
        parameters={"a": 4.0 * scale**2, "b": 0.1 * scale},
    )  # fmt: skip
    first, second = solve(before), solve(after)
    assert second.poincare * scale**2 == pytest.approx(first.poincare, rel=1e-10)
    assert second.log_sobolev * scale**2 == pytest.approx(first.log_sobolev, rel=1e-7)
    kl = relative_entropy(before, first)
    assert relative_entropy(after, second).value == pytest.approx(kl.value, rel=1e-9)
    assert kl.value <= min(kl.log_sobolev, kl.stam, kl.jeffreys)


def test_only_beta_loss_and_beta_decay_matter():
    """A sum of n losses with decay λ at β = 1 is the mean with λ/n at β = n (THEORY.md §1)."""
    sum_ = solve(potential("10*log(1+exp(-2*w**2))", weight_decay=0.5, beta=1), sobolev=False)
    mean = solve(potential("log(1+exp(-2*w**2))", weight_decay=0.05, beta=10), sobolev=False)
    assert sum_.gaps == pytest.approx(mean.gaps, rel=1e-10)


def test_relative_entropy_by_direct_integration():
    case = potential("log(1+exp(-9*w**2)) + w/3", weight_decay=0.2, beta=6)
    found = relative_entropy(case, solve(case, sobolev=False))
    w = np.linspace(-12, 12, 400_001)
    loss = np.log1p(np.exp(-9 * w**2)) + w / 3
    prior = np.exp(-0.6 * w**2)
    prior /= prior.sum()
    gibbs = prior * np.exp(-6 * (loss - loss.min()))
    gibbs /= gibbs.sum()
    inside = gibbs > 0
    expected = (gibbs[inside] * np.log(gibbs[inside] / prior[inside])).sum()
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.jeffreys == pytest.approx(6 * ((prior - gibbs) @ loss), rel=1e-9)


@pytest.mark.parametrize(
    ("text", "options", "fragment"),
    [
        ("sqrt(1+w**2)", {}, "changes by"),
        ("sqrt(w**2)", {}, "changes by|smooth"),
        ("(sqrt(w**2)-1)**2", {}, "smooth"),
        ("((w-3)**2)**0.75", {}, "smooth"),
        ("abs(w)", {"weight_decay": 1.0}, "kink"),
        ("log(1+w**2)", {}, "does not confine"),
        ("w**3", {}, "does not confine"),
        ("w", {"weight_decay": -0.1}, "weight_decay=-0.1"),
        ("w", {"beta": 0.0}, "beta=0"),
        ("w", {"beta": math.nan}, "beta=nan"),
        ("x*y*z", {"weight_decay": 1.0}, "3 coordinates"),
        ("x*y", {"weight_decay": 1.0, "dimension": 1}, "dimension=1"),
        ("x*y", {"weight_decay": 1.0, "dimension": 3, "shape": "copies"}, "multiple of 2"),
        ("x*y", {"weight_decay": 1.0, "dimension": 3, "shape": "radial"}, "one coordinate"),
        ("w**2", {"dimension": 3}, "without confinement"),
    ],
)
def test_no_silent_wrong_digit(text, options, fragment):
    with pytest.raises(InputError, match=fragment):
        solve(potential(text, **{"weight_decay": 0.0, "beta": 1.0, **options}), sobolev=False)


def test_theory_needs_no_torch():
    modules = ("applicable", "catalogue", "comparison", "constants", "exact", "rates", "reference")
    code = f"import sys, {', '.join('villani.theory.' + name for name in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dimension", [1, 10**12])
@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-6, 1e-3, 0.1, 1.0, 10.0])
def test_relative_entropy_is_below_its_bounds_however_small(size, dimension):
    """Half of β² Var_π L as L → 0, where a difference of logarithms would leave nothing, and of any d the same."""
    case = potential(f"{size!r}*sin(w)", weight_decay=0.1, beta=1.0, dimension=dimension)
    found = relative_entropy(case, solve(case, sobolev=False))
    assert 0 < found.value <= min(found.log_sobolev, found.jeffreys) * (1 + 1e-9)
    if size <= 1e-6:
        assert found.value == pytest.approx(size**2 * (1 - math.exp(-20)) / 4, rel=max(1e-6, 10 * size))


@pytest.mark.parametrize("rate", [0.049, 0.0505, 0.06])
def test_a_prior_mean_that_is_infinite_or_out_of_reach_is_refused(rate):
    """λ = 0.1: E_π exp(rate·w²) is finite below 0.05 only, and just below it lies beyond the floats of L."""
    case = potential(f"exp({rate}*w**2)", weight_decay=0.1, beta=1.0)
    with pytest.raises(InputError, match="mean of L under the prior"):
        relative_entropy(case, solve(case, sobolev=False))


def test_a_prior_mean_far_out_is_found():
    """E_π exp(0.04w²) = (1 − 0.8)^−½, of which a box of the prior alone misses a part."""
    case = potential("exp(0.04*w**2)", weight_decay=0.1, beta=1.0)
    truth = solve(case, sobolev=False)
    assert relative_entropy(case, truth).jeffreys == pytest.approx(0.2**-0.5 - truth.moments.loss, rel=1e-8)
