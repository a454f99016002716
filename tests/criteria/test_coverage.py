"""Criteria (ii) and (iii): certified where everything decays, refuted with a witness where not."""

import dataclasses
import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn
from torch.nn import functional as F

from tests.criteria.models import SPECS, closed, layers_of, make
from villani.criteria.coverage import audit_coverage
from villani.criteria.flat import FlatDirection
from villani.errors import InputError
from villani.objective.objective import Objective

# per layer: (end of the tensor's name, entries that move) under the mask of the Hugging Face Trainer
FLAT = {
    "gpt-neo-125m?window=3": [("attention.out_proj.bias", 16), ("mlp.c_proj.bias", 16)],
    "gpt2": [("attn.c_attn.bias", 16), ("attn.c_proj.bias", 16), ("mlp.c_proj.bias", 16)],
    "opt-125m": [("k_proj.bias", 16), ("out_proj.bias", 16), ("fc2.bias", 16)],
    "pythia-70m?heads=2": [("query_key_value.bias", 12), ("dense.bias", 16), ("mlp.dense_4h_to_h.bias", 16)],
    "llama-160m?kv_heads=2": [],
    "qwen2-125m?kv_heads=2": [],
    "mistral": [],
}


def check_witnesses(objective, found):
    """Evaluate them again, with the model itself: flat directions and the slab."""
    at_theta = objective.loss()
    for flat in found.flat:
        direction = [torch.zeros_like(t) for t in objective.parameters.tensors]
        direction[flat.index] = flat.direction
        assert flat.changes == pytest.approx((0, 0, 0), abs=1e-12)
        assert not objective.parameters.parameters[flat.index].decayed or objective.weight_decay == 0
        for c in (1.0, -30.0):
            with objective.displaced(direction, c):
                assert objective.loss() == pytest.approx(at_theta, rel=1e-4)
    if found.slab is not None:
        assert max(found.slab.losses) < found.slab.bound
        assert max(abs(x - at_theta) for x in found.slab.losses) > 1e-2  # no flat direction: it merely stays bounded
        direction = [torch.zeros_like(t) for t in objective.parameters.tensors]
        for i in found.slab.indices:
            direction[i] = torch.randn(direction[i].shape, generator=torch.Generator().manual_seed(i))
        with objective.displaced(direction, 1e4):
            assert objective.loss() < found.slab.bound


@pytest.mark.parametrize("spec", SPECS)
def test_masks_of_the_trainer(spec):
    objective = make(spec, "hf")
    before, state = objective.parameters.checksum(), torch.get_rng_state()
    found = audit_coverage(objective)
    assert objective.parameters.checksum() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.growth.verdict, found.tails.verdict) == ("refuted", "refuted")
    assert found.log_integral_bound(1e-3) == math.inf
    assert found.decayed_parameters < found.parameters
    expected = FLAT[spec] * layers_of(spec)
    assert [f.coordinates for f in found.flat] == [n for _, n in expected]
    for flat, (name, _) in zip(found.flat, expected, strict=True):
        assert flat.tensor.endswith(name)
        assert flat.deleted_by
        operation, _, where = flat.deleted_by[0].partition(" at ")
        assert operation in ("aten.softmax.int", "aten.layer_norm.default")
        assert ".py:" in where
    final = {p.name for p in objective.parameters.parameters if not p.decayed} - set(found.slab.tensors)
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in final} <= {"ln_f", "final_layer_norm", "norm"}
    check_witnesses(objective, found)


def test_where_rotations_forbid_it_the_key_bias_is_left_alone():
    """Pythia rotates 2 of 8 dimensions of each head: flat are the keys' other 6, interleaved by head."""
    found = audit_coverage(make("pythia-70m?heads=2", "hf"))
    moved = found.flat[0].direction.reshape(2, 3, 8).ne(0)  # (heads, qkv, dimension)
    assert moved[:, 1, 2:].all()
    assert int(moved.sum()) == 12


@pytest.mark.parametrize("spec", ["gpt2", "llama-160m?kv_heads=2"])
def test_everything_decays(spec):
    objective = make(spec, "all", weight_decay=0.2)
    found = audit_coverage(objective)
    assert (found.growth.verdict, found.tails.verdict) == ("holds", "holds")
    assert found.undecayed == ()
    assert found.lower_bound == 0
    d = objective.parameters.size
    assert found.log_integral_bound(0.3) == pytest.approx(d / 2 * math.log(math.pi * 0.3 / 0.2))


