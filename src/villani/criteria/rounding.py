"""What rounding explains: whether the loss stays on an orbit, and how much of Δ_B L there is nothing but rounding.

Algebra proposes orbits, and a derivative of a loss that cancels is a small number, not 0. Neither is believed before it
was held against what the computer's own errors make of a true 0. These are estimates: what passes holds up to rounding,
and is not certified.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from villani.criteria.orbits import Orbit, Threshold, exponents_of, rescaled
from villani.criteria.parts import EXACT, Parts, group_traces
from villani.curvature.products import differentiable_gradient, product
from villani.errors import InputError
from villani.objective.graph import LossGraph, trace_loss
from villani.objective.interpret import execute
from villani.objective.objective import Objective

SCALES = (16.0, 0.125)  # R at which the loss has to be what it is at R = 1
_ULPS = 100.0  # of 1 + |L|, by which a loss that is the same may come out differently
_UNEVEN = (1.1, 0.83, 1.37)  # R that are no powers of two, so that all roundings are other ones
_SAFETY = 10.0  # how much larger an error may be than those that were seen


def drift_allowed(loss: float, dtype: torch.dtype) -> float:
    """By how much a loss, nats per token, may move on an orbit; more is no rounding."""
    return float(_ULPS * torch.finfo(dtype).eps * (1 + abs(loss)))


def drift(graph: LossGraph, orbit: Orbit, tensors: Sequence[torch.Tensor]) -> tuple[float, float]:
    """How far the loss sum of a graph moves on one orbit through θ = `tensors`, and how far rounding may move it."""
    return Drift(graph, tensors).along(orbit)


class Drift:
    """How far the loss sum of a graph moves on orbits through one θ.

    Of each operation the value at θ is kept, which takes about as much memory as a backward pass. On an orbit only
    operations are run again of which some input has other bits: for a symmetry of one layer, those of that layer.

    Args:
        graph: of the loss.
        tensors: θ.
    """

    def __init__(self, graph: LossGraph, tensors: Sequence[torch.Tensor]) -> None:
        self._loss, self._tensors, self._recast = graph.loss, tensors, graph.recast(tensors)
        self._index = graph.parameters
        computed = {node for node in graph.nodes if node.op == "call_function"}
        with torch.no_grad():
            self._values = graph.values(tensors, computed | graph.constants.keys() | graph.inputs.keys())
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._nodes = graph.nodes
        self._holders: dict[int, list[torch.fx.Node]] = {}
        for node, index in graph.parameters.items():
            self._holders.setdefault(index, []).append(node)

    def along(self, orbit: Orbit) -> tuple[float, float]:
        """By how much the loss sum moves, at the worst of `SCALES`, and by how much rounding may move it."""
        here = float(self._values[self._loss])
        with torch.no_grad():
            changes = [abs(self._loss_at(orbit, scale) - here) for scale in SCALES]
        # what is not a number is not the same loss
        worst = max(changes) if all(np.isfinite(changes)) else float("inf")
        return worst, drift_allowed(here, self._tensors[0].dtype)

    def _loss_at(self, orbit: Orbit, scale: float) -> float:
        changed: dict[torch.fx.Node, Any] = {}
        waiting: list[int] = []  # places of operations, a heap
        for index in orbit.exponents:
            for node in self._holders.get(index, []):
                waiting += [self._order[user] for user in node.users if user in self._order]

        def at(node: torch.fx.Node) -> Any:
            if node not in self._index:
                return changed[node] if node in changed else self._values[node]
            tensor, e = self._tensors[self._index[node]], orbit.exponents.get(self._index[node])
            return tensor if e is None else tensor * (scale ** e.double()).to(tensor)

        heapq.heapify(waiting)
        last = -1
        while waiting:
            place = heapq.heappop(waiting)
            if place == last:
                continue
            node, last = self._nodes[place], place
            value = execute(node, at, self._recast)
            if not _same(value, self._values[node]):
                changed[node] = value
                for user in node.users:
                    if user in self._order:
                        heapq.heappush(waiting, self._order[user])
        return float(changed.get(self._loss, self._values[self._loss]))


def _same(a: Any, b: Any) -> bool:
    """Whether two values of an operation are the same, bit for bit but for the sign of 0."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def laplacian_rounding(objective: Objective, parts: Parts, orbit: Orbit, groups: Sequence[int], seed: int) -> float:
    """By how much Δ_B L, in nats per token, may be off: from Δ_B L(θ_R) = R^{−2e}·Δ_B L(θ), which rounding breaks.

    The same probes at R that are no powers of two; and, where θ is small, the other of float32 and float64 beside its
    own precision, since what is left as it is on the orbit is rounded there in the same way at every R. Derivatives in
    which terms cancel that are not summed here come out wrong by this much.

    Args:
        objective: at the θ in question, which is left as it was.
        parts: among which B is.
        orbit: whose B shrinks as R^−down.
        groups: to look at; each is a unit of its own, and the largest error counts.
        seed: of the probes.
    """
    along = exponents_of(orbit, parts)
    block = np.flatnonzero(along == along.min())
    small = objective.parameters.size <= EXACT

    def laplacians(group: int) -> float:
        rows = group_traces(objective, parts, group, seed=seed, probes=1, blocks=[block.tolist()])
        return float(rows["traces"].mean(axis=0)[block].sum())

    errors = []
    for group in groups:
        here, terms = laplacians(group), sum(batch_terms(objective, group))
        for scale in _UNEVEN if small else _UNEVEN[:1]:
            with rescaled(objective, orbit.exponents, scale):
                errors.append(abs(laplacians(group) * scale ** (2 * float(along.min())) - here) / terms)
    if small:
        errors.append(_against_other(objective, parts, block.tolist(), groups[0]))
    return _SAFETY * max(errors) if np.isfinite(errors).all() else float("inf")


