"""‖∇L‖², tr ∇²L and norms part by part, where a part is a set of entries of θ that every orbit scales alike.

Gradients are not sketched: each is held against their sum, which is all that the U-statistic of ‖∇_B L‖² needs
(`part_gradients`). Where all of θ is small, traces are exact, one product for each entry. Else they are sampled: of
every part by products with a probe on all of θ, segment by segment (`streamed_parts`); of a few sets of parts by sweeps
with a probe on each (`swept_parts`). Neither keeps a graph of the whole model. Only a loss that cannot be traced, or an
operation that those have no derivative of, has products by autograd.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from villani.criteria.part_gradients import BUCKETS, PAIRED, gradient_units
from villani.criteria.partition import Exponents as Exponents
from villani.criteria.partition import Parts as Parts
from villani.criteria.partition import parts_of as parts_of
from villani.criteria.streamed_parts import streamed_gradients, streamed_traces
from villani.criteria.swept_parts import sweeps
from villani.curvature.double_backward import check_double_backward
from villani.curvature.probes import rademacher_probe
from villani.curvature.products import differentiable_gradient, product
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.objective.weights import refuse_streamed
from villani.statistics import Array
from villani.work.team import Rows
from villani.work.work import Work

_ROUNDINGS = 16  # by an ulp, of each entry of a product with the Hessian
EXACT = 512  # entries of θ up to which traces are exact
_OF_GRADIENTS = ("tokens", "losses", "dots", "squares", "products", "totals", "gram")


@dataclass(frozen=True, eq=False)
class PartStatistics:
    """What G groups say of each of A parts; gradients and traces are those of the loss sums of groups.

    Attributes:
        tokens: (G,).
        losses: (G,) loss sums.
        norms: (A,) ‖θ_a‖², of decayed entries alone.
        dots: (G, A) ⟨∇_a, θ_a⟩, of decayed entries alone.
        squares: (G, A) ‖h_g,a‖² of the groups' gradients h_g.
        products: (G, A) ⟨h_g,a, Σ h_a⟩.
        totals: (A,) ‖Σ h_a‖².
        traces: (G, m, A) samples of the trace; NaN in parts that were not probed. m = 1 where they are exact. Where
            sets of parts were swept, a set's figure stands at its first part, and 0 at its others.
        gram: (G, G, A) ⟨h_g,a, h_g',a⟩, sketched; None where it was not worked out.
        finite: the groups are all there is.
        exact: the traces are exact, up to rounding.
        rounding: (A,) what rounding of the terms that are summed may have put into `mean_traces`; None if not known.
    """

    tokens: Array
    losses: Array
    norms: Array
    dots: Array
    squares: Array
    products: Array
    totals: Array
    traces: Array
    finite: bool
    exact: bool
    rounding: Array | None = None
    gram: Array | None = None

    def directions(self, chosen: Array) -> float | None:
        """(tr Σ)²/tr Σ² of the groups' gradient noise in the chosen parts: how many equal directions would do as much.

        Both from differences of disjoint pairs of groups, which are independent and know no mean; None of fewer than
        four groups, and where the groups are all there is.
        """
        count = min(len(self.tokens), PAIRED)
        if self.gram is None or self.finite or count < 4:
            return None
        n = self.tokens[:count]
        gram = self.gram[:count, :count, chosen].sum(axis=2) / np.outer(n, n)
        first, second = np.triu_indices(count, 1)
        rows = gram[first] - gram[second]  # (P, G)
        products = rows[:, first] - rows[:, second]  # (P, P) of differences
        apart = ~(
            (first[:, None] == first) | (first[:, None] == second) | (second[:, None] == first)
            | (second[:, None] == second)
        )  # fmt: skip
        squares = np.diag(products)
        both = float((np.outer(squares, squares) * apart).sum())
        return both / max(float((products**2 * apart).sum()), 1e-300) if both > 0 else None

    def mean_gradient(self, chosen: Array) -> tuple[float, float]:
        """‖ḡ‖² of the mean gradient in the chosen parts, and an unbiased tr of its covariance over groups."""
        n, count = self.tokens, len(self.tokens)
        square = float(self.totals[chosen].sum()) / n.sum() ** 2
        squares, products = self.squares[:, chosen].sum(axis=1), self.products[:, chosen].sum(axis=1)
        scatter = float((squares - 2 * n * products / n.sum() + n**2 * square).sum())
        return square, max(scatter, 0.0) * count / (count - 1) / n.sum() ** 2

    def gradient_norms(self, left_out: int | None = None) -> Array:
        """(A,) ‖∇_a L‖²: unbiased over groups, or exact where they are all there is."""
        n = self.tokens
        if self.finite:
            whole: Array = self.totals / n.sum() ** 2
            return whole
        keep = np.ones(len(n), dtype=bool)
        totals = self.totals
        if left_out is not None:
            keep[left_out] = False
            totals = totals - 2 * self.products[left_out] + self.squares[left_out]
        pairs = n[keep].sum() ** 2 - (n[keep] ** 2).sum()
        norms: Array = (totals - self.squares[keep].sum(axis=0)) / pairs
        return norms

    def mean_traces(self, left_out: int | None = None) -> Array:
        """(A,) tr ∇²_aa L."""
        return self._mean(self.traces.mean(axis=1), left_out)

    def mean_dots(self, left_out: int | None = None) -> Array:
        """(A,) ⟨∇_a L, θ_a⟩ of decayed entries."""
        return self._mean(self.dots, left_out)

    def _mean(self, sums: Array, left_out: int | None) -> Array:
        keep = np.ones(len(self.tokens), dtype=bool)
        if left_out is not None and not self.finite:
            keep[left_out] = False
        mean: Array = sums[keep].sum(axis=0) / self.tokens[keep].sum()
        return mean


def part_statistics(
    objective: Objective,
    parts: Parts,
    groups: Sequence[int],
    *,
    seed: int = 0,
    probes: int = 1,
    blocks: Sequence[Sequence[int]] = (),
    gradients: PartStatistics | None = None,
    work: Work | None = None,
) -> PartStatistics:
    """Measure at the current θ, which is left as it was.

    Args:
        objective: model, groups and mask.
        parts: what to tell apart.
        groups: which groups to use; at least 3 unless `objective.finite`.
        seed: of the probes.
        probes: in each group.
        blocks: disjoint sets of parts that get probes of their own, and need not be told apart inside; by default one
            probe for all of θ, and every part told apart.
        gradients: statistics of these groups at this θ, whose gradients are taken; measured by default.
        work: keeps what is finished, for this θ, these groups, parts and probes alone; in memory by default.
    """
    space, work = objective.parameters, work or Work()

    def traces(group: int) -> Rows:
        return group_traces(objective, parts, group, seed=seed, probes=probes, blocks=blocks)

    units: dict[str, Callable[[], Rows]] = {}
    if gradients is None and objective.streamed:
        units["gradients"] = partial(streamed_gradients, objective, parts, groups, PAIRED, BUCKETS)
    elif gradients is None:
        units.update(gradient_units(objective, parts, groups, work))
    last = {key: units.pop(key) for key in ("gradients",) if key in units}  # when all that it is made of is there
    units |= {f"trace/{group}": partial(traces, group) for group in groups} | last
    rows = dict(zip(units, work.map(units), strict=True))
    first = {name: getattr(gradients, name) for name in _OF_GRADIENTS} if gradients else rows["gradients"]
    rest = [rows[f"trace/{group}"] for group in groups]
    norms = np.zeros(parts.count)
    for index, (p, value) in enumerate(zip(space.parameters, space.values, strict=True)):
        if p.decayed and objective.streamed:
            parts.add_product(norms, index, value, value)
        elif p.decayed:
            parts.add(norms, index, value.double().square())
    rounding = np.sum([row["rounding"] for row in rest], axis=0) / np.sum(first["tokens"])
    return PartStatistics(
        **first, norms=norms, traces=np.array([row["traces"] for row in rest]),
        finite=objective.finite, exact=space.size <= EXACT,
        rounding=rounding,
    )  # fmt: skip


def _products(
    objective: Objective, group: int, vectors: Callable[[], Iterator[list[torch.Tensor]]]
) -> Iterator[tuple[int, list[torch.Tensor], list[torch.Tensor]]]:
    """(number, v, Hv) for each v and each batch of a group, H that of the batch's loss sum."""
    check_double_backward(objective)
    tensors = objective.parameters.tensors
    with objective.evaluating():
        for batch in objective.batches(group):
            gradient = differentiable_gradient(objective.forward(batch).loss, tensors)
            for number, vector in enumerate(vectors()):
                yield number, vector, product(gradient, vector, tensors, keep_graph=True)


