"""Degrees through operations that move, join, replace or choose, against the null space of θ⊙∇L; which values are 0."""

import math

import pytest
import torch

from tests.criteria.models import closed
from tests.criteria.test_degree_rules import SERIES, Two, data, dimension, null_space
from villani.criteria.degree_places import is_zero
from villani.criteria.degrees import Degrees
from villani.criteria.symmetries import generators
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective

FUNCTIONS = {  # as those of test_degree_rules
    "a map transposed": lambda v, u: (SERIES[:2] @ v) * u[0] + (u @ SERIES[:3]).sum(),
    "a map permuted": lambda v, u: (v.permute(1, 0) @ SERIES[:2]) * u[1],
    "exchanged in front": lambda v, u: v.view(1, 2, 3).transpose(0, 1)[:, 0] * u,
    "split and swapped": lambda v, u: torch.cat(v.split([1, 2], 1)[::-1], 1) * u,
    "in parts": lambda v, u: v.chunk(2, 0)[1] * u.unbind(0)[0],
    "constant places": lambda v, u: v[:, [2, 0]] * u[:, :2],
    "places of a text": lambda v, u, mask, places, rows: v[:, rows] * u[:, :2],
    "gathered": lambda v, u, mask, places, rows: v.gather(1, places[:, :2]) * u[:, :2],
    "rolled and flipped": lambda v, u: v.roll(1, 1) * u.flip(0),
    "one for many": lambda v, u: v[:, :1].expand(2, 3) * u,
    "stacked with zeros": lambda v, u: torch.stack([torch.zeros_like(v), v]).sum(0) * u,
    "joined with a number": lambda v, u: torch.cat([v, torch.ones(2, 1, dtype=v.dtype)], 1).sum(1) * u[:, 0],
    "padded at one side": lambda v, u: torch.nn.functional.pad(v, (0, 0, 1, 0)).cumsum(0)[1:] * u,
    "between 0 and what moves": lambda v, u: v.clamp(torch.zeros_like(u), u.abs()),
    "filled with −∞": lambda v, u, mask, places, rows: (v * u).masked_fill(mask & (rows[0] > 5), -math.inf),
}  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS)
def test_all_rescalings_are_found_and_leave_the_loss(case):
    model = Two(FUNCTIONS[case])
    degrees = Degrees(trace_loss(Objective(model, [data(0)], 0.1, loss_fn=lambda m, group: m(group)), data(0)))
    assert degrees.skipped.all() == ()
    with torch.no_grad():
        before, start = model(data(0)), [p.clone() for p in model.parameters()]
        for g in generators(degrees):
            for index, (p, value) in enumerate(zip(model.parameters(), start, strict=True)):
                p.copy_(value * 1.7 ** g.exponents.get(index, torch.zeros(())))
            assert torch.allclose(model(data(0)), before, rtol=1e-12)
    assert dimension(degrees, model) == null_space(model)


def test_which_values_are_0_whatever_theta_is():
    """Each term of a sum, by the name of the operation that makes it."""

    def loss(w):
        terms = [
            torch.zeros(3) * w, w * 2, torch.zeros_like(w).neg(), w.new_zeros(3) + torch.zeros(3) * w, w - w,
            torch.full((3,), math.inf), torch.full((3,), 2.0), (torch.zeros(3) * w).view(3, 1).sum(1),
            w.new_zeros(3) + w,
        ]  # fmt: skip
        return torch.stack(terms).sum()

    graph = trace_loss(closed(loss), 0.0)
    joined = next(n for n in graph.nodes if n.target is torch.ops.aten.cat.default)
    degrees = Degrees(graph)
    expected = [True, False, True, True, False, True, False, True, False]  # w − w is 0, which algebra of zeros misses
    assert [is_zero(degrees, n) for n in joined.args[0]] == expected
    assert [is_zero(degrees, x) for x in (0, 0.0, -math.inf, 1, "text", None)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
