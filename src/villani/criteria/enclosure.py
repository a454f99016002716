"""One operation of a traced loss, and a rule for the range of its result: what a rule reads, and what rounding adds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from villani.criteria.intervals import (
    INFINITY,
    UNKNOWN,
    Range,
    nearest,
    of_number,
    rounded,
    union,
)
from villani.criteria.patterns import (
    arguments,
    changed,
    entries,
)

aten = torch.ops.aten
FUNCTION = 8.0  # roundings of a library's function
EXACT, CORRECT = 0.0, -1.0  # none, as of a copy; one to the nearest float, as of a sum


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation, and what is known of what goes into it.

    Attributes:
        node: of the graph.
        known: ranges of the nodes before it.
        fixed: values of the nodes that do not depend on θ.
    """

    node: torch.fx.Node
    known: Mapping[torch.fx.Node, Range]
    fixed: Mapping[torch.fx.Node, torch.Tensor]

    def __getitem__(self, name: str) -> Any:
        return arguments(self.node)[name]

    @property
    def precision(self) -> torch.finfo:
        """Of the result."""
        return torch.finfo(self.node.meta["val"].dtype)

    def look(self, part: Any) -> Range:
        """The range of a node; of a number, which is rounded to the precision of the result."""
        if isinstance(part, torch.fx.Node):
            return self.known[part]
        if not isinstance(part, int | float):
            return UNKNOWN
        near = torch.tensor(part, dtype=self.node.meta["val"].dtype)
        return union(of_number(part), of_number(float(near)))

    def range(self, name: str) -> Range:
        """The range of an argument."""
        return self.look(self[name])

    def rounded(self, a: Range, steps: float) -> Range:
        """With that many roundings in the precision of the result."""
        return rounded(a, steps, self.node.meta["val"].dtype)

    @property
    def terms(self) -> int:
        """Entries that a reduction joins to one."""
        return entries(self["self"]) // max(1, entries(self.node))


@dataclass(frozen=True)
class Enclosure:
    """How to bound the result of an operation.

    Attributes:
        range: of the function on real numbers.
        reads: names of the arguments that it takes into account; None where it holds whatever they are.
        steps: roundings to be added to its result; or `EXACT`, or `CORRECT`.
        least, most: what the result never leaves, whatever the rounding.
    """

    range: Callable[[Operation], Range]
    reads: frozenset[str] | None
    steps: float
    least: float = -INFINITY
    most: float = INFINITY

    def __call__(self, operation: Operation) -> Range:
        """The range of the result; unknown where an argument is not understood, or an entry of one may be NaN."""
        node = operation.node
        if self.reads is not None and not changed(node) <= self.reads:
            return UNKNOWN
        if not all(operation.look(n).defined for n in node.all_input_nodes if _floating(n)):
            return UNKNOWN
        found = self.range(operation)
        if math.isnan(found.low) or math.isnan(found.high):
            return UNKNOWN
        if self.steps == CORRECT:
            return nearest(found, node.meta["val"].dtype)
        return operation.rounded(found, self.steps).within(self.least, self.most) if self.steps else found


def _floating(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
