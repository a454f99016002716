"""Traces over sets of parts by Taylor sweeps (`curvature/taylor.py`), which keep no graph and look at nothing else.

Each set has a probe that is confined to it, so that a sample has no noise of products with the rest of θ, and no
tangent before the first of its tensors. The probes of its tensors start apart and are joined at the next linear map, as
those of a block do (`curvature/blocks.py`). All sets go in one sweep.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from villani.criteria.partition import Parts
from villani.curvature.blocks import BlockTrace, Key
from villani.curvature.head import LABELS, HeadTerms, TiedRows, head_terms, logit_terms
from villani.curvature.jets import Jet, Probed
from villani.curvature.taylor import Sweep
from villani.errors import InputError
from villani.objective.batches import IGNORED, Batch
from villani.objective.graph import LogitGraph
from villani.objective.objective import Objective
from villani.statistics import Array
from villani.streams import Purpose, stream


def sweeps(objective: Objective) -> "PartSweeps | None":
    """What sweeps of an objective's parts, made once; None where an operation has no rule, or there is no head."""
    if "parts" not in objective.traced:
        try:
            found = None if objective.loss_fn is not None else PartSweeps(objective)
            if found:
                found.check(next(objective.batches(0)))
        except InputError:
            found = None
        objective.traced["parts"] = found
    made: PartSweeps | None = objective.traced["parts"]
    return made


@dataclass(frozen=True)
class _Start:
    """A probe on the entries of one tensor that one set has, before it is joined to the set's."""

    index: int
    block: int
    inside: torch.Tensor | None  # which entries; None for all


class _PartSweep(Sweep):
    """Probes become part of those of their own set alone, such as a bias's not of another set's matrix."""

    def join(self, a: Jet, into: Sequence[int] | None = None) -> None:
        """See `JetAlgebra.join`."""
        alike = into is not None and all(self.classes[k] == self.classes[o] for k, o in zip(a.first, into, strict=True))
        super().join(a, into if alike else None)


