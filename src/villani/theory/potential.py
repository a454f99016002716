"""F = L + (λ/2)‖θ‖² with L a function of one or two coordinates, and how it extends to d dimensions.

The *core* is the law of those coordinates; the whole of R^d is made of it in one of three ways, so that a spectrum in
one or two dimensions is one in d (THEORY.md §1 for the conventions: Gibbs law exp(−βF), β = 2/s, U = βF).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from villani.errors import InputError
from villani.theory.enclosures import REACH, enclose
from villani.theory.expressions import Array, Expression, Jet, parse, shortened

Shape = Literal["ridge", "copies", "radial"]
SHAPES: tuple[Shape, ...] = ("ridge", "copies", "radial")


@dataclass(frozen=True)
class Potential:
    """F and β.

    Attributes:
        loss: L on the core coordinates.
        weight_decay: λ ≥ 0.
        beta: β > 0, inverse temperature.
        dimension: d.
        shape: ridge: L sees only the core, the other d − k coordinates are Gaussian; copies: L(θ) = Σ L(θ_i) over
            blocks of k coordinates; radial: L(θ) = L(‖θ‖).
        breaks: kinks of L, in one dimension: there F′ jumps and ΔF has an atom.

    Raises:
        InputError: λ, β, d or the number of coordinates is out of range, or L has kinks that `breaks` does not name.
    """

    loss: Expression
    weight_decay: float
    beta: float
    dimension: int
    shape: Shape = "ridge"
    breaks: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.weight_decay < np.inf:
            raise InputError(f"weight_decay={self.weight_decay:g}: expected a finite number ≥ 0")
        if not 0 < self.beta < np.inf:
            raise InputError(f"beta={self.beta:g}: expected a finite number > 0 (β = 2/s)")
        core = self.core
        if core > 2:
            names = ", ".join(self.loss.variables)
            raise InputError(
                f"expression {shortened(self.loss.text)}: {core} coordinates ({names}); spectra are solved in 1 or 2, "
                "or set those that are parameters by --set NAME=VALUE"
            )
        if self.dimension < core:
            raise InputError(f"dimension={self.dimension}: expected at least {core}, the coordinates of the potential")
        if self.shape not in SHAPES:
            raise InputError(f"shape={self.shape}: expected one of {', '.join(SHAPES)}")
        if self.shape == "copies" and self.dimension % core:
            raise InputError(f"dimension={self.dimension}: expected a multiple of {core}, to hold whole copies")
        if self.shape == "radial" and (core > 1 or self.dimension < 2):
            raise InputError("shape=radial: expected one coordinate, the radius, and a dimension of at least 2")
        if self.shape == "ridge" and self.dimension > core and self.weight_decay == 0:
            raise InputError(f"weight_decay=0 leaves {self.dimension - core} of the coordinates without confinement")
        if self.loss.kinked and not self.breaks:
            raise InputError(
                f"expression {shortened(self.loss.text)}: abs has a kink, so ΔF is no function; use sqrt(c + w**2)"
            )

    @property
    def core(self) -> int:
        """Number of core coordinates k."""
        return len(self.loss.variables)

    @property
    def constant(self) -> bool:
        """Whether L is shown to be a constant, within ±`REACH`."""
        span = np.full((self.core, 1), REACH)
        return all(not part.size.any() for part in enclose(self.loss, -span, span).gradient)

    @property
    def parts(self) -> tuple[int, int]:
        """How many copies of the core there are, and how many Gaussian coordinates beside them."""
        if self.shape == "copies":
            return self.dimension // self.core, 0
        return 1, 0 if self.shape == "radial" else self.dimension - self.core

    def energy(self, points: Array) -> Array:
        """U = βF of the core at points (k, n), without the radial volume."""
        square = (points**2).sum(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            value: Array = self.beta * (self.loss(points) + self.weight_decay / 2 * square)
        return value

    def local(self, points: Array, jet: Jet | None = None) -> "Local":
        """What the identities and Ψ need at points (k, n) of the core; `jet` is that of L there, if it is known."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._local(points, jet or self.loss.jet(points))

    def _local(self, points: Array, jet: Jet) -> "Local":
        gradient = jet.gradient + self.weight_decay * points
        laplacian = jet.laplacian + self.weight_decay * self.core
        loss_laplacian = jet.laplacian
        if self.shape == "radial":
            loss_laplacian = jet.laplacian + (self.dimension - 1) * jet.gradient[0] / points[0]
            laplacian = loss_laplacian + self.weight_decay * self.dimension
        return Local(
            jet.value,
            (jet.gradient**2).sum(axis=0),
            loss_laplacian,
            (gradient**2).sum(axis=0),
            laplacian,
            (points * gradient).sum(axis=0),
            (points**2).sum(axis=0),
        )


@dataclass(frozen=True)
class Local:
    """Pointwise quantities of the core, each (n,)."""

    loss: Array
    loss_gradient_squared: Array
    loss_laplacian: Array
    gradient_squared: Array
    laplacian: Array
    radial_force: Array  # ⟨θ, ∇F⟩
    norm_squared: Array

    def psi(self, beta: float) -> Array:
        """Ψ_s = (β/2)‖∇F‖² − ΔF."""
        with np.errstate(invalid="ignore"):
            value: Array = beta / 2 * self.gradient_squared - self.laplacian
        return value


def potential(
    text: str, *, weight_decay: float, beta: float, parameters: Mapping[str, float] | None = None,
    dimension: int | None = None, shape: Shape = "ridge", breaks: tuple[float, ...] = (),
) -> Potential:  # fmt: skip
    """A potential from an expression for L; `d` in it is the dimension.

    Args:
        text: see `expressions.parse`.
        weight_decay: λ.
        beta: β.
        parameters: named constants of the expression.
        dimension: d; the number of coordinates in the text when not given.
        shape: how L extends to d dimensions.
        breaks: kinks.
    """
    if dimension is not None and dimension < 1:
        raise InputError(f"dimension={dimension}: expected at least 1")
    named = dict(parameters or {})
    if dimension is not None:
        named.setdefault("d", float(dimension))
    loss = parse(text, named)
    return Potential(loss, weight_decay, beta, dimension or len(loss.variables), shape, breaks)
