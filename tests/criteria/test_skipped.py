"""What the search for symmetries passes over, and how it says so."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.criteria.models import make
from villani.commands.audit.results import skipped_record
from villani.commands.audit.tables import skipped_table
from villani.criteria.degrees import Degrees
from villani.criteria.differential import audit_differential, short_batch
from villani.criteria.skipped import Skipped, incomplete
from villani.criteria.symmetries import generators
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective


@pytest.mark.parametrize("spec", ["opt-125m", "qwen2-125m?kv_heads=2"])
def test_a_search_that_understood_everything_says_nothing(spec):
    objective = make(spec)
    degrees = Degrees(trace_loss(objective, short_batch(objective)))
    generators(degrees)
    assert degrees.skipped.all() == ()


class Through(nn.Module):
    """L = softplus(w·f(v·x)): with f of degree 1, v may grow as w shrinks."""

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
        self.w = nn.Parameter(torch.tensor([1.3, 0.6], dtype=torch.float64))
        self.apart = nn.Parameter(torch.tensor([0.2], dtype=torch.float64))


def through(f):
    return Objective(
        Through(), [0.0] * 12, 0.1,
        loss_fn=lambda m, _: F.softplus((m.w * f(m.v)).sum()) + torch.tanh(m.apart).sum(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("f", "operation"),
    [(lambda v: torch.lerp(v, 2 * v.flip(0), 0.3), "lerp"), (lambda v: torch.hypot(v, v), "hypot"),
     (lambda v: torch.median(v).expand(2), "median")],
)  # fmt: skip
def test_operations_that_are_not_understood_are_named_with_what_they_hide(f, operation):
    objective = through(f)
    names = [p.name for p in objective.parameters.parameters]
    graph = trace_loss(objective, short_batch(objective))
    degrees = Degrees(graph)
    assert generators(degrees) == []  # though R·v, w/R leaves L as it is:
    model = objective.model
    assert torch.allclose((model.w / 4 * f(4 * model.v)).sum(), (model.w * f(model.v)).sum())
    [skipped] = degrees.skipped.all()
    assert operation in skipped.operation
    assert skipped.count == 1
    assert [names[i] for i in skipped.tensors] == ["v"]
    sentence = incomplete([skipped], names)
    assert sentence.startswith("The search is not complete")
    assert operation in sentence
    assert "any of v." in sentence
    found = audit_differential(objective, 0.1, search=0)
    assert found.skipped == (skipped,)
    assert sentence in found.outcome.reason
    record = skipped_record(skipped, objective.parameters)
    assert record.tensors == ["v"]
    assert record.operation in skipped_table([record])


def test_functions_that_take_no_rescaling_hide_nothing():
    objective = through(torch.sigmoid)
    degrees = Degrees(trace_loss(objective, short_batch(objective)))
    generators(degrees)
    assert degrees.skipped.all() == ()


def test_what_follows_an_operation_that_was_skipped_is_named_too():
    """v has degree 0 at the second only because of the first."""
    objective = through(lambda v: torch.lerp(torch.hypot(v, v), v, 0.3))
    skipped = Degrees(trace_loss(objective, short_batch(objective))).skipped.all()
    assert [s.operation.split(".")[1] for s in skipped] == ["hypot", "lerp"]


def test_long_lists_are_cut_and_counted():
    names = [f"t{i}" for i in range(9)]
    skipped = [Skipped(f"aten.f{i}.default", "has no rule", 1 + i % 2, "here", (i,)) for i in range(9)]
    sentence = incomplete(skipped, names)
    assert "aten.f5.default" in sentence
    assert "aten.f6.default" not in sentence
    assert "and 3 kinds more" in sentence
    assert "any of t0, t1, t2, t3 and 5 more" in sentence
    assert "aten.f0.default (once, at here)" in sentence
    assert "aten.f1.default (2 times, first at here)" in sentence
    assert incomplete([], names) == ""
    assert "symmetries that pass it" in incomplete([Skipped("f", "has no rule", 1, "here", ())], names)
