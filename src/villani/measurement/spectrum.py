"""Eigenvalues at both ends of a Hessian with bounds, and the density between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from villani.curvature.basis import Basis, norm
from villani.curvature.hessian import Matrix, curvature_of
from villani.curvature.lanczos import Ends, krylov
from villani.curvature.operators import Budget, OperatorKind
from villani.curvature.pairs import Eigenpair, examine
from villani.curvature.spectrum import Density, quadrature, sphere_probe
from villani.errors import check_positive, check_whole
from villani.objective.objective import Objective, at_one_theta
from villani.objective.origin import Origin, origin_of
from villani.results import Result
from villani.work.memory import peak_memory

PROBES, STEPS = 4, 40  # of the density
MEMORY = 8.0  # GiB


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs(Result):
    """Ritz pairs at both ends, each examined by a product of its own.

    Within `bound` of each value lies an eigenvalue, and the i-th largest eigenvalue is at least the i-th largest value.
    That none lies beyond, or was missed between, is not proved.

    Attributes:
        largest: from the largest on.
        smallest: from the smallest on.
        products: matrix-vector products that were spent.
        converged: whether all residuals are as small as was asked.
        origin: what they are of.
    """

    largest: tuple[Eigenpair, ...]
    smallest: tuple[Eigenpair, ...]
    products: int
    converged: bool
    origin: Origin | None = None

    def __repr__(self) -> str:
        ends = {"largest": self.largest, "smallest": self.smallest}
        said = [f"{name} {_listed(pairs)}" for name, pairs in ends.items() if pairs]
        state = "" if self.converged else ", not converged"
        return f"Eigenpairs({'; '.join(said)}; {self.products} products{state})"


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Result):
    """The spectrum of one matrix at one θ.

    Attributes:
        eigenpairs: both ends.
        density: all of it by stochastic Lanczos quadrature: `trace`, `frobenius_squared`, `effective_rank`,
            `negative_share()` as estimates over probes, and `curve()`. The groups count as the whole data set: no data
            noise is in these errors.
    """

    eigenpairs: Eigenpairs
    density: Density

    @property
    def origin(self) -> Origin | None:
        """What it is of."""
        return self.eigenpairs.origin

    def __repr__(self) -> str:
        return f"Spectrum({self.eigenpairs!r}; d = {self.density.size:,}, tr H {self.density.trace})"


def _listed(pairs: Sequence[Eigenpair], most: int = 3) -> str:
    values = ", ".join(map(str, pairs[:most]))
    return f"{values}, …" if len(pairs) > most else values


@at_one_theta
def eigenpairs(
    objective: Objective,
    *,
    operator: OperatorKind = "hessian",
    matrix: Matrix = "loss",
    top: int = 5,
    bottom: int = 2,
    tolerance: float = 1e-3,
    most: int = 1000,
    seed: int = 0,
    memory: float = MEMORY,
) -> Eigenpairs:
    """Eigenpairs at both ends by thick-restart Lanczos (`villani/curvature/lanczos.py`).

        pairs = villani.eigenpairs(objective, top=3)
        print([(pair.value, pair.bound) for pair in pairs.largest])

    Args:
        objective: whose loss over all groups.
        operator: `hessian`, or `gauss-newton`.
        matrix: of the `loss` or of the `objective`, with λ on decayed coordinates.
        top: the so many largest.
        bottom: the so many smallest, the most negative first.
        tolerance: residual norm, at most, over the largest |value| of the pair's own end.
        most: products at most; where they do not suffice, `converged` is False.
        seed: of the random start.
        memory: GiB of the process within which vectors and graphs are held; the rest goes to a temporary file. It moves
            no bit. Eigenvectors, (d,) each in θ's dtype, are in memory in any case.

    Raises:
        InputError: a number out of range, an unknown operator or matrix, or a product that is not finite.
    """
    check_whole(0, top=top, bottom=bottom, seed=seed)
    check_whole(1, most=most)
    check_positive(memory=memory)
    budget = Budget(int(memory * 2**30), partial(peak_memory, objective.device))
    product = curvature_of(objective, operator, matrix, budget=budget)

    def rounding(u: torch.Tensor, w: torch.Tensor) -> float:
        return norm(product.otherwise(u).sub_(w))

    with Basis(product.size, product.dtype, objective.device, budget=budget) as basis:
        ritz = krylov(product, basis, Ends(int(top), int(bottom), tolerance, int(most)), int(seed))
        pairs = examine(product, basis, ritz, product.sizes, rounding)
    origin = origin_of(
        objective, "eigenpairs", int(seed), operator=operator, matrix=matrix, top=int(top), bottom=int(bottom),
        tolerance=float(tolerance),
    )  # fmt: skip
    return Eigenpairs(tuple(pairs[: ritz.top]), tuple(pairs[ritz.top :]), ritz.products, ritz.converged, origin)


@at_one_theta
def spectrum(
    objective: Objective,
    *,
    operator: OperatorKind = "hessian",
    matrix: Matrix = "loss",
    top: int = 5,
    bottom: int = 2,
    tolerance: float = 1e-3,
    most: int = 1000,
    density_probes: int = PROBES,
    density_steps: int = STEPS,
    seed: int = 0,
    memory: float = MEMORY,
) -> Spectrum:
    """Both ends of a spectrum with bounds, and its density with errors over probes.

        spectrum = villani.spectrum(objective)
        print(spectrum.eigenpairs.largest[0].value, spectrum.density.trace.interval())

    Args:
        objective: whose loss over all groups.
        operator: as `eigenpairs`, and so on:
        matrix: of the `loss` or of the `objective`.
        top: the so many largest.
        bottom: the so many smallest.
        tolerance: of residuals.
        most: products at most for the ends.
        density_probes: random vectors of the quadrature, at least 1; intervals take 2.
        density_steps: products for each, at least 1.
        seed: of the start and of the random vectors.
        memory: GiB.

    Raises:
        InputError: as `eigenpairs`, or no probes or steps.
    """
    check_whole(1, density_probes=density_probes, density_steps=density_steps)
    pairs = eigenpairs(
        objective, operator=operator, matrix=matrix, top=top, bottom=bottom, tolerance=tolerance, most=most, seed=seed,
        memory=memory,
    )  # fmt: skip
    budget = Budget(int(memory * 2**30), partial(peak_memory, objective.device))
    product = curvature_of(objective, operator, matrix, budget=budget)
    samples = [
        quadrature(product, sphere_probe(product.parameters, int(seed), 0, 0, probe), int(density_steps))
        for probe in range(density_probes)
    ]
    return Spectrum(pairs, Density(product.size, [samples], torch.finfo(product.dtype).eps))
