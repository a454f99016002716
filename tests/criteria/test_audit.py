import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from tests.criteria.models import make
from tests.criteria.test_orbits import binary, factors, finite, softmax_regression
from villani import InputError, Objective, audit
from villani.criteria.audit import replay_stages, stages
from villani.work.work import Work


def test_two_factors_are_refuted_above_their_threshold_and_the_walk_falls():
    """Lemma A at t = 0: s* = 4λ² for balanced labels."""
    found = audit(factors(binary(0.5), 0.0, 3.0, weight_decay=0.1), temperature=0.05, search=0, rays=(), loss_bound=0.0)
    iv = found.differential
    assert iv.outcome.verdict == "refuted"
    assert iv.refuted_above == pytest.approx(0.04, rel=1e-9)
    worst = iv.findings[0]
    assert worst.guard == pytest.approx(math.sqrt(0.05 / 4), rel=1e-9)  # λ at which s* is the temperature
    for step in worst.walk:
        assert step.loss_change == 0
        assert step.measured.value == pytest.approx(step.predicted.value, rel=1e-9)
        # T9 at R = 3·scale: R²(λ²/s − 1/4) − 2λ
        assert step.measured.value == pytest.approx((3 * step.scale) ** 2 * (0.2 - 0.25) - 0.2, rel=1e-9)
    assert [o.verdict for o in found.outcomes.values()] == ["holds", "holds", "holds", "refuted"]
    assert found.villani is False
    below = audit(factors(binary(0.5), 0.0, 3.0, weight_decay=0.1), temperature=0.03, search=0, rays=())
    assert "does not include" in below.differential.outcome.reason


def test_three_factors_are_refuted_whatever_the_decay():
    """Lemma E: at ∇_B L = 0 the threshold is 0 for every λ."""
    for decay in (0.1, 10.0):
        iv = audit(
            factors(binary(0.5), 3.0, 3.0, 0.0, weight_decay=decay), temperature=1e-6, search=0, rays=()
        ).differential
        assert iv.outcome.verdict == "refuted"
        assert iv.refuted_above == 0
        assert iv.findings[0].orbit.theorem == "D"
        assert iv.findings[0].guard == math.inf


