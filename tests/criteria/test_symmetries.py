"""The search for symmetries: its algebra against dense elimination, its cost, and what it passes over."""

import random
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tests.criteria.models import make
from villani.commands.audit.run import skipped_record
from villani.commands.audit.tables import skipped_table
from villani.criteria import rounding
from villani.criteria.degrees import Degrees
from villani.criteria.differential import audit_differential, short_batch
from villani.criteria.equations import Equations
from villani.criteria.orbits import Orbit, orbits_of
from villani.criteria.rounding import SCALES, Drift
from villani.criteria.skipped import incomplete
from villani.criteria.symmetries import generators
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective


def echelon(rows, count):
    """The reduced echelon form, newest unknown first, over fractions: dense Gauss–Jordan elimination."""
    rows, pivots = [list(map(Fraction, row)) for row in rows], {}
    for column in reversed(range(count)):
        row = next((r for r in rows if r[column] and not any(r is p for p in pivots.values())), None)
        if row is None:
            continue
        row[:] = [v / row[column] for v in row]
        for other in rows:
            if other is not row and other[column]:
                factor = other[column]
                other[:] = [a - factor * b for a, b in zip(other, row, strict=True)]
        pivots[column] = row
    return pivots


@pytest.mark.parametrize("seed", range(6))
def test_equations_are_solved_as_dense_elimination_solves_them(seed):
    rng, count = random.Random(seed), 12
    rows = [[rng.choice((0, 0, 0, 1, -1, 2, 3)) for _ in range(count)] for _ in range(7)]
    equations = Equations()
    unknowns = [equations.unknown() for _ in range(count)]
    for row in rows:
        form = 0
        for unknown, coefficient in zip(unknowns, row, strict=True):
            form = equations.combine(form, unknown, coefficient)
        equations.demand_equal(form, 0)
    pivots = echelon(rows, count)
    for place, unknown in enumerate(unknowns):
        expected = {place + 1: 1}
        if place in pivots:
            expected = {i + 1: -c for i, c in enumerate(pivots[place]) if c and i != place}
        assert equations.resolve(unknown) == expected


def test_long_chains_are_followed_once():
    """Each unknown equal to the one before, told from the newest on: rows are chains of all lengths."""
    equations, count = Equations(), 20_000
    unknowns = [equations.unknown() for _ in range(count)]
    for older, newer in reversed(list(pairwise(unknowns))):
        equations.demand_equal(newer, older)
    assert all(equations.resolve(u) == {1: 1} for u in reversed(unknowns))


def llama(layers, attention="eager"):
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=12, max_position_embeddings=8, attn_implementation=attention,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return Objective(model, torch.randint(0, 16, (12, 1, 6), generator=torch.Generator().manual_seed(0)), 0.1)


def test_checking_an_orbit_runs_its_own_layer_alone(monkeypatch):
    """The operations that are run again do not grow with depth, and what comes out is what the whole graph gives."""
    counts = []
    for layers in (1, 3):
        objective = llama(layers)
        graph = trace_loss(objective, short_batch(objective))
        tensors = [t.detach() for t in objective.parameters.tensors]
        drift, run = Drift(graph, tensors), []
        original = rounding.execute
        monkeypatch.setattr(rounding, "execute", lambda node, *rest: run.append(node) or original(node, *rest))  # noqa: B023
        orbits = orbits_of(generators(graph), objective.parameters)
        layer = [o for o in orbits if "layers.0" in o.name]
        assert all(drift.along(o)[0] == 0 for o in layer)
        counts.append(len(run) / len(layer))
        monkeypatch.setattr(rounding, "execute", original)
        broken = Orbit("", {2: torch.tensor(1.0)}, 1, 1)
        moved = [t * (SCALES[0] if i == 2 else 1) for i, t in enumerate(tensors)]
        low = [t * (SCALES[1] if i == 2 else 1) for i, t in enumerate(tensors)]
        with torch.no_grad():
            here = float(graph.run(tensors))
            expected = max(abs(float(graph.run(m)) - here) for m in (moved, low))
        assert drift.along(broken)[0] == expected > 0
    assert counts[0] == counts[1]


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
