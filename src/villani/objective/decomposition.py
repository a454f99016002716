"""Operations that a traced graph is rewritten without, each as the small ones that every table of rules knows.

Whoever reads a graph (Taylor sweeps, degrees, ranges, shifts, smoothness) then sees one attention, whatever a model
calls it, and needs a rule for the small operations alone. What is written here equals the operation in real arithmetic,
and up to rounding as computed. Operations for which a rule says more than its parts do (a norm, softmax, GELU) stay.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from villani.objective.interpret import Table

aten = torch.ops.aten
Tensor = torch.Tensor


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Softmax of scaled products, as torch defines `scaled_dot_product_attention`; dropout is left as it is.

    Args:
        query: (…, H, T, E).
        key: (…, H, S, E), or H/n heads with `enable_gqa`, each of n queries in a row.
        value: (…, H, S, V), or as many heads as `key`.
        attn_mask: True where a key is seen, or what is added to scores; broadcasts to (…, H, T, S). A query that sees
            no key gives 0.
        dropout_p: not 0: the operation stays whole, and no rule is known for it.
        is_causal: a query sees the keys up to its own place, counted from the first.
        scale: of the scores; E^−½ by default.
        enable_gqa: heads of key and value serve several queries.
    """
    if dropout_p:
        return NotImplemented
    if enable_gqa:
        key, value = (_repeated_heads(t, query.shape[-3]) for t in (key, value))
    scores = torch.matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        return torch.matmul(scores.masked_fill(past.logical_not(), -math.inf).softmax(-1), value)
    if attn_mask is None:
        return torch.matmul(scores.softmax(-1), value)
    if attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
    else:
        scores = scores + attn_mask
    return torch.matmul(aten._safe_softmax.default(scores, -1), value)


