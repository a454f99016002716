"""Rules for elementwise functions: value, slope and bend of each; almost everywhere, where a function has kinks.

Kinks' own curvature is not seen (THEORY.md §7).
"""

from typing import Any

import torch

from villani.curvature.algebra import JetAlgebra
from villani.curvature.jets import Jet


def tanh(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """Slope 1 − y²."""
    y = a.x.tanh()
    slope = 1 - y.square()
    return sweep.elementwise(a, y, slope, -2 * y * slope)


def sigmoid(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """Slope y(1 − y)."""
    y = a.x.sigmoid()
    slope = y * (1 - y)
    return sweep.elementwise(a, y, slope, slope * (1 - 2 * y))


def silu(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """x·σ(x)."""
    s = a.x.sigmoid()
    slope = s * (1 - s)
    return sweep.elementwise(a, a.x * s, s + a.x * slope, slope * (2 + a.x * (1 - 2 * s)))


def relu(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """max(x, 0)."""
    return sweep.elementwise(a, a.x.relu(), (a.x > 0).to(a.x.dtype), None)


def gelu(sweep: JetAlgebra, op: Any, a: Jet, *, approximate: str = "none") -> Jet:
    """x·Φ(x), or its tanh form."""
    x = a.x
    if approximate == "tanh":
        c, b = 0.7978845608028654, 0.044715  # √(2/π)
        inner = Jet(c * (x + b * x**3))
        t = inner.x.tanh()
        u1, u2, d = c * (1 + 3 * b * x**2), 6 * c * b * x, 1 - t.square()
        slope = 0.5 * (1 + t) + 0.5 * x * d * u1
        bend = d * u1 + 0.5 * x * (d * u2 - 2 * t * d * u1.square())
    else:
        density = torch.exp(-0.5 * x.square()) * 0.3989422804014327  # 1/√(2π)
        slope = 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * density
        bend = density * (2 - x.square())
    return sweep.elementwise(a, op(x, approximate=approximate), slope, bend)


def power(sweep: JetAlgebra, _: Any, a: Jet, n: float) -> Jet:
    """xⁿ."""
    bend = n * (n - 1) * a.x ** (n - 2) if n != 2 else torch.full_like(a.x, 2.0)
    return sweep.elementwise(a, a.x**n, n * a.x ** (n - 1), bend)


def square(sweep: JetAlgebra, op: Any, a: Jet) -> Jet:
    """x²."""
    return power(sweep, op, a, 2)


def rsqrt(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """x^−½."""
    y = a.x.rsqrt()
    return sweep.elementwise(a, y, -0.5 * y**3, 0.75 * y**5)


def exp(sweep: JetAlgebra, op: Any, a: Jet) -> Jet:
    """eˣ, and eˣ − 1."""
    y = a.x.exp()
    return sweep.elementwise(a, op(a.x), y, y)


def log(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """log x."""
    slope = a.x.reciprocal()
    return sweep.elementwise(a, a.x.log(), slope, -slope.square())


def sqrt(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """x^½."""
    y = a.x.sqrt()
    return sweep.elementwise(a, y, 0.5 / y, -0.25 / y**3)


def reciprocal(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """1/x."""
    y = a.x.reciprocal()
    return sweep.elementwise(a, y, -y.square(), 2 * y**3)


def softplus(sweep: JetAlgebra, op: Any, a: Jet, beta: float = 1, threshold: float = 20) -> Jet:
    """log(1 + e^{βx})/β; from the threshold on torch returns x itself."""
    s = torch.sigmoid(beta * a.x)
    straight = beta * a.x > threshold
    slope = torch.where(straight, 1.0, s)
    bend = torch.where(straight, 0.0, beta * s * (1 - s))
    return sweep.elementwise(a, op(a.x, beta, threshold), slope, bend)


def log_sigmoid(sweep: JetAlgebra, op: Any, a: Jet) -> Jet:
    """log σ(x)."""
    slope = torch.sigmoid(-a.x)
    return sweep.elementwise(a, op(a.x), slope, -slope * (1 - slope))


def abs(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """|x|; slope 0 at 0, as autograd has it."""
    return sweep.elementwise(a, a.x.abs(), a.x.sign(), None)


def sin(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """sin x."""
    return sweep.elementwise(a, a.x.sin(), a.x.cos(), -a.x.sin())


def cos(sweep: JetAlgebra, _: Any, a: Jet) -> Jet:
    """cos x."""
    return sweep.elementwise(a, a.x.cos(), -a.x.sin(), -a.x.cos())
