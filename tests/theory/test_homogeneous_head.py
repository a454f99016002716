"""C10 against exactly solved cases of its degree-1 analogue, and against the formula written out with many digits."""

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest

from villani.errors import InputError
from villani.outwards import lower_power, upper_power
from villani.theory.constants import homogeneous_head


def ritz(slope, weight_decay, beta, degree=26, nodes=140):
    """C_P of log(1 + e^{−w·tanh(au)}) + (λ/2)(w² + u²), from polynomials in both coordinates: at most the truth."""
    x, mass = np.polynomial.hermite_e.hermegauss(nodes)
    scale = 1 / math.sqrt(beta * weight_decay)
    columns = [np.polynomial.hermite_e.hermeval(x, np.eye(degree)[k]) / math.sqrt(math.factorial(k))
               for k in range(degree)]  # fmt: skip
    values = np.array(columns)  # (K, n), orthonormal under the Gaussian
    slopes = np.array([math.sqrt(k) * values[k - 1] if k else 0 * x for k in range(degree)]) / scale
    w, u = np.meshgrid(scale * x, scale * x, indexing="ij")
    density = np.outer(mass, mass) * np.exp(-beta * np.logaddexp(0, -w * np.tanh(slope * u)))
    density /= density.sum()

    def gram(left, right):
        return np.einsum("ij,ai,bj,ci,dj->abcd", density, left, right, left, right, optimize=True).reshape(
            degree**2, degree**2
        )

    second = gram(values, values)
    mean = np.einsum("ij,ai,bj->ab", density, values, values).reshape(-1)
    energy = gram(slopes, values) + gram(values, slopes)
    keep = np.arange(degree**2) != 0
    variance = (second - np.outer(mean, mean))[np.ix_(keep, keep)]
    root = np.linalg.cholesky(energy[np.ix_(keep, keep)])
    reduced = np.linalg.solve(root, np.linalg.solve(root, variance).T)
    return float(np.linalg.eigvalsh((reduced + reduced.T) / 2)[-1])


def analogue(weight_decay, beta):
    """φ = w, |w·tanh| ≤ |w|, two classes."""
    return homogeneous_head(weight_decay, beta, dimension=1, classes=2, degree=1, slope=1.0, hypotheses="")


@pytest.mark.parametrize(
    ("slope", "weight_decay", "beta", "truth", "bound"),
    [
        (5, 1, 1, 1.38437314, 28.1739458),
        (5, 0.5, 2, 1.94027420, 965.908756),
        (2, 0.3, 4, 2.60292346, 2.41085300e6),
    ],
)
def test_reference_values(slope, weight_decay, beta, truth, bound):
    """T27, whose truths `exact --all` computes; polynomials come close to them from below."""
    assert 0.99 * truth < ritz(slope, weight_decay, beta) <= truth * (1 + 1e-9)
    assert analogue(weight_decay, beta).value == pytest.approx(bound, rel=5e-9)


CASES = [(a, decay, beta) for a in (0.5, 3.0, 8.0) for decay, beta in ((1, 1), (0.2, 1), (1, 4), (0.1, 0.5), (3, 2))]


@pytest.mark.parametrize(("slope", "weight_decay", "beta"), CASES)
def test_exactly_solved_cases_lie_below(slope, weight_decay, beta):
    truth = ritz(slope, weight_decay, beta, degree=16, nodes=80)
    assert 0.3 / (beta * weight_decay) < truth <= analogue(weight_decay, beta).value


def written_out(weight_decay, beta, dimension, classes, degree, slope):
    """ln of the bound in 60 digits."""
    getcontext().prec = 60
    decay, b, v = Decimal(weight_decay), Decimal(beta), Decimal(classes)
    weight = dimension + degree * b * v.ln()
    m = Decimal(slope) * (4 * weight / (b * decay)) ** (Decimal(degree) / 2)
    top = m + (v - 1).ln() + (1 + (-m - (v - 1).ln()).exp()).ln()
    low = (1 + ((v - 1).ln() - m).exp()).ln()
    big = (Decimal(2) / (b * decay)).ln() + b * (top - low)
    return big + (1 + ((Decimal(2) / (b * decay * weight)).ln() - big).exp()).ln()


@pytest.mark.parametrize(
    "given",
    [
        (0.1, 1.0, 25756672, 50304, 2, math.sqrt(513 / 2)),  # Pythia-70M
        (0.1, 2000.0, 25756672, 50304, 2, math.sqrt(513 / 2)),
        (1e-4, 2.0, 24576768, 32000, 2, math.sqrt(768 / 2)),
        (1.0, 1.0, 1, 2, 1, 1.0),
        (0.3, 4.0, 7, 5, 1, 0.01),
    ],
)
def test_logarithms_are_rounded_upwards(given):
    decay, beta, dimension, classes, degree, slope = given
    found = homogeneous_head(
        decay, beta, dimension=dimension, classes=classes, degree=degree, slope=slope, hypotheses=""
    )  # fmt: skip
    truth = written_out(*given)
    assert truth <= Decimal(found.log_value) <= truth * (1 + Decimal("1e-11")) + Decimal("1e-11")
    assert (found.id, found.kind, found.direction, found.status) == ("C10", "Poincaré", "upper", "certified")


def test_size_of_a_head_in_powers_of_ten():
    """Pythia-70M at λ = 0.1, β = 1: M = √(513/2)·4(25,756,672 + 2 ln 50,304)/0.1 = 1.65·10¹⁰, over ln 10."""
    found = homogeneous_head(0.1, 1.0, dimension=25756672, classes=50304, degree=2, slope=math.sqrt(513 / 2),
                             hypotheses="")  # fmt: skip
    assert upper_power(found.log10, 3) == "10^(7.17·10⁹)"
    assert found.value == math.inf


def test_powers_beyond_floats_round_outwards():
    assert upper_power(1234.51, 3) == "10^1,234.6"
    assert lower_power(1234.59, 3) == "10^1,234.5"
    assert upper_power(7.160001e9, 3) == "10^(7.17·10⁹)"
    assert lower_power(7.169999e9, 3) == "10^(7.16·10⁹)"
    assert upper_power(9.9999e9, 3) == "10^(1·10¹⁰)"
    assert upper_power(-400.01, 3) == "10^−400.0"
    assert upper_power(math.log10(28.1739), 3) == "28.2"
    assert upper_power(math.log10(4.42369e6), 3) == "4.43·10⁶"
    assert lower_power(math.log10(4.42969e6), 3) == "4.42·10⁶"
    assert upper_power(math.log10(9.999e7), 3) == "1·10⁸"


def test_what_cannot_be_told_is_refused():
    with pytest.raises(InputError, match="beyond floats"):
        homogeneous_head(1e-300, 1.0, dimension=10**9, classes=5, degree=2, slope=1e6, hypotheses="")
    with pytest.raises(InputError, match="classes=1"):
        homogeneous_head(0.1, 1.0, dimension=3, classes=1, degree=2, slope=1.0, hypotheses="")
