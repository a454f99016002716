"""What a rule of interval arithmetic reads, refuses, and what rounding adds to its result."""

import math

import pytest
import torch

from tests.criteria.test_enclosures import Box, graph_of
from villani.criteria.enclosure import CORRECT, EXACT, Enclosure, Operation
from villani.criteria.intervals import UNKNOWN, Range

aten = torch.ops.aten


class Given(Box):
    """A tensor of θ whose range is stated."""

    def __init__(self, *shape):
        self.shape = shape


def operation(target, args, *known, **kwargs):
    graph, _ = graph_of(target, args, kwargs)
    inputs = [n for n in graph.nodes if n in graph.parameters]
    return Operation(graph.loss, dict(zip(inputs, known, strict=True)), graph.constants)


def test_arguments_are_read_by_name_with_their_defaults():
    o = operation(aten.leaky_relu.default, [Given(3, 4)], Range(-1, 2))
    assert o["negative_slope"] == 0.01
    assert o.range("self") == Range(-1, 2)
    near = o.range("negative_slope")  # as a float and as a double
    assert near.low <= 0.01 <= near.high
    assert float(torch.tensor(0.01)) in (near.low, near.high)
    assert o.look("no number") is UNKNOWN
    assert o.precision.bits == 32
    assert operation(aten.sum.dim_IntList, [Given(3, 4), [1]], Range(0, 1)).terms == 4


def test_an_argument_that_is_not_read_leaves_nothing_known():
    read = Enclosure(lambda _: Range(0, 1), frozenset({"self"}), EXACT)
    assert read(operation(aten.leaky_relu.default, [Given(2)], Range(0, 1))) == Range(0, 1)
    assert read(operation(aten.leaky_relu.default, [Given(2), 0.5], Range(0, 1))) is UNKNOWN
    whatever = Enclosure(lambda _: Range(0, 1), None, EXACT)
    assert whatever(operation(aten.leaky_relu.default, [Given(2), 0.5], Range(0, 1))) == Range(0, 1)


def test_what_may_be_no_number_leaves_nothing_known():
    rule = Enclosure(lambda _: Range(0, 1), None, EXACT)
    assert rule(operation(aten.add.Tensor, [Given(2), Given(2)], Range(0, 1), UNKNOWN)) is UNKNOWN
    void = Enclosure(lambda _: Range(math.nan, 1), None, EXACT)
    assert void(operation(aten.abs.default, [Given(2)], Range(0, 1))) is UNKNOWN


@pytest.mark.parametrize("value", [0.1, 1 / 3, -math.pi])
def test_roundings_are_added_to_the_result(value):
    o = operation(aten.abs.default, [Given(2)], Range(0, 1))
    exact, correct, eight = (Enclosure(lambda _: Range(value, value), None, steps)(o) for steps in (EXACT, CORRECT, 8))
    assert exact == Range(value, value)
    assert {correct.low, correct.high} == {value, float(torch.tensor(value))}
    eps = torch.finfo(torch.float32).eps
    assert eight.high - value == pytest.approx(4 * eps * abs(value), rel=1e-3)
    assert value - eight.low == pytest.approx(4 * eps * abs(value), rel=1e-3)
    cut = Enclosure(lambda _: Range(value, value), None, 8, least=value, most=value)(o)
    assert (cut.low, cut.high) == (value, value), "what a result never leaves, whatever the rounding"
