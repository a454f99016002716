"""Second-order forward Taylor mode in the parameters: vᵀ∇²L v without a backward pass.

Along θ + ε·v_k every activation is x + ε·x_k + ½ε²·x_kk + …; one rule for each kind of operation carries (x, {x_k},
{x_kk}) through the traced graph, for many probes at once. A probe that is confined to a block of tensors has no tangent
before that block. Nothing is stored for a backward pass: a value is dropped after its last use.

Second-order terms may be *collapsed*: probes that share a class share one Σ_k x_kk, since every rule is linear in them.

Probes that are independent may start apart and be *joined* later. While they are apart, their products, which have mean
zero, are left out: of the second-order term of W x only W x_kk is left, not 2 V x_k, which saves a matrix product and
its noise. A linear map with weights takes what came before as one probe (W x_k would else be one product for each), and
keeps its own weight's apart until the next one. A tensor that is used twice is safe: once its probe is joined it is the
same probe as what it met, and products are taken.

Sequences do not see each other, and each has probes of its own: the trace of a sum of losses is the sum of the traces.
A matrix W that is used once need not be probed in all its entries either. Of a sequence's inputs x_1…x_T only the
matrix X = (x_1 … x_T)ᵀ enters: the tangents V x_t of a probe V have covariance (X Xᵀ) ⊗ I, and so have the rows of C ξ,
for C Cᵀ = X Xᵀ and random signs ξ. A Cholesky factor C is T × T, where X is T × D.

The head is not probed. With features h, logits z = W h and p = softmax(z), the loss along v_k has second derivative

    Σ_t (p − y)ᵀ W h_kk  +  h_kᵀ WᵀS W h_k,   S = diag p − p pᵀ,

whose first part needs one product Wᵀ(p − y) for all probes, and whose second is averaged over labels ŷ ~ p, as
E[((W_ŷ − Wᵀp)·h_k)²], so that no tangent is ever as large as the vocabulary. The trace over W itself is exact:
Σ_t ‖h‖²(1 − ‖p‖²). Where W is tied to the input embedding, only the rows that occur in the input need probes.
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from villani.errors import InputError
from villani.landscape.graph import LogitGraph, place

aten = torch.ops.aten
Tangents = dict[int, torch.Tensor]


class Jet:
    """A value with first-order terms by probe and second-order terms by class (d²/dε², not halved)."""

    __slots__ = ("first", "second", "x")

    def __init__(self, x: torch.Tensor, first: Tangents | None = None, second: Tangents | None = None) -> None:
        self.x = x
        self.first = first or {}
        self.second = second or {}


class Probed(Jet):
    """A parameter that is used once, with probes that are drawn where they are used.

    Attributes:
        probes: their numbers.
        draw: (probe, shape) → independent random signs of this shape.
    """

    __slots__ = ("draw", "probes")

    def __init__(
        self, x: torch.Tensor, probes: Sequence[int], draw: Callable[[int, Sequence[int]], torch.Tensor]
    ) -> None:
        super().__init__(x)
        self.probes = probes
        self.draw = draw

    def drawn(self) -> Jet:
        """With one probe for all sequences."""
        return Jet(self.x, {k: self.draw(k, self.x.shape) for k in self.probes})

    def spread(self, sequences: int, shape: torch.Size) -> Jet:
        """A vector (E,) with a probe for every sequence, for a value of this shape, (B, …, E) or (B·T, E)."""
        size = shape[-1]
        rows = shape.numel() // size // sequences
        draws = {k: self.draw(k, (sequences, 1, size)) for k in self.probes}
        return Jet(self.x, {k: t.expand(sequences, rows, size).contiguous().view(shape) for k, t in draws.items()})


class Sweep:
    """Carries jets through a graph.

    Args:
        graph: the traced logits.
        parameter: index of a tensor in θ → its jet, called at its first use.
        classes: probe → class of its second-order term.
        joins: probe → the probe that it becomes part of at the next linear map with weights, for independent probes.
        isolated: the nodes at which `Probed` parameters may have a probe for every sequence, see `isolated_nodes`.
    """

    def __init__(
        self,
        graph: LogitGraph,
        parameter: Callable[[int], Jet],
        classes: Sequence[int],
        joins: Mapping[int, int] | None = None,
        isolated: Collection[torch.fx.Node] = (),
    ) -> None:
        self.graph = graph
        self.parameter = parameter
        self.classes = classes
        self.joins = joins or {}
        self.isolated = isolated
        self.sequences = 1
        self._joined: dict[int, int] = {}
        self._factors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def features(self, ids: torch.Tensor, attention: torch.Tensor | None) -> Jet:
        """The input of the head, (B, T, D), for a graph that `check_rules` lets through."""
        stop = self.graph.head.features
        self.sequences = len(ids)
        uses = _uses(self.graph)
        values: dict[torch.fx.Node, Any] = {self.graph.ids: ids, **self.graph.constants}
        if self.graph.attention is not None:
            values[self.graph.attention] = attention
        for node in self.graph.nodes:
            if node.op == "call_function":
                values[node] = self._run(node, values)
            for used in node.all_input_nodes:
                uses[used] -= 1
                if uses[used] == 0 and used is not stop:
                    values.pop(used, None)
            if node is stop:
                break
        result: Jet = values[stop]
        return result

    def _run(self, node: torch.fx.Node, values: dict[torch.fx.Node, Any]) -> Any:
        def look(argument: torch.fx.Node) -> Any:
            if argument not in values and argument in self.graph.parameters:
                values[argument] = self.parameter(self.graph.parameters[argument])
            value = values[argument]
            if isinstance(value, Probed):
                if node not in self.isolated or node.target not in _BY_SEQUENCE:
                    return value.drawn()
                return value if value.x.dim() > 1 else value.spread(self.sequences, node.meta["val"].shape)
            if isinstance(value, Jet):
                self._gather(value)
            return value

        arguments: Any = torch.fx.map_arg(node.args, look)
        options: Any = torch.fx.map_arg(node.kwargs, look)
        if not any(isinstance(a, Jet) for a in _leaves(arguments)):
            return node.target(*arguments, **options)  # type: ignore[operator]
        return _RULES[node.target](self, node.target, *arguments, **options)

    def probe(self, k: int) -> int:
        """What probe k is part of by now."""
        while k in self._joined:
            k = self._joined[k]
        return k

    def join(self, a: Jet, into: Sequence[int] | None = None) -> None:
        """Let the probes of a, as far as they may, go on as part of what `joins` says, or of `into`, one by one."""
        for k, other in zip(a.first, into or [self.joins.get(k, k) for k in a.first], strict=True):
            if k in self.joins:
                self._joined[k] = other
        self._gather(a)

    def _gather(self, a: Jet) -> None:
        if not a.first.keys().isdisjoint(self._joined):
            first: Tangents = {}
            for k, t in a.first.items():
                _add_to(first, self.probe(k), t)
            a.first = first

    def through(self, x: torch.Tensor, weight: Probed, shape: torch.Size) -> Tangents:
        """Tangents, of this shape, of a linear map of x by its own matrix's probes, one for every sequence."""
        factor = self._factor(x)  # (B, N, R)
        size = (self.sequences, factor.shape[2], shape[-1])
        return {k: torch.bmm(factor, weight.draw(k, size)).view(shape) for k in weight.probes}

    def _factor(self, x: torch.Tensor) -> torch.Tensor:
        """C with C Cᵀ = X Xᵀ for the inputs X (N, D) of each sequence; kept while x is the input of further maps."""
        if id(x) not in self._factors:
            rows = x.reshape(self.sequences, -1, x.shape[-1])
            if rows.shape[1] < rows.shape[2]:
                gram = rows.double() @ rows.double().mT
                lift = gram.diagonal(dim1=1, dim2=2).amax(dim=1)[:, None] * 1e-10 + torch.finfo(x.dtype).tiny
                gram.diagonal(dim1=1, dim2=2).add_(lift)  # repeated inputs make it singular
                rows = torch.linalg.cholesky(gram).to(x.dtype)
            self._factors = {id(x): (x, rows)}
        return self._factors[id(x)][1]

    # What rules are made of

    def squares(self, first: Tangents, square: Callable[[torch.Tensor], torch.Tensor]) -> Tangents:
        """Σ over the probes of each class of a quadratic function of their tangents."""
        sums: Tangents = {}
        for k, tangent in first.items():
            _add_to(sums, self.classes[k], square(tangent))
        return sums

    def elementwise(self, a: Jet, y: torch.Tensor, slope: torch.Tensor, bend: torch.Tensor | None) -> Jet:
        """φ(a): slope φ′ and bend φ″ at a; `bend` None where it is zero."""
        first = {k: slope * t for k, t in a.first.items()}
        second = {c: slope * t for c, t in a.second.items()}
        if bend is not None:
            for c, t in self.squares(a.first, torch.square).items():
                _add_to(second, c, bend * t)
        return Jet(y, first, second)

    def bilinear(self, f: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: Any, b: Any) -> Jet:
        """f(a, b), linear in each; either may be a plain tensor or number."""
        a, b = _jet(a), _jet(b)
        first: Tangents = {}
        second: Tangents = {}
        for terms, sums in ((a.first, first), (a.second, second)):
            for k, t in terms.items():
                _add_to(sums, k, f(t, b.x))
        for terms, sums in ((b.first, first), (b.second, second)):
            for k, t in terms.items():
                _add_to(sums, k, f(a.x, t))
        for k in a.first.keys() & b.first.keys():
            _add_to(second, self.classes[k], 2 * f(a.first[k], b.first[k]))
        return Jet(f(a.x, b.x), first, second)


