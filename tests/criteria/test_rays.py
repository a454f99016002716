"""Rays against closed forms: Ψ and its parts, the parabola, its lack of fit; and a small GPT-Neo."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from tests.criteria.models import closed, make
from villani.criteria.rays import directions, kinds, walk
from villani.curvature.blocks import layers_of
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.work.work import Work

LAMBDA, S = 0.1, 0.3
RADII = (0.0, 1.0, 2.0, 4.0, 8.0)


def rays(objective, radii, names, *, random=3, probes=1, work=None):
    """Rays of the directions that are named, or are of a kind that is."""
    work = work or Work()
    wanted = kinds(directions(objective, random=random), names)
    return {
        name: walk(objective, direction(), radii, probes=probes, work=work.part(index, len(wanted)), name=name)
        for index, (name, direction) in enumerate(wanted.items())
    }


def exactly(function, *values, decay="all"):
    """In float64, with the one group as all the data."""
    objective = closed(function, *values, weight_decay=LAMBDA, decay=decay)
    objective.model.double()
    objective.finite = True
    return objective


def along(*entries):
    u = torch.tensor(entries, dtype=torch.float64)
    return [u / u.norm()]


def balanced(t):
    """Binary cross-entropy with label frequency ½."""
    return F.softplus(t) - t / 2


@pytest.mark.parametrize("decay", ["all", "match:none|w"])
def test_quadratic_loss(decay):
    h = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    objective = exactly(lambda w: (h * w.square()).sum() / 2, 0.5, -1.0, 2.0, decay=decay)
    theta = objective.parameters.tensors[0].detach().clone()
    (u,) = along(1.0, 2.0, -1.0)
    found = walk(objective, [u], RADII, probes=2).psi(temperature=S)
    for r, psi, data in zip(RADII, found.psi, found.data, strict=True):
        w = theta + r * u
        expected = {
            "decay_norm": LAMBDA**2 * float(w @ w) / S,
            "cross": 2 * LAMBDA * float(w @ (h * w)) / S,
            "gradient_norm": float((h * w) @ (h * w)) / S,
            "decay_laplacian": -3 * LAMBDA,
            "hessian_trace": -4.5,
        }
        assert {name: part.value for name, part in psi.parts.items()} == pytest.approx(expected, rel=1e-12)
        assert psi.value == pytest.approx(sum(expected.values()), rel=1e-12)
        assert data.value == pytest.approx(psi.value - expected["decay_norm"] + 3 * LAMBDA, rel=1e-12)
    g = (h + LAMBDA) * u  # gradient of F per unit of r
    assert found.exact_quadratic == pytest.approx(LAMBDA**2 / S, rel=1e-12)
    assert found.fit.quadratic.value == pytest.approx(float(g @ g) / S, rel=1e-9)
    assert found.fit.linear.value == pytest.approx(2 * float(((h + LAMBDA) * theta) @ g) / S, rel=1e-8)
    assert found.fit.constant.value == pytest.approx(found.psi[0].value, rel=1e-8)
    assert found.data_fit.quadratic.value == pytest.approx(float(g @ g - LAMBDA**2) / S, rel=1e-9)
    for fit in (found.fit, found.data_fit):
        assert fit.degrees_of_freedom == 2
        assert fit.quadratic.sem == 0
        assert fit.p_value > 0.99


def test_undecayed_coordinates_are_not_in_the_exact_term():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.b = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    objective = Objective(Two(), [0.0], LAMBDA, "match:a", finite=True, loss_fn=lambda m, _: m.a.sum() + 2 * m.b.sum())
    u = [torch.tensor([0.6, 0.0], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)]
    found = walk(objective, u, RADII, probes=2).psi(temperature=S)
    assert found.exact_quadratic == pytest.approx(0.36 * LAMBDA**2 / S, rel=1e-9)
    assert found.fit.quadratic.value == pytest.approx(found.exact_quadratic, rel=1e-6)  # L is linear
    assert found.data_fit.quadratic.value == pytest.approx(0, abs=1e-9)
    assert found.data_fit.linear.value == pytest.approx(2 * LAMBDA * 0.6 / S, rel=1e-9)


def test_two_factors():
    """THEORY.md Lemma A: Ψ(0, R) = R²(λ²/s − ¼) − 2λ; the exact term grows while Ψ falls."""
    found = walk(exactly(lambda w: balanced(w[0] * w[1]), 0.0, 0.0), along(0.0, 1.0), RADII, probes=2)
    series = found.psi(temperature=S)
    expected = [r**2 * (LAMBDA**2 / S - 0.25) - 2 * LAMBDA for r in RADII]
    assert [e.value for e in series.psi] == pytest.approx(expected, abs=1e-12)
    assert series.exact_quadratic > 0 > series.fit.quadratic.value
    assert series.data_fit.quadratic.value == pytest.approx(-0.25, abs=1e-9)
    assert series.fit.p_value > 0.99
    stronger = found.psi(1.0, temperature=S)  # no new measurement
    assert stronger.fit.quadratic.value == pytest.approx(1 / S - 0.25, abs=1e-9)


def test_three_factors_are_no_parabola():
    """Lemma E: Ψ(0, R, R) = 2λ²R²/s − 3λ − R⁴/4, with r = R√2."""
    objective = exactly(lambda w: balanced(w[0] * w[1] * w[2]), 0.0, 0.0, 0.0)
    series = walk(objective, along(0.0, 1.0, 1.0), RADII, probes=2).psi(temperature=S)
    expected = [LAMBDA**2 * r**2 / S - 3 * LAMBDA - r**4 / 16 for r in RADII]
    assert [e.value for e in series.psi] == pytest.approx(expected, abs=1e-12)
    assert series.fit.p_value < 1e-6
    assert series.data_fit.p_value < 1e-6


def gpt_neo(groups=5):
    """With groups enough for intervals."""
    model = make("gpt-neo-125m?window=3", scale=0.05).model
    ids = torch.randint(0, 13, (groups, 2, 7), generator=torch.Generator().manual_seed(1))
    return Objective(model, ids, LAMBDA)


def test_gpt_neo_grows_on_rays():
    objective = gpt_neo()
    before, state = objective.parameters.checksum(), torch.get_rng_state()
    steps = []
    kept = Work(progress=SimpleNamespace(stage=None, advance=lambda done, total: steps.append((done, total))))

    def measured(work):
        return rays(objective, (0, 20, 40, 80), ("random", "parameters"), random=2, work=work)

    found = measured(kept)
    assert objective.parameters.checksum() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert list(found) == ["random 0", "random 1", "parameters"]
    assert steps == [(i, 60) for i in range(1, 61)]
    assert kept.spent()[2] == 50  # θ₀ is on all three rays, and measured once
    for name, ray in found.items():
        losses = [m.loss.value for m in ray.measurements]
        assert losses == sorted(losses)
        cold = 1e-4  # the trace, whose noise has heavy tails far out, weighs little
        series = ray.psi(temperature=cold)
        values = [e.value for e in series.psi]
        assert values == sorted(values)
        assert name == "parameters" or series.fit.quadratic.interval()[0] > 0
        assert series.exact_quadratic == pytest.approx(LAMBDA**2 / cold, rel=1e-6)
        assert all(e.sem > 0 for e in series.data)
        gap = series.fit.quadratic.value - series.data_fit.quadratic.value
        assert gap == pytest.approx(series.exact_quadratic, rel=1e-3)
        assert 0 <= series.fit.p_value <= 1
    again = measured(kept)
    assert kept.spent()[2] == 50
    psi = [[e.value for e in some["random 1"].psi(temperature=S).psi] for some in (found, again, measured(None))]
    assert psi[0] == psi[1] == psi[2]


def test_directions_are_unit_vectors_and_leave_theta_alone():
    objective = gpt_neo()
    objective.model.double()
    before = objective.parameters.checksum()
    made = directions(objective, 3, random=2, layers=True)
    names = layers_of(objective.parameters)
    assert list(made) == ["random 0", "random 1", "gradient", "parameters", *(f"layer {name}" for name in names)]
    units = {name: make_one() for name, make_one in made.items()}
    for u in units.values():
        assert sum(float(piece.square().sum()) for piece in u) == pytest.approx(1, rel=1e-12)
    for name, members in names.items():
        moved = [i for i, piece in enumerate(units[f"layer {name}"]) if piece.any()]
        assert moved == sorted(members)
    theta, gradient = [t.detach() for t in objective.parameters.tensors], objective.gradient()
    for whole, unit in ((theta, units["parameters"]), (gradient, units["gradient"])):
        length = sum(float((a * b).sum()) for a, b in zip(whole, unit, strict=True))
        assert length**2 == pytest.approx(sum(float(a.square().sum()) for a in whole), rel=1e-9)
    assert not torch.equal(units["random 0"][0], units["random 1"][0])
    assert objective.parameters.checksum() == before


def test_theta_comes_back_after_an_error():
    objective = closed(lambda w: 1 / (1 - w.sum()) ** 2, 0.0, 0.0)
    objective.finite = True
    before = objective.parameters.checksum()
    with pytest.raises(InputError, match=r"^radius 1: .*loss is inf") as error:
        walk(objective, [torch.tensor([1.0, 0.0])], (0, 0.5, 1, 2), probes=2)
    assert "\n" not in str(error.value)
    assert objective.parameters.checksum() == before


def test_a_ledger_tells_directions_and_radii_apart():
    """Each point is measured once, the origin once for all directions, and what is read back is what was measured."""
    objective = closed(lambda w: (w.square() * torch.tensor([1.0, 3.0])).sum(), 0.5, -1.0, weight_decay=LAMBDA)
    objective.finite = True
    directions = {"one": [torch.tensor([1.0, 0.0])], "two": [torch.tensor([0.0, 1.0])]}
    ledger, plain = Work(), {}
    for name, direction in directions.items():
        plain[name] = walk(objective, direction, (0, 0.5, 1, 2), probes=2).psi(temperature=S)
        kept = walk(objective, direction, (0, 0.5, 1, 2), probes=2, work=ledger, name=name).psi(temperature=S)
        assert kept == plain[name]
    units = ledger.spent()[2]
    assert units == (1 + 2 * 3) * 2  # points × (a group, and the whole gradient)
    again = walk(objective, directions["one"], (0, 0.5, 1, 2), probes=2, work=ledger, name="one")
    assert again.psi(temperature=S) == plain["one"]
    assert ledger.spent()[2] == units
    with pytest.raises(InputError, match="name is empty"):
        walk(objective, directions["one"], (0, 0.5, 1, 2), probes=2, work=ledger)


@pytest.mark.parametrize(
    ("radii", "direction", "message"),
    [
        ((0, 1, 2), along(1, 0, 0), "at least 4 different"),
        ((0, 1, 1, 2), along(1, 0, 0), "at least 4 different"),
        ((0, 1, 2, math.inf), along(1, 0, 0), "finite"),
        (RADII, along(1, 0), "expected the shapes"),
        (RADII, along(1, 0, 0) * 2, "direction has 2 tensors"),
        (RADII, [torch.ones(3)], "length 1.73205: expected 1"),
        (RADII, [torch.full((3,), math.nan)], "length nan: expected 1"),
    ],
)
def test_bad_walks(radii, direction, message):
    with pytest.raises(InputError, match=message) as error:
        walk(exactly(lambda w: w.square().sum()), direction, radii, probes=2)
    assert "\n" not in str(error.value)


def test_bad_names_and_directions():
    objective = exactly(lambda w: w.square().sum(), 0.0, 0.0)
    for names, message in [(("rnadom",), "'rnadom' is unknown"), (("gradient",), "the gradient has length 0"),
                           (("parameters",), "θ has length 0"), (("random 7",), "'random 7' is unknown")]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            rays(objective, RADII, names, probes=2)
    with pytest.raises(InputError, match="seed=-1"):
        directions(objective, -1)
    found = walk(objective, along(1, 0), RADII, probes=2)
    with pytest.raises(InputError, match="temperature=0"):
        found.psi(temperature=0)
    with pytest.raises(InputError, match="weight_decay=-1"):
        found.psi(-1, temperature=1)
