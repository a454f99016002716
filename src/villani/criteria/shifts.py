"""A proof that L does not change along a direction: its shift is carried to a normalisation that deletes it.

θ + c·direction changes a value by c times a known tensor as long as operations are linear in what changes. Layer norm
deletes a change that is constant over its features, softmax one that is constant over its keys, cross-entropy one that
is constant over the vocabulary, for every c. If nothing is left of the change where the loss is computed, L is exactly
constant. The change is computed at a random θ: that it is constant there up to rounding is taken for an identity.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from villani.criteria.patterns import arguments as with_defaults
from villani.criteria.patterns import is_floating
from villani.objective.families import CAST, CHOSEN, COMPARED, MOVED, NEW, PICKED, SOFTMAX, SPLIT, WHERE
from villani.objective.graph import LossGraph, place
from villani.objective.interpret import Analysis, Table, interpret

aten = torch.ops.aten
ShiftRule = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Proposal:
    """A direction to be proved: one tensor moves."""

    index: int
    direction: torch.Tensor
    kind: str


def rounding(dtype: torch.dtype) -> float:
    """The relative error below which a computed number is taken for 0."""
    return 1e-9 if dtype == torch.float64 else 1e-5


DELETED = "deleted"


@dataclass(frozen=True, eq=False)
class Shifted:
    """A value, and what the proposals that reach it add to it, by their numbers."""

    value: Any
    shifts: dict[int, Any] = field(default_factory=dict)


# Rules: rule(node, shifts by argument, arguments, options) → shift, or `DELETED`, or None where it is not known


def _constant(shift: torch.Tensor, dims: Sequence[int], kept: torch.Tensor | None = None) -> bool:
    """Whether a shift is constant along dimensions, over the entries that are kept."""
    keep = torch.ones_like(shift, dtype=torch.bool) if kept is None else kept.expand_as(shift)
    high = shift.masked_fill(~keep, -torch.inf).amax(tuple(dims))
    low = shift.masked_fill(~keep, torch.inf).amin(tuple(dims))
    return bool((high - low <= rounding(shift.dtype) * shift.abs().max()).all())


def _deletes(test: Callable[[torch.Tensor, Any], bool]) -> ShiftRule:
    """Rule of an operation that deletes shifts of its first argument."""

    def rule(_: torch.fx.Node, shifts: list[Any], arguments: Any, __: Any) -> Any:
        others = any(isinstance(s, torch.Tensor) for s in shifts[1:])
        return DELETED if shifts[0] is not None and not others and test(shifts[0], arguments) else None

    return rule


def _in_softmax(shift: torch.Tensor, arguments: Any) -> bool:
    return _constant(shift.expand_as(arguments[0]), [arguments[1]], arguments[0] > -1e30)  # masked entries apart


def _in_norm(shift: torch.Tensor, arguments: Any) -> bool:
    return _constant(shift, range(-len(arguments[1]), 0))


def _in_entropy(shift: torch.Tensor, arguments: Any) -> bool:
    return not arguments[1].is_floating_point() and _constant(shift, [1 if shift.dim() > 1 else 0])


def _nothing(*_: Any) -> torch.Tensor:
    return torch.zeros(())


def _first(node: torch.fx.Node, shifts: list[Any], arguments: Any, options: Any) -> Any:
    target: Any = node.target
    return (
        target(shifts[0], *arguments[1:], **options)
        if not any(isinstance(s, torch.Tensor) for s in shifts[1:])
        else None
    )


def _sum(node: torch.fx.Node, shifts: list[Any], _: Any, options: Any) -> Any:
    shape, sign = node.meta["val"].shape, 1 if node.target is aten.add.Tensor else -1
    parts = [shifts[0], None if shifts[1] is None else shifts[1] * (sign * options.get("alpha", 1))]
    return sum(p.expand(shape) for p in parts if p is not None)


def _one_of_two(node: torch.fx.Node, shifts: list[Any], arguments: Any, _: Any) -> Any:
    target: Any = node.target
    if shifts[0] is not None and shifts[1] is not None:
        return None
    return target(*(a if s is None else s for a, s in zip(arguments, shifts, strict=True)))


def _affine(node: torch.fx.Node, shifts: list[Any], arguments: Any, options: Any) -> Any:
    """x Wᵀ + b, or b + x W: in x and b."""
    x, weight, bias = (0, 1, 2) if node.target is aten.linear.default else (1, 2, 0)
    if shifts[weight] is not None or options:
        return None
    shape = node.meta["val"].shape
    parts = [shifts[bias].expand(shape)] if len(shifts) > bias and shifts[bias] is not None else []
    if shifts[x] is not None:
        matrix = arguments[weight].T if node.target is aten.linear.default else arguments[weight]
        parts.append((shifts[x] @ matrix).expand(shape))
    return sum(parts)


def _where(_: torch.fx.Node, shifts: list[Any], arguments: Any, __: Any) -> Any:
    zero = next(s for s in shifts if s is not None).new_zeros(())
    a, b = (zero if s is None else s for s in shifts[1:])
    return None if shifts[0] is not None else torch.where(arguments[0], a, b)


def _filled(_: torch.fx.Node, shifts: list[Any], arguments: Any, __: Any) -> Any:
    mask = arguments[1]
    shift = shifts[0].expand(torch.broadcast_shapes(shifts[0].shape, mask.shape))
    return shift.masked_fill(mask, 0.0)


def _cat(_: torch.fx.Node, shifts: list[Any], arguments: Any, __: Any) -> Any:
    parts = [torch.zeros_like(a) if s is None else s.expand_as(a) for s, a in zip(shifts[0], arguments[0], strict=True)]
    return torch.cat(parts, *arguments[1:])


def _part(_: torch.fx.Node, shifts: list[Any], arguments: Any, __: Any) -> Any:
    part = shifts[0][arguments[1]]
    return part if part.is_floating_point() else _nothing()


def _picked(node: torch.fx.Node, shifts: list[Any], arguments: Any, options: Any) -> Any:
    """The largest, or all in order: a shift that is alike along the dimension moves them, and not their places."""
    target: Any = node.target
    x = arguments[0]
    shift = shifts[0].expand_as(x)
    dim = with_defaults(node)["dim"]
    if x.dim() and not _constant(shift, [dim]):
        return None
    values, places = target(x, *arguments[1:], **options)
    first = shift.narrow(dim, 0, 1) if x.dim() else shift
    moved = first if values.dim() == first.dim() else first.squeeze(dim)
    return [moved.expand_as(values), torch.zeros_like(places)]


def _compared(_: torch.fx.Node, shifts: list[Any], *__: Any) -> Any:
    """Nothing, where both sides move alike."""
    a, b = (torch.zeros(()) if s is None else s for s in shifts)
    return _nothing() if _alike(a, b) else None


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    gap, size = (a - b).abs().max(), torch.maximum(a.abs().max(), b.abs().max())
    return bool(gap <= rounding(size.dtype) * size)


def _convolution(node: torch.fx.Node, shifts: list[Any], arguments: Any, options: Any) -> Any:
    """In x and b."""
    x, weight, rest = arguments[0], arguments[1], arguments[3:]
    moves = [*shifts, None][:3]
    if moves[1] is not None or options:
        return None
    parts = []
    if moves[0] is not None:
        parts.append(aten.conv1d.default(moves[0].expand_as(x), weight, None, *rest))
    if moves[2] is not None:
        parts.append(moves[2].unsqueeze(-1).expand(node.meta["val"].shape))
    return sum(parts)


def _put(*places: int) -> ShiftRule:
    """Rule of an operation that is linear in the arguments at these places together; a number put in does not move."""

    def rule(node: torch.fx.Node, shifts: list[Any], arguments: Any, options: Any) -> Any:
        target: Any = node.target
        if any(isinstance(s, torch.Tensor) for k, s in enumerate(shifts) if k not in places):
            return None
        given = list(arguments)
        for k in places:
            if not isinstance(given[k], torch.Tensor):
                given[k] = 0.0
            else:
                given[k] = torch.zeros_like(given[k]) if shifts[k] is None else shifts[k].expand_as(given[k])
        return target(*given, **options)

    return rule


RULES = Table[ShiftRule](
    (_nothing, NEW),
    (_first, [
        *MOVED, CAST, *SPLIT, *CHOSEN, aten.detach.default, aten.embedding.default,
        aten.neg.default, aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default, aten.div.Tensor,
        aten.cumsum.default, aten.tril.default, aten.triu.default,
    ]),
    (_part, [operator.getitem]),
    (_picked, PICKED),
    (_compared, COMPARED),
    (_convolution, [aten.conv1d.default]),
    (_put(0, 2), [aten.index_put.default]),
    (_put(0, 3), [aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.index_add.default]),
    (_cat, [aten.cat.default]),
    (_sum, [aten.add.Tensor, aten.sub.Tensor]),
    (_one_of_two, [aten.mul.Tensor, aten.matmul.default, aten.bmm.default, aten.mm.default]),
    (_affine, [aten.linear.default, aten.addmm.default]),
    (_where, WHERE),
    (_filled, [aten.masked_fill.Scalar]),
    (_deletes(_in_softmax), [*SOFTMAX, aten.log_softmax.int]),
    (_deletes(_in_norm), [aten.layer_norm.default]),
    (_deletes(_in_entropy), [aten.cross_entropy_loss.default]),
)  # fmt: skip


_PLACES = {*NEW, operator.getitem, *COMPARED}  # whole numbers and truth values that rules read


class Shifts(Analysis[Shifted, ShiftRule]):
    """What each proposal adds to every value, for c = 1, as long as it is linear in c.

    A proposal fails where an operation has no rule for its shift.

    Args:
        graph: of the loss.
        proposals: directions.
        point: θ.
    """

    table = RULES

    def __init__(self, graph: LossGraph, proposals: Sequence[Proposal], point: Sequence[torch.Tensor]) -> None:
        self._graph, self._proposals = graph, proposals
        self._evaluation = graph.evaluation(point)
        self._failed = [False for _ in proposals]
        self.deletions: list[list[str]] = [[] for _ in proposals]
        for node, shifted in interpret(graph, self):
            if node is graph.loss:
                self._reached = shifted.shifts.keys()

    def gone(self, k: int) -> bool:
        """Whether proposal k was deleted on every way to the loss; or the loss does not use its tensor."""
        used = any(i == self._proposals[k].index and n.users for n, i in self._graph.parameters.items())
        return not self._failed[k] and k not in self._reached and (bool(self.deletions[k]) or not used)

    def input(self, node: torch.fx.Node) -> Shifted:
        """A tensor of θ moves by the proposals that are of it."""
        index = self._graph.parameters.get(node)
        moves = {k: p.direction for k, p in enumerate(self._proposals) if p.index == index}
        return Shifted(self._evaluation.input(node), moves)

    def literal(self, argument: Any) -> Any:
        """As it is computed with."""
        return self._evaluation.literal(argument)

    def depends(self, node: torch.fx.Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        """Whether some argument moves."""
        return bool(self._moving(arguments, options))

    def still(self, node: torch.fx.Node, arguments: Any, options: Any) -> Shifted:
        """Computed."""
        return Shifted(self._computed(node, arguments, options))

    def apply(self, rule: ShiftRule, node: torch.fx.Node, arguments: Any, options: Any) -> Shifted:
        """Computed, with the shifts that the rule finds; where it finds none the proposal fails."""
        value, shifts = self._computed(node, arguments, options), {}
        given, named = _of((arguments, options), None)
        for k in self._moving(arguments, options):
            of_arguments, of_options = _of((arguments, options), k)
            known = (is_floating(node) or node.target in _PLACES) and all(s is None for s in of_options.values())
            shift = rule(node, of_arguments, given, named) if known else None
            if shift is DELETED:
                self.deletions[k].append(f"{node.target} at {place(node)}")
            elif shift is None:
                self._failed[k] = True
            elif not isinstance(shift, torch.Tensor):
                shifts[k] = shift
            elif bool(shift.any()):
                shifts[k] = shift.expand_as(value)
        return Shifted(value, shifts)

    def unknown(self, node: torch.fx.Node, arguments: Any, options: Any) -> Shifted:
        """Computed; proposals that reach it fail."""
        for k in self._moving(arguments, options):
            self._failed[k] = True
        return self.still(node, arguments, options)

    def _moving(self, arguments: Any, options: Any) -> list[int]:
        """The proposals that reach an operation, those that failed apart."""
        reaching = {k for a in pytree.tree_leaves((arguments, options)) if isinstance(a, Shifted) for k in a.shifts}
        return sorted(k for k in reaching if not self._failed[k])

    def _computed(self, node: torch.fx.Node, arguments: Any, options: Any) -> Any:
        given, named = _of((arguments, options), None)
        return self._evaluation.apply(self._evaluation.rule(node), node, given, named)


def _of(arguments: Any, k: int | None) -> Any:
    """Values of arguments; or what proposal k adds to each, None where it adds nothing."""
    if isinstance(arguments, Shifted):
        return arguments.value if k is None else arguments.shifts.get(k)
    if isinstance(arguments, list | tuple):
        return type(arguments)(_of(a, k) for a in arguments)
    if isinstance(arguments, dict):
        return {name: _of(a, k) for name, a in arguments.items()}
    return arguments if k is None else None
