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
from villani.theory.line import law, panels, support
from villani.theory.potential import Potential, potential
from villani.theory.truth import ORDERS, Truth

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
    """KL(ρ‖π) = −β E_ρ L − ln(Z_ρ/Z_π), with λ > 0.

    Raises:
        InputError: λ = 0, where there is no prior; or a core of two coordinates.
    """
    if case.weight_decay == 0 or case.core > 1 or case.shape == "radial":
        raise InputError("relative entropy to the prior: expected λ > 0 and a potential on a line")
    beta, decay, d, at = case.beta, case.weight_decay, case.dimension, truth.moments
    prior = potential("0*w", weight_decay=decay, beta=beta)

    def energy(x: Array) -> Array:
        return prior.energy(x[None])

    mesh = panels(
        energy, support(energy, DEPTHS[1]), ORDERS[1], (*case.breaks, *truth.edges),
        also=lambda x: case.loss(x[None]),
    )  # fmt: skip
    line = law(energy, mesh)
    copies, _ = case.parts
    prior_loss = copies * line.expect(case.loss(mesh.points[None]))
    log_prior = d / 2 * np.log(2 * np.pi / (beta * decay))
    return RelativeEntropy(
        value=float(-beta * at.loss - truth.log_normaliser + log_prior),
        log_sobolev=complexity.log_sobolev(decay, beta, at.loss_gradient_squared, "certified").value,
        stam=complexity.stam(
            decay, beta, at.norm_squared, dimension=d, laplacian=at.loss_laplacian, status="certified"
        ).value,
        jeffreys=complexity.jeffreys(beta, prior_loss, at.loss, "certified").value,
    )