def beyond(found: Threshold, error: float) -> Threshold:
    """A threshold with another error of rounding in Δ_B L; infinite where rounding is all that there is."""
    trace, total = found.laplacian.value, found.rounding + error
    if trace <= total:
        return replace(found, value=math.inf, upper=math.inf, rounding=total)
    return replace(found, upper=found.upper * trace / (trace - total), rounding=total)


def batch_terms(objective: Objective, group: int) -> list[float]:
    """Tokens, or terms of a custom loss, of a group's batches."""
    with objective.evaluating(), torch.no_grad():
        return [float(objective.forward(batch).tokens) for batch in objective.batches(group)]


def _against_other(objective: Objective, parts: Parts, block: Sequence[int], group: int) -> float:
    """|Δ_B L in float32 − Δ_B L in float64| of a group's first batch, in units of θ's own precision.

    Of a θ in float64 it is that difference times the ratio of the two precisions; 0 where float32 has no such numbers.
    """
    try:
        graph = trace_loss(objective, next(objective.batches(group)))
    except InputError:
        return 0.0
    tensors = [t.detach() for t in objective.parameters.tensors]
    inside = parts.confine([torch.ones_like(t) for t in tensors], block)
    with objective.evaluating():
        narrow, wide = (_diagonal(graph, [t.to(d) for t in tensors], inside) for d in (torch.float32, torch.float64))
    if tensors[0].dtype == torch.float64:
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        difference = abs(narrow - wide) * ratio if math.isfinite(narrow) else 0.0
    else:
        difference = abs(narrow - wide)
    return difference / batch_terms(objective, group)[0]


def _diagonal(graph: LossGraph, point: list[torch.Tensor], inside: Sequence[torch.Tensor]) -> float:
    """Σ of the diagonal of the Hessian over the entries where `inside` is not 0."""
    leaves = [t.requires_grad_() for t in point]
    gradient = differentiable_gradient(graph.run(leaves), leaves)
    total = 0.0
    for index, mask in enumerate(inside):
        for entry in mask.reshape(-1).nonzero()[:, 0].tolist():
            unit = [torch.zeros_like(t) for t in leaves]
            unit[index].view(-1)[entry] = 1
            total += float(product(gradient, unit, leaves, keep_graph=True)[index].reshape(-1)[entry])
    return total
