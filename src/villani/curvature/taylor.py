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

from villani.curvature.algebra import JetAlgebra
from villani.curvature.jets import Jet, Probed
from villani.curvature.rules import BY_SEQUENCE, RULES, TaylorRule
from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.families import EMPTY, NEW
from villani.objective.graph import LogitGraph, place
from villani.objective.interpret import Analysis, Evaluation, Placed, Table, interpret

_STILL = {*NEW, *EMPTY}


class Sweep(JetAlgebra, Analysis[Any, TaylorRule]):
    """Carries jets through a graph.

    Args:
        graph: the traced logits.
        parameter: index of a tensor in θ → its jet, called at its first use.
        classes, joins: see `JetAlgebra`.
        isolated: the nodes at which `Probed` parameters may have a probe for every sequence, see `isolated_nodes`.
    """

    table: Table[TaylorRule] = RULES

    def __init__(
        self,
        graph: LogitGraph,
        parameter: Callable[[int], Jet],
        classes: Sequence[int],
        joins: Mapping[int, int] | None = None,
        isolated: Collection[torch.fx.Node] = (),
    ) -> None:
        super().__init__(classes, joins)
        self.graph = graph
        self.parameter = parameter
        self.isolated = isolated
        self._inputs: dict[torch.fx.Node, torch.Tensor] = {}

    def features(self, batch: Batch) -> Jet:
        """The input of the head, (B, T, D), for a graph that `check_rules` lets through."""
        self.sequences = len(batch.ids)
        self._inputs = {**self.graph.placed(batch), **self.graph.constants}
        features: Jet = next(jet for node, jet in interpret(self.graph.trunk, self) if node is self.graph.head.features)
        return features

    def input(self, node: torch.fx.Node) -> Any:
        """A jet of θ, or a plain tensor."""
        index = self.graph.parameters.get(node)
        return self._inputs[node] if index is None else self.parameter(index)

    def argument(self, value: Any, user: torch.fx.Node) -> Any:
        """With the probes that this operation can take, and with those as one that were joined."""
        if isinstance(value, Probed):
            if user not in self.isolated or user.target not in BY_SEQUENCE:
                return value.drawn()
            return value if value.x.dim() > 1 else value.spread(self.sequences, user.meta["val"].shape)
        if isinstance(value, Jet):
            self.gather(value)
        return value

    def depends(self, node: torch.fx.Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        """Whether what it gives moves."""
        return moves(node) and any(
            isinstance(a, Jet) or (isinstance(a, list | tuple) and any(isinstance(b, Jet) for b in a))
            for a in arguments
        )

    def still(self, node: torch.fx.Node, arguments: Any, options: Any) -> Any:
        """Plain tensors."""
        plain = partial(pytree.tree_map, lambda a: a.x if isinstance(a, Jet) else a)
        target: Any = node.target
        return target(*plain(arguments), **plain(options))

    def apply(self, rule: TaylorRule, node: torch.fx.Node, arguments: Any, options: Any) -> Any:
        """rule(algebra, operation, *arguments, **options)."""
        return rule(self, node.target, *arguments, **options)

    def unknown(self, node: torch.fx.Node, arguments: Any, options: Any) -> Any:  # noqa: ARG002
        """Refused."""
        raise _refusal(node)


def _refusal(node: torch.fx.Node) -> InputError:
    return InputError(f"no Taylor rule for {node.target} ({place(node)}): use trace='gauss-newton'")


def moves(node: torch.fx.Node) -> bool:
    """Whether what a node gives can move with θ: counts, places and conditions do not nearby, nor do new tensors."""
    value = node.meta.get("val")
    held = value if isinstance(value, list | tuple) else [value]
    real = any(isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex()) for v in held)
    return real and node.target not in _STILL


def check_rules(graph: LogitGraph) -> None:
    """Refuse a graph with an operation that depends on θ and has no rule.

    Raises:
        InputError: names the operation and its source line.
    """
    moved = set(graph.parameters)
    for node in graph.nodes:
        if node.op == "call_function" and not moved.isdisjoint(node.all_input_nodes) and moves(node):
            named = pytree.tree_leaves(node.kwargs)
            known = RULES.rule(node.target) is not None and moved.isdisjoint(
                a for a in named if isinstance(a, torch.fx.Node)
            )
            if node is not graph.head.node and not known:
                raise _refusal(node)
            moved.add(node)
        if node is graph.head.features:
            return


def isolated_nodes(graph: LogitGraph, tensors: Sequence[torch.Tensor], batch: Batch) -> frozenset[torch.fx.Node]:
    """Nodes whose output, as (B, N, E), has the rows of each sequence in its own part, apart from all others.

    Found by trial: of the batch's sequences the first is changed. None are isolated where features of the others move.
    `tensors` are the values of θ.
    """
    ids = batch.ids
    shapes = {node: node.meta["val"].shape for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
    if len(ids) == 1:
        return frozenset(shapes)
    changed = ids.clone()
    changed[0] = (ids[0] + 1) % (int(ids.max()) + 2)
    given = [graph.constants | graph.placed(replace(batch, ids=tokens)) for tokens in (ids, changed)]
    two = [Evaluation(Placed(one, graph.parameters, tensors)) for one in given]
    isolated = set()
    for (node, before), (_, after) in zip(*(interpret(graph.trunk, one) for one in two), strict=True):
        whole = node.op == "call_function" and node in shapes and before.dim() and before.numel() % len(ids) == 0
        if whole and before.shape == after.shape:  # an expert's share depends on the tokens
            rows, others = (t.reshape(len(ids), -1) for t in (before, after))
            if torch.equal(rows[1:], others[1:]) and not torch.equal(rows[0], others[0]):
                isolated.add(node)
    return frozenset(isolated) if graph.head.features in isolated else frozenset()