class Frozen(nn.Module):
    """Softmax regression on features that do not move."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double())


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_positive_cases_are_not_refuted(temperature):
    """THEORY.md §2.2, R1."""
    x, y = torch.tensor([[1.0, 0], [0, 1], [1, 1]]).double(), torch.tensor([0, 1, 2])
    regression = Objective(Frozen(), [(x, y)], 0.1, finite=True,
                           loss_fn=lambda m, g: F.cross_entropy(g[0] @ m.matrix.T, g[1]))  # fmt: skip
    for objective in (regression, finite(lambda w: (w**2).sum(), 1.0, -2.0)):
        found = audit(objective, temperature, rays=())
        assert [o.verdict for o in found.outcomes.values()] == ["holds", "holds", "holds", "not refuted"]
        assert found.villani is None
        assert "no rescaling symmetry" in found.differential.outcome.reason


def test_softmax_regression_with_gain_is_refuted():
    """Lemma B at the data of T6."""
    iv = audit(softmax_regression(10.0, [[0.0, 0]] * 3), temperature=0.7, search=0, rays=()).differential
    assert iv.refuted_above == pytest.approx(0.211666667, abs=5e-10)


def test_memory_and_a_run_that_was_killed_give_the_same_bits(tmp_path):
    """And every stage that is begun was declared, in the order in which they come."""
    small = make("gpt-neo-125m?window=3", weight_decay=0.01)
    ids = torch.randint(0, 13, (12, 1, 7), generator=torch.Generator().manual_seed(2))
    objective = Objective(small.model, ids, 0.01)
    begun, asked = [], {"confirmed": 1, "search": 1, "rays": ("parameters",), "scales": (2.0,), "ray_groups": 3}

    class Named(Work):
        left = math.inf  # units until it is killed

        def stage(self, text, name=None):
            begun.append(name or text)
            super().stage(text, name)

        def put(self, key, arrays, **cost):
            if Named.left == 0:
                raise KeyboardInterrupt
            Named.left -= 1
            super().put(key, arrays, **cost)

    def audited(units):
        Named.left = units
        with Named(tmp_path / "run") as work:
            work.open("audit", "", {"of": 1}, {})
            return bits(audit(objective, 1e3, work=work, **asked))

    def bits(found):
        first = found.differential.findings[0]
        joint = [m.joint.covariance.tobytes() for m in found.rays["parameters"].measurements]
        return repr((first.threshold, first.walk, found.differential.outcome)), joint

    whole = bits(audit(objective, 1e3, **asked))
    with pytest.raises(KeyboardInterrupt):
        audited(9)
    begun.clear()
    assert audited(math.inf) == whole
    declared = list(stages(
        groups=12, finite=False, probes=1, confirmed=1, search=1, rays=1, ray_groups=3, undecayed=False
    ))  # fmt: skip
    order = [declared.index(name) for name in begun if name != "telling Δ_B L from rounding"]
    assert order == sorted(order)
    assert len(begun) > 6


def test_a_replay_consists_of_what_its_witness_claims():
    whole = replay_stages(groups=12, probes=6, scales=4, orbit=True, flat=True, slab=True)
    assert whole["walking the orbit"] == pytest.approx(6 * 12 * (1 + 6 * 1.3))  # s*, R = 1, and four R beyond
    less = replay_stages(groups=12, probes=6, scales=4, orbit=False, flat=False, slab=True)
    assert list(less) == ["bounding the loss"]


def test_a_language_model_is_audited():
    small = make("gpt-neo-125m?window=3", weight_decay=0.01)
    ids = torch.randint(0, 13, (32, 4, 7), generator=torch.Generator().manual_seed(2))
    objective = Objective(small.model, ids, 0.01)
    before = objective.parameters.checksum()
    told = set()
    work = Work(progress=SimpleNamespace(stage=told.add, advance=lambda done, total: None))
    found = audit(objective, 1e3, probes=4, scales=(2.0, 16.0), search=0, rays=(), work=work)
    assert objective.parameters.checksum() == before
    assert told == {
        "reading the graph of the loss", "looking for symmetries", "checking orbits on the loss", "screening orbits",
        "confirming orbits", "telling Δ_B L from rounding", "walking the orbit", "looking for what nothing holds back",
    }  # fmt: skip
    iv = found.differential
    assert iv.outcome.verdict == "refuted"
    assert 0 < iv.refuted_above < 1e3
    worst = iv.findings[0]
    assert worst.confirmed
    for step in worst.walk:
        assert step.loss_change == 0
        error = math.hypot(step.measured.sem, step.predicted.sem)
        assert abs(step.measured.value - step.predicted.value) < 6 * error
    assert worst.walk[-1].measured.value < worst.walk[0].measured.value
    assert [o.verdict for o in found.outcomes.values()] == ["holds", "holds", "holds", "refuted"]


def test_bad_input():
    objective = make("gpt2")
    with pytest.raises(InputError, match="groups=2: expected at least 12"):
        audit(objective)
    with pytest.raises(InputError, match="temperature=-1"):
        audit(objective, temperature=-1.0)
    whole = Objective(objective.model, [g.ids for g in objective.groups], 0.1, finite=True)
    with pytest.raises(InputError, match="probes=1: expected at least 2"):
        audit(whole)


def test_what_cannot_be_traced_is_unknown():
    def branches(m, _):
        return (m.w**2).sum() if float(m.w.sum()) > 0 else m.w.abs().sum()

    found = audit(finite(lambda w: (w**2).sum(), 1.0), 1.0, rays=())
    assert found.differential.outcome.verdict == "not refuted"
    model = finite(lambda w: w.sum(), 1.0).model
    unknown = audit(Objective(model, [0.0], 0.1, finite=True, loss_fn=branches), 1.0, rays=())
    assert unknown.differential.outcome.verdict == "unknown"
    assert unknown.smoothness.verdict == "unknown"


SIZES = {"vocab_size": 13, "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 8}
SMALL = {"hidden_size": 8, "intermediate_size": 12, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
GROUPED = {"sliding_window": 3, "num_key_value_heads": 1, "head_dim": 4}


@pytest.mark.thorough
def test_an_audit_does_not_depend_on_what_computes_attention():
    """The same weights, fused and spelled out: the same orbits, thresholds up to rounding, findings and verdicts."""
    audits = []
    for attention in ("sdpa", "eager"):
        given = transformers.Gemma3TextConfig(**SIZES, **SMALL, **GROUPED, attn_implementation=attention)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            network = transformers.Gemma3ForCausalLM(given)
            for p in network.parameters():
                p.add_(0.3 * torch.randn_like(p))
        assert network.config._attn_implementation == attention
        ids = torch.randint(0, 13, (12, 1, 6), generator=torch.Generator().manual_seed(1))
        audits.append(audit(Objective(network, ids, 0.1), 1e-2, search=0, rays=(), confirmed=1, scales=(1.0, 4.0)))
    fused, eager = audits
    assert {k: o.verdict for k, o in fused.outcomes.items()} == {k: o.verdict for k, o in eager.outcomes.items()}
    assert len(fused.smoothness.normalisations) == len(eager.smoothness.normalisations) > 0
    assert [f.kind for f in fused.smoothness.findings] == [f.kind for f in eager.smoothness.findings]
    ours, theirs = ({f.orbit.name: f for f in a.differential.findings} for a in audits)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 3
    for name, a in ours.items():
        b = theirs[name]
        assert all(torch.equal(e, b.orbit.exponents[i]) for i, e in a.orbit.exponents.items())
        assert a.threshold.value == pytest.approx(b.threshold.value, rel=1e-2)
    assert fused.differential.skipped == eager.differential.skipped == ()