def check_rules(graph: LogitGraph) -> None:
    """Refuse a graph with an operation that depends on θ and has no rule.

    Raises:
        InputError: names the operation and its source line.
    """
    moved = set(graph.parameters)
    for node in graph.nodes:
        if node.op == "call_function" and not moved.isdisjoint(node.all_input_nodes):
            if node is not graph.head.node and node.target not in _RULES:
                raise InputError(f"no Taylor rule for {node.target} ({place(node)}): use trace='gauss-newton'")
            moved.add(node)
        if node is graph.head.features:
            return


def isolated_nodes(graph: LogitGraph, tensors: Sequence[torch.Tensor], ids: torch.Tensor) -> frozenset[torch.fx.Node]:
    """Nodes whose output, as (B, N, E), has the rows of each sequence in its own part, apart from all others.

    Found by trial: of the sequences `ids` (B, T), the first is changed. None are isolated where features of the others
    move. `tensors` are those of θ.
    """
    shapes = {node: node.meta["val"].shape for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
    if len(ids) == 1:
        return frozenset(shapes)
    changed = ids.clone()
    changed[0] = (ids[0] + 1) % (int(ids.max()) + 2)
    isolated = set()
    values: list[dict[torch.fx.Node, Any]] = []
    for tokens in (ids, changed):
        start: dict[torch.fx.Node, Any] = {graph.ids: tokens, **graph.constants}
        values.append(start | {node: tensors[index].detach() for node, index in graph.parameters.items()})
        if graph.attention is not None:
            values[-1][graph.attention] = torch.ones_like(ids)
    uses = _uses(graph)
    for node in graph.nodes:
        if node.op == "call_function":
            for known in values:
                look = known.__getitem__
                known[node] = node.target(*torch.fx.map_arg(node.args, look), **torch.fx.map_arg(node.kwargs, look))  # type: ignore[operator]
            before, after = (known[node] for known in values)
            if node in shapes and before.dim() and before.numel() % len(ids) == 0:
                before, after = (t.reshape(len(ids), -1) for t in (before, after))
                if torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0]):
                    isolated.add(node)
        for used in node.all_input_nodes:
            uses[used] -= 1
            if uses[used] == 0 and used.op == "call_function":
                for known in values:
                    known.pop(used)
        if node is graph.head.features:
            break
    return frozenset(isolated) if graph.head.features in isolated else frozenset()


