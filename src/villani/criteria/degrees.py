"""Degrees of homogeneity of all values of a traced loss, and what makes the loss invariant under a rescaling of θ.

Scale the entries of θ as θ_i·R^{e_i}. A value of the graph that then scales as R^D, for every R > 0, has degree D. Each
operation says how degrees pass it and what it demands: a sum wants equal degrees; a softmax, a GELU, a normalisation
with ε > 0 want degree 0 (so does any operation without a rule, whose output then has degree 0: symmetries may be
missed, never invented); products add degrees. Degrees are linear forms in unknowns, one for each feature of each
map, all demands are linear equations, and what remains free is the group of symmetries.

A matrix W that maps x to y has entries of degree D(y_i) − D(x_j) whatever these are, so that matrices need no unknowns
of their own.
"""

from typing import Any

import torch
from torch.utils import _pytree as pytree

from villani.criteria.degree_rules import RULES, WHOLE, DegreeRule, wants_zero
from villani.criteria.forms import Forms, Weights, shape_of
from villani.criteria.skipped import SkippedOperations
from villani.objective.graph import LossGraph
from villani.objective.interpret import Analysis, interpret
from villani.work.work import Work

_UNREAD = "gives whole numbers or truth values, or has options by name, for which there is no rule"


class Degrees(Forms, Analysis[Any, DegreeRule]):
    """Degrees of all values of one graph, as numbers of forms in tensors of the values' shapes.

    After construction `tensors` and `maps` hold the exponents of every tensor of θ that the graph uses, as forms, and
    `skipped` the operations that were not understood.

    Args:
        graph: of the loss.
        work: told how many operations were read.
    """

    table = RULES

    def __init__(self, graph: LossGraph, work: Work | None = None) -> None:
        super().__init__(graph.constants)
        self._parameters = graph.parameters
        self._values: dict[torch.fx.Node, Any] = {}
        self.skipped = SkippedOperations(graph.parameters, lambda node: self._moves(self._values[node]), self.coarse)
        place = {node: number for number, node in enumerate(graph.nodes, 1)}
        for node, value in interpret(graph, self):
            self._values[node] = value
            if work is not None and node.op == "call_function":
                work.advance(place[node], len(graph.nodes))
        self.demand_zero(self.plain(self._values[graph.loss]))

    def input(self, node: torch.fx.Node) -> Any:
        """A parameter before its use; None: does not depend on θ."""
        index = self._parameters.get(node)
        return None if index is None else Weights(index, shape_of(node))

    def depends(self, node: torch.fx.Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        """Whether it depends on θ."""
        return bool(self._inputs(node))

    def still(self, node: torch.fx.Node, arguments: Any, options: Any) -> None:
        """None, as what does not depend on θ has it."""

    def rule(self, node: torch.fx.Node) -> DegreeRule | None:
        """The rule, for real numbers and arguments by position."""
        return super().rule(node) if _readable(node) else None

    def apply(self, rule: DegreeRule, node: torch.fx.Node, arguments: Any, options: Any) -> Any:
        """rule(forms, node, *arguments), where it knows the operation with these."""
        value = rule(self, node, *arguments)
        if value is NotImplemented:
            return self.unknown(node, arguments, options)
        self.skipped.understood(node, self._inputs(node))
        return value

    def unknown(self, node: torch.fx.Node, arguments: Any, options: Any) -> Any:
        """Skipped and named: it is taken to want degree 0, and to have it."""
        self.skipped.skip(node, self._inputs(node), "has no rule" if _readable(node) else _UNREAD)
        return wants_zero(self, node, arguments, options)

    def _inputs(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """What depends on θ of what an operation is given."""
        return [a for a in node.all_input_nodes if self._values[a] is not None]

    def _moves(self, value: Any) -> bool:
        """Whether some entry of a value has a degree other than 0 so far, or may get one."""
        forms: list[int] = []
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Weights):
                if leaf.index not in self.tensors and leaf.index not in self.maps:
                    return True
                leaf = self.plain(leaf)
            if leaf is not None:
                forms += leaf.unique().tolist()
        return any(self.equations.resolve(form) for form in forms)


def _readable(node: torch.fx.Node) -> bool:
    """Whether rules can read an operation: a cast to whole numbers does not scale, and options by name are not read."""
    held = pytree.tree_leaves(node.meta.get("val"))
    real = node.target in WHOLE or all(
        v.is_floating_point() or v.is_complex() for v in held if isinstance(v, torch.Tensor)
    )
    schema = getattr(node.target, "_schema", None)
    positional = set() if schema is None else {a.name for a in schema.arguments if not a.kwarg_only}
    return real and not node.kwargs.keys() & positional
