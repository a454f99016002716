"""A proof that L does not change along a direction: its shift is carried to a normalisation that deletes it.

θ + c·direction changes a value by c times a known tensor as long as operations are linear in what changes. Layer norm
deletes a change that is constant over its features, softmax one that is constant over its keys, cross-entropy one that
is constant over the vocabulary, for every c. If nothing is left of the change where the loss is computed, L is exactly
constant. The change is computed at a random θ: that it is constant there up to rounding is taken for an identity.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from villani.criteria.patterns import SHAPED
from villani.objective.graph import LossGraph, place

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Proposal:
    """A direction to be proved: one tensor moves."""

    index: int
    direction: torch.Tensor
    kind: str


def rounding(dtype: torch.dtype) -> float:
    """The relative error below which a computed number is taken for 0."""
    return 1e-9 if dtype == torch.float64 else 1e-5


class Shifts:
    """What each proposal adds to every value, for c = 1, as long as it is linear in c."""

    def __init__(self, graph: LossGraph, proposals: Sequence[Proposal]) -> None:
        self.graph = graph
        self.failed = [False for _ in proposals]
        self.deletions: list[list[str]] = [[] for _ in proposals]
        self.used = [any(i == p.index and n.users for n, i in graph.parameters.items()) for p in proposals]
        self.carried: list[dict[torch.fx.Node, Any]] = [
            {n: p.direction for n, i in graph.parameters.items() if i == p.index and n.users} for p in proposals
        ]
        self._last = {used: node for node in graph.nodes for used in node.all_input_nodes}

    def observe(self, node: torch.fx.Node, arguments: Any, options: Any) -> None:
        """Carry all shifts through one operation."""
        for k, carried in enumerate(self.carried if node.target not in SHAPED else []):
            if not self.failed[k] and not carried.keys().isdisjoint(node.all_input_nodes):
                self._carry(k, node, arguments, options)
            for used in node.all_input_nodes:
                if self._last[used] is node:
                    carried.pop(used, None)

    def gone(self, k: int) -> bool:
        """Whether proposal k was deleted on every way to the loss; or the loss does not use its tensor."""
        reached = self.failed[k] or self.graph.loss in self.carried[k]
        return not reached and (bool(self.deletions[k]) or not self.used[k])

    def _carry(self, k: int, node: torch.fx.Node, arguments: Any, options: Any) -> None:
        def shift_of(given: Any) -> Any:
            if isinstance(given, list | tuple):
                return [shift_of(g) for g in given]
            return self.carried[k].get(given) if isinstance(given, torch.fx.Node) else None

        shifts = [shift_of(a) for a in node.args]
        deletes = _DELETING.get(node.target)
        others = any(isinstance(s, torch.Tensor) for s in shifts[1:])
        if deletes and shifts[0] is not None and not others and deletes(shifts[0], arguments):
            self.deletions[k].append(f"{node.target} at {place(node)}")
            return
        rule = _CARRYING.get(node.target)
        shift = rule(node, shifts, arguments, options) if rule else None
        if shift is None:
            self.failed[k] = True
        elif not isinstance(shift, torch.Tensor) or bool(shift.any()):
            self.carried[k][node] = shift


def _constant(shift: torch.Tensor, dims: Sequence[int], kept: torch.Tensor | None = None) -> bool:
    """Whether a shift is constant along dimensions, over the entries that are kept."""
    keep = torch.ones_like(shift, dtype=torch.bool) if kept is None else kept.expand_as(shift)
    high = shift.masked_fill(~keep, -torch.inf).amax(tuple(dims))
    low = shift.masked_fill(~keep, torch.inf).amin(tuple(dims))
    return bool((high - low <= rounding(shift.dtype) * shift.abs().max()).all())


def _softmax_deletes(shift: torch.Tensor, arguments: Any) -> bool:
    return _constant(shift.expand_as(arguments[0]), [arguments[1]], arguments[0] > -1e30)  # masked entries apart


def _norm_deletes(shift: torch.Tensor, arguments: Any) -> bool:
    return _constant(shift, range(-len(arguments[1]), 0))


def _entropy_deletes(shift: torch.Tensor, arguments: Any) -> bool:
    return not arguments[1].is_floating_point() and _constant(shift, [1 if shift.dim() > 1 else 0])


_DELETING: dict[Any, Any] = {
    **dict.fromkeys(
        [aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, aten.log_softmax.int], _softmax_deletes
    ),
    aten.layer_norm.default: _norm_deletes,
    aten.cross_entropy_loss.default: _entropy_deletes,
}


# Rules of operations that are linear in what shifts: rule(node, shifts by argument, arguments, options) → shift or None


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


_CARRYING: dict[Any, Any] = {
    **dict.fromkeys([
        operator.getitem, aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default,
        aten.detach.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default,
        aten.flatten.using_ints, aten.transpose.int, aten.t.default, aten.permute.default, aten.unsqueeze.default,
        aten.squeeze.dim, aten.expand.default, aten.slice.Tensor, aten.select.int, aten.split.Tensor,
        aten.split_with_sizes.default, aten.chunk.default, aten.embedding.default, aten.neg.default,
        aten.sum.dim_IntList, aten.mean.dim, aten.sum.default, aten.mean.default, aten.div.Tensor,
    ], _first),
    **dict.fromkeys([aten.add.Tensor, aten.sub.Tensor], _sum),
    **dict.fromkeys([aten.mul.Tensor, aten.matmul.default, aten.bmm.default, aten.mm.default], _one_of_two),
    **dict.fromkeys([aten.linear.default, aten.addmm.default], _affine),
    **dict.fromkeys([aten.where.self, aten.where.ScalarOther], _where),
    aten.masked_fill.Scalar: _filled,
    aten.cat.default: _cat,
}  # fmt: skip