def _uses(graph: LogitGraph) -> dict[torch.fx.Node, int]:
    uses: dict[torch.fx.Node, int] = dict.fromkeys(graph.nodes, 0)
    for node in graph.nodes:
        for used in node.all_input_nodes:
            uses[used] += 1
    return uses


def _leaves(arguments: Any) -> list[Any]:
    if isinstance(arguments, tuple | list):
        return [leaf for argument in arguments for leaf in _leaves(argument)]
    return [arguments]


def _jet(value: Any) -> Jet:
    return value if isinstance(value, Jet) else Jet(value)


def _add_to(sums: Tangents, key: int, term: torch.Tensor) -> None:
    sums[key] = sums[key] + term if key in sums else term


def _mapped(a: Jet, f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor | None = None) -> Jet:
    """f applied to every order, f linear; `x` replaces the value where f has a constant part."""
    return Jet(
        f(a.x) if x is None else x, {k: f(t) for k, t in a.first.items()}, {c: f(t) for c, t in a.second.items()}
    )


# Rules: rule(sweep, operation, *arguments of the operation)


def _linear_in_first(_: Sweep, op: Any, a: Jet, *rest: Any, **options: Any) -> Any:
    return _mapped(a, lambda t: op(t, *rest, **options))


def _split(_: Sweep, op: Any, a: Jet, *rest: Any) -> list[Jet]:
    values = op(a.x, *rest)
    first = {k: op(t, *rest) for k, t in a.first.items()}
    second = {c: op(t, *rest) for c, t in a.second.items()}
    return [
        Jet(x, {k: t[i] for k, t in first.items()}, {c: t[i] for c, t in second.items()}) for i, x in enumerate(values)
    ]


