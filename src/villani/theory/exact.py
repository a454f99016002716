"""What is true of a Gibbs law, to stated digits: gaps, Poincaré and log-Sobolev constants, moments, relative entropy.

Lines and products of lines to 8 digits and more (`exact_line.py`), planes to 6 and more (`exact_plane.py`), radial laws
in any dimension (`exact_radial.py`). Every case is solved twice, on different grids and boxes; digits that were asked
for and are not there are refused. On lines and radial laws intervals prove that the grid sees all of U, and that
nothing that counts lies beyond it (`resolution.py`): then C_P is *certified* within the error reported. Where they do
not close, and on planes, it is *estimated*. Units and what is told: `truth.py`.
"""

from dataclasses import dataclass

import numpy as np

from villani.errors import InputError
from villani.theory import complexity
from villani.theory.exact_line import DEPTHS, solve_line
from villani.theory.exact_plane import solve_planar
from villani.theory.exact_radial import solve_radial
from villani.theory.expressions import Array, shortened
from villani.theory.line import Law, Mesh, law, panels, support
from villani.theory.potential import Potential, potential
from villani.theory.truth import ORDERS, Truth, on_line

_PANELS = 3000  # of a mesh that is summed over, and no more
_TINY = 1e-300
_IDENTITY = 1e-6  # relative failure of an identity of §1 that tells a singular part of ΔF


def solve(case: Potential, digits: int | None = None, sobolev: bool = True) -> Truth:
    """The truth about a potential.

    Args:
        case: F and β.
        digits: wanted of C_P; 8 on lines and radial laws, 6 on planes unless given.
        sobolev: also look for C_LS (seconds on a line).

    Raises:
        InputError: no Gibbs law, not smooth, or fewer digits than wanted.
    """
    wanted = digits if digits is not None else (6 if case.core == 2 else 8)
    if not 1 <= wanted <= 12:
        raise InputError(f"digits={wanted}: expected 1 to 12")
    tolerance = 10.0**-wanted
    if case.core == 2:
        truth = solve_planar(case, tolerance)
    elif case.shape == "radial":
        truth = solve_radial(case, tolerance, digits is not None)
    else:
        truth = solve_line(case, tolerance, sobolev, digits is not None)
    failed = truth.moments.identity_errors(case.beta, case.dimension)
    name = max(failed, key=lambda key: failed[key])
    if not failed[name] < _IDENTITY:
        raise InputError(
            f"expression {shortened(case.loss.text)}: {name} fails by {failed[name]:.1e}, so ΔF misses a singular "
            "part or the law is not resolved: is the potential smooth?"
        )
    return truth


@dataclass(frozen=True)
class RelativeEntropy:
    """KL(ρ‖π) of the Gibbs law ρ to its prior π = N(0, I/(βλ)), with the upper bounds of THEORY.md §5(c)."""

    value: float
    log_sobolev: float  # (β/2λ) E_ρ‖∇L‖²
    stam: float  # (βλ/2) E_ρ‖θ‖² − d/2 + (d/2) ln(1 + E_ρ ΔL/(λd))
    jeffreys: float  # β (E_π L − E_ρ L)


def relative_entropy(case: Potential, truth: Truth) -> RelativeEntropy:
    """KL(ρ‖π) = E_ρ ln(ρ/π), with λ > 0; Gaussian coordinates add nothing.

    Raises:
        InputError: λ = 0, where there is no prior; a core of two coordinates; or E_π L, which Jeffreys' bound needs, is
            infinite or not resolved.
    """
    if case.weight_decay == 0 or case.core > 1 or case.shape == "radial":
        raise InputError("relative entropy to the prior: expected λ > 0 and a potential on a line")
    beta, decay, d, at = case.beta, case.weight_decay, case.dimension, truth.moments
    prior = potential("0*w", weight_decay=decay, beta=beta)

    def energy(x: Array) -> Array:
        return prior.energy(x[None])

    def weighed(x: Array) -> Array:  # −ln of (1 + |L|)π, which reaches further than π
        with np.errstate(over="ignore"):
            loss = np.abs(case.loss(x[None]))
        return np.where(np.isfinite(loss), energy(x) - np.log1p(loss), np.inf)

    boxes = np.array([support(energy, DEPTHS[1]), support(weighed, DEPTHS[1])])
    if not np.isfinite(weighed(boxes[1])).all():
        raise InputError("the mean of L under the prior, which Jeffreys' bound needs, is infinite or out of reach")
    box = float(boxes[:, 0].min()), float(boxes[:, 1].max())
    scan = np.linspace(*box, 4001)
    height = float((np.log(np.abs(case.loss(scan[None])) + _TINY) - energy(scan)).max())

    def summed(x: Array) -> Array:  # Lπ, of which the largest is about 1
        return case.loss(x[None]) * np.exp(-energy(x) - height)

    line = law(energy, panels(energy, box, ORDERS[1], (*case.breaks, *truth.edges), also=summed, most=_PANELS))
    copies, _ = case.parts
    loss = case.loss(line.mesh.points[None])
    return RelativeEntropy(
        value=copies * _entropy(case, truth, line, loss),
        log_sobolev=complexity.log_sobolev(decay, beta, at.loss_gradient_squared, "certified").value,
        stam=complexity.stam(
            decay, beta, at.norm_squared, dimension=d, laplacian=at.loss_laplacian, status="certified"
        ).value,
        jeffreys=complexity.jeffreys(beta, copies * line.expect(loss), at.loss, "certified").value,
    )


def _entropy(case: Potential, truth: Truth, prior: Law, loss: Array) -> float:
    """KL of one coordinate: as a difference, or, where that would cancel, as E_π(e^δ(δ − 1) + 1), δ = ln(ρ/π)."""
    core = law(on_line(case), Mesh(np.array(truth.edges), prior.mesh.reference))
    spread = np.log(2 * np.pi / (case.beta * case.weight_decay)) / 2
    value = -case.beta * core.expect(case.loss(core.mesh.points[None])) - core.log_normaliser + spread
    if value > 1:
        return float(value)
    with np.errstate(over="ignore"):
        tilt = -case.beta * loss
        delta = tilt - np.log1p(prior.expect(np.expm1(tilt)))
        small = delta**2 * (1 / 2 + delta / 3 + delta**2 / 8)  # to δ⁵
        return prior.expect(np.where(np.abs(delta) < 1e-3, small, np.exp(delta) * (delta - 1) + 1))
