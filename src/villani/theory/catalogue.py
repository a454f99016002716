"""Named potentials: the cases of THEORY.md §9 and the counterexample families of §2.3, with their parameters.

What is proved of a family, in closed form, is written down beside it; the tests hold it against a search.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, lambertw

from villani.errors import InputError
from villani.theory.applicable import Proved
from villani.theory.potential import Potential, Shape, potential

_LAMBERT = float(lambertw(math.exp(-1)).real)  # max of u·σ(−u) over u


@dataclass(frozen=True)
class Entry:
    """A family of potentials.

    Attributes:
        text: L as an expression; `d` is the dimension.
        about: one line.
        weight_decay, beta: defaults.
        parameters: defaults of the named constants.
        dimension: default d; None: the number of coordinates.
        shape, breaks: see `Potential`.
        proved: from parameters (with `d`) to what is known in closed form for them; None outside its domain.
    """

    text: str
    about: str
    weight_decay: float
    beta: float
    parameters: Mapping[str, float] = field(default_factory=dict)
    dimension: int | None = None
    shape: Shape = "ridge"
    breaks: tuple[float, ...] = ()
    proved: Callable[[Mapping[str, float]], Proved | None] | None = None


def _quadratic(_: Mapping[str, float]) -> Proved:
    return Proved(curvature=0.0, oscillation=0.0, lipschitz=0.0, offset=0.0, ball=lambda _: 0.0, why="L = 0")


def _binary(p: Mapping[str, float]) -> Proved:
    y = p["y"]
    steepest = max(abs(y), abs(1 - y))
    frequency = 0 <= y <= 1
    why = "every y: L convex; |L′| = |σ(w) − y|"
    return Proved(
        curvature=0.0, oscillation=math.inf, lipschitz=steepest, offset=math.log(2) if frequency else None,
        ball=lambda radius: 2 * steepest * radius,
        why=f"{why}; 0 ≤ y ≤ 1: wL′ = ℓ − H(p) ≥ −ln 2 per label" if frequency else why,
    )  # fmt: skip


def _tied(p: Mapping[str, float]) -> Proved | None:
    n, a = p.get("n", p["d"]), p["a"]
    if n <= 0:
        return None
    if a < 0:  # L = n·softplus(|a|w²/n)
        return Proved(
            curvature=0.0, oscillation=math.inf, lipschitz=math.inf, offset=0.0,
            ball=lambda radius: n * float(np.logaddexp(0, -a * radius**2 / n)),
            why="a < 0 < n: L is even, convex and grows like |a|w²; wL′ ≥ 0",
        )  # fmt: skip
    z = float(brentq(lambda z: 2 * z * expit(z) - 1, 0.1, 1.0))  # where √z·σ(−z) is largest
    return Proved(
        curvature=a, oscillation=n * math.log(2), lipschitz=_up(2 * math.sqrt(a * n * z) * float(expit(-z))),
        offset=_up(2 * n * _LAMBERT), ball=lambda _: n * math.log(2),
        why="a ≥ 0 < n: 0 < L ≤ n ln 2; L″ ≥ −2aσ(−z) ≥ −a with z = aw²/n; wL′ = −2nzσ(−z) ≥ −2n·W(1/e)",
    )  # fmt: skip


def _two_factors(p: Mapping[str, float]) -> Proved | None:
    n, slope = p["n"], p["n"] * abs(p["a"])
    if n < 0:
        return None
    return Proved(
        curvature=slope, oscillation=math.inf if slope else 0.0, lipschitz=math.inf if slope else 0.0,
        offset=_up(2 * n * _LAMBERT), ball=lambda radius: slope * radius**2 / 2,
        why="n ≥ 0: ∇²L = ℓ″vvᵀ + ℓ′J with |ℓ′| ≤ n|a|; ⟨θ, ∇L⟩ = 2tℓ′(t) ≥ −2n·W(1/e); |w₁w₂| ≤ R²/2",
    )  # fmt: skip


def _mixture(p: Mapping[str, float]) -> Proved:
    m = abs(p["m"])
    return Proved(
        curvature=m**2, oscillation=math.inf if m else 0.0, lipschitz=m,
        why="every m: L′ = −m·tanh(mw), L″ = −m²/cosh²(mw)",
    )  # fmt: skip


def _kink(p: Mapping[str, float]) -> Proved:
    slope = abs(p["l"])
    return Proved(oscillation=math.inf if slope else 0.0, lipschitz=slope, why="every ℓ: L = −ℓ|w|")


def _linear_gaussian(p: Mapping[str, float]) -> Proved:
    unbounded = math.inf if p["c"] else 0.0
    return Proved(curvature=-p["c"], oscillation=unbounded, lipschitz=unbounded, why="every c and m: L″ = c")


def _up(value: float) -> float:
    """Room for the rounding of a closed form."""
    return value * (1 + 1e-14)


CATALOGUE: dict[str, Entry] = {
    "quadratic": Entry("0*w", "no loss: the Gaussian (T1)", 0.1, 4.0, dimension=3, proved=_quadratic),
    "binary-ce": Entry(
        "log(1+exp(w)) - y*w", "binary cross-entropy with label frequency y, convex (T2–T4)", 0.1, 50.0,
        {"y": 0.8}, proved=_binary,
    ),
    "tied": Entry(
        "n*log(1+exp(-a*w**2/n))", "two tied factors: a double well (T12–T15)", 1.0, 1.0, {"a": 20.0, "n": 1.0},
        proved=_tied,
    ),
    "ce1": Entry(
        "d*log(1+exp(-a*w**2/d))", "CE1: satisfies (i)–(iv), C_P grows like exp(0.676 d) at a = 20 (§2.3)", 0.1, 1.0,
        {"a": 20.0}, dimension=15, proved=_tied,
    ),
    "double-well": Entry("(w**2-1)**2/4", "quartic double well, no decay (T16)", 0.0, 10.0),
    "mixture": Entry(
        "-log(cosh(m*w))", "two unit Gaussians at ±m (T17)", 1.0, 1.0, {"m": 2.0}, proved=_mixture
    ),
    "two-factors": Entry(
        "n*log(1+exp(-a*x*y))", "n tokens, two factors (T18, T19)", 1.0, 1.0, {"a": 10.0, "n": 1.0},
        proved=_two_factors,
    ),
    "ce2": Entry(
        "n*log(1+exp(-a*x*y))", "CE2: two parameters above the claimed constant (§2.3)", 10.0, 1.0,
        {"a": 100.0, "n": 1.0}, proved=_two_factors,
    ),
    "kink": Entry("-l*abs(w)", "a concave kink (T20)", 1.0, 1.0, {"l": 1.0}, breaks=(0.0,), proved=_kink),
    "linear-gaussian": Entry(
        "c*(w-m)**2/2", "quadratic loss (T21)", 0.1, 100.0, {"c": 1.0, "m": 1.0}, proved=_linear_gaussian
    ),
    "shell": Entry("(r**2-1)**2/4", "quartic shell, radial, no decay", 0.0, 5.0, dimension=3, shape="radial"),
    "radial-ce": Entry(
        "log(1+exp(-a*r**2))", "a radial cross-entropy", 1.0, 3.0, {"a": 3.0}, dimension=3, shape="radial"
    ),
    "wells": Entry("(w**2-1)**2/4", "a product of double wells", 0.0, 4.0, dimension=5, shape="copies"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A potential with what is proved of it."""

    name: str
    potential: Potential
    proved: Proved | None


