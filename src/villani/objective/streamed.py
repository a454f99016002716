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
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from villani.errors import InputError, first_line
from villani.objective.batches import IGNORED, Batch
from villani.objective.graph import LogitGraph, trace_logits
from villani.objective.interpret import Evaluation, Placed, Table, values_of
from villani.objective.objective import Objective
from villani.objective.parameters import double_dot
from villani.objective.pieces import Part, Piece, Rows, Vector, Wanted, added, lookup, to_wait
from villani.objective.segments import Segment, Stretches, stretches
from villani.objective.streamed_head import Predictions
from villani.work.memory import give_back

aten = torch.ops.aten
Node = torch.fx.Node
Values = dict[Node, torch.Tensor]


class _Exact(Evaluation):
    """Every operation as it is: what the model detaches has no derivative, as in its own backward pass."""

    table = Table[Callable[..., Any]]((lookup, [aten.embedding.default]))


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
        uses: of each tensor of θ, by the head and the segments.

    Raises:
        InputError: the model cannot be traced, or, with vectors, an operation has no forward derivative.
    """

    def __init__(self, objective: Objective, batch: Batch, vectors: Sequence[Vector] = ()) -> None:
        self._freed = 4.0 * objective.parameters.dtype.itemsize * int(objective.parameters.sizes.max())  # by a pass
        give_back(self._freed)
        self.values = objective.parameters.values
        self._vectors = vectors
        self.graph, self._stretches = _cut(objective, batch)
        self._wanted = batch.labels[:, 1:] != IGNORED
        self.labels = batch.labels[:, 1:][self._wanted]
        head = self.graph.head
        self.uses = Counter(i for s in self._stretches.segments for i in set(s.parameters.values()))
        self.uses.update(i for i in (head.weight, head.bias) if isinstance(i, int))
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

    def _run(self, segment: Segment, given: dict[Node, Any]) -> Values:
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
        self, labels: torch.Tensor | None = None, *, residual: bool = False, wanted: Wanted = "products"
    ) -> Iterator[Piece]:
        """The gradient of the loss sum, and the products, tensor by tensor, each when it is complete.

        Tensors that the logits do not depend on are left out. What holds a piece when it asks for the next has both in
        memory.

        Args:
            labels: (n,) instead of the batch's own.
            residual: products are with the Hessian of ⟨p − y, z⟩, p − y held fixed: the residual part alone.
            wanted: of the products.
        """
        yield from _complete([self], [self._parts(labels, residual, wanted)])

    def _parts(self, labels: torch.Tensor | None, residual: bool, wanted: Wanted) -> Iterator[list[Part]]:
        """What the head leaves, and each segment from the last one on."""
        vectors, moved = (self._vectors, self._moved) if wanted != "gradients" else ((), [])
        give_back(self._freed)  # the head takes most, and finds little use for what the pass forward has freed
        adjoint, turned, pieces = self.predictions.back(
            self.labels if labels is None else labels, vectors, moved, residual, wanted
        )
        features = self.graph.head.features
        adjoints = [{features: self._spread(t)} for t in (adjoint, *turned)]
        parts: list[Part] = [(piece, None) for piece in pieces]
        del adjoint, turned, pieces  # as large as the head
        yield parts
        for number in reversed(range(len(self._starts))):
            yield self._segment_back(number, adjoints, vectors, wanted == "products")

    def _spread(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, D) of the predicted positions, as (B, T, D) with zeros elsewhere."""
        whole = torch.zeros(self._shape, dtype=rows.dtype, device=rows.device)
        whole[:, :-1][self._wanted] = rows
        return whole

    def _looked_up(self, segment: Segment) -> dict[int, torch.Tensor]:
        """Tensors that a segment looks up rows of and does nothing else with: which rows."""
        rows: dict[int, list[torch.Tensor]] = {}
        others: set[int] = set()
        for node in segment.nodes:
            used = [segment.parameters[a] for a in node.all_input_nodes if a in segment.parameters]
            if node.target is aten.embedding.default and node.args[1] in self._fixed and len(used) == 1:
                rows.setdefault(used[0], []).append(self._fixed[node.args[1]].reshape(-1))
            else:
                others.update(used)
        return {index: torch.cat(ids).unique() for index, ids in rows.items() if index not in others}

    def _segment_back(self, number: int, adjoints: list[Values], vectors: Sequence[Vector], whole: bool) -> list[Part]:
        """Take adjoints, the first of which is not a tangent, through a segment; what is left of its tensors."""
        segment, start = self._stretches.segments[number], self._starts[number]
        indices = list(dict.fromkeys(segment.parameters.values()))
        tables = self._looked_up(segment)
        if tables:
            give_back(self._freed)  # a table may be the largest tensor, and its gradient has waited

        def own(tensor: torch.Tensor, index: int) -> torch.Tensor:
            return tensor[tables[index]] if index in tables else tensor

        seeds, *turning = adjoints
        curvatures = np.zeros((len(indices), len(vectors)))
        products: list[dict[int, tuple[torch.Tensor, torch.Tensor]]] = [{} for _ in indices]
        with torch.enable_grad():
            inputs = {n: x.detach().requires_grad_() for n, x in start.items() if x.is_floating_point()}
            weights = {index: own(self.values[index].detach(), index).requires_grad_() for index in indices}
            given = {i: Rows(tables[i], weights[i]) if i in tables else weights[i] for i in indices}
            ends = self._run(segment, start | inputs | {n: given[i] for n, i in segment.parameters.items()})
            seeded = [n for n in segment.outputs if n in seeds and ends[n].requires_grad]
            places = [*inputs.values(), *weights.values()]
            slopes = _grad([(ends[n], seeds[n]) for n in seeded], places, graph=bool(vectors))
            bends = []
            for k, vector in enumerate(vectors):
                begins = self._begins[k]
                wanted = begins is not None and number >= begins  # before that nothing of the product is asked for
                part = {i: vector(i) if wanted else None for i in indices}
                moves = [None if v is None else own(v, i) for i, v in part.items()]
                along = [*[self._tangents[number][k].get(n) for n in inputs], *moves]
                pairs = [(g, t) for g, t in zip(slopes, along, strict=True) if g is not None and t is not None]
                pairs += [(ends[n], turning[k][n]) for n in seeded if n in turning[k]]
                pairs = [(g, t) for g, t in pairs if g.requires_grad]
                bend = _grad(pairs if wanted else [], places, keep=k + 1 < len(vectors))
                for place, (index, move) in enumerate(zip(indices, moves, strict=True)):
                    turn, v = bend[len(inputs) + place], part[index]
                    if whole and v is not None:
                        products[place][k] = (v, torch.zeros_like(weights[index]) if turn is None else turn)
                    elif turn is not None and move is not None:
                        curvatures[place, k] = double_dot(turn, move)
                bends.append(bend[: len(inputs)])
        for of, slope in zip(adjoints, [slopes, *bends], strict=True):
            for node in segment.outputs:
                of.pop(node, None)
            for node, one in zip(inputs, slope, strict=False):  # its first entries
                if one is not None:
                    of[node] = of[node] + one.detach() if node in of else one.detach()
        pieces: list[Part] = []
        for place, (index, weight) in enumerate(weights.items()):
            slope_of = slopes[len(inputs) + place]
            gradient = torch.zeros_like(weight) if slope_of is None else slope_of.detach()
            value = self.values[index] if index in tables else weight.detach()
            pieces.append((Piece(index, value, gradient, products[place], curvatures[place]), tables.get(index)))
        return pieces