@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_the_integral_bound_holds_against_quadrature(slope):
    """Where L is constant, the bound is the integral itself."""
    objective = closed(lambda w: (F.softplus(slope * w) - 0.8 * slope * w).sum() + 1.0, 0.3, weight_decay=0.5)
    found = audit_coverage(objective, loss_bound=1.0 + (0.0 if slope else math.log(2)))  # softplus(x) ≥ 0.8 x
    assert "as stated" in found.tails.reason
    s = 0.7

    def density(w):
        loss = math.log1p(math.exp(slope * w)) - 0.8 * slope * w + 1
        return math.exp(-2 / s * (loss + 0.25 * w * w))

    integral = math.log(quad(density, -20, 20)[0])
    bound = found.log_integral_bound(s)
    assert integral < bound if slope else integral == pytest.approx(bound, abs=1e-9)


def test_lower_bounds_of_custom_losses():
    assert audit_coverage(closed(lambda w: w.square().sum() + 3)).lower_bound == 3
    assert audit_coverage(closed(lambda w: F.softplus(w).sum())).growth.verdict == "holds"
    unbounded = audit_coverage(closed(lambda w: w.sum()))
    assert (unbounded.growth.verdict, unbounded.lower_bound) == ("not refuted", None)
    assert "loss_bound" in unbounded.growth.reason
    assert unbounded.log_integral_bound(1.0) is None
    pairs = Objective(
        closed(torch.sum).model, [1.0, 2.0], 0.1, loss_fn=lambda m, g: (m.w.square().sum() + 4 * g, 2 * g)
    )
    assert audit_coverage(pairs).lower_bound == 2


class Regression(nn.Module):
    """Softmax regression with an output bias: constant shifts of it are flat."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 4)

    def forward(self, x):
        return self.linear(x)


def regression(decay, weight_decay=0.1):
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    y = torch.tensor([0, 1, 2])
    return Objective(Regression(), [x], weight_decay, decay, loss_fn=lambda m, x: F.cross_entropy(m(x), y))


def test_output_bias():
    found = audit_coverage(regression("hf"))
    (flat,) = found.flat
    assert isinstance(flat, FlatDirection)
    assert flat.tensor == "linear.bias"
    assert torch.equal(flat.direction, torch.ones(4, dtype=torch.float64))
    assert "cross_entropy" in flat.deleted_by[0]
    assert found.slab is None
    assert (found.growth.verdict, found.tails.verdict) == ("refuted", "refuted")
    assert audit_coverage(regression("all")).growth.verdict == "holds"


def test_no_decay_at_all():
    found = audit_coverage(regression("all", weight_decay=0.0))
    assert found.growth.verdict == "refuted"
    assert found.decayed_parameters == 0
    assert set(found.undecayed) == {"linear.weight", "linear.bias"}


def test_a_loss_that_grows_by_itself_is_not_refuted():
    found = audit_coverage(closed(lambda w: w.square().sum(), weight_decay=0.0))
    assert (found.growth.verdict, found.tails.verdict) == ("not refuted", "not refuted")
    assert "tried" in found.tails.reason


class Gain(nn.Module):
    """ℓ(g·w) with an undecayed gain g: no flat direction, no bound along g, but an orbit."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Parameter(torch.tensor([0.5, 2.0, 0.0]))
        self.w = nn.Parameter(torch.tensor([-1.0, 0.3, 0.7]))


def gain(decay="match:w$"):
    return Objective(Gain(), [0.0], 0.1, decay, loss_fn=lambda m, _: F.softplus((m.norm * m.w).sum()))


def test_an_orbit_refutes_growth_and_leaves_tails_open():
    found = audit_coverage(gain(), {"gain": {0: 1.0, 1: -1.0}})
    assert (found.growth.verdict, found.tails.verdict) == ("refuted", "not refuted")
    assert (found.flat, found.slab) == ((), None)
    (witness,) = found.orbits
    assert witness.changes == (0.0, 0.0, 0.0)
    assert witness.decayed_norms_squared == pytest.approx([(1 + 0.09 + 0.49) / r**2 for r in (2, 4, 8)])
    assert witness.norms_squared[-1] > 64 * 4


def test_an_orbit_may_run_the_other_way_and_be_given_by_entries():
    half = torch.tensor([-1.0, 0.0, -1.0])
    found = audit_coverage(gain(), {"one entry": {0: half, 1: -half}})
    assert found.growth.verdict == "refuted"
    assert found.orbits[0].scales == (0.5, 0.25, 0.125)


