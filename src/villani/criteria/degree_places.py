"""How degrees pass operations that move, join, replace or choose entries, with zeros, which scale as one likes.

Rules as in `degree_rules`: rule(forms, node, *degrees of the arguments).
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch

from villani.criteria.forms import Forms, Weights, shape_of, zeros
from villani.criteria.patterns import arguments
from villani.objective.families import CAST, COPIED, MOVED, SPLIT

aten = torch.ops.aten


def moved(d: Forms, node: torch.fx.Node, first: Any, *rest: Any) -> Any:
    """Operations that move values about without computing: they move degrees in the same way."""
    target: Any = node.target
    if isinstance(first, Weights):
        if len(first.shape) > 1 and _transposes(node, len(first.shape)):
            return Weights(first.index, first.shape, not first.transposed)
        first = d.plain(first)
    try:
        return target(first, *rest)
    except RuntimeError:  # a view of an expanded tensor that does not exist
        return target(first.contiguous(), *rest)


def _transposes(node: torch.fx.Node, dims: int) -> bool:
    """Whether all that an operation does is to exchange the last two dimensions."""
    if node.target in (aten.t.default, aten.numpy_T.default):
        return dims == 2
    order = list(range(dims))
    if node.target is aten.transpose.int:
        i, j = (int(dim) % dims for dim in node.args[1:3])  # type: ignore[arg-type]
        order[i], order[j] = order[j], order[i]
    elif node.target is aten.permute.default:
        order = [int(dim) % dims for dim in node.args[1]]  # type: ignore[union-attr,arg-type]
    return order == [*range(dims - 2), dims - 1, dims - 2]


def joined(d: Forms, node: torch.fx.Node, parts: Any, dim: int = 0) -> Any:
    """Side by side; zeros have the degree of their neighbour, as they have every one."""
    target: Any = node.target
    given: Any = node.args[0]
    forms = [zeros(shape_of(n)) if f is None else d.plain(f) for f, n in zip(parts, given, strict=True)]
    real = next((f for f, n in zip(forms, given, strict=True) if not is_zero(d, n) and f.numel()), None)
    if real is not None:
        forms = [real.narrow(dim, 0, 1).expand_as(f) if is_zero(d, n) and f.dim() == real.dim() else f
                 for f, n in zip(forms, given, strict=True)]  # fmt: skip
    return target(forms, dim)


def alike(d: Forms, node: torch.fx.Node, a: Any, b: Any, one: Any, other: Any) -> torch.Tensor:
    """Both scale alike, but for zeros; `one` and `other` are what a and b stand for in the graph."""
    shape = shape_of(node)
    left, right = (d.operand(v).expand(shape) for v in (a, b))
    if is_zero(d, one) or is_zero(d, other):
        return right if is_zero(d, one) else left
    if (places := _zero_places(d, one, other, left, right)) is None:
        d.merge(left, right)
        return left
    gone, idle = places  # entries of one, and of the other, that are 0 whatever θ is
    left, right = torch.where(gone, right, left), torch.where(idle, left, right)
    d.merge(left, right)
    return left


def _zero_places(
    d: Forms, one: Any, other: Any, left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Entries that are zeros of constants, as of sin 0 in a rotation of some of the channels; None without any.

    Along a dimension in which forms repeat themselves an entry counts if it is zero everywhere: one that is not is
    enough to ask what all of them ask.
    """
    found = []
    for argument in (one, other):
        zeros_of = d.zero_entries(argument) if isinstance(argument, torch.fx.Node) else None
        mask = torch.zeros((), dtype=torch.bool) if zeros_of is None else zeros_of
        mask = mask.expand(left.shape)
        for dim in range(mask.dim()):
            if mask.shape[dim] > 1 and not left.stride(dim) and not right.stride(dim):
                mask = mask.all(dim, keepdim=True)
        found.append(mask)
    gone, idle = found
    return (gone, idle & ~gone) if bool(gone.any() | idle.any()) else None


_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
_FULL = {aten.full.default, aten.full_like.default, aten.new_full.default, aten.scalar_tensor.default}
_KEEPING = {*MOVED, *SPLIT, CAST, operator.getitem, aten.neg.default, aten.sum.dim_IntList, aten.mean.dim}
_PRODUCTS = {aten.mul.Tensor, aten.matmul.default, aten.bmm.default, aten.mm.default}


def is_zero(d: Forms, argument: Any) -> bool:
    """Whether it is 0 whatever θ is, or infinite: such a value scales by any factor and stays the same."""
    if isinstance(argument, int | float):
        return argument == 0 or math.isinf(argument)
    if not isinstance(argument, torch.fx.Node):
        return False
    if argument in d.constants:
        return d.is_void(argument)
    if argument.target in _ZEROS:
        return True
    if argument.target in _FULL:
        return is_zero(d, argument.args[0 if argument.target is aten.scalar_tensor.default else -1])
    if argument.target in _KEEPING:
        return is_zero(d, argument.args[0])
    if argument.target in (aten.add.Tensor, aten.sub.Tensor):
        return all(is_zero(d, a) for a in argument.args[:2])
    return argument.target in _PRODUCTS and any(isinstance(a, torch.fx.Node) and is_zero(d, a) for a in argument.args)


def where(d: Forms, node: torch.fx.Node, _: Any, a: Any, b: Any) -> torch.Tensor:
    """Which of the two is taken is read where it is a constant; where it depends on data both must scale alike."""
    condition = d.known(node.args[0])  # type: ignore[arg-type]
    if condition is None:
        return alike(d, node, a, b, *node.args[1:3])
    shape = shape_of(node)
    left, right = (d.operand(v).expand(shape) for v in (a, b))
    if is_zero(d, node.args[1]) or is_zero(d, node.args[2]):
        return right if is_zero(d, node.args[1]) else left
    return torch.where(condition.cpu(), left, right)


