"""Interval arithmetic over a traced loss: between which bounds every intermediate value stays as θ varies.

The bounds hold for every θ in a box given tensor by tensor, a side of which may be infinite: for the values in real
arithmetic, and, roundings of each operation included, for those that are computed. They say that an argument of log
stays positive, that a kink is out of reach, that a loss is nonnegative, or that it is bounded along parameters that no
decay holds back. They are as loose as intervals are: arguments that depend on each other are treated as if they did
not, except for x·x and for x divided by its own root mean square. Where no rule is known (`enclosures`), a value may be
anything. What does not depend on θ is taken as it comes out in the precision of the model and in float64; differences
of far larger numbers inside a normalisation are taken for exact.

`contradiction` holds the bounds against values that were seen: no bound is used that one of them violates.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from villani.criteria.enclosure import Operation
from villani.criteria.enclosures import RULES
from villani.criteria.intervals import ANYTHING, UNKNOWN, Range, of_tensor, union
from villani.criteria.patterns import depends_on, is_floating
from villani.objective.graph import LossGraph, place


@dataclass(frozen=True, eq=False)
class Fixed:
    """What does not depend on θ: masks, counts, rotations.

    Attributes:
        values: as the model computes them.
        ranges: of those in either precision.
    """

    values: Mapping[torch.fx.Node, torch.Tensor]
    ranges: Mapping[torch.fx.Node, Range]


def fixed_values(graph: LossGraph) -> Fixed:
    """Work out what does not depend on θ."""
    given = {**graph.constants, **graph.inputs}
    moved = depends_on(graph)
    own, wide = (_evaluated(graph, given, moved, double) for double in (False, True))
    found = {}
    for node in graph.nodes:
        if node not in moved:
            seen = [v for v in (own.get(node), wide.get(node)) if isinstance(v, torch.Tensor)]
            found[node] = union(*map(of_tensor, seen)) if seen else UNKNOWN
    return Fixed({n: v for n, v in own.items() if isinstance(v, torch.Tensor)}, found)


def _evaluated(
    graph: LossGraph, given: Mapping[torch.fx.Node, torch.Tensor], moved: set[torch.fx.Node], double: bool
) -> dict[torch.fx.Node, Any]:
    def widen(value: torch.Tensor) -> torch.Tensor:
        return value.double() if double and value.is_floating_point() else value

    values: dict[torch.fx.Node, Any] = {n: widen(v) for n, v in given.items()}

    def look(argument: Any) -> Any:
        if not isinstance(argument, torch.fx.Node):
            return torch.float64 if double and argument is torch.float32 else argument
        if argument in moved:  # only its shape is wanted
            value = argument.meta["val"]
            return widen(torch.zeros((), dtype=value.dtype)).expand(value.shape)
        return values[argument]

    for node in graph.nodes:
        if node not in moved and node.op == "call_function":
            arguments: Any = torch.fx.node.map_aggregate(node.args, look)
            options: Any = torch.fx.node.map_aggregate(node.kwargs, look)
            target: Any = node.target
            values[node] = target(*arguments, **options)
    return values


def ranges(graph: LossGraph, box: Mapping[int, Range], fixed: Fixed | None = None) -> dict[torch.fx.Node, Range]:
    """The range of every node for θ in a box.

    Args:
        graph: the traced loss.
        box: index of a tensor in θ → the range of its entries; tensors not named may be anything.
        fixed: `fixed_values(graph)`, where it is at hand.
    """
    known = fixed or fixed_values(graph)
    found = dict(known.ranges)
    for node in graph.nodes:
        if node in graph.parameters:
            found[node] = box.get(graph.parameters[node], ANYTHING)
        elif node not in found:
            rule = RULES.get(node.target)
            found[node] = rule(Operation(node, found, known.values)) if rule and is_floating(node) else UNKNOWN
    return found


def contradiction(graph: LossGraph, point: Sequence[torch.Tensor], found: Mapping[torch.fx.Node, Range]) -> str:
    """Which value at θ = `point` lies outside the range that was proved for it; empty if none does.

    Only a mistake in a rule, or rounding that it does not foresee, can make one.
    """
    against: list[str] = []

    def hold(node: torch.fx.Node, value: Any) -> None:
        if against or not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
            return
        a = found[node]
        low, high = float(value.min()), float(value.max())
        if (math.isnan(low) or math.isnan(high)) and a.defined:
            against.append(f"{node.target} at {place(node)} gives no number, where [{a.low:g}, {a.high:g}] was proved")
        if low < a.low or high > a.high:
            against.append(
                f"{node.target} at {place(node)} gives [{low:g}, {high:g}], where [{a.low:g}, {a.high:g}] was proved"
            )

    def observe(node: torch.fx.Node, arguments: Any, options: Any) -> None:
        for used, value in _pairs((node.args, node.kwargs), (arguments, options)):
            hold(used, value)

    hold(graph.loss, graph.values(point, {graph.loss}, observe)[graph.loss])
    return against[0] if against else ""


def _pairs(nodes: Any, values: Any) -> Iterator[tuple[torch.fx.Node, Any]]:
    """Nodes among arguments, with their values."""
    if isinstance(nodes, torch.fx.Node):
        yield nodes, values
    elif isinstance(nodes, dict):
        for key, part in nodes.items():
            yield from _pairs(part, values[key])
    elif isinstance(nodes, list | tuple):
        for part, value in zip(nodes, values, strict=True):
            yield from _pairs(part, value)
