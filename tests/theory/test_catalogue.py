"""Named potentials: what is proved of them against plain evaluation; names, parameters and expressions."""

import numpy as np
import pytest

from villani.errors import InputError
from villani.theory.catalogue import CATALOGUE, case, named


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("binary-ce", {"y": 2.0}), ("binary-ce", {"y": -3.0}), ("tied", {"a": -20.0}), ("tied", {"a": 0.0}),
        ("ce2", {"a": -100.0}), ("mixture", {"m": -2.0}), ("mixture", {"m": 0.0}), ("kink", {"l": -1.0}),
        ("linear-gaussian", {"c": -0.05}), ("ce1", {"a": -3.0}),
    ],
)  # fmt: skip
def test_what_is_proved_holds_at_parameters_of_any_sign(name, parameters):
    """Closed forms against plain evaluation on a grid; they hold, or are not claimed."""
    case = named(name, parameters=parameters)
    proved, law = case.proved, case.potential
    assert proved is not None
    w = np.linspace(-30, 30, 6001) if law.core == 1 else np.linspace(-5, 5, 101)
    grid = np.array(np.meshgrid(*[w] * law.core)).reshape(law.core, -1)
    jet = law.loss.jet(grid)
    radius = np.sqrt((grid**2).sum(axis=0))
    force = (grid * jet.gradient).sum(axis=0)
    if proved.curvature is not None:
        bends = np.linalg.eigvalsh(np.moveaxis(jet.hessian, 2, 0))[:, 0]
        assert bends.min() >= -proved.curvature - 1e-9
    assert np.sqrt((jet.gradient**2).sum(axis=0)).max() <= proved.lipschitz * (1 + 1e-9) + 1e-12
    assert np.ptp(jet.value) <= proved.oscillation * (1 + 1e-9) + 1e-12
    if proved.offset is not None:
        assert force.min() >= -proved.offset * (1 + 1e-9) - 1e-9
    if proved.ball is not None:
        for size in (0.5, 3.0):
            assert np.ptp(jet.value[radius <= size]) <= proved.ball(size) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    ("name", "parameters"), [("tied", {"n": 0.0}), ("tied", {"n": -1.0}), ("two-factors", {"n": -1.0})]
)
def test_outside_its_domain_nothing_is_proved(name, parameters):
    assert named(name, parameters=parameters).proved is None


def test_defaults_are_replaced_one_by_one():
    default = named("tied")
    changed = named("tied", weight_decay=0.3, beta=2.0, parameters={"a": 5.0})
    assert (changed.potential.weight_decay, changed.potential.beta) == (0.3, 2.0)
    w = np.array([[0.7]])
    assert changed.potential.loss(w)[0] == pytest.approx(np.log1p(np.exp(-5 * 0.49)))
    assert default.potential.loss(w)[0] == pytest.approx(np.log1p(np.exp(-20 * 0.49)))
    assert changed.proved.curvature == 5
    assert named("wells", shape="ridge", weight_decay=0.1).proved is None


def test_a_text_is_a_name_or_an_expression():
    assert case("tied").name == "tied"
    given = case("(w-3)**2")
    assert (given.potential.weight_decay, given.potential.beta, given.proved) == (0.1, 1.0, None)
    assert given.potential.loss(np.array([[5.0]]))[0] == 4
    with pytest.raises(InputError, match="potential 'doublewell'"):
        case("doublewell")
    with pytest.raises(InputError, match="--set m: tied has no such parameter; it has a, n"):
        named("tied", parameters={"m": 1.0})
    assert all(named(name).potential.dimension >= 1 for name in CATALOGUE)
