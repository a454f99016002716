"""A traced forward pass, cut into stretches that can be computed again one by one.

Between two operations some values are alive: computed, depending on θ, and still to be used. Of a Transformer it is one
tensor, the residual stream, at two places of every layer. The pass is cut at all such places, so that what is kept of
a stretch is what goes into it, and what a stretch holds while it is computed again is as little as it can be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from villani.objective.graph import LogitGraph

Node = torch.fx.Node
_LITTLE = 0.1  # of what a piece uses of θ on average
_MOST_ALIVE = 4  # values at a cut at most: of models whose layers hand on more than one


@dataclass(frozen=True)
class Segment:
    """A stretch of operations.

    Attributes:
        nodes: the operations, in an order that can be executed.
        parameters: placeholder → index of its tensor in θ, of those that are used here.
        inputs: values of earlier stretches that are used here, depending on θ.
        outputs: values of this stretch that are used after it.
    """

    nodes: tuple[Node, ...]
    parameters: dict[Node, int]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]


@dataclass(frozen=True)
class Stretches:
    """A forward pass up to the features of its head.

    Attributes:
        segments: in order; the last one's output is the features.
        still: the operations that do not depend on θ, in order.
        fixed: what they give that segments use, or placeholders that are no tensors of θ.
    """

    segments: tuple[Segment, ...]
    still: tuple[Node, ...]
    fixed: frozenset[Node]


def stretches(graph: LogitGraph, sizes: Sequence[int]) -> Stretches:
    """Cut a forward pass.

    Args:
        graph: of the logits.
        sizes: bytes of every tensor of θ.
    """
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    nodes = nodes[: nodes.index(graph.head.features) + 1]
    moved: set[Node] = set()
    for node in nodes:
        if any(a in moved or a in graph.parameters for a in node.all_input_nodes):
            moved.add(node)
    moving = [node for node in nodes if node in moved]
    wanted = _needed(graph.head.features)
    moving = [node for node in moving if node in wanted]
    cuts = min((_cuts(moving, most) for most in range(1, _MOST_ALIVE + 1)), key=lambda c: _coarse(c, graph, sizes))
    segments = [_segment(piece, moving, graph) for piece in _joined(cuts, graph, sizes)]
    used = {a for node in moving for a in node.all_input_nodes if a not in moved and a not in graph.parameters}
    return Stretches(tuple(segments), tuple(n for n in nodes if n not in moved and n in wanted), frozenset(used))


def _needed(features: Node) -> set[Node]:
    """What the features are computed from."""
    needed, stack = set(), [features]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    return needed


def _cuts(moving: Sequence[Node], most: int) -> list[list[Node]]:
    """The operations in the smallest pieces between which at most so many values are alive, all tensors."""
    place = {node: i for i, node in enumerate(moving)}
    last = {node: max((place[u] for u in node.users if u in place), default=place[node]) for node in moving}
    pieces: list[list[Node]] = [[]]
    alive: set[Node] = set()
    for i, node in enumerate(moving):
        pieces[-1].append(node)
        alive = {n for n in (*alive, node) if last[n] > i}
        tensors = all(isinstance(n.meta.get("val"), torch.Tensor) for n in alive)
        if i + 1 < len(moving) and len(alive) <= most and tensors:
            pieces.append([])
    return pieces


def _weight(piece: Sequence[Node], graph: LogitGraph, sizes: Sequence[int]) -> int:
    """Bytes of the tensors of θ that operations use."""
    return sum(
        sizes[i] for i in {graph.parameters[a] for n in piece for a in n.all_input_nodes if a in graph.parameters}
    )


def _coarse(pieces: Sequence[Sequence[Node]], graph: LogitGraph, sizes: Sequence[int]) -> int:
    """Bytes of the largest piece, of those that a tensor alone does not explain."""
    return max(max(_weight(piece, graph, sizes) for piece in pieces), max(sizes))


def _joined(pieces: Sequence[Sequence[Node]], graph: LogitGraph, sizes: Sequence[int]) -> list[list[Node]]:
    """Pieces that use next to nothing of θ, such as a last norm, with the one before."""
    weights = [_weight(piece, graph, sizes) for piece in pieces]
    little = _LITTLE * sum(weights) / len(weights)
    joined: list[list[Node]] = [[*pieces[0]]]
    for piece, weight in zip(pieces[1:], weights[1:], strict=True):
        if weight < little:
            joined[-1] += piece
        else:
            joined.append([*piece])
    return joined


def _segment(piece: Sequence[Node], moving: Sequence[Node], graph: LogitGraph) -> Segment:
    own, every = set(piece), set(moving)
    used = [a for node in piece for a in node.all_input_nodes]
    return Segment(
        nodes=tuple(piece),
        parameters={a: graph.parameters[a] for a in used if a in graph.parameters},
        inputs=tuple(dict.fromkeys(a for a in used if a in every and a not in own)),
        outputs=tuple(
            n for n in piece if n is graph.head.features or any(u in every and u not in own for u in n.users)
        ),
    )
