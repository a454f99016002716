import numpy as np
import pytest

from tests.conftest import dense, make_model, make_pool
from villani.criteria.guard import GuardMeter
from villani.errors import InputError
from villani.objective.objective import Objective

TEMPERATURE = 0.5


def test_guard_is_that_of_the_dense_hessian():
    """Theorem C's formula from a dense Hessian and Gram matrix, on the one orbit of a hand-checked pair of blocks."""
    model, pool = make_model("gpt2"), make_pool(4)
    objective = Objective(model, pool)
    meter = GuardMeter(objective, TEMPERATURE, probes=8)
    found = {guard.orbit: guard.weight_decay_squared for guard in meter.measure()}
    oracles = [dense(model, group, second=True) for group in pool]
    tokens = np.array([o.tokens for o in oracles])
    total = np.sum([o.gradient for o in oracles], axis=0)
    hessian = np.sum([o.hessian for o in oracles], axis=0) / tokens.sum()
    theta = np.concatenate([p.tensor.detach().numpy().ravel() for p in objective.parameters.parameters])
    squares = np.sum([o.gradient**2 for o in oracles], axis=0)
    unbiased = (total**2 - squares) / (tokens.sum() ** 2 - (tokens**2).sum())  # entry by entry
    pairs = zip(meter.parts.labels, objective.parameters.tensors, strict=True)
    labels = np.concatenate([part.expand(tensor.shape).numpy().ravel() for part, tensor in pairs])
    assert len(found) >= 2
    for name, exponents in meter.orbits.items():
        of_entries = exponents[labels]
        a, b = of_entries == 1, of_entries == -1
        exact = (TEMPERATURE * np.diag(hessian)[b].sum() - unbiased[b].sum()) / (theta[a] ** 2).sum()
        estimate = found[name]
        assert estimate.n == 4
        assert abs(estimate.value - exact) < 6 * estimate.sem  # 4 groups: t with 3 degrees of freedom
        assert estimate.sem < 0.5 * abs(exact) + 1


def test_undecayed_blocks_give_no_guard_and_steps_have_probes_of_their_own():
    model, pool = make_model("gpt2"), make_pool(4)
    meter = GuardMeter(Objective(model, pool, decay="match:attn"), TEMPERATURE)
    assert meter.values(3) == meter.values(3) != meter.values(4)
    assert 0 < len(meter.values()) < len(meter.orbits)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"finite": True}, "sample of at least 3"), ({"groups": 2}, "groups=2"), ({"temperature": 0.0}, "temperature=0")],
)
def test_bad_guards_are_told(change, words):
    objective = Objective(make_model("gpt2"), make_pool(change.get("groups", 4)), finite=change.get("finite", False))
    with pytest.raises(InputError, match=words):
        GuardMeter(objective, change.get("temperature", TEMPERATURE))
