"""`villani exact` on potentials with features that points miss, against another solver that knows where they are.

    python benchmarks/exact_hidden_features.py            # the table of docs/constants.md

The second solver is a Markov chain: finite volumes with exact conductances 1/∫e^U on a mesh crowded around the features
that are named beside each potential, and shooting for its gap. It
shares nothing with the package but the reading of the expression. Errors fall like h²; two meshes are extrapolated.
"""

import time
from dataclasses import dataclass

import numpy as np

from villani.errors import InputError
from villani.theory.exact import solve
from villani.theory.expressions import parse
from villani.theory.potential import potential


@dataclass(frozen=True)
class Case:
    """A potential, where its features are and how wide, and how far the mesh reaches."""

    text: str
    weight_decay: float = 0.1
    beta: float = 1.0
    features: tuple[tuple[float, float], ...] = ()
    reach: float = 60.0


def gaussian(height: float, at: float, width: float) -> str:
    """A bump as an expression."""
    return f"{height}*exp(-(w-({at}))**2/(2*{width}**2))"


LINES = [
    Case(gaussian(14, 0.7077, 0.001), features=((0.7077, 0.001),)),
    Case(gaussian(-12, 5.0051, 0.0003), features=((5.0051, 0.0003),)),
    Case("log(1+exp(-2*w))+" + gaussian(10, 0.5021, 0.0009), 0.25, features=((0.5021, 0.0009),)),
    Case(gaussian(16, -1.33333, 1e-6), features=((-1.33333, 1e-6),)),
    Case(gaussian(-17, 2.71828, 1e-6), features=((2.71828, 1e-6),)),
    Case(gaussian(9, 3.1, 1e-5) + "+" + gaussian(9, -3.1003, 2e-4), features=((3.1, 1e-5), (-3.1003, 2e-4))),
    Case(gaussian(-150, 50, 0.3), features=((50, 0.3), (48, 1.0))),
    Case(gaussian(-60, 30.0007, 0.002), features=((30.0007, 0.002),)),
    Case(gaussian(-5000, 5000, 0.3), features=((5000, 0.3),)),
    Case(gaussian(-1300000, 5000, 30), features=((5000, 0.3),)),
    Case(gaussian(-200, 0.3, 0.01), features=((0.3, 0.01), (0.3, 0.0005))),
    Case("20*tanh(1000*(w-1.2345))", features=((1.2345, 0.001),)),
    Case("8*tanh(1e5*(w-0.5))-8*tanh(1e5*(w-0.5003))", features=((0.5, 1e-5), (0.5003, 1e-5))),
    Case("log(1+exp(400*(w-2.2)))-log(1+exp(400*(w-2.25)))", 0.3, features=((2.2, 0.002), (2.25, 0.002))),
    Case("exp(30*(w-2))", 0.1, features=((1.9, 0.05),)),
    Case("log(1+exp(-500*w))", 0.2, 2.0, features=((0.0, 0.002),)),
    Case("sin(3*w)", 0.1, features=((0.0, 8.0),)),
    Case("0.4*sin(40*w)", 0.5, features=((0.0, 8.0),)),
    Case("sin(10000*w)", 0.1),
    Case("0.001*sin(3000*w)", 0.5),
    Case("exp(-w**2)*sin(200*w)", 0.5, features=((0.0, 1.5),)),
    Case("(w**2-1)**2/4", 0.0, 60.0, features=((0.0, 0.3), (1.0, 0.2), (-1.0, 0.2)), reach=4.0),
    Case("(w**2-1)**2*(w-2)**2/8 + 0.01*w", 0.01, 12.0, features=((0.0, 1.0), (2.0, 0.4)), reach=5.0),
    Case("-log(exp(-(w-3)**2*8)+exp(-(w+3)**2*8.0001)+0.000001)", 0.2, features=((3, 0.3), (-3, 0.3))),
    Case("20*log(1+exp(-50*w**2/20))", 0.1, features=((0.0, 0.5),)),
    Case("w**2/(1+w**2)*6-6", 0.02, 2.0, features=((0.0, 1.0),), reach=110.0),
    Case("8*w**2*exp(-w**2)", 0.1, 2.0, features=((0.0, 1.0),)),
    Case("sqrt(0.000001+w**2)", 0.1, features=((0.0, 0.001),)),
    Case("-3*sqrt(0.00000001+(w-0.77)**2)", 0.5, features=((0.77, 0.0001),)),
    Case("atan(100000*(w-0.1))*5", 0.1, features=((0.1, 1e-5), (0.1, 1e-3))),
    Case("erf(3000*(w+0.2))*4-4*sigmoid(9000*(w-0.4))", 0.2, features=((-0.2, 3e-4), (0.4, 1e-4))),
    Case("10/(1+1000000*(w-0.9)**2)", 0.1, features=((0.9, 0.001), (0.9, 0.03))),
    Case("-log(0.0000001+(w-1.1)**2)", 0.3, features=((1.1, 0.0003), (1.1, 0.01))),
    Case("1000000+" + gaussian(5, 0.2, 0.01), features=((0.2, 0.01),)),
    Case("0.3*w**4-2*w**2+" + gaussian(7, 1.8257, 0.0005), 0.0, 2.0, features=((1.8257, 5e-4), (0.0, 0.5)), reach=6.0),
]  # fmt: skip
PLANES = [
    ("-9*exp(-(x-0.3)**2/(2*0.004**2)) + 0*y", 0.5, Case(gaussian(-9, 0.3, 0.004), 0.5, features=((0.3, 0.004),))),
    ("8*exp(-(y-0.4)**2/(2*0.01**2)) + 0*x", 0.5, Case(gaussian(8, 0.4, 0.01), 0.5, features=((0.4, 0.01),))),
    ("-9*exp(-(x-0.93*y-0.113)**2/(2*0.004**2))", 0.5, None),
    ("-2000*exp(-((x-50)**2+(y-0.3)**2)/(2*0.1**2))", 0.5, None),
    ("-22*exp(-((x-1)**2+(y-0.3)**2)/(2*0.001**2))", 0.5, None),
]