def _getitem(_: Sweep, __: Any, parts: Sequence[Jet], index: int) -> Jet:
    return parts[index]


def _cat(_: Sweep, op: Any, parts: Sequence[Any], dim: int = 0) -> Jet:
    jets = [_jet(part) for part in parts]

    def joined(terms: list[Tangents]) -> Tangents:
        keys = {k for term in terms for k in term}
        return {
            k: op([term.get(k, torch.zeros_like(jet.x)) for term, jet in zip(terms, jets, strict=True)], dim)
            for k in sorted(keys)
        }

    return Jet(op([jet.x for jet in jets], dim), joined([j.first for j in jets]), joined([j.second for j in jets]))


def _add(_: Sweep, op: Any, a: Any, b: Any, *, alpha: float = 1) -> Jet:
    a, b = _jet(a), _jet(b)
    y = op(a.x, b.x, alpha=alpha)
    scale = alpha if op is aten.add.Tensor else -alpha
    first: Tangents = {}
    second: Tangents = {}
    for terms, sums in ((a.first, first), (a.second, second)):
        for k, t in terms.items():
            _add_to(sums, k, t.expand_as(y))
    for terms, sums in ((b.first, first), (b.second, second)):
        for k, t in terms.items():
            _add_to(sums, k, (t if scale == 1 else scale * t).expand_as(y))
    return Jet(y, first, second)


def _multiply(sweep: Sweep, op: Any, a: Any, b: Any) -> Jet:
    return sweep.bilinear(op, a, b)


def _divide(sweep: Sweep, op: Any, a: Any, b: Any) -> Jet:
    if not isinstance(b, Jet):
        return _mapped(a, lambda t: op(t, b))
    inverse = b.x.reciprocal()
    return sweep.bilinear(torch.mul, a, sweep.elementwise(b, inverse, -(inverse**2), 2 * inverse**3))


