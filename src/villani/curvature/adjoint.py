"""Shares of tr ∇²L, tensor by tensor, and the gradient, of one pass: a first-order Taylor sweep and its adjoint.

Along a probe v every activation is x + ε·ẋ, and L̇ = ⟨∇L, v⟩. Backwards from L̇ the adjoint of ẋ is that of x in L, from
which ∇L follows; the adjoint of x is its derivative along v, from which (∇²L·v) follows. Probes v_i of single tensors
are independent, so that E[v_iᵀ(∇²L·v)_i] is the trace of the block of tensor i.

What has mean zero is left out. Of y = W x with the probe V of W, ẏ = W ẋ + V x, the share of W is ⟨ȳ˙, V x⟩ for the
adjoint ȳ˙ of y; neither ⟨ȳ, V ẋ⟩ nor Vᵀȳ in the adjoint of x is needed: both are products with probes that are
independent of V. So of a matrix five products are taken, where a gradient takes three: W x, W ẋ, Wᵀȳ, Wᵀȳ˙ and ȳ xᵀ.
V x is drawn for every sequence by itself, as in `curvature/taylor.py`.

The gradient of a tensor is handed out when it is complete, and none is kept.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from villani.curvature import elementary
from villani.curvature.algebra import JetAlgebra
from villani.curvature.blocks import BlockTrace, Key
from villani.curvature.group import quick_dot
from villani.curvature.head import LABELS, TiedRows
from villani.curvature.head_adjoint import head_adjoint
from villani.curvature.jets import Jet, Probed, mapped
from villani.curvature.rules import RULES, TaylorRule
from villani.curvature.taylor import Sweep
from villani.objective.batches import IGNORED, Batch
from villani.objective.families import SOFTMAX
from villani.statistics import Array
from villani.streams import Purpose, stream

aten = torch.ops.aten

Take = Callable[[int, torch.Tensor], None]
"""Takes a part of the gradient of the loss sum: index of a tensor in θ, values of its shape."""


class _Own(torch.autograd.Function):
    """(y, W ẋ) → (y, W ẋ + V x), which hands out the share and the gradient of W on the way back."""

    @staticmethod
    def forward(
        ctx: Any, _: torch.Tensor, y: torch.Tensor, moved: torch.Tensor | None, x: torch.Tensor, noise: torch.Tensor,
        take: Callable[..., None],
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        ctx.save_for_backward(x, noise)
        ctx.take, ctx.moving = take, moved is not None
        return y.view_as(y), noise.clone() if moved is None else moved + noise

    @staticmethod
    def backward(ctx: Any, turned: torch.Tensor, adjoint: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, noise = ctx.saved_tensors
        ctx.take(turned, adjoint, x, noise)
        return None, turned, adjoint if ctx.moving else None, None, None, None


class _Pointwise(torch.autograd.Function):
    """φ(x) and φ′(x) ẋ, which keep φ′ and φ″ ẋ alone."""

    @staticmethod
    def forward(
        ctx: Any, _: torch.Tensor, __: torch.Tensor, y: torch.Tensor, moved: torch.Tensor, slope: torch.Tensor,
        turn: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        ctx.save_for_backward(slope, turn)
        return y.view_as(y), moved.view_as(moved)

    @staticmethod
    def backward(ctx: Any, turned: torch.Tensor, adjoint: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slope, turn = ctx.saved_tensors
        of_x = slope * turned
        if turn is not None:
            of_x.addcmul_(turn, adjoint)
        return of_x, slope * adjoint, None, None, None, None


class _Softmax(torch.autograd.Function):
    """y = softmax(x) and ẏ = J ẋ with J = diag y − y yᵀ, which keep y and ẋ alone."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, moved: torch.Tensor, y: torch.Tensor, dim: int  # noqa: ARG004
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        centred = moved - (y * moved).sum(dim, keepdim=True)
        ctx.save_for_backward(y, centred)
        ctx.dim = dim
        return y.view_as(y), y * centred

    @staticmethod
    def backward(ctx: Any, turned: torch.Tensor, adjoint: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """⟨a, J ẋ⟩ moves with y by a∘ẋ − a⟨y, ẋ⟩ − ⟨a, y⟩ẋ, which is (a − ⟨a, y⟩)∘(ẋ − ⟨y, ẋ⟩) but for a constant."""
        y, centred = ctx.saved_tensors
        level = adjoint - (y * adjoint).sum(ctx.dim, keepdim=True)
        slope = torch.addcmul(turned, level, centred)
        slope -= (y * slope).sum(ctx.dim, keepdim=True)
        return y * slope, y * level, None, None


def _softmax(_: JetAlgebra, op: Any, a: Jet, dim: int, *rest: Any) -> Jet:
    """As the rule of Taylor sweeps."""
    with torch.no_grad():
        y = op(a.x, dim, *rest)
    out: Any = _Softmax.apply(a.x, a.first.get(0, torch.zeros_like(a.x)), y, dim)  # type: ignore[no-untyped-call]
    return Jet(out[0], {0: out[1]})


def _embedding(sweep: JetAlgebra, op: Any, weight: Any, ids: torch.Tensor, *rest: Any) -> Any:
    if isinstance(weight, _Tracked):
        return weight.looked_up(ids)
    return RULES[aten.embedding.default](sweep, op, weight, ids, *rest)


class _Tracked(Probed):
    """A parameter that hands out its share and its gradient.

    Attributes:
        index: in θ.
        ledger: whom to.
    """

    __slots__ = ("index", "ledger")

    def __init__(self, index: int, x: torch.Tensor, draw: Any, ledger: "_Ledger") -> None:
        super().__init__(x, [0], draw)
        self.index, self.ledger = index, ledger

    def drawn(self) -> Jet:
        """With one probe for all sequences."""
        return self.ledger.leaves(self.index, self.x.detach(), self.draw(0, self.x.shape), lambda slope: slope)

    def spread(self, sequences: int, shape: torch.Size) -> Jet:
        """With one for each; see `Probed.spread`."""
        size = shape[-1]
        rows = shape.numel() // size // sequences
        each = self.x.detach().expand(sequences, 1, size).contiguous()
        probes = self.draw(0, (sequences, 1, size))
        jet = self.ledger.leaves(self.index, each, probes, lambda slope: slope.sum(dim=0).view(self.x.shape))
        return mapped(jet, lambda t: t.expand(sequences, rows, size).reshape(shape))

    def looked_up(self, ids: torch.Tensor) -> Jet:
        """Its rows with these numbers, of which only those that occur have a probe."""
        rows, places = ids.unique(return_inverse=True)

        def whole(slope: torch.Tensor) -> torch.Tensor:
            other = self.ledger.waiting.pop(self.index, None)
            total = torch.zeros_like(self.x) if other is None else other
            return total.index_add_(0, rows, slope)

        jet = self.ledger.leaves(self.index, self.x.detach()[rows], self.draw(0, (len(rows), self.x.shape[1])), whole)
        return mapped(jet, lambda t: torch.nn.functional.embedding(places, t))


class _Ledger:
    """Shares as they add up, and where gradients go."""

    def __init__(self, count: int, take: Take | None) -> None:
        self.traces = np.zeros(count)
        self.take = take
        self.waiting: dict[int, torch.Tensor] = {}  # gradients that a lookup adds to

    def leaves(
        self, index: int, x: torch.Tensor, v: torch.Tensor, whole: Callable[[torch.Tensor], torch.Tensor]
    ) -> Jet:
        """A parameter's values and its probe as the ends of a graph; `whole` makes a slope in v one in the tensor."""
        x.requires_grad_()
        v.requires_grad_()

        def turned(leaf: torch.Tensor) -> None:
            if leaf.grad is not None:
                self.traces[index] += quick_dot(leaf.grad, v)
            leaf.grad = None

        def sloped(leaf: torch.Tensor) -> None:
            if leaf.grad is not None and self.take:
                self.take(index, whole(leaf.grad))
            leaf.grad = None

        x.register_post_accumulate_grad_hook(turned)
        v.register_post_accumulate_grad_hook(sloped)
        return Jet(x, {0: v})

    def map(self, index: int, transposed: bool) -> Callable[..., None]:
        """Of a linear map by a parameter."""

        def take(turned: torch.Tensor, adjoint: torch.Tensor, x: torch.Tensor, noise: torch.Tensor) -> None:
            self.traces[index] += quick_dot(turned, noise)
            if self.take:
                left, right = adjoint.flatten(0, -2), x.flatten(0, -2)
                self.take(index, right.T @ left if transposed else left.T @ right)

        return take


class AdjointSweep(Sweep):
    """A sweep of first order in a graph for autograd.

    Args:
        graph: the traced logits.
        parameter: index → its jet.
        isolated: as of `Sweep`.
        ledger: where shares and gradients go.
    """

    second = False
    table = RULES.with_rules((_softmax, SOFTMAX), (_embedding, [aten.embedding.default]))

    def __init__(self, graph: Any, parameter: Callable[[int], Jet], isolated: Any, ledger: _Ledger) -> None:
        super().__init__(graph, parameter, [0], None, isolated)
        self._ledger = ledger
        self._anchor = torch.zeros((), requires_grad=True)

    def argument(self, value: Any, user: torch.fx.Node) -> Any:
        """See `Sweep.argument`; tables are looked up as they are."""
        table = isinstance(value, _Tracked) and user.target is aten.embedding.default
        return value if table else super().argument(value, user)

    def apply(self, rule: TaylorRule, node: torch.fx.Node, arguments: Any, options: Any) -> Any:
        """See `Sweep.apply`; functions of one number have a derivative of their own."""
        if rule.__module__ != elementary.__name__:
            return super().apply(rule, node, arguments, options)
        with torch.no_grad():
            return super().apply(rule, node, arguments, options)

    def elementwise(self, a: Jet, y: torch.Tensor, slope: torch.Tensor, bend: torch.Tensor | None) -> Jet:
        """See `JetAlgebra.elementwise`."""
        if 0 not in a.first:
            return Jet(y)
        with torch.no_grad():
            moved = slope * a.first[0]
            turn = None if bend is None else bend * a.first[0]
        with torch.enable_grad():
            given = (a.x, a.first[0], y.detach(), moved, slope.detach(), turn)
            out: Any = _Pointwise.apply(*given)  # type: ignore[no-untyped-call]
        return Jet(out[0], {0: out[1]})

    def own(self, y: Jet, x: torch.Tensor, weight: Probed, op: Any) -> Jet:
        """See `JetAlgebra.own`."""
        assert isinstance(weight, _Tracked)
        with torch.no_grad():
            noise = self.through(x, weight, y.x.shape)[0]  # which knows x by its identity
        take = self._ledger.map(weight.index, op is torch.mm)
        out: Any = _Own.apply(self._anchor, y.x, y.first.get(0), x.detach(), noise, take)  # type: ignore[no-untyped-call]
        return Jet(out[0], {0: out[1]})


@dataclass(frozen=True)
class AdjointSample:
    """One sample, over a batch's predicted tokens.

    Attributes:
        loss: nats.
        traces: (P,) of every tensor's block of the loss sum's Hessian.
        gauss_newton: the Gauss–Newton part of all.
    """

    loss: float
    traces: Array
    gauss_newton: float


class AdjointTrace:
    """Samples of the trace of every tensor's block of the loss sum's Hessian, beside the gradient.

    Args:
        sweeps: which traces and checks the graph.
    """

    def __init__(self, sweeps: BlockTrace) -> None:
        self.sweeps, self.objective = sweeps, sweeps.objective

    def sample(self, batch: Batch, seed: int, key: Key, take: Take | None) -> AdjointSample:
        """One sample of a batch, inside `objective.evaluating()`; `take` is given the gradient, part by part.

        Probes, and labels for the head, are drawn from the key.
        """
        graph, isolated = self.sweeps.graph(batch)
        space, head = self.objective.parameters, graph.head
        uses = Counter(graph.parameters[a] for n in graph.nodes if n is not head.node for a in n.all_input_nodes
                       if a in graph.parameters)  # fmt: skip
        ledger = _Ledger(len(space.parameters), take)
        rows = batch.ids.unique()
        tied: list[TiedRows] = []
        if isinstance(head.weight, int) and head.weight in uses:
            tied = [TiedRows(0, rows, self.sweeps.signs(head.weight, (len(rows), -1), seed, key))]

        values = space.values

        def parameter(index: int) -> Jet:
            def draw(_: int, shape: Sequence[int]) -> torch.Tensor:
                if tied and index == head.weight:
                    own = tied[0].values
                    return own if len(own) == shape[0] else values[index].new_zeros(shape).index_copy_(0, rows, own)
                return self.sweeps.signs(index, shape, seed, key)

            one = _Tracked(index, values[index], draw, ledger)
            return one if uses[index] == 1 else one.drawn()

        with torch.enable_grad():
            jet = AdjointSweep(graph, parameter, isolated, ledger).features(batch)
            wanted = batch.labels[:, 1:] != IGNORED
            h, moved = (t[:, :-1][wanted] for t in (jet.x, jet.first.get(0, torch.zeros_like(jet.x))))
        labels = batch.labels[:, 1:][wanted]
        uniform = torch.from_numpy(stream(seed, Purpose.LABELS, *key).random((len(labels), LABELS)))
        weight, bias = (values[t] if isinstance(t, int) else t for t in (head.weight, head.bias))
        del jet
        own = [take is not None and isinstance(t, int) for t in (head.weight, head.bias)]
        with torch.no_grad():
            terms = head_adjoint(h.detach(), moved.detach(), labels, weight, bias, tied[0] if tied else None, uniform,
                                 slopes=(own[0], own[1]))  # fmt: skip
        for index, exact, slope in (
            (head.weight, terms.weight, terms.of_weight),
            (head.bias, terms.bias, terms.of_bias),
        ):
            if isinstance(index, int):
                ledger.traces[index] += exact
                if take and slope is not None:
                    ledger.waiting[index] = slope
        if tied and isinstance(head.weight, int):
            ledger.traces[head.weight] += terms.tied
        pairs = [(t, s) for t, s in ((h, terms.turned), (moved, terms.adjoint)) if t.requires_grad]
        del terms.of_weight, terms.of_bias
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [s for _, s in pairs])
        for index, slope in ledger.waiting.items():
            if take:
                take(index, slope)
        return AdjointSample(terms.loss, ledger.traces, terms.gauss_newton)