def group_traces(
    objective: Objective, parts: Parts, group: int, *, seed: int, probes: int, blocks: Sequence[Sequence[int]] = ()
) -> Rows:
    """`traces` (m, A) of one group's loss sum, and `rounding` (A,): what rounding may have put into their mean.

    Exact where θ is small; else as `part_statistics` has it. Of the terms that a trace is the sum of, each may be off
    by some ulps of its own, one way or the other, and all by one in the same way.
    """
    space = objective.parameters
    if space.size <= EXACT:
        refuse_streamed(objective.model, "an exact trace", "load so small a model with streamed=False")
        traces, rounding = _exact_traces(objective, parts, group)
    elif blocks and (swept := sweeps(objective)) and swept.serves(parts, blocks):
        traces, rounding = swept.traces(parts, group, seed, probes, blocks, _ROUNDINGS)
    else:
        traces, rounding = _sampled_traces(objective, parts, group, seed, probes, blocks)
    return {"traces": traces, "rounding": rounding * torch.finfo(space.dtype).eps}


def _exact_traces(objective: Objective, parts: Parts, group: int) -> tuple[Array, Array]:
    tensors = objective.parameters.tensors

    def units() -> Iterator[list[torch.Tensor]]:
        for index, tensor in enumerate(tensors):
            for entry in range(tensor.numel()):
                unit = [torch.zeros_like(t) for t in tensors]
                unit[index].view(-1)[entry] = 1
                yield unit

    found, squares, moduli = np.zeros((3, parts.count))
    for _, vector, curved in _products(objective, group, units):
        terms = [v * h for v, h in zip(vector, curved, strict=True)]
        found += parts.sums(terms)
        squares += parts.sums([t.square() for t in terms])
        moduli += parts.sums([t.abs() for t in terms])
    return found[None], _ROUNDINGS * np.sqrt(squares) + moduli