def named(
    name: str, *, weight_decay: float | None = None, beta: float | None = None,
    parameters: Mapping[str, float] | None = None, dimension: int | None = None, shape: Shape | None = None,
) -> Case:  # fmt: skip
    """A case of the catalogue with some of its defaults replaced.

    Raises:
        InputError: no such name, or a parameter that the family does not have.
    """
    if name not in CATALOGUE:
        raise InputError(f"potential {name!r}: expected an expression or one of {', '.join(CATALOGUE)}")
    entry = CATALOGUE[name]
    for key in parameters or {}:
        if key not in entry.parameters:
            listed = ", ".join(entry.parameters) or "none"
            raise InputError(f"--set {key}: {name} has no such parameter; it has {listed}")
    changed = replace(
        entry,
        weight_decay=entry.weight_decay if weight_decay is None else weight_decay,
        beta=entry.beta if beta is None else beta,
        dimension=entry.dimension if dimension is None else dimension,
        shape=shape or entry.shape,
        parameters={**entry.parameters, **(parameters or {})},
    )
    built = potential(
        changed.text, weight_decay=changed.weight_decay, beta=changed.beta, parameters=changed.parameters,
        dimension=changed.dimension, shape=changed.shape, breaks=changed.breaks,
    )  # fmt: skip
    known = {**changed.parameters, "d": float(built.dimension)}
    proved = entry.proved(known) if entry.proved and changed.shape == entry.shape else None
    return Case(name, built, proved)


def case(
    text: str, *, weight_decay: float | None = None, beta: float | None = None,
    parameters: Mapping[str, float] | None = None, dimension: int | None = None, shape: Shape | None = None,
) -> Case:  # fmt: skip
    """A named case if the text is a name, else the expression itself, at λ = 0.1 and β = 1 unless given."""
    if text in CATALOGUE:
        return named(
            text, weight_decay=weight_decay, beta=beta, parameters=parameters, dimension=dimension, shape=shape
        )
    if text.replace("-", "").replace("_", "").isalnum() and text[:1].isalpha() and len(text) > 2 and not parameters:
        return named(text)  # reads like a name: says which names there are
    built = potential(
        text, weight_decay=0.1 if weight_decay is None else weight_decay, beta=1.0 if beta is None else beta,
        parameters=parameters, dimension=dimension, shape=shape or "ridge",
    )  # fmt: skip
    return Case(text, built, None)
