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

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from villani.curvature.jets import Jet, Probed, Tangents, add_to, as_jet
from villani.curvature.rules import BY_SEQUENCE, NEW, rule_of
from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.graph import LogitGraph, place


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

    def features(self, batch: Batch) -> Jet:
        """The input of the head, (B, T, D), for a graph that `check_rules` lets through."""
        stop = self.graph.head.features
        self.sequences = len(batch.ids)
        uses = _uses(self.graph)
        values: dict[torch.fx.Node, Any] = {**self.graph.placed(batch), **self.graph.constants}
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
                if node not in self.isolated or node.target not in BY_SEQUENCE:
                    return value.drawn()
                return value if value.x.dim() > 1 else value.spread(self.sequences, node.meta["val"].shape)
            if isinstance(value, Jet):
                self._gather(value)
            return value

        arguments: Any = torch.fx.map_arg(node.args, look)
        options: Any = torch.fx.map_arg(node.kwargs, look)
        if not moves(node):
            still = partial(pytree.tree_map, lambda a: a.x if isinstance(a, Jet) else a)
            return node.target(*still(arguments), **still(options))  # type: ignore[operator]
        if not any(isinstance(a, Jet) for a in pytree.tree_leaves(arguments)):
            return node.target(*arguments, **options)  # type: ignore[operator]
        rule = rule_of(node)
        if rule is None:
            raise InputError(f"no Taylor rule for {node.target} ({place(node)}): use trace='gauss-newton'")
        return rule(self, node.target, *arguments, **options)

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
                add_to(first, self.probe(k), t)
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
            add_to(sums, self.classes[k], square(tangent))
        return sums

    def elementwise(self, a: Jet, y: torch.Tensor, slope: torch.Tensor, bend: torch.Tensor | None) -> Jet:
        """φ(a): slope φ′ and bend φ″ at a; `bend` None where it is zero."""
        first = {k: slope * t for k, t in a.first.items()}
        second = {c: slope * t for c, t in a.second.items()}
        if bend is not None:
            for c, t in self.squares(a.first, torch.square).items():
                add_to(second, c, bend * t)
        return Jet(y, first, second)

    def bilinear(self, f: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: Any, b: Any) -> Jet:
        """f(a, b), linear in each; either may be a plain tensor or number."""
        a, b = as_jet(a), as_jet(b)
        first: Tangents = {}
        second: Tangents = {}
        for terms, sums in ((a.first, first), (a.second, second)):
            for k, t in terms.items():
                add_to(sums, k, f(t, b.x))
        for terms, sums in ((b.first, first), (b.second, second)):
            for k, t in terms.items():
                add_to(sums, k, f(a.x, t))
        for k in a.first.keys() & b.first.keys():
            add_to(second, self.classes[k], 2 * f(a.first[k], b.first[k]))
        return Jet(f(a.x, b.x), first, second)


def moves(node: torch.fx.Node) -> bool:
    """Whether what a node gives can move with θ: counts, places and conditions do not nearby, nor do new tensors."""
    held = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]
    return node.target not in NEW and any(v.is_floating_point() or v.is_complex() for v in held)


def check_rules(graph: LogitGraph) -> None:
    """Refuse a graph with an operation that depends on θ and has no rule.

    Raises:
        InputError: names the operation and its source line.
    """
    moved = set(graph.parameters)
    for node in graph.nodes:
        if node.op == "call_function" and not moved.isdisjoint(node.all_input_nodes) and moves(node):
            named = pytree.tree_leaves(node.kwargs)
            known = rule_of(node) is not None and moved.isdisjoint(a for a in named if isinstance(a, torch.fx.Node))
            if node is not graph.head.node and not known:
                raise InputError(f"no Taylor rule for {node.target} ({place(node)}): use trace='gauss-newton'")
            moved.add(node)
        if node is graph.head.features:
            return


def isolated_nodes(graph: LogitGraph, tensors: Sequence[torch.Tensor], batch: Batch) -> frozenset[torch.fx.Node]:
    """Nodes whose output, as (B, N, E), has the rows of each sequence in its own part, apart from all others.

    Found by trial: of the batch's sequences the first is changed. None are isolated where features of the others move.
    `tensors` are those of θ.
    """
    ids = batch.ids
    shapes = {node: node.meta["val"].shape for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
    if len(ids) == 1:
        return frozenset(shapes)
    changed = ids.clone()
    changed[0] = (ids[0] + 1) % (int(ids.max()) + 2)
    isolated = set()
    values: list[dict[torch.fx.Node, Any]] = []
    for tokens in (ids, changed):
        start: dict[torch.fx.Node, Any] = {**graph.placed(replace(batch, ids=tokens)), **graph.constants}
        values.append(start | {node: tensors[index].detach() for node, index in graph.parameters.items()})
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