def back_together(tapes: Sequence[Tape]) -> Iterator[Piece]:
    """The gradients that `Tape.back` gives, summed over the tapes of one group, which are gone through side by side."""
    yield from _complete(tapes, [tape._parts(None, False, "gradients") for tape in tapes])


def _complete(tapes: Sequence[Tape], passes: Sequence[Iterator[list[Part]]]) -> Iterator[Piece]:
    """Pieces of the tensors when all uses of them by all tapes have been there; each pass is that of a tape."""
    left = sum((tape.uses for tape in tapes), Counter[int]())
    waiting: dict[int, Piece] = {}
    for parts, by_head in _stages(passes):
        while parts:
            piece, rows = parts.pop(0)
            left[piece.index] -= 1
            shared = not by_head  # autograd may hand out the same memory twice
            if piece.index in waiting or rows is not None:
                piece, shared = added(waiting.pop(piece.index, None), piece, rows), False
            if left[piece.index]:
                waiting[piece.index] = to_wait(piece, shared=shared)
            else:
                yield piece
            del piece


def _stages(passes: Sequence[Iterator[list[Part]]]) -> Iterator[tuple[list[Part], bool]]:
    """What each pass leaves, all of them at the head first; and whether it is the head's."""
    going = list(passes)
    for stage in count():
        for one in [*going]:
            parts = next(one, None)
            if parts is None:
                going.remove(one)
            else:
                yield parts, stage == 0
        if not going:
            return


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