def masked_fill(d: Forms, node: torch.fx.Node, a: Any, *_: Any) -> torch.Tensor:
    """Some entries replaced by a number, where a condition has it."""
    return alike(d, node, a, None, node.args[0], node.args[2])


def scattered(d: Forms, node: torch.fx.Node, a: Any, *_: Any) -> torch.Tensor:
    """Some entries replaced by a number."""
    return alike(d, node, a, None, node.args[0], node.args[3])


def padded(d: Forms, node: torch.fx.Node, a: Any, pad: Sequence[int], *_: Any) -> Any:
    """Zeros around have the degree of the nearest entry; other numbers have degree 0, which is form 0."""
    given = arguments(node)
    forms = d.plain(a)
    if given.get("mode", "constant") != "constant":
        return NotImplemented
    if not is_zero(d, given["value"] or 0):
        return torch.nn.functional.pad(forms, list(pad), value=0)
    for k in range(len(pad) // 2):
        dim, size = forms.dim() - 1 - k, forms.shape[-1 - k]
        forms = forms.index_select(dim, torch.arange(-pad[2 * k], size + pad[2 * k + 1]).clamp(0, size - 1))
    return forms


def put(d: Forms, node: torch.fx.Node, a: Any, *rest: Any) -> Any:
    """Entries along one dimension replaced by others, or increased by them, at places that are up to data."""
    base, source = d.operand(a).expand(shape_of(node)), node.args[2 if node.target is aten.index_put.default else 3]
    b = d.operand(rest[1 if node.target is aten.index_put.default else 2])
    if node.target is aten.index_put.default:
        given: Any = node.args[1]
        dims = [dim for dim, places in enumerate(given) if places is not None]
        if len(dims) != 1 or given[dims[0]].meta["val"].dtype == torch.bool or given[dims[0]].meta["val"].dim() != 1:
            return NotImplemented
        dim = dims[0]
        count = given[dim].meta["val"].shape[0]
        b = b.expand(*base.shape[:dim], count, *base.shape[dim + 1 :])
    else:
        dim = int(node.args[1]) % max(1, base.dim())  # type: ignore[arg-type]
        b = b.expand(shape_of(source))
        if b.dim() != base.dim() or b.shape[:dim] + b.shape[dim + 1 :] != base.shape[:dim] + base.shape[dim + 1 :]:
            return NotImplemented
    d.demand_equal_along(b, dim)
    b = b.narrow(dim, 0, 1).expand(base.shape)
    if is_zero(d, node.args[0]) or is_zero(d, source):
        return base if is_zero(d, source) else b
    d.merge(base, b)
    return base


def clamped(d: Forms, node: torch.fx.Node, a: Any, *bounds: Any) -> torch.Tensor:
    """Between 0 and ∞, or between what scales alike."""
    forms = d.operand(a).expand(shape_of(node))
    for bound, given in zip(bounds, node.args[1:], strict=False):
        if given is not None:
            forms = alike(d, node, forms, bound, None, given)
    return forms


def picked(d: Forms, node: torch.fx.Node, a: Any, *_: Any) -> Any:
    """The largest, or all in order, of entries that scale alike: which they are stays as it is."""
    forms, dim = d.plain(a), arguments(node)["dim"]
    value: Any = node.meta["val"]
    if forms.dim() == 0:
        return forms, None
    d.demand_equal_along(forms, dim)
    first = forms.narrow(dim, 0, 1)
    shape = value[0].shape
    return (first if len(shape) == first.dim() else first.squeeze(dim)).expand(shape), None


def index(d: Forms, node: torch.fx.Node, a: Any, _: Any) -> Any:
    """Places that are constants are read; what a text or θ chooses has to be alike wherever it may be taken from."""
    if a is None:
        return zeros(shape_of(node))
    forms = d.plain(a)
    chosen: list[torch.Tensor | None] = []
    for dim, given in enumerate(node.args[1]):  # type: ignore[arg-type]
        places = None if given is None else constant(d, given)
        if given is not None and places is None:
            if given.meta["val"].dtype == torch.bool:  # how many there are depends on data
                return NotImplemented
            d.demand_equal_along(forms, dim)
            places = torch.zeros(shape_of(given), dtype=torch.int64)
        chosen.append(places)
    read: torch.Tensor = aten.index.Tensor(forms.contiguous(), chosen)
    return read


def constant(d: Forms, node: Any) -> torch.Tensor | None:
    """The value of a node, if it is a constant of the graph."""
    while isinstance(node, torch.fx.Node) and node.target in COPIES:
        node = node.args[0]
    return d.constants.get(node)


def gather(d: Forms, node: torch.fx.Node, a: Any, dim: int, *_: Any) -> torch.Tensor:
    """Which entries are taken is not up to the graph; so they have to be alike along the dimension."""
    if a is None:
        return zeros(shape_of(node))
    forms = d.plain(a)
    d.demand_equal_along(forms, dim)
    return forms.narrow(dim, 0, 1).contiguous().gather(dim, torch.zeros(shape_of(node), dtype=torch.int64))


def new(_: Forms, __: torch.fx.Node, *___: Any) -> None:
    """A new tensor takes over a shape, and no values."""


def getitem(_: Forms, __: torch.fx.Node, parts: Any, index: int) -> Any:
    """One of several parts."""
    return parts[index]


COPIES = (*COPIED, CAST, aten.detach.default, aten.to.dtype, aten.lift_fresh_copy.default)