def _linear(sweep: Sweep, op: Any, a: Any, weight: Any, bias: Any = None) -> Jet:
    """What came before goes on as one, and the weight's own probe stays apart until the next linear map."""
    own = weight.probes if isinstance(weight, Probed) else list(weight.first) if isinstance(weight, Jet) else []
    if isinstance(a, Jet) and own:
        sweep.join(a)
        if isinstance(bias, Jet) and len(bias.first) == len(own):
            sweep.join(bias, into=own)
    if isinstance(weight, Probed):
        y = sweep.bilinear(op, a, weight.x)
        y.first |= sweep.through(_jet(a).x, weight, y.x.shape)
    else:
        y = sweep.bilinear(op, a, weight)
    return y if bias is None else _add(sweep, aten.add.Tensor, y, bias)


def _addmm(sweep: Sweep, _: Any, bias: Any, a: Any, b: Any) -> Jet:
    return _linear(sweep, torch.mm, a, b, bias)


def _where(_: Sweep, op: Any, condition: torch.Tensor, a: Any, b: Any) -> Jet:
    a, b = _jet(a), _jet(b)
    y = op(condition, a.x, b.x)
    first: Tangents = {}
    second: Tangents = {}
    for terms, sums in ((a.first, first), (a.second, second)):
        for k, t in terms.items():
            _add_to(sums, k, torch.where(condition, t, 0.0))
    for terms, sums in ((b.first, first), (b.second, second)):
        for k, t in terms.items():
            _add_to(sums, k, torch.where(condition, 0.0, t))
    return Jet(y, first, second)


def _masked_fill(_: Sweep, op: Any, a: Jet, mask: torch.Tensor, value: Any) -> Jet:
    return _mapped(a, lambda t: t.masked_fill(mask, 0.0), op(a.x, mask, value))


def _softmax(sweep: Sweep, op: Any, a: Jet, dim: int, *rest: Any) -> Jet:
    """d: y(u − ⟨y,u⟩); d²: y(u_c² − ⟨y,u_c²⟩) with u_c centred under y."""
    y = op(a.x, dim, *rest)

    def centred(t: torch.Tensor) -> torch.Tensor:
        weighted: torch.Tensor = (y * t).sum(dim, keepdim=True)
        return t - weighted

    first = {k: centred(t) for k, t in a.first.items()}
    second = {c: y * centred(t) for c, t in a.second.items()}
    for c, t in sweep.squares(first, torch.square).items():
        _add_to(second, c, y * centred(t))
    return Jet(y, {k: y * t for k, t in first.items()}, second)