def _repeated_heads(heads: Tensor, count: int) -> Tensor:
    """(…, h, S, E) → (…, count, S, E), each head `count`/h times in a row."""
    return repeat_interleave(heads, count // heads.shape[-3], -3)


def repeat_interleave(x: Tensor, repeats: int, dim: int | None = None, output_size: int | None = None) -> Tensor:  # noqa: ARG001
    """Each entry along a dimension, of the flattened tensor by default, as often as `repeats` says, in a row."""
    if dim is None:
        x, dim = x.reshape(-1), 0
    dim %= x.dim()
    wide = x.unsqueeze(dim + 1)
    shape = [*x.shape[: dim + 1], repeats, *x.shape[dim + 1 :]]
    return wide.expand(shape).reshape([*x.shape[:dim], x.shape[dim] * repeats, *x.shape[dim + 1 :]])


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Side by side along a new dimension."""
    dim %= tensors[0].dim() + 1
    return torch.cat([t.unsqueeze(dim) for t in tensors], dim)


def baddbmm(self: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """β·self + α·(batch1 @ batch2); β = 0 ignores what self holds."""
    product = torch.bmm(batch1, batch2)
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return product + (self if beta == 1 else self * beta)


def einsum(equation: str, tensors: Sequence[Tensor], *, path: Sequence[int] | None = None) -> Any:  # noqa: ARG001
    """Two tensors contracted as matrices in batches; of more, of "…" or of a repeated letter it stays whole."""
    given, arrow, out = equation.replace(" ", "").partition("->")
    names = given.split(",")
    if not arrow or len(names) != 2 or "." in equation or any(len({*n}) < len(n) for n in (*names, out)):
        return NotImplemented
    (left, right), (x, y) = names, tensors
    for own, other in ((left, right), (right, left)):
        alone = [k for k, letter in enumerate(own) if letter not in other + out]
        if alone and own is left:
            x, left = x.sum(alone), "".join(letter for letter in own if letter in other + out)
        elif alone:
            y, right = y.sum(alone), "".join(letter for letter in own if letter in other + out)
    size = {letter: n for name, t in ((left, x), (right, y)) for letter, n in zip(name, t.shape, strict=True)}
    shared = [letter for letter in left if letter in right and letter in out]
    inner = [letter for letter in left if letter in right and letter not in out]
    rows, columns = ([letter for letter in own if letter not in other] for own, other in ((left, right), (right, left)))

    def arranged(t: Tensor, name: str, *parts: list[str]) -> Tensor:
        order = [name.index(letter) for part in parts for letter in part]
        return t.permute(order).reshape([math.prod(size[letter] for letter in part) for part in parts])

    product = torch.bmm(arranged(x, left, shared, rows, inner), arranged(y, right, shared, inner, columns))
    letters = [*shared, *rows, *columns]
    return product.reshape([size[letter] for letter in letters]).permute([letters.index(letter) for letter in out])


def rsub(self: Tensor, other: Any, alpha: float = 1) -> Any:
    """other − α·self."""
    return torch.sub(other, self, alpha=alpha) if isinstance(other, Tensor) else self * -alpha + other


def slice_scatter(
    self: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    """`self` with a slice of it replaced; of a step of 1, else the operation stays whole."""
    if step != 1:
        return NotImplemented
    size = self.shape[dim]
    start, end, _ = slice(start, end).indices(size)
    parts = [self.narrow(dim, 0, start), src.expand_as(self.narrow(dim, start, end - start)).to(self.dtype),
             self.narrow(dim, end, size - end)]  # fmt: skip
    parts = [part for part in parts if part.shape[dim]]
    return parts[0].clone() if len(parts) == 1 else torch.cat(parts, dim)


def select_scatter(self: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """`self` with one entry along a dimension replaced."""
    size = self.shape[dim]
    index %= size
    own = src.unsqueeze(dim % self.dim()).to(self.dtype)
    parts = [self.narrow(dim, 0, index), own, self.narrow(dim, index + 1, size - index - 1)]
    return torch.cat([part for part in parts if part.shape[dim]], dim)


def view_as(self: Tensor, other: Tensor) -> Tensor:
    """In the shape of another."""
    return self.reshape(other.shape)


def expand_as(self: Tensor, other: Tensor) -> Tensor:
    """Repeated to the shape of another."""
    return self.expand(other.shape)


def movedim(self: Tensor, source: Any, destination: Any) -> Tensor:
    """Dimensions at other places, the others in order."""
    count = self.dim()
    starts, ends = ([d % count for d in ([dims] if isinstance(dims, int) else dims)] for dims in (source, destination))
    others = iter(d for d in range(count) if d not in starts)
    return self.permute([starts[ends.index(d)] if d in ends else next(others) for d in range(count)])


def outer(self: Tensor, vec2: Tensor) -> Tensor:
    """Products of all pairs."""
    return self.unsqueeze(-1) * vec2


def type_as(self: Tensor, other: Tensor) -> Tensor:
    """In the precision of another."""
    return self.to(other.dtype)


def copy(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: ARG001
    """`src` in the shape and precision of `self`."""
    return src.to(self.dtype).expand(self.shape).clone()


TABLE = Table[Callable[..., Any]](
    (attention, [aten.scaled_dot_product_attention.default]),
    (repeat_interleave, [aten.repeat_interleave.self_int]),
    (stack, [aten.stack.default]),
    (baddbmm, [aten.baddbmm.default]),
    (einsum, [aten.einsum.default]),
    (rsub, [aten.rsub.Scalar, aten.rsub.Tensor]),
    (slice_scatter, [aten.slice_scatter.default]),
    (select_scatter, [aten.select_scatter.default]),
    (copy, [aten.copy.default]),
    (type_as, [aten.type_as.default]),
    (view_as, [aten.view_as.default, aten.reshape_as.default]),
    (expand_as, [aten.expand_as.default]),
    (movedim, [aten.movedim.int, aten.movedim.intlist]),
    (outer, [aten.outer.default, aten.ger.default]),
)

ALIASES = {
    "abs": "absolute", "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan",
    "atan2": "arctan2", "atanh": "arctanh", "cat": "concat concatenate", "clamp": "clip", "det": "linalg_det",
    "digamma": "special_digamma special_psi", "div": "divide true_divide", "erf": "special_erf",
    "erfc": "special_erfc", "erfinv": "special_erfinv", "exp2": "special_exp2", "expm1": "special_expm1",
    "ge": "greater_equal", "gt": "greater", "i0": "special_i0", "le": "less_equal", "lgamma": "special_gammaln",
    "log1p": "special_log1p", "log_softmax": "special_log_softmax", "logit": "special_logit",
    "logsumexp": "special_logsumexp", "lt": "less", "matmul": "linalg_matmul", "matrix_exp": "linalg_matrix_exp",
    "matrix_power": "linalg_matrix_power", "movedim": "moveaxis", "mul": "multiply", "ne": "not_equal",
    "neg": "negative", "polygamma": "special_polygamma", "round": "special_round", "sigmoid": "special_expit",
    "sinc": "special_sinc", "slogdet": "linalg_slogdet", "softmax": "special_softmax", "sub": "subtract",
    "transpose": "swapaxes swapdims", "trapezoid": "trapz", "trunc": "fix", "vstack": "row_stack",
    "xlogy": "special_xlogy",
}  # fmt: skip
"""Operation → its other names in ATen, which mean the same of the same arguments."""


_FORMS = {("swapaxes", "default"): "int", ("swapdims", "default"): "int", ("special_softmax", "default"): "int",
          ("special_log_softmax", "default"): "int", ("special_xlogy", "default"): "Tensor"}  # fmt: skip


def _other_names() -> dict[Any, Any]:
    """Each form of an alias → the same form of the operation, where it has that."""
    names = {}
    for name, aliases in ALIASES.items():
        for alias in aliases.split():
            packet = getattr(aten, alias, None)
            for form in packet.overloads() if packet is not None else ():
                operation = getattr(getattr(aten, name), _FORMS.get((alias, form), form), None)
                if operation is not None and "out" not in form:
                    names[getattr(packet, form)] = operation
    return names


OTHER_NAMES = _other_names()
TABLE |= {alias: TABLE.get(operation) or operation for alias, operation in OTHER_NAMES.items()}
