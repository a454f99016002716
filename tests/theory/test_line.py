"""The solver on a line against closed forms, an independent discretisation, and perturbed boxes and grids."""

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.optimize import brentq
from scipy.special import pbdv

from villani.errors import InputError
from villani.theory.catalogue import named
from villani.theory.line import first_gap, gaps, law, log_sobolev, panels, spectrum, support


def gap(energy, depth=60.0, order=14, breaks=()):
    return first_gap(law(energy, panels(energy, support(energy, depth), order, breaks)))


def sinc_gaps(potential, half_width, count):
    """Gaps of H = −Δ + ¼U′² − ½U″ by a sinc-DVR: another equation, another discretisation."""
    points, step = np.linspace(-half_width, half_width, count, retstep=True)
    beta = potential.beta
    jet = potential.loss.jet(points[None])
    slope = beta * (jet.gradient[0] + potential.weight_decay * points)
    bend = beta * (jet.hessian[0, 0] + potential.weight_decay)
    i = np.arange(count)
    apart = i[:, None] - i
    kinetic = np.where(apart == 0, np.pi**2 / 3, 2 * (-1.0) ** apart / np.where(apart == 0, 1, apart) ** 2) / step**2
    values = eigh(kinetic + np.diag(slope**2 / 4 - bend / 2), eigvals_only=True)
    return values[1:4], values[0]


def test_harmonic_spectrum_is_the_integers():
    def energy(x):
        return 3.0 * (x - 0.4) ** 2 / 2

    of = law(energy, panels(energy, support(energy, 80.0), 18))
    known = spectrum(of)
    assert known.gaps[:8] / 3 == pytest.approx(np.arange(1, 9), rel=1e-12)
    assert of.log_normaliser == pytest.approx(0.5 * np.log(2 * np.pi / 3), abs=1e-14)
    hermite = (of.mesh.points - 0.4) * np.sqrt(3)
    overlap = of.expect(known.modes[:, 0] * hermite)
    assert abs(overlap) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "half_width"),
    [
        ("binary-ce", {}, 5.0),
        ("tied", {}, 9.0),
        ("tied", {"weight_decay": 0.1, "beta": 10.0}, 9.0),
        ("double-well", {"beta": 20.0}, 2.6),
        ("mixture", {}, 11.0),
    ],
)
def test_gaps_equal_those_of_the_schroedinger_operator(name, options, half_width):
    potential = named(name, **options).potential
    other, ground = sinc_gaps(potential, half_width, 500)

    def energy(x):
        return potential.energy(x[None])

    ours = spectrum(law(energy, panels(energy, support(energy, 80.0), 18))).gaps[:3]
    assert abs(ground) < 1e-9 * other[-1]
    assert ours == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_a_kink_at_an_edge_gives_the_root_of_the_parabolic_cylinder_function(slope):
    """T20: D_ν(−ℓ) = 0 at ν = 1/C_P."""
    guess = gap(lambda x: x**2 / 2 - slope * np.abs(x), breaks=(0.0,))
    root = brentq(lambda v: pbdv(v, -slope)[0], 0.9 * guess, 1.1 * guess, xtol=1e-14)
    assert guess == pytest.approx(root, rel=1e-11)


def test_a_gap_far_below_rounding_keeps_its_digits():
    """Two wells 60 nats deep: the gap is 1e-25 of the next one; other boxes and grids give the same 8 digits."""

    def energy(x):
        return 60 * (x**2 - 1) ** 2

    values = [gap(energy, depth, order) for depth, order in ((60.0, 14), (75.0, 16), (90.0, 20))]
    assert values[0] < 1e-22
    assert values == pytest.approx([values[0]] * 3, rel=1e-8)


