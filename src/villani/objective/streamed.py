"""The loss of a model whose weights are streamed, its gradient and products with its Hessian, a segment at a time.

One pass forward keeps what goes into every segment, and nothing inside. On the way back a segment is computed again,
with a graph and with its own weights, its adjoint goes on to the segment before, and the gradient of a tensor of θ is
handed out when it is complete: of a tensor that two segments use, when both have been there.

Products with vectors v go along: with s(x, w) = ⟨ȳ, f(x, w)⟩ of a segment y = f(x, w), tangents ẋ and v, and the
tangent ȳ˙ of its adjoint,

    (x̄˙, w̄˙) = ∇_{x,w} [⟨∇_x s, ẋ⟩ + ⟨∇_w s, v⟩ + ⟨ȳ˙, f⟩],

one more backward pass through the segment alone; w̄˙ is the part of ∇²L·v that belongs to w. Tangents ẋ come from the
pass forward.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import zip_longest
from typing import Any

import torch
from torch.autograd import forward_ad

from villani.errors import InputError, first_line
from villani.objective.batches import IGNORED, Batch
from villani.objective.graph import LogitGraph, trace_logits
from villani.objective.interpret import Evaluation, Placed, Table, values_of
from villani.objective.objective import Objective
from villani.objective.segments import Segment, Stretches, stretches
from villani.objective.streamed_head import Piece, Predictions, Vector, zero_for

Node = torch.fx.Node
Values = dict[Node, torch.Tensor]


class _Exact(Evaluation):
    """Every operation as it is: what the model detaches has no derivative, as in its own backward pass."""

    table = Table[Callable[..., Any]]()


@dataclass(frozen=True)
class _Stretch:
    """Operations as the interpreter takes them."""

    nodes: Sequence[Node]
    parameters: Mapping[Node, int] = field(default_factory=dict)


class Tape:
    """One batch's forward pass, inside `objective.evaluating()`: what the segments start from, and the features.

    Args:
        objective: of a language model with streamed weights.
        batch: one of its batches.
        vectors: that products with the Hessian are going to be taken with.

    Attributes:
        labels: (n,) of the predicted positions.
        predictions: their features.

    Raises:
        InputError: the model cannot be traced, or, with vectors, an operation has no forward derivative.
    """

    def __init__(self, objective: Objective, batch: Batch, vectors: Sequence[Vector] = ()) -> None:
        self.values = objective.parameters.values
        self._vectors = vectors
        self.graph, self._stretches = _cut(objective, batch)
        self._wanted = batch.labels[:, 1:] != IGNORED
        self.labels = batch.labels[:, 1:][self._wanted]
        head = self.graph.head
        self._uses = Counter(i for s in self._stretches.segments for i in set(s.parameters.values()))
        self._uses.update(i for i in (head.weight, head.bias) if isinstance(i, int))
        self._begins: list[int | None] = [None for _ in vectors]  # the first segment that each vector moves
        self._starts: list[Values] = []
        self._tangents: list[list[Values]] = []
        placed = {**self.graph.placed(batch), **self.graph.constants}
        with torch.no_grad():
            self._fixed = placed | values_of(
                _Stretch(self._stretches.still), _Exact(placed), self._stretches.fixed - placed.keys()
            )
            features, moved = self._forward()
        self._shape = features.shape
        wide = torch.promote_types(features.dtype, torch.float32) if head.weight is None else features.dtype
        rows, *self._moved = (t[:, :-1][self._wanted].to(wide) for t in (features, *moved))
        self.predictions = Predictions(head, self.values, rows)

    def loss(self) -> float:
        """The loss sum, in nats."""
        return self.predictions.loss(self.labels)

    def _forward(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The features (B, T, D), and their tangents along every vector."""
        alive: Values = {}
        moving: list[Values] = [{} for _ in self._vectors]
        for number, segment in enumerate(self._stretches.segments):
            start = {node: alive[node] for node in segment.inputs}
            self._starts.append(start)
            self._tangents.append([{n: t for n, t in tangents.items() if n in start} for tangents in moving])
            ends: Values | None = None
            for k, (vector, tangents) in enumerate(zip(self._vectors, moving, strict=True)):
                parts = {i: v for i in set(segment.parameters.values()) if (v := vector(i)) is not None}
                if parts and self._begins[k] is None:
                    self._begins[k] = number
                if self._begins[k] is not None:
                    ends, pushed = self._pushed(segment, start, self._tangents[-1][k], parts)
                    tangents.update(pushed)
            alive |= self._run(segment, start) if ends is None else ends
            later = {n for s in self._stretches.segments[number + 1 :] for n in s.inputs} | {self.graph.head.features}
            for of in (alive, *moving):
                for node in of.keys() - later:
                    del of[node]
        features = alive[self.graph.head.features]
        return features, [t.get(self.graph.head.features, torch.zeros_like(features)) for t in moving]

    def _run(self, segment: Segment, given: Values) -> Values:
        """What a segment gives; tensors of θ that are not given are read when they are used."""
        stretch = _Stretch(segment.nodes, {n: i for n, i in segment.parameters.items() if n not in given})
        placed = Placed(self._fixed | given, stretch.parameters, self.values)
        return values_of(stretch, _Exact(placed), segment.outputs)

    def _pushed(
        self, segment: Segment, start: Values, tangents: Values, parts: Mapping[int, torch.Tensor]
    ) -> tuple[Values, Values]:
        """What a segment gives, and its tangents along those of what it starts from and along v."""
        with forward_ad.dual_level():
            duals = {index: forward_ad.make_dual(self.values[index], v) for index, v in parts.items()}
            given = {node: duals[index] for node, index in segment.parameters.items() if index in duals}
            for node, value in start.items():
                given[node] = forward_ad.make_dual(value, tangents[node]) if node in tangents else value
            try:
                ends = self._run(segment, given)
            except (NotImplementedError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise InputError(
                    f"streamed weights: an operation has no forward derivative ({first_line(error)}): use "
                    "trace='taylor' with shares=0, or load the model with streamed=False"
                ) from error
            unpacked = {node: forward_ad.unpack_dual(value) for node, value in ends.items()}
        moved = {node: u.tangent.detach() for node, u in unpacked.items() if u.tangent is not None}
        return {node: u.primal.detach() for node, u in unpacked.items()}, moved

    def back(
        self, labels: torch.Tensor | None = None, *, residual: bool = False, products: bool = True
    ) -> Iterator[Piece]:
        """The gradient of the loss sum, and the products, tensor by tensor, each when it is complete.

        Tensors that the logits do not depend on are left out.

        Args:
            labels: (n,) instead of the batch's own.
            residual: products are with the Hessian of ⟨p − y, z⟩, p − y held fixed: the residual part alone.
            products: whether they are wanted.
        """
        partial: dict[int, Piece] = {}
        left = Counter(self._uses)
        vectors, moved = (self._vectors, self._moved) if products else ((), [])

        def complete(pieces: list[Piece]) -> Iterator[Piece]:
            while pieces:
                piece = pieces.pop(0)
                left[piece.index] -= 1
                if piece.index in partial:
                    piece = partial.pop(piece.index).plus(piece)
                if left[piece.index]:
                    partial[piece.index] = piece
                else:
                    yield piece

        adjoint, turned, pieces = self.predictions.back(
            self.labels if labels is None else labels, vectors, moved, residual
        )
        features = self.graph.head.features
        adjoints = [{features: self._spread(t)} for t in (adjoint, *turned)]
        del adjoint, turned
        yield from complete(pieces)
        for number in reversed(range(len(self._starts))):
            yield from complete(self._segment_back(number, adjoints, vectors))

    def _spread(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, D) of the predicted positions, as (B, T, D) with zeros elsewhere."""
        whole = torch.zeros(self._shape, dtype=rows.dtype, device=rows.device)
        whole[:, :-1][self._wanted] = rows
        return whole

    def _segment_back(self, number: int, adjoints: list[Values], vectors: Sequence[Vector]) -> list[Piece]:
        """Take adjoints, the first of which is not a tangent, through a segment; what is left of its tensors."""
        segment, start = self._stretches.segments[number], self._starts[number]
        indices = list(dict.fromkeys(segment.parameters.values()))
        seeds, *turning = adjoints
        with torch.enable_grad():
            inputs = {n: x.detach().requires_grad_() for n, x in start.items() if x.is_floating_point()}
            weights = {index: self.values[index].detach().requires_grad_() for index in indices}
            ends = self._run(segment, start | inputs | {n: weights[i] for n, i in segment.parameters.items()})
            seeded = [n for n in segment.outputs if n in seeds and ends[n].requires_grad]
            places = [*inputs.values(), *weights.values()]
            slopes = _grad([(ends[n], seeds[n]) for n in seeded], places, graph=bool(vectors))
            parts, bends = [], []
            for k, vector in enumerate(vectors):
                begins = self._begins[k]
                wanted = begins is not None and number >= begins  # before that nothing of the product is asked for
                part = {i: vector(i) if wanted else None for i in indices}
                along = [*[self._tangents[number][k].get(n) for n in inputs], *part.values()]
                pairs = [(g, t) for g, t in zip(slopes, along, strict=True) if g is not None and t is not None]
                pairs += [(ends[n], turning[k][n]) for n in seeded if n in turning[k]]
                pairs = [(g, t) for g, t in pairs if g.requires_grad]
                bends.append(_grad(pairs if wanted else [], places, keep=k + 1 < len(vectors)))
                parts.append(part)
        for of, slope in zip(adjoints, [slopes, *bends], strict=True):
            for node in segment.outputs:
                of.pop(node, None)
            for node, one in zip(inputs, slope, strict=False):  # its first entries
                if one is not None:
                    of[node] = of[node] + one.detach() if node in of else one.detach()
        pieces = []
        for place, (index, weight) in enumerate(weights.items(), len(inputs)):
            weight = weight.detach()
            products = [(zero_for(part[index], weight), zero_for(bend[place], weight))
                        for part, bend in zip(parts, bends, strict=True)]  # fmt: skip
            slope_of = slopes[place]
            gradient = torch.zeros_like(weight) if slope_of is None else slope_of.detach()
            pieces.append(Piece(index, weight, gradient, products))
        return pieces


def back_together(tapes: Sequence[Tape], **options: Any) -> Iterator[Piece]:
    """What `Tape.back` gives, summed over the tapes of one group, which are gone through side by side."""
    if len(tapes) == 1:
        yield from tapes[0].back(**options)
        return
    waiting: dict[int, list[Piece]] = {}
    for at in zip_longest(*(tape.back(**options) for tape in tapes)):
        for piece in at:
            if piece is not None:
                waiting.setdefault(piece.index, []).append(piece)
                if len(waiting[piece.index]) == len(tapes):
                    yield reduce(Piece.plus, waiting.pop(piece.index))
    for pieces in waiting.values():
        yield reduce(Piece.plus, pieces)


def _grad(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], places: list[torch.Tensor], graph: bool = False,
    keep: bool = False,
) -> list[torch.Tensor | None]:  # fmt: skip
    """∇ of Σ ⟨output, seed⟩ at some places; None where it does not depend on one."""
    if not pairs:
        return [None] * len(places)
    outputs, seeds = zip(*pairs, strict=True)
    return list(
        torch.autograd.grad(
            outputs, places, grad_outputs=seeds, create_graph=graph, retain_graph=graph or keep, allow_unused=True
        )
    )


def _cut(objective: Objective, batch: Batch) -> tuple[LogitGraph, Stretches]:
    """The graph of batches of this form, and its segments; made once for an objective."""
    graph = trace_logits(objective, batch.plain())
    key = ("segments", id(graph))
    if key not in objective.traced:
        sizes = [p.tensor.numel() * p.tensor.element_size() for p in objective.parameters.parameters]
        objective.traced[key] = stretches(graph, sizes)
    cut: Stretches = objective.traced[key]
    return graph, cut
