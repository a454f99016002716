"""Laws on a plane: against products, under dilation, and what cannot be solved."""

import numpy as np
import pytest

from villani.errors import InputError
from villani.theory.exact import solve
from villani.theory.potential import potential


def truth(text, **options):
    return solve(potential(text, **options), sobolev=False)


def test_a_product_has_the_gaps_of_its_factors():
    plane = truth("(x**2-1)**2/4 + y**2/3", weight_decay=0.2, beta=3)
    wells = truth("(w**2-1)**2/4", weight_decay=0.2, beta=3)
    flat = 3 * (2 / 3 + 0.2)
    assert plane.gaps[:2] == pytest.approx(sorted([wells.gaps[0], flat]), rel=1e-9)
    assert plane.moments.loss == pytest.approx(wells.moments.loss + 1 / 3 / flat, rel=1e-9)
    other = wells.log_normaliser + 0.5 * np.log(2 * np.pi / flat)
    assert plane.log_normaliser == pytest.approx(other, abs=1e-10)


def test_dilation():
    """θ = cφ multiplies C_P by c^{−2}; two factors at (a, λ) and (100 a, 10 λ) differ by √10."""
    small = truth("log(1+exp(-4*x*y))", weight_decay=1, beta=1)
    large = truth("log(1+exp(-40*x*y))", weight_decay=10, beta=1)
    assert small.poincare == pytest.approx(10 * large.poincare, rel=1e-7)


@pytest.mark.parametrize(
    ("text", "options", "fragment"),
    [
        ("x*y", {"weight_decay": 0.0}, "does not confine"),
        ("x**2+0*y", {"weight_decay": 0.0}, "does not confine"),
        ("sqrt(x)+y", {"weight_decay": 1.0}, "not a real number"),
        ("x+y+1e-1*sin(1e5*x)", {"weight_decay": 1.0}, "varies too fast|not resolved"),
        ("sqrt(x**2)-sqrt(y**2)", {"weight_decay": 1.0}, "smooth"),
        ("log(1+exp(-x*y))", {"weight_decay": 0.1, "beta": 50}, "rounding"),
    ],
)
def test_what_cannot_be_solved_is_refused(text, options, fragment):
    with pytest.raises(InputError, match=fragment):
        truth(text, **{"beta": 1, **options})