def _layer_norm(
    sweep: Sweep, __: Any, a: Jet, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Jet:
    """n = c·r with c = a − mean, r = (mean c² + ε)^−½; then gain and bias."""
    dims = tuple(range(-len(shape), 0))
    centred = _mapped(a, lambda t: t - t.mean(dims, keepdim=True))
    c = centred.x
    r = (c.square().mean(dims, keepdim=True) + eps).rsqrt()
    q1 = {k: 2 * (c * t).mean(dims, keepdim=True) for k, t in centred.first.items()}
    q2 = {k: 2 * (c * t).mean(dims, keepdim=True) for k, t in centred.second.items()}
    for k, t in sweep.squares(centred.first, lambda t: 2 * t.square().mean(dims, keepdim=True)).items():
        _add_to(q2, k, t)
    variance = Jet(c, q1, q2)  # only its tangents are used
    scale = sweep.elementwise(variance, r, -0.5 * r**3, 0.75 * r**5)
    normed = sweep.bilinear(torch.mul, centred, scale)
    if weight is not None:
        normed = sweep.bilinear(torch.mul, normed, weight)
    return normed if bias is None else _add(sweep, aten.add.Tensor, normed, bias)


def _embedding(_: Sweep, op: Any, weight: Jet, ids: torch.Tensor, *rest: Any) -> Jet:
    return _mapped(weight, lambda t: F.embedding(ids, t), op(weight.x, ids, *rest))


def _tanh(sweep: Sweep, _: Any, a: Jet) -> Jet:
    y = a.x.tanh()
    slope = 1 - y.square()
    return sweep.elementwise(a, y, slope, -2 * y * slope)


def _sigmoid(sweep: Sweep, _: Any, a: Jet) -> Jet:
    y = a.x.sigmoid()
    slope = y * (1 - y)
    return sweep.elementwise(a, y, slope, slope * (1 - 2 * y))


def _silu(sweep: Sweep, _: Any, a: Jet) -> Jet:
    s = a.x.sigmoid()
    slope = s * (1 - s)
    return sweep.elementwise(a, a.x * s, s + a.x * slope, slope * (2 + a.x * (1 - 2 * s)))


def _relu(sweep: Sweep, _: Any, a: Jet) -> Jet:
    """Almost everywhere: the kinks' own curvature is not seen (THEORY.md §7)."""
    return sweep.elementwise(a, a.x.relu(), (a.x > 0).to(a.x.dtype), None)


def _gelu(sweep: Sweep, op: Any, a: Jet, *, approximate: str = "none") -> Jet:
    x = a.x
    if approximate == "tanh":
        c, b = 0.7978845608028654, 0.044715  # √(2/π)
        inner = Jet(c * (x + b * x**3))
        t = inner.x.tanh()
        u1, u2, d = c * (1 + 3 * b * x**2), 6 * c * b * x, 1 - t.square()
        slope = 0.5 * (1 + t) + 0.5 * x * d * u1
        bend = d * u1 + 0.5 * x * (d * u2 - 2 * t * d * u1.square())
    else:
        density = torch.exp(-0.5 * x.square()) * 0.3989422804014327  # 1/√(2π)
        slope = 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * density
        bend = density * (2 - x.square())
    return sweep.elementwise(a, op(x, approximate=approximate), slope, bend)


def _power(sweep: Sweep, _: Any, a: Jet, n: float) -> Jet:
    bend = n * (n - 1) * a.x ** (n - 2) if n != 2 else torch.full_like(a.x, 2.0)
    return sweep.elementwise(a, a.x**n, n * a.x ** (n - 1), bend)


def _square(sweep: Sweep, op: Any, a: Jet) -> Jet:
    return _power(sweep, op, a, 2)


def _rsqrt(sweep: Sweep, _: Any, a: Jet) -> Jet:
    y = a.x.rsqrt()
    return sweep.elementwise(a, y, -0.5 * y**3, 0.75 * y**5)


_BY_SEQUENCE = {aten.linear.default, aten.addmm.default, aten.layer_norm.default, aten.mul.Tensor}

_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        [
            aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.transpose.int,
            aten.permute.default, aten.unsqueeze.default,
            aten.squeeze.dim, aten.expand.default, aten.slice.Tensor, aten.select.int, aten.clone.default,
            aten.alias.default, aten.contiguous.default, aten._to_copy.default, aten.neg.default, aten.mean.dim,
            aten.sum.dim_IntList,
        ],
        _linear_in_first,
    ),
    **dict.fromkeys([aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default], _split),
    **dict.fromkeys([aten.matmul.default, aten.bmm.default, aten.mm.default, aten.mul.Tensor], _multiply),
    **dict.fromkeys([aten.add.Tensor, aten.sub.Tensor], _add),
    **dict.fromkeys([aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf], _where),
    operator.getitem: _getitem,
    aten.cat.default: _cat,
    aten.div.Tensor: _divide,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.masked_fill.Scalar: _masked_fill,
    aten.softmax.int: _softmax,
    aten.layer_norm.default: _layer_norm,
    aten.embedding.default: _embedding,
    aten.tanh.default: _tanh,
    aten.sigmoid.default: _sigmoid,
    aten.silu.default: _silu,
    aten.relu.default: _relu,
    aten.gelu.default: _gelu,
    aten.pow.Tensor_Scalar: _power,
    aten.square.default: _square,
    aten.rsqrt.default: _rsqrt,
}  # fmt: skip