def _sampled_traces(
    objective: Objective, parts: Parts, group: int, seed: int, probes: int, blocks: Sequence[Sequence[int]]
) -> tuple[Array, Array]:
    """Of every part, by products: segment by segment, or by autograd where the loss is none of a language model."""
    if objective.loss_fn is None and objective.traced.get("segments") != "none":
        try:
            return streamed_traces(objective, parts, group, seed, probes, blocks, _ROUNDINGS)
        except InputError:
            if objective.streamed:
                raise
            objective.traced["segments"] = "none"  # no graph, or an operation without a forward derivative
    space = objective.parameters
    supports: list[Sequence[int]] = list(blocks) or [range(parts.count)]

    def confined() -> Iterator[list[torch.Tensor]]:
        for probe in range(probes):
            whole = rademacher_probe(space, seed, group, probe)
            for support in supports:
                yield parts.confine(whole, support) if blocks else whole

    found, rounding = np.full((probes, parts.count), np.nan), np.zeros(parts.count)
    for number, vector, curved in _products(objective, group, confined):
        probe, support = number // len(supports), list(supports[number % len(supports)])
        terms = [v * h for v, h in zip(vector, curved, strict=True)]
        sums = parts.sums(terms)
        found[probe, support] = np.nan_to_num(found[probe, support]) + sums[support]
        squares, moduli = parts.sums([t.square() for t in terms]), parts.sums([t.abs() for t in terms])
        rounding += (_ROUNDINGS * np.sqrt(squares) + moduli) / probes
    return found, rounding