@pytest.mark.parametrize(
    "orbit",
    [
        {0: 1.0, 1: 1.0},  # the decayed norm grows
        {0: 1.0},  # the loss changes
        {0: torch.tensor([0.0, 0.0, 1.0])},  # what grows is 0
    ],
)
def test_orbits_that_refute_nothing(orbit):
    found = audit_coverage(gain(), {"no": orbit})
    assert (found.growth.verdict, found.orbits) == ("not refuted", ())


def test_bad_input():
    with pytest.raises(InputError, match="loss_bound=-inf"):
        audit_coverage(gain(), loss_bound=-math.inf)
    with pytest.raises(InputError, match="orbit no: tensors"):
        audit_coverage(gain(), {"no": {2: 1.0}})


def test_rows_that_are_never_looked_up_count_only_for_a_finite_data_set():
    model = make("llama-160m?kv_heads=2").model
    ids = torch.randint(0, 5, (3, 1, 6), generator=torch.Generator().manual_seed(0))

    def audit(finite):
        return audit_coverage(Objective(model, ids, 0.1, "olmo", finite))

    assert audit(False).flat == ()
    (flat,) = audit(True).flat
    assert flat.tensor == "model.embed_tokens.weight"
    assert "these groups never look up" in flat.kind
    assert not flat.direction[ids.flatten()].any()


def test_what_cannot_be_traced_is_unknown_unless_everything_decays():
    def objective(decay):
        return Objective(Gain(), [0.0], 0.1, decay, loss_fn=lambda m, _: m.w.sum() ** 2 if m.norm.sum() > 0 else m.w[0])

    found = audit_coverage(objective("match:w$"))
    assert (found.growth.verdict, found.tails.verdict) == ("unknown", "unknown")
    assert "cannot be traced" in found.growth.reason
    assert audit_coverage(objective("all"), loss_bound=0.0).growth.verdict == "holds"


FALSE_BEFORE = {
    # name → loss, and the bound from below that it truly has over all of space, if any
    "softplus, β = 0.1": (lambda w: F.softplus(w, beta=0.1).sum() - F.softplus(w, beta=0.1).sum(), None),
    "softplus, β < 0": (lambda w: F.softplus(w, beta=-1.0).sum(), None),
    "unbounded times underflow": (lambda w: -((w[0].tanh() - 800).exp() * w[1] ** 2), None),
    "sigmoid of −800": (lambda w: -((w[0].tanh() - 800).sigmoid() * w[1] ** 2), None),
    "root of log": (lambda w: w[0].log().tanh(), None),
    "masked rows": (lambda w: w.masked_fill(torch.ones(3, dtype=torch.bool), -math.inf).softmax(0)[0], None),
    "a mean of nothing": (lambda w: F.cross_entropy(w[None], torch.tensor([-100])), None),
}


@pytest.mark.parametrize("case", list(FALSE_BEFORE))
def test_what_has_no_lower_bound_gets_none(case):
    function, bound = FALSE_BEFORE[case]
    assert audit_coverage(closed(function, 0.5, 1.0, 2.0)).lower_bound is bound


def test_variance_reads_its_correction():
    """Of 16 numbers in [−1, 1], over 16 − 15: 16 at the most, reached by ±1."""
    loss = lambda w: -torch.var(w.tanh(), correction=15)
    found = audit_coverage(closed(loss, *[(-1.0) ** i * 9 for i in range(16)])).lower_bound
    assert found == pytest.approx(-16, rel=1e-5)
    assert found <= -16


def test_a_bound_that_a_value_contradicts_is_refused_with_a_sentence(monkeypatch):
    from villani.criteria import enclosures
    from villani.criteria.intervals import Range

    monkeypatch.setitem(
        enclosures.RULES, torch.ops.aten.square.default,
        dataclasses.replace(enclosures.RULES[torch.ops.aten.square.default], range=lambda _: Range(3.0, 3.5)),
    )  # fmt: skip
    certified = audit_coverage(closed(lambda w: w.square().sum()))
    assert certified.lower_bound is None
    assert certified.growth.verdict == "not refuted"
    assert "a value lies outside it: aten.square.default" in certified.growth.reason
    slab = audit_coverage(closed(lambda w: w.square().sum(), weight_decay=0.0))
    assert slab.slab is None
    assert "a value lies outside it: aten.square.default" in slab.tails.reason


def test_a_stated_bound_that_the_loss_contradicts_is_refused():
    with pytest.raises(InputError, match=r"loss_bound=7: L = 5\.25 at the given θ"):
        audit_coverage(closed(lambda w: w.square().sum()), loss_bound=7.0)
