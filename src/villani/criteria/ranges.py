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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from villani.criteria.enclosure import Enclosure, Operation
from villani.criteria.enclosures import RULES
from villani.criteria.intervals import ANYTHING, UNKNOWN, Range, of_tensor, union
from villani.criteria.patterns import depends_on, is_floating
from villani.objective.graph import LossGraph, place
from villani.objective.interpret import Analysis, Evaluation, interpret, values_of


@dataclass(frozen=True, eq=False)
class Fixed:
    """What does not depend on θ: masks, counts, rotations.

    Attributes:
        values: as the model computes them.
        ranges: of those in either precision.
    """

    values: Mapping[torch.fx.Node, torch.Tensor]
    ranges: Mapping[torch.fx.Node, Range]


class _Fixed(Evaluation):
    """Computes what does not depend on θ; of what does, the shape alone is there."""

    def __init__(self, graph: LossGraph, moved: set[torch.fx.Node], double: bool) -> None:
        super().__init__({**graph.constants, **graph.inputs}, torch.float64 if double else None)
        self._moved = moved

    def input(self, node: torch.fx.Node) -> Any:
        return self._shape(node) if node in self._moved else self._widened(super().input(node))

    def depends(self, node: torch.fx.Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        return node not in self._moved

    def still(self, node: torch.fx.Node, arguments: Any, options: Any) -> Any:  # noqa: ARG002
        return self._shape(node)

    def _shape(self, node: torch.fx.Node) -> Any:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return None
        return self._widened(torch.zeros((), dtype=value.dtype)).expand(value.shape)

    def _widened(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self._recast) if self._recast and value.is_floating_point() else value


def fixed_values(graph: LossGraph) -> Fixed:
    """Work out what does not depend on θ."""
    moved = depends_on(graph)
    still = [node for node in graph.nodes if node not in moved]
    computed, wide = (values_of(graph, _Fixed(graph, moved, double), still) for double in (False, True))
    own = {**graph.constants, **graph.inputs, **computed}
    known = {}
    for node in still:
        seen = [v for v in (own.get(node), wide.get(node)) if isinstance(v, torch.Tensor)]
        known[node] = union(*map(of_tensor, seen)) if seen else UNKNOWN
    return Fixed({n: v for n, v in own.items() if isinstance(v, torch.Tensor)}, known)


class _Ranges(Analysis[Range, Enclosure]):
    """Bounds of values; an operation without a rule may give anything, or no number."""

    table = RULES

    def __init__(self, graph: LossGraph, box: Mapping[int, Range], fixed: Fixed) -> None:
        self._fixed = fixed
        self.known = {**fixed.ranges, **{n: box.get(i, ANYTHING) for n, i in graph.parameters.items()}}

    def input(self, node: torch.fx.Node) -> Range:
        return self.known[node]

    def depends(self, node: torch.fx.Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        return node not in self._fixed.ranges

    def still(self, node: torch.fx.Node, arguments: Any, options: Any) -> Range:  # noqa: ARG002
        return self.known[node]

    def rule(self, node: torch.fx.Node) -> Enclosure | None:
        return super().rule(node) if is_floating(node) else None

    def apply(self, rule: Enclosure, node: torch.fx.Node, arguments: Any, options: Any) -> Range:  # noqa: ARG002
        return rule(Operation(node, self.known, self._fixed.values))

    def unknown(self, node: torch.fx.Node, arguments: Any, options: Any) -> Range:  # noqa: ARG002
        return UNKNOWN


def ranges(graph: LossGraph, box: Mapping[int, Range], fixed: Fixed | None = None) -> dict[torch.fx.Node, Range]:
    """The range of every node for θ in a box.

    Args:
        graph: the traced loss.
        box: index of a tensor in θ → the range of its entries; tensors not named may be anything.
        fixed: `fixed_values(graph)`, where it is at hand.
    """
    analysis = _Ranges(graph, box, fixed or fixed_values(graph))
    for node, value in interpret(graph, analysis):
        analysis.known[node] = value
    return analysis.known


def contradiction(graph: LossGraph, point: Sequence[torch.Tensor], known: Mapping[torch.fx.Node, Range]) -> str:
    """Which value at θ = `point` lies outside the range that was proved for it; empty if none does.

    Only a mistake in a rule, or rounding that it does not foresee, can make one.
    """
    for node, value in interpret(graph, graph.evaluation(point)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
            continue
        a, low, high = known[node], float(value.min()), float(value.max())
        proved = f"where [{a.low:g}, {a.high:g}] was proved"
        if low < a.low or high > a.high:
            return f"{node.target} at {place(node)} gives [{low:g}, {high:g}], {proved}"
        if (math.isnan(low) or math.isnan(high)) and a.defined:
            return f"{node.target} at {place(node)} gives no number, {proved}"
    return ""
