"""One interpreter of traced graphs: it goes through the operations in order, and an analysis says what each gives.

An analysis is a table of rules, the value of an input, and an answer to an operation that has no rule: it is refused
(Taylor sweeps), skipped and named (degrees), or costs precision (ranges). A value is dropped after its last use.

An operation is spelled as a node of the graph has it, `aten.add.Tensor`; one that torch learns of later, by the name
that it will print.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch

aten = torch.ops.aten
Node = torch.fx.Node
V = TypeVar("V")
R = TypeVar("R")


class Graph(Protocol):
    """What can be interpreted: nodes in an order that can be executed, and which of them are tensors of θ."""

    @property
    def nodes(self) -> Sequence[Node]:
        """Placeholders and operations."""

    @property
    def parameters(self) -> Mapping[Node, int]:
        """Placeholder → index of its tensor in θ."""


class Table(dict[Any, R]):
    """Operation → rule.

    Args:
        rows: (rule, the operations that it is for).

    Raises:
        ValueError: an operation stands in two rows.
    """

    def __init__(self, *rows: tuple[R, Iterable[Any]]) -> None:
        super().__init__()
        for rule, operations in rows:
            for operation in operations:
                if operation in self:
                    raise ValueError(f"{operation} has two rules: expected one")
                self[operation] = rule
        self._by_name = any(isinstance(operation, str) for operation in self)

    def with_rules(self, *rows: tuple[R, Iterable[Any]]) -> "Table[R]":
        """The same with other rules for some operations."""
        other: Table[R] = Table(*rows)
        for operation in self.keys() - other.keys():
            other[operation] = self[operation]
        other._by_name |= self._by_name
        return other

    def rule(self, operation: Any) -> R | None:
        """The rule of an operation, if there is one."""
        rule = self.get(operation)
        return self.get(str(operation)) if rule is None and self._by_name else rule


class Analysis(Generic[V, R]):
    """What one reading of a graph makes of its inputs and operations; `V` is what it knows of a value.

    Attributes:
        table: its rules.
    """

    table: Table[R]

    def input(self, node: Node) -> V:
        """The value of a placeholder, when it is first used."""
        raise NotImplementedError

    def argument(self, value: V, user: Node) -> Any:  # noqa: ARG002
        """What an operation is given of a value."""
        return value

    def literal(self, argument: Any) -> Any:
        """What an operation is given of a number, a precision, or another argument that no node computes."""
        return argument

    def depends(self, node: Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        """Whether the analysis has something to say of an operation; else it is `still`."""
        return True

    def still(self, node: Node, arguments: Any, options: Any) -> V:
        """The value of an operation that does not depend on what is analysed."""
        raise NotImplementedError

    def rule(self, node: Node) -> R | None:
        """The rule for an operation, if there is one."""
        return self.table.rule(node.target)

    def apply(self, rule: R, node: Node, arguments: Any, options: Any) -> V:
        """The value of an operation by its rule."""
        raise NotImplementedError

    def unknown(self, node: Node, arguments: Any, options: Any) -> V:
        """The value of an operation that has no rule."""
        raise NotImplementedError


def interpret(graph: Graph, analysis: Analysis[V, R]) -> Iterator[tuple[Node, V]]:
    """Nodes and their values in the order of the graph, an input before its first use.

    A value is dropped after its last use: whoever wants it later keeps it.
    """
    values: dict[Node, V] = {}
    last: dict[Node, list[Node]] = {}
    for used, user in {used: node for node in graph.nodes for used in node.all_input_nodes}.items():
        last.setdefault(user, []).append(used)
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        for used in node.all_input_nodes:
            if used not in values:
                values[used] = analysis.input(used)
                yield used, values[used]
        values[node] = _value(analysis, node, values.__getitem__)
        for used in last.get(node, ()):
            del values[used]
        yield node, values[node]


def _value(analysis: Analysis[V, R], node: Node, value: Callable[[Node], V]) -> V:
    def look(argument: Any) -> Any:
        if isinstance(argument, Node):
            return analysis.argument(value(argument), node)
        return analysis.literal(argument)

    arguments: Any = torch.fx.node.map_aggregate(node.args, look)
    options: Any = torch.fx.node.map_aggregate(node.kwargs, look)
    if not analysis.depends(node, arguments, options):
        return analysis.still(node, arguments, options)
    rule = analysis.rule(node)
    if rule is None:
        return analysis.unknown(node, arguments, options)
    return analysis.apply(rule, node, arguments, options)


def values_of(graph: Graph, analysis: Analysis[V, R], wanted: Collection[Node]) -> dict[Node, V]:
    """The values of some of the nodes that operations use or compute."""
    return {node: value for node, value in interpret(graph, analysis) if node in wanted}


class Placed(Mapping[Node, torch.Tensor]):
    """Tensors by placeholder; those of θ are taken from a sequence when they are asked for, which may read them then.

    Args:
        given: placeholder → tensor.
        parameters: placeholder → index in θ.
        tensors: θ.
    """

    def __init__(
        self, given: Mapping[Node, torch.Tensor], parameters: Mapping[Node, int], tensors: Sequence[torch.Tensor]
    ) -> None:
        self._given, self._parameters, self._tensors = given, parameters, tensors

    def __getitem__(self, node: Node) -> torch.Tensor:
        index = self._parameters.get(node)
        return self._given[node] if index is None else self._tensors[index]

    def __iter__(self) -> Iterator[Node]:
        return iter((*self._given, *self._parameters))

    def __len__(self) -> int:
        return len(self._given) + len(self._parameters)


class Evaluation(Analysis[Any, Callable[..., Any]]):
    """The analysis that computes: values are tensors, and an operation is its own rule.

    What the model detaches is passed on: the derivative is that of the function computed.

    Args:
        inputs: placeholder → tensor.
        recast: what takes the place of float32 and float64, if anything does.
    """

    table = Table[Callable[..., Any]]((aten.alias.default, [aten.detach.default]))

    def __init__(self, inputs: Mapping[Node, torch.Tensor], recast: torch.dtype | None = None) -> None:
        self._inputs, self._recast = inputs, recast

    def input(self, node: Node) -> Any:
        """As it was given."""
        return self._inputs[node]

    def literal(self, argument: Any) -> Any:
        """Another precision, where there is one to take its place."""
        return self._recast if self._recast and argument in (torch.float32, torch.float64) else argument

    def rule(self, node: Node) -> Any:
        """The operation itself, but for those of the table."""
        return super().rule(node) or node.target

    def apply(self, rule: Callable[..., Any], node: Node, arguments: Any, options: Any) -> Any:  # noqa: ARG002
        """rule(*arguments, **options)."""
        return rule(*arguments, **options)


def execute(node: Node, value: Callable[[Node], Any], recast: torch.dtype | None) -> Any:
    """The result of one operation, given the values of nodes before it, as `Evaluation` has it."""
    return _value(Evaluation({}, recast), node, value)
