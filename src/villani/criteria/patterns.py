"""Reading a traced loss: which nodes depend on θ, and what spelled-out normalisations and clamps amount to."""

from collections.abc import Collection
from typing import Any

import torch

from villani.landscape.batches import Batch
from villani.landscape.graph import LossGraph
from villani.landscape.objective import Objective

aten = torch.ops.aten
_COPIES = {
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default, aten.expand.default,
    aten.detach.default,
}  # fmt: skip


SHAPED = {  # new tensors that take over a shape, and no values
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default,
}  # fmt: skip


def entries(node: Any) -> int:
    """Entries of a node's tensor; 1 of a number."""
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    return int(value.numel()) if isinstance(value, torch.Tensor) else 1


def is_floating(node: torch.fx.Node) -> bool:
    """Whether a node holds real numbers; several tensors count if the first does."""
    value = node.meta.get("val")
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def argument(node: torch.fx.Node, position: int, default: Any = None) -> Any:
    """An argument by position, where trailing ones may be left out."""
    return node.args[position] if len(node.args) > position else default


def original(node: Any) -> Any:
    """The node before copies, casts and broadcasts."""
    while isinstance(node, torch.fx.Node) and node.target in _COPIES:
        node = node.args[0]
    return node


def mean_square(node: Any) -> tuple[Any, int, float] | None:
    """(x, D, ε) where the node is mean(x²) + ε over D entries, ε ≥ 0 a number, laid out to divide x by."""
    node, eps = original(node), 0.0
    if isinstance(node, torch.fx.Node) and node.target is aten.add.Tensor and not node.kwargs:
        terms = sorted(node.args, key=lambda a: isinstance(a, torch.fx.Node))
        if not isinstance(terms[0], int | float) or terms[0] < 0:
            return None
        eps, node = float(terms[0]), original(terms[1])
    if not isinstance(node, torch.fx.Node) or node.target not in (aten.mean.dim, aten.mean.default):
        return None
    if node.target is aten.mean.dim and argument(node, 2) is not True:
        return None
    square = original(node.args[0])
    if not isinstance(square, torch.fx.Node):
        return None
    product = square.target is aten.mul.Tensor and square.args[0] is square.args[-1]
    raised = square.target is aten.pow.Tensor_Scalar and square.args[1] == 2
    if not (product or raised or square.target is aten.square.default):
        return None
    return original(square.args[0]), entries(square) // max(1, entries(node)), eps


def _is_root(node: torch.fx.Node, n: float, named: Any) -> bool:
    return node.target is named or bool(node.target is aten.pow.Tensor_Scalar and node.args[1] == n)


def root_mean_square(node: Any) -> tuple[Any, int, float] | None:
    """(x, D, ε) where the node is √(mean(x²) + ε)."""
    node = original(node)
    found = isinstance(node, torch.fx.Node) and _is_root(node, 0.5, aten.sqrt.default)
    return mean_square(node.args[0]) if found else None


def inverse_norm(node: Any) -> tuple[Any, int, float] | None:
    """(x, D, ε) where the node is (mean(x²) + ε)^−½."""
    node = original(node)
    if not isinstance(node, torch.fx.Node):
        return None
    if node.target is aten.reciprocal.default:
        return root_mean_square(node.args[0])
    return mean_square(node.args[0]) if _is_root(node, -0.5, aten.rsqrt.default) else None


def limits(node: torch.fx.Node) -> tuple[Any, Any]:
    """Where a clamp begins to hold from below and from above; None where it does not."""
    least, most = argument(node, 1, node.kwargs.get("min")), argument(node, 2, node.kwargs.get("max"))
    if node.target is aten.relu.default:
        return 0.0, None
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target is aten.hardtanh.default:
        return -1.0 if least is None else least, 1.0 if most is None else most
    return (None, least) if node.target is aten.clamp_max.default else (least, most)


def depends_on(graph: LossGraph, tensors: Collection[int] | None = None) -> set[torch.fx.Node]:
    """Nodes whose values depend on θ, or on some of its tensors only; a shape is no value."""
    moved = {n for n, i in graph.parameters.items() if tensors is None or i in tensors}
    for node in graph.nodes:
        if node.op == "call_function" and node.target not in SHAPED and not moved.isdisjoint(node.all_input_nodes):
            moved.add(node)
    return moved


def pieces(objective: Objective) -> list[Any]:
    """Batches whose graphs stand for all: one block of each kind of input; of custom groups every one."""
    if objective.loss_fn is not None:
        return list(objective.groups)
    kinds: dict[frozenset[str], Batch] = {}
    for index, group in enumerate(objective.groups):
        if (kind := frozenset(group.inputs)) not in kinds:
            batch = next(objective.batches(index))
            row = next(r for r in range(len(batch.ids)) if batch.rows(r, r + 1).tokens)
            kinds[kind] = batch.rows(row, row + 1)
    return list(kinds.values())
