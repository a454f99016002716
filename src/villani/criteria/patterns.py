"""Reading a traced loss: which nodes depend on θ, and what spelled-out normalisations and clamps amount to."""

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from villani.objective.batches import Batch
from villani.objective.families import CAST, COPIED, NEW, WHERE
from villani.objective.graph import LossGraph
from villani.objective.interpret import Analysis, Table, interpret
from villani.objective.objective import Objective

aten = torch.ops.aten
COPIES = {*COPIED, CAST, aten.expand.default, aten.detach.default}


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


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """All arguments of an operation by name, in the order of its schema, with the defaults of those left out."""
    if node.target is operator.getitem:
        return dict(zip(("self", "index"), node.args, strict=True))
    target: Any = node.target
    found = {a.name: a.default_value if a.has_default_value() else None for a in target._schema.arguments}
    return found | dict(zip(found, node.args, strict=False)) | dict(node.kwargs)


def changed(node: torch.fx.Node) -> set[str]:
    """The names of the arguments that are not what the schema has them by default."""
    if node.target is operator.getitem:
        return {"self", "index"}
    target: Any = node.target
    given = arguments(node)
    defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    return {
        name for name, value in given.items()
        if name not in defaults or isinstance(value, torch.fx.Node) or value != defaults[name]
    }  # fmt: skip


def original(node: Any) -> Any:
    """The node before copies, casts to at least float32, and broadcasts."""
    while isinstance(node, torch.fx.Node) and node.target in COPIES and _keeps_values(node):
        node = node.args[0]
    return node


def _keeps_values(node: torch.fx.Node) -> bool:
    before: Any = node.args[0]
    a, b = before.meta["val"].dtype, node.meta["val"].dtype
    return bool(a == b or (a.is_floating_point and b in (torch.float32, torch.float64)))


def mean_square(node: Any) -> tuple[Any, int, float] | None:
    """(x, D, ε) where the node is mean(x²) + ε over D entries, ε ≥ 0 a number, laid out to divide x by."""
    node, eps = original(node), 0.0
    if isinstance(node, torch.fx.Node) and node.target is aten.add.Tensor and not node.kwargs:
        terms = sorted(node.args, key=lambda a: isinstance(a, torch.fx.Node))
        if not isinstance(terms[0], int | float) or not terms[0] >= 0:
            return None
        eps, node = float(terms[0]), original(terms[1])
    if not isinstance(node, torch.fx.Node) or node.target not in (aten.mean.dim, aten.mean.default):
        return None
    if node.target is aten.mean.dim and not arguments(node)["keepdim"]:
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
    if node.target is aten.relu.default:
        return 0.0, None
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    given = arguments(node)
    if node.target is aten.hardtanh.default:
        return given["min_val"], given["max_val"]
    return given.get("min"), given.get("max")


def masks(node: Any, fixed: Mapping[torch.fx.Node, torch.Tensor], real: Callable[[torch.fx.Node], bool]) -> Any:
    """What is added to real numbers to make up a node's value, −∞ where it is masked; None where that is not read off.

    Args:
        node: the node, or a number.
        fixed: values of nodes that do not depend on θ.
        real: whether all entries of a node are real numbers at every θ.
    """

    def look(part: Any) -> Any:
        return masks(part, fixed, real)

    if not isinstance(node, torch.fx.Node):
        return torch.tensor(float(node), dtype=torch.float64)
    if node in fixed:
        return fixed[node].double()
    if real(node):
        return torch.zeros((), dtype=torch.float64)
    if original(node) is not node:
        return look(original(node))
    given: Any = arguments(node) if node.op == "call_function" else {}
    if node.target is aten.add.Tensor and given["alpha"] == 1:
        parts = [look(given["self"]), look(given["other"])]
        return None if any(p is None for p in parts) else parts[0] + parts[1]
    chosen: Any = None
    if node.target in WHERE:
        chosen = given["condition"], given["self"], given["other"]
    if node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor):
        chosen = given["mask"], given["value"], given["self"]
    if chosen is None or chosen[0] not in fixed:
        return None
    parts = [look(chosen[1]), look(chosen[2])]
    return None if any(p is None for p in parts) else torch.where(fixed[chosen[0]].bool(), *parts)


def every_row_open(mask: Any, node: torch.fx.Node, dim: int) -> bool:
    """Whether along a dimension something is always left that a mask, as `masks` reads it, does not take for −∞."""
    largest = torch.finfo(node.meta["val"].dtype).max
    if mask is None or not bool((mask <= largest).all()):  # NaN, or +∞
        return False
    return bool((mask >= -largest).expand(node.meta["val"].shape).any(dim).all())


class _Dependence(Analysis[bool, bool]):
    """Whether values depend on some tensors of θ."""

    table = Table[bool]((False, NEW))

    def __init__(self, tensors: Collection[torch.fx.Node]) -> None:
        self._tensors = tensors

    def input(self, node: torch.fx.Node) -> bool:
        return node in self._tensors

    def literal(self, argument: Any) -> bool:  # noqa: ARG002
        return False

    def apply(self, rule: bool, node: torch.fx.Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        return rule

    def unknown(self, node: torch.fx.Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        return any(pytree.tree_leaves((arguments, options)))


def depends_on(graph: LossGraph, tensors: Collection[int] | None = None) -> set[torch.fx.Node]:
    """Nodes whose values depend on θ, or on some of its tensors only; a shape is no value."""
    moved = {n for n, i in graph.parameters.items() if tensors is None or i in tensors}
    return moved | {node for node, depends in interpret(graph, _Dependence(moved)) if depends}


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