class PartSweeps(BlockTrace):
    """Samples the traces of sets of parts; the graph is traced once for each form of batch."""

    def traces(
        self, parts: Parts, group: int, seed: int, probes: int, blocks: Sequence[Sequence[int]], roundings: int
    ) -> tuple[Array, Array]:
        """Samples (m, A), and the rounding (A,) of their mean, in ulps; see `group_traces`.

        What a set sums up to stands at its first part, beside zeros for its others; NaN in parts of no set.

        Args:
            parts: what the sets are made of.
            group: whose loss sum.
            seed: of the probes.
            probes: m.
            blocks: disjoint sets of parts.
            roundings: of each term, in ulps.
        """
        found, rounding = np.full((probes, parts.count), np.nan), np.zeros(parts.count)
        first = [block[0] for block in blocks]
        for block in blocks:
            found[:, list(block)] = 0.0
        starts = self._starts_of(parts, blocks)
        with self.objective.evaluating(), torch.no_grad():
            for place, batch in enumerate(self.objective.batches(group)):
                for probe, row in enumerate(found):
                    sums, sizes = self._sampled(batch, seed, (group, probe, place), starts, len(blocks), roundings)
                    row[first] += sums
                    rounding[first] += sizes / probes
        return found, rounding

    def serves(self, parts: Parts, blocks: Sequence[Sequence[int]]) -> bool:
        """Whether sweeps sample these sets: of the head's own weights they take all or nothing, in one set."""
        head = self.graph(next(self.objective.batches(0)))[0].head
        own = [i for i in (head.weight, head.bias) if isinstance(i, int)]
        return all(s.index not in own or s.inside is None for s in self._starts_of(parts, blocks))

    def _starts_of(self, parts: Parts, blocks: Sequence[Sequence[int]]) -> list[_Start]:
        starts = []
        for number, block in enumerate(blocks):
            wanted = parts.mask(block)
            for index, labels in enumerate(parts.labels):
                inside = wanted[labels]
                if bool(inside.all()):
                    starts.append(_Start(index, number, None))
                elif bool(inside.any()):
                    starts.append(_Start(index, number, inside))
        return starts

    def _sampled(
        self, batch: Batch, seed: int, key: Key, starts: Sequence[_Start], blocks: int, roundings: int
    ) -> tuple[Array, Array]:
        """(blocks,) one sample of every set for a batch's loss sum, and its rounding in ulps."""
        graph, isolated = self.graph(batch)
        space, head, count = self.objective.parameters, graph.head, len(starts)
        of: dict[int, list[int]] = {}
        for number, start in enumerate(starts):
            of.setdefault(start.index, []).append(number)
        uses = Counter(graph.parameters[a] for n in graph.nodes if n is not head.node for a in n.all_input_nodes
                       if a in graph.parameters)  # fmt: skip
        rows = batch.ids.unique()
        tied: list[TiedRows] = []
        if isinstance(head.weight, int) and head.weight in uses:
            for number in of.get(head.weight, []):
                signs = self.signs(head.weight, (len(rows), -1), seed, (*key, number))
                tied.append(TiedRows(number, rows, signs))

        def parameter(index: int) -> Jet:
            tensor, own = space.values[index], of.get(index, [])
            if tied and index == head.weight:
                moved = {t.probe: torch.zeros_like(tensor).index_copy_(0, rows, t.values) for t in tied}
                return Jet(tensor, moved)
            if len(own) == 1 and starts[own[0]].inside is None:
                probed = Probed(tensor, own, lambda k, shape: self.signs(index, shape, seed, (*key, k)))
                return probed if uses[index] == 1 else probed.drawn()
            return Jet(
                tensor,
                {k: self.signs(index, tensor.shape, seed, (*key, k)).mul_(_inside(starts[k]).to(tensor)) for k in own},
            )

        classes = [start.block for start in starts] + list(range(blocks))
        joins = {number: count + start.block for number, start in enumerate(starts)}
        sweep = _PartSweep(graph, parameter, classes, joins, isolated)
        jet = sweep.features(batch)
        wanted = batch.labels[:, 1:] != IGNORED
        features = Jet(jet.x[:, :-1][wanted], {k: t[:, :-1][wanted] for k, t in jet.first.items()},
                       {c: t[:, :-1][wanted] for c, t in jet.second.items()})  # fmt: skip
        terms = self._loss_terms(graph, features, batch.labels[:, 1:][wanted], [
            TiedRows(sweep.probe(t.probe), t.rows, t.values) for t in tied
        ], seed, key)  # fmt: skip
        sums, sizes = np.zeros((2, blocks))
        for k, value in terms.gauss_newton.items():
            sums[classes[k]] += value
            sizes[classes[k]] += (roundings + 1) * abs(value)
        for c, value in terms.residual.items():
            sums[c] += value
            sizes[c] += roundings * terms.squares[c] ** 0.5 + terms.moduli[c]
        for k, value in terms.tied_residual.items():
            sums[classes[k]] += value
            sizes[classes[k]] += (roundings + 1) * abs(value)
        for index, exact in ((head.weight, terms.weight), (head.bias, terms.bias)):
            for number in of.get(index, []) if isinstance(index, int) else ():
                sums[starts[number].block] += exact
                sizes[starts[number].block] += (roundings + 1) * abs(exact)
        return sums, sizes

    def _loss_terms(
        self, graph: LogitGraph, features: Jet, labels: torch.Tensor, tied: Sequence[TiedRows], seed: int, key: Key
    ) -> HeadTerms:
        head, values = graph.head, self.objective.parameters.values
        weight, bias = (values[t] if isinstance(t, int) else t for t in (head.weight, head.bias))
        if weight is None:
            return logit_terms(features, labels)
        uniform = torch.from_numpy(stream(seed, Purpose.LABELS, *key).random((len(labels), LABELS)))
        return head_terms(features, labels, weight, bias, tied, uniform)


def _inside(start: _Start) -> torch.Tensor:
    assert start.inside is not None
    return start.inside
