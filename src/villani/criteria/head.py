"""Whether C10 applies: what stands between the trunk and the loss, read off the traced logits; THEORY.md §3.

Logits W(γ⊙x̂ + b), x̂ normalised, have degree 2 in φ = (W, γ, b), and degree 1 in φ = W where the norm has no gain of its
own that moves; |x̂| ≤ √D whatever the trunk. φ has to be used nowhere else: a tied head is.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from villani.criteria.patterns import COPIES, arguments, entries, inverse_norm, original, root_mean_square
from villani.errors import InputError
from villani.objective.graph import LogitGraph, place, trace_logits
from villani.objective.objective import Objective
from villani.objective.parameters import share_memory

aten = torch.ops.aten
_MOVES = {
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default, aten.view.default,
    aten._unsafe_view.default, aten.reshape.default, aten.slice.Tensor, aten.expand.default,
}  # fmt: skip


@dataclass(frozen=True)
class NormalisedHead:
    """A last norm and an untied head.

    Attributes:
        dimension: d_φ.
        features: D.
        classes: V.
        degree: of the logits in φ.
        slope: no two logits differ by more than slope·‖φ‖^degree.
        words: what it is, in words.
    """

    dimension: int
    features: int
    classes: int
    degree: int
    slope: float
    words: str


def normalised_head(objective: Objective) -> NormalisedHead:
    """Read the last norm and the head off the traced logits.

    Raises:
        InputError: C10 does not apply; the message is the reason.
    """
    space = objective.parameters
    if objective.loss_fn is not None:
        raise InputError("the loss is a custom one, and C10 is about cross-entropy of logits")
    if space.decayed_size < space.size:
        raise InputError(f"{space.size - space.decayed_size:,} parameters do not decay, so that there is no Gibbs law")
    graph = trace_logits(objective, next(objective.batches(0)))
    return _Reader(objective, graph).head()


class _Reader:
    """Walks from the logits back to the norm, and refuses with a reason."""

    def __init__(self, objective: Objective, graph: LogitGraph) -> None:
        self.parameters = objective.parameters.parameters
        self.graph = graph

    def head(self) -> NormalisedHead:
        head = self.graph.head
        if head.weight is None or head.node is None:
            raise InputError(head.reason)
        if not isinstance(head.weight, int) or isinstance(head.bias, torch.Tensor):
            raise InputError("the head is frozen: its weight or bias is no tensor of θ")
        self._used_once(head.weight, "the head")
        classes, features = self.parameters[head.weight].tensor.shape
        gain, bias, eps = self._norm(self._back(head.features, head.node), features)
        if not eps >= torch.finfo(self.parameters[head.weight].tensor.dtype).tiny:
            raise InputError(
                f"the last norm has ε = {eps:g}: without an ε > 0 of its precision it has no value where its input is "
                "constant"
            )
        moving = [i for i in (gain, bias) if isinstance(i, int)]
        for index in moving:
            self._used_once(index, "the last norm's")
        size = sum(self.parameters[i].tensor.numel() for i in (head.weight, *moving))
        name = self.parameters[head.weight].name
        if isinstance(gain, int):
            if head.bias is not None or isinstance(bias, torch.Tensor):
                what = "the head has a bias" if head.bias is not None else "the last norm has a bias that does not move"
                raise InputError(f"{what} beside a gain that moves, so that logits have no single degree in them")
            slope = math.sqrt((features + (bias is not None)) / 2)
            words = f"{name} untied, on a last norm with its own gain{'' if bias is None else ' and bias'}"
            return NormalisedHead(size, features, int(classes), 2, slope, words)
        if isinstance(bias, int):
            raise InputError("the last norm's bias moves and its gain does not, so that logits have no single degree")
        reach = math.sqrt(features) * (1.0 if gain is None else float(gain.abs().max()))
        reach += 0.0 if bias is None else float(bias.double().norm())
        words = f"{name} untied, on a last norm whose gain does not move"
        if head.bias is not None:
            self._used_once(head.bias, "the head's bias")
            reach, size = math.hypot(reach, 1.0), size + int(classes)
        return NormalisedHead(size, features, int(classes), 1, math.sqrt(2) * reach, words)

    def _used_once(self, index: int, what: str) -> None:
        """A tensor of θ has one use, copies of it included: else degrees in it are not those of the logits alone."""
        users = self._uses(index)
        name = self.parameters[index].name
        if (other := self._shares_memory(index)) is not None:
            raise InputError(f"{what} {name} shares memory with {other}, as a tied one does")
        if len(users) != 1:
            raise InputError(
                f"{what} {name} is used {len(users)} times, as a tied one is: also in {self._elsewhere(users)}"
            )

    def _uses(self, index: int) -> list[torch.fx.Node]:
        """The operations that a tensor of θ enters, once for each time, however it was copied on the way."""
        pending = [n for n, i in self.graph.parameters.items() if i == index]
        found: list[torch.fx.Node] = []
        while pending:
            node = pending.pop()
            for user in node.users:
                times = sum(argument is node for argument in pytree.tree_leaves((user.args, user.kwargs)))
                (pending if user.target in COPIES or user.target in _MOVES else found).extend([user] * times)
        return found

    def _shares_memory(self, index: int) -> str | None:
        """Another tensor that the logits depend on and that moves with this one, by name."""
        tensor = self.parameters[index].tensor
        others: list[tuple[str, torch.Tensor]] = [
            (p.name, p.tensor) for i, p in enumerate(self.parameters) if i != index
        ]
        others += [(f"the constant {node.name}", constant) for node, constant in self.graph.constants.items()]
        return next((name for name, other in others if share_memory(tensor, other)), None)

    def _elsewhere(self, users: list[torch.fx.Node]) -> str:
        other = next((u for u in users if u is not self.graph.head.node), users[0])
        return f"{other.target} at {place(other)}"

    def _back(self, node: Any, user: torch.fx.Node) -> torch.fx.Node:
        """The node before what only moves values, all of it on the way to the head alone."""
        while True:
            if not isinstance(node, torch.fx.Node) or set(node.users) != {user}:
                raise InputError("what the head reads is used elsewhere too")
            if node.target not in _MOVES:
                return node
            node, user = node.args[0], node

    def _norm(self, node: torch.fx.Node, features: int) -> tuple[Any, Any, float]:
        """(gain, bias, ε) of the norm that a node ends: an index in θ, a tensor that does not move, or None."""
        if node.target in (aten.layer_norm.default, aten.rms_norm.default):
            given = arguments(node)
            if list(given["normalized_shape"]) != [features]:
                raise InputError("the last norm is not one over the features of the head")
            eps = torch.finfo(node.meta["val"].dtype).eps if given["eps"] is None else float(given["eps"])
            return self._factor(given["weight"]), self._factor(given.get("bias")), eps
        bias = None
        if node.target is aten.add.Tensor and not node.kwargs:
            pairs = [(a, self._factor(b)) for a, b in (node.args, node.args[::-1]) if self._is_factor(b)]
            if len(pairs) == 1:
                ((inner, bias),) = pairs
                node = self._back(inner, node)
        plain = _spelled_out(node, features)
        if plain is not None and bias is None:
            return None, None, plain
        if node.target is aten.mul.Tensor:
            for a, b in (node.args, node.args[::-1]):
                if self._is_factor(b) and isinstance(a, torch.fx.Node):
                    inside = _spelled_out(self._back(a, node), features)
                    if inside is not None:
                        return self._factor(b), bias, inside
        raise InputError(
            f"what the head reads comes from {node.target} at {place(node)}, not from a norm that is known"
        )

    def _is_factor(self, node: Any) -> bool:
        source = original(node)
        return isinstance(source, torch.fx.Node) and (source in self.graph.parameters or source in self.graph.constants)

    def _factor(self, node: Any) -> Any:
        """What a gain or bias is: an index in θ, a tensor that does not move, or None."""
        if node is None:
            return None
        source = original(node)
        if source in self.graph.parameters:
            return self.graph.parameters[source]
        if source in self.graph.constants:
            return self.graph.constants[source]
        raise InputError(
            "the last norm's gain is computed, not a tensor of its own, so that logits have no degree in it"
        )


def _spelled_out(node: Any, features: int) -> float | None:
    """ε where a node is x·(mean(x²) + ε)^−½ over the last dimension."""
    node = original(node)
    if not isinstance(node, torch.fx.Node) or node.target not in (aten.mul.Tensor, aten.div.Tensor):
        return None
    pairs = [(node.args[0], root_mean_square(node.args[1]), node.args[1])]
    if node.target is aten.mul.Tensor:
        pairs = [(a, inverse_norm(b), b) for a, b in (node.args, node.args[::-1])]
    for x, norm, scale in pairs:
        if norm is None or norm[0] is not original(x) or norm[1] != features:
            continue
        shape, own = x.meta["val"].shape, scale.meta["val"].shape  # type: ignore[union-attr]
        if shape[-1] == features and own[-1] == 1 and entries(scale) * features == entries(x):
            return norm[2]
    return None
