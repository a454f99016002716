"""What the search for symmetries did not understand, and what may hide there.

An operation without a rule is taken to want degree 0 of all that it is given. Of many functions that is the truth, as
of a softmax or a GELU. Of others it is caution: some symmetry may pass them, and is then missed. Such a symmetry scales
what reaches the operation, so that it moves at least one of the tensors that are named with it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from villani.objective.families import SOFTMAX
from villani.objective.graph import aten, place

_NAMED, _KINDS = 4, 6  # tensors and operations in a sentence
_TOGETHER = "is scaled as one along some of its dimensions"

# Functions that take no rescaling of any real argument: degree 0 is what they want, and the degree that they have
WANTS_ZERO = {
    aten.exp.default, aten.exp2.default, aten.expm1.default, aten.log.default, aten.log2.default, aten.log10.default,
    aten.log1p.default, aten.sin.default, aten.cos.default, aten.sinh.default, aten.cosh.default, aten.tanh.default,
    aten.atan.default, aten.asinh.default, aten.acos.default, aten.asin.default, aten.atanh.default, aten.erf.default,
    aten.erfc.default, aten.sigmoid.default, aten.log_sigmoid.default, aten.softplus.default, aten.gelu.default,
    aten.silu.default, aten.mish.default, aten.selu.default, aten.elu.default, aten.celu.default, aten.relu6.default,
    aten.hardswish.default, aten.hardsigmoid.default, aten.softshrink.default, aten.logaddexp.default,
    aten.logsumexp.default, *SOFTMAX, aten.log_softmax.int, aten._log_softmax.default,
    aten.huber_loss.default, aten.smooth_l1_loss.default, aten.pow.Scalar,
    aten.round.default, aten.floor.default, aten.ceil.default, aten.trunc.default, aten.frac.default,
    aten.cross_entropy_loss.default, aten.binary_cross_entropy_with_logits.default,
}  # fmt: skip


@dataclass(frozen=True)
class Skipped:
    """One kind of thing that the search passed over.

    Attributes:
        operation: its name.
        reason: why, as a sentence goes on after "it".
        count: how often it occurs.
        place: the first of its places.
        tensors: indices in θ; a symmetry that was missed here moves at least one of them.
    """

    operation: str
    reason: str
    count: int
    place: str
    tensors: tuple[int, ...]


def incomplete(skipped: Sequence[Skipped], names: Sequence[str]) -> str:
    """One sentence on what the search passed over, and what that may hide; "" where it passed over nothing.

    Args:
        skipped: what it was.
        names: of the tensors of θ.
    """
    if not skipped:
        return ""
    kinds = "; ".join(
        f"{s.operation} ({f'{s.count} times, first' if s.count > 1 else 'once,'} at {s.place}) {s.reason}"
        for s in skipped[:_KINDS]
    )
    kinds += f"; and {len(skipped) - _KINDS} kinds more" if len(skipped) > _KINDS else ""
    moved = sorted({index for s in skipped for index in s.tensors})
    first = ", ".join(names[i] for i in moved[:_NAMED])
    more = f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
    hidden = f"symmetries that move any of {first}{more}" if moved else "symmetries that pass it"
    return f"The search is not complete: {kinds}. It may have missed {hidden}."


class SkippedOperations:
    """Operations without a rule, noted while degrees are worked out in the order of the graph.

    Args:
        parameters: placeholder → index in θ.
        moves: whether a value has a degree other than 0, as far as is known at the time.
        coarse: large tensors whose entries have fewer unknowns than there are of them, noted elsewhere.
    """

    def __init__(
        self, parameters: dict[torch.fx.Node, int], moves: Callable[[torch.fx.Node], bool], coarse: set[int]
    ) -> None:
        self._parameters, self._moves, self._coarse = parameters, moves, coarse
        self._nodes: dict[tuple[str, str], list[torch.fx.Node]] = {}
        self._seen: dict[tuple[str, str], dict[torch.fx.Node, None]] = {}
        self._beyond: list[Skipped] = []
        self._fixed: set[torch.fx.Node] = set()  # degree 0 by what is understood

    def understood(self, node: torch.fx.Node, inputs: Sequence[torch.fx.Node]) -> None:
        """An operation that was read as what it is."""
        if node.target in WANTS_ZERO or all(i in self._fixed for i in inputs):
            self._fixed.add(node)

    def skip(self, node: torch.fx.Node, inputs: Sequence[torch.fx.Node], reason: str) -> None:
        """An operation that is about to be taken to want degree 0; noted where that may lose something."""
        if node.target in WANTS_ZERO or all(i in self._fixed for i in inputs):
            self.understood(node, inputs)
            return
        moving = [i for i in inputs if self._moves(i)]
        if not moving and not self._nodes:  # else the degree may be 0 only because of what was skipped before
            self._fixed.add(node)
            return
        key = (str(node.target), reason)
        self._nodes.setdefault(key, []).append(node)
        seen = self._seen.setdefault(key, {})
        while moving:
            value = moving.pop()
            if value not in seen:
                seen[value] = None
                moving += [i for i in value.all_input_nodes if i not in seen and self._moves(i)]

    def beyond(self, reason: str, count: int, tensors: Iterable[int]) -> None:
        """Symmetries that were found, and that nobody could apply."""
        self._beyond = [Skipped("a rescaling", reason, count, "all operations together", tuple(sorted(tensors)))]

    def all(self) -> tuple[Skipped, ...]:
        """What was noted, in the order of the graph."""
        skipped = []
        for (operation, reason), nodes in self._nodes.items():
            tensors = {self._parameters[n] for n in self._seen[operation, reason] if n in self._parameters}
            skipped.append(Skipped(operation, reason, len(nodes), place(nodes[0]), tuple(sorted(tensors))))
        if self._coarse:
            large = tuple(sorted(self._coarse))
            skipped.append(Skipped("a large tensor", _TOGETHER, len(large), "where it is no matrix map", large))
        return (*skipped, *self._beyond)