def mesh(case: Case, size: int) -> np.ndarray:
    """Nodes (n,): even over the reach, and crowded like a hyperbolic sine around each feature."""
    parts = [np.linspace(-case.reach, case.reach, size)]
    for at, width in case.features:
        top = np.arcsinh(2 * case.reach / width)
        parts.append(at + width * np.sinh(np.linspace(-top, top, size)))
    nodes = np.unique(np.concatenate(parts))
    nodes = nodes[np.abs(nodes) <= case.reach + max((abs(at) for at, _ in case.features), default=0)]
    return nodes[np.concatenate([[True], np.diff(nodes) > 1e-12])]


def chain_constant(case: Case, size: int) -> float:
    """C_P of the chain: mass ∫e^{−U} about each node, conductance 1/∫e^U between them."""
    loss = parse(case.text)
    nodes = mesh(case, size)

    def energy(w: np.ndarray) -> np.ndarray:
        return case.beta * (loss(w[None]) + case.weight_decay / 2 * w**2)

    least = energy(nodes).min()
    keep = energy(nodes) < least + 650
    nodes = nodes[np.flatnonzero(keep)[0] : np.flatnonzero(keep)[-1] + 1]
    points, weights = np.polynomial.legendre.leggauss(4)

    def integral(left: np.ndarray, right: np.ndarray, sign: float) -> np.ndarray:
        half = (right - left) / 2
        at = (left + right)[:, None] / 2 + half[:, None] * points
        values = np.exp(np.clip(sign * (energy(at.ravel()).reshape(at.shape) - least), -745, 700))
        return half * (values @ weights)

    middle = (nodes[1:] + nodes[:-1]) / 2
    mass = np.zeros(len(nodes))
    mass[1:] += integral(middle, nodes[1:], -1.0)
    mass[:-1] += integral(nodes[:-1], middle, -1.0)
    resistance = integral(nodes[:-1], nodes[1:], 1.0)
    mass /= (total := mass.sum())
    resistance *= total
    # shooting: f_{i+1} = f_i − λ R_i S_i with S_i = Σ_{j ≤ i} m_j f_j stays above 0 exactly while λ is below the gap
    low, high = -230.0, 20.0  # ln λ
    for _ in range(10):
        tried = np.linspace(low, high, 41)
        rate, f, flow, above = np.exp(tried), np.ones(41), np.zeros(41), np.zeros(41, dtype=bool)
        with np.errstate(over="ignore", invalid="ignore"):
            for weight, barrier in zip(mass, np.append(resistance, 0.0), strict=True):
                flow = flow + weight * f
                above |= ~(flow > 0)
                f = f - rate * barrier * flow
        first = int(np.argmax(above)) if above[:-1].any() else 40
        low, high = tried[max(first - 1, 0)], tried[first]
    return float(np.exp(-(low + high) / 2))


def second(case: Case, size: int = 10_000) -> float:
    """Two meshes, extrapolated."""
    coarse, fine = chain_constant(case, size), chain_constant(case, 2 * size)
    return fine + (fine - coarse) / 3


def compare(text: str, weight_decay: float, beta: float, other: Case | None) -> tuple[str, str]:
    """A row of the table, and its verdict: right, refused, estimated or WRONG."""
    reference = second(other) if other else float("nan")
    if other and weight_decay and text != other.text:  # the other coordinate of a plane is Gaussian
        reference = max(reference, 1 / (beta * weight_decay))
    start = time.process_time()
    try:
        truth = solve(potential(text, weight_decay=weight_decay, beta=beta), sobolev=False)
    except InputError as error:
        seconds = time.process_time() - start
        return (
            f"| `{text}` | {weight_decay:g} | — | refused: {str(error)[-60:]} | {reference:.9g} | {seconds:.1f} |",
            "refused",
        )
    seconds = time.process_time() - start
    apart = abs(reference / truth.poincare - 1)
    close = apart < 3e-7
    verdict = "right" if close else "estimated" if truth.status == "estimated" else "WRONG"
    said = f"{truth.poincare:.{truth.digits}g} | {truth.status}, {verdict}, differs by {apart:.0e}"
    return f"| `{text}` | {weight_decay:g} | {said} | {reference:.9g} | {seconds:.1f} |", verdict


def main() -> None:
    """Print the table and the count of each verdict."""
    counts: dict[str, int] = {}
    print("| L | λ | C_P | | second solver | CPU s |\n|---|---|---|---|---|---|")
    every = [(c.text, c.weight_decay, c.beta, c) for c in LINES] + [(t, decay, 1.0, c) for t, decay, c in PLANES]
    for text, decay, beta, other in every:
        row, verdict = compare(text, decay, beta, other)
        counts[verdict] = counts.get(verdict, 0) + 1
        print(row, flush=True)
    print(counts)


if __name__ == "__main__":
    main()