@pytest.mark.parametrize("height", [0.5, 3.0, 10.0, 20.0, 30.0, 35.0, 40.0, 60.0, 200.0])
def test_other_gaps_are_right_or_not_told_beside_a_small_one(height):
    """Two wells: even modes are those of half the line, where no gap is small and hides the next ones by rounding."""

    def energy(x):
        return height * (x**2 - 1) ** 2

    low, high = support(energy, 80.0)
    whole, half = (gaps(law(energy, panels(energy, box, 18))) for box in ((low, high), (0.0, high)))
    assert len(whole) == (3 if height <= 35 else 1)
    assert len(half) == 3
    assert whole[1:2] == pytest.approx(half[:1][: len(whole) - 1], rel=1e-7)


@pytest.mark.parametrize(("name", "options"), [("tied", {}), ("ce1", {"dimension": 30}), ("mixture", {}), ("kink", {})])
def test_box_and_grid_do_not_matter(name, options):
    potential = named(name, **options).potential

    def energy(x):
        return potential.energy(x[None])

    values = [
        first_gap(law(energy, panels(energy, (low * wide, high * wide), order, potential.breaks)))
        for low, high in [support(energy, 60.0)]
        for order, wide in ((12, 1.0), (16, 1.07), (20, 1.21))
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-9)


def test_a_spike_between_the_nodes_and_a_narrow_well_far_away_are_found():
    def spike(x):
        return x**2 / 2 - 5 * np.exp(-((200 * (x - 3.1)) ** 2))

    of = law(spike, panels(spike, support(spike, 60.0), 14))
    x = np.linspace(-12, 12, 2_400_001)
    expected = np.log(np.exp(-spike(x)).sum() * (x[1] - x[0]))
    assert expected - 0.5 * np.log(2 * np.pi) > 1e-3
    assert of.log_normaliser == pytest.approx(expected, abs=1e-10)
    assert gap(lambda x: 1e3 * (x - 50) ** 2) == pytest.approx(2e3, rel=1e-10)


def test_dilation():
    """U(cx) has c² times the gaps (THEORY.md §2.3, 2)."""

    def energy(x):
        return np.logaddexp(0, -9 * x**2) + x**2 / 4 + 0.3 * x

    for scale in (1e-3, 0.7, 40.0):
        assert gap(lambda x, c=scale: energy(c * x)) == pytest.approx(scale**2 * gap(energy), rel=1e-10)


def test_log_sobolev_of_the_two_cases_that_are_known():
    """A Gaussian: 1/λ, approached from below; two far wells of unequal mass: the two-point law's, above C_P."""

    def quadratic(x):
        return x**2 / 2

    of = law(quadratic, panels(quadratic, support(quadratic, 80.0), 18))
    assert log_sobolev(of, spectrum(of))[0] == pytest.approx(1, abs=1e-6)

    def tilted(x):
        return 16 * (x**2 - 1) ** 2 + 1.5 * x

    of = law(tilted, panels(tilted, support(tilted, 80.0), 18))
    known = spectrum(of)
    left = of.expect((of.mesh.points < 0).astype(float))
    right = 1 - left
    # a two-point law has C_LS/C_P = ln(p/q)/(2(p − q)) (Diaconis and Saloff-Coste), here with C_P = 1/gap
    ratio = np.log(left / right) / (2 * (left - right))
    assert ratio > 1.2
    assert log_sobolev(of, known)[0] * known.gaps[0] == pytest.approx(ratio, rel=2e-2)


@pytest.mark.parametrize(
    ("energy", "fragment"),
    [
        (lambda x: -(x**2), "does not confine"),
        (lambda x: x**3, "does not confine"),
        (lambda x: 0 * x, "does not confine"),
        (lambda x: np.sqrt(x), "not a real number"),
        (lambda x: np.full_like(x, -np.inf), "infinite"),
        (lambda x: x**2 + np.sin(1e6 * x), "panels"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_has_no_law_or_varies_too_fast_is_refused(energy, fragment):
    with pytest.raises(InputError, match=fragment):
        gap(energy)
