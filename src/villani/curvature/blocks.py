"""Unbiased samples of tr ∇²L by forward Taylor sweeps, with a probe of its own for every block of tensors.

One probe for all of θ has variance 2(‖H‖²_F − Σ H_ii²), much of it in products between blocks, which have no trace.
With separate probes only 2(‖H_bb‖²_F − Σ H_ii²) is left of each block b, at the price of a tangent for every block. A
part of this costs nothing: the probes of tensors in a block stay apart until the next linear map (`JetAlgebra.join`).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from villani.curvature.head import LABELS, TiedRows, head_terms, logit_terms
from villani.curvature.jets import Jet, Probed
from villani.curvature.probes import rademacher
from villani.curvature.taylor import Sweep, check_rules, isolated_nodes
from villani.curvature.ways import Blocks
from villani.errors import InputError
from villani.objective.batches import IGNORED, Batch
from villani.objective.families import CAST, MOVED
from villani.objective.graph import LogitGraph, aten, headless, trace_logits
from villani.objective.objective import Objective
from villani.objective.origin import Tensors
from villani.objective.parameters import ParameterSpace
from villani.statistics import Array
from villani.streams import Purpose, stream

GRAPHS = 4  # kept, of different forms of batch
Key = tuple[int, ...]


def layers_of(space: Tensors) -> dict[str, list[int]]:
    """Indices of the tensors of each layer, by the first number in their names; without one, a tensor is a layer."""
    layers: dict[str, list[int]] = {}
    for index, p in enumerate(space.parameters):
        number = re.match(r"(?:.*?\.)?(\d+)\.", p.name)
        layers.setdefault(number[1] if number else p.name, []).append(index)
    return layers


def _used_elsewhere(graph: LogitGraph) -> Any:
    """An operation that uses the head's tensors of θ other than to embed the input's tokens, if there is one."""
    head = graph.head
    indices = [i for i in (head.weight, head.bias) if isinstance(i, int)]
    own = {node for node, index in graph.parameters.items() if index in indices}
    for node in graph.nodes:
        if node is head.node or own.isdisjoint(node.all_input_nodes):
            continue
        tokens: Any = node.args[1] if node.target is aten.embedding.default else None
        while isinstance(tokens, torch.fx.Node) and tokens.target in (*MOVED, CAST):
            tokens = tokens.args[0]
        if tokens is None or tokens is not graph.inputs["input_ids"]:
            return node.target
    return None


def blocks_of(space: ParameterSpace, kind: Blocks) -> list[list[int]]:
    """Indices of the tensors of each block."""
    everything = list(range(len(space.parameters)))
    return {"whole": [everything], "layer": [*layers_of(space).values()], "tensor": [[i] for i in everything]}[kind]


@dataclass(frozen=True)
class BlockSample:
    """One unbiased sample, over a batch's predicted tokens; a block's figure stands at its first tensor.

    Attributes:
        traces: (P,) of the loss sum's Hessian.
        gauss_newton: (P,) the Gauss–Newton part of it.
    """

    traces: Array
    gauss_newton: Array


class BlockTrace:
    """Samples the Hessian trace of one objective; the graph is traced once for each shape of batch.

    Args:
        objective: of a language model.
        kind: what gets a probe of its own.

    Raises:
        InputError: the model cannot be traced, or an operation has no rule.
    """

    def __init__(self, objective: Objective, kind: Blocks = "whole") -> None:
        if objective.loss_fn is not None:
            raise InputError("a custom loss_fn has no head that Taylor mode could integrate: use trace='hutchinson'")
        self.objective = objective
        self.blocks = blocks_of(objective.parameters, kind)
        self._block_of = {index: k for k, block in enumerate(self.blocks) for index in block}
        self._first = [block[0] for block in self.blocks]
        self._graphs: dict[tuple[Any, ...], tuple[LogitGraph, frozenset[torch.fx.Node]]] = {}

    def graph(self, batch: Batch) -> tuple[LogitGraph, frozenset[torch.fx.Node]]:
        """The graph for blocks of this form, and the nodes that keep sequences apart."""
        if batch.form not in self._graphs:
            self._graphs = dict([*self._graphs.items()][1 - GRAPHS :])  # the oldest goes
            self._graphs[batch.form] = self._trace(batch.plain())
        return self._graphs[batch.form]

    def _trace(self, batch: Batch) -> tuple[LogitGraph, frozenset[torch.fx.Node]]:
        graph = trace_logits(self.objective, batch)
        key = ("isolated", id(graph))
        shared = _used_elsewhere(graph)
        if shared is not None:
            graph = replace(graph, head=headless(graph.logits, f"the head's tensors are also used by {shared}"))
        check_rules(graph)
        if key not in self.objective.traced:
            with self.objective.evaluating(), torch.no_grad():
                self.objective.traced[key] = isolated_nodes(graph, self.objective.parameters.values, batch)
        return graph, self.objective.traced[key]

    def check(self, batch: Batch) -> None:
        """Refuse a model for which blocks of this batch's shape cannot be sampled, before any work is done.

        Raises:
            InputError: see the class.
        """
        self.graph(batch)

    def sample(self, batch: Batch, seed: int, *keys: Key) -> BlockSample:
        """The mean of one sample from each (seed, key), by one sweep for all of them.

        Probes, and labels for the Gauss–Newton part of the head, are drawn from the keys alone.
        """
        graph, isolated = self.graph(batch)
        space = self.objective.parameters
        head, count = graph.head, len(space.parameters)
        uses = Counter(graph.parameters[a] for n in graph.nodes if n is not head.node for a in n.all_input_nodes
                       if a in graph.parameters)  # fmt: skip
        # Probe i + r·stride is that of tensor i in sample r: probes start apart, and become their block's where the
        # sweep joins them, since products of independent ones have no mean and are better left out.
        stride = count + len(self.blocks)
        block_of = [self._block_of[i] for i in range(count)] + list(range(len(self.blocks)))
        apart = len(self.blocks) == count
        joins = {} if apart else {i + r * stride: count + block_of[i] + r * stride
                                  for i in range(count) for r in range(len(keys))}  # fmt: skip
        rows = batch.ids.unique()
        tied = [
            TiedRows(head.weight + r * stride, rows, self.signs(head.weight, (len(rows), -1), seed, key))
            for r, key in enumerate(keys)
            if isinstance(head.weight, int) and head.weight in uses
        ]

        values = space.values

        def parameter(index: int) -> Jet:
            tensor = values[index]
            probes = [index + r * stride for r in range(len(keys))]
            probed = Probed(tensor, probes, lambda k, shape: self.signs(index, shape, seed, keys[k // stride]))
            if tied and index == head.weight:
                return Jet(
                    tensor, {own.probe: torch.zeros_like(tensor).index_copy_(0, rows, own.values) for own in tied}
                )
            return probed if uses[index] == 1 else probed.drawn()

        sweep = Sweep(graph, parameter, block_of * len(keys), joins, isolated)
        with self.objective.evaluating(), torch.no_grad():
            jet = sweep.features(batch)
            wanted = batch.labels[:, 1:] != IGNORED
            features = Jet(jet.x[:, :-1][wanted], {k: t[:, :-1][wanted] for k, t in jet.first.items()},
                           {c: t[:, :-1][wanted] for c, t in jet.second.items()})  # fmt: skip
            labels = batch.labels[:, 1:][wanted]
            uniform = torch.from_numpy(stream(seed, Purpose.LABELS, *keys[0]).random((len(labels), LABELS)))
            weight, bias = (values[t] if isinstance(t, int) else t for t in (head.weight, head.bias))
            tied = [replace(t, probe=sweep.probe(t.probe)) for t in tied]
            if weight is None:
                terms = logit_terms(features, labels)
            else:
                terms = head_terms(features, labels, weight, bias, tied, uniform)
        gauss_newton, residual = np.zeros(count), np.zeros(count)
        for k, value in terms.gauss_newton.items():
            gauss_newton[self._first[block_of[k % stride]]] += value / len(keys)
        for c, value in terms.residual.items():
            residual[self._first[c]] += value / len(keys)
        for k, value in terms.tied_residual.items():
            residual[self._first[block_of[k % stride]]] += value / len(keys)
        for index, exact in ((head.weight, terms.weight), (head.bias, terms.bias)):
            if isinstance(index, int):
                gauss_newton[index] += exact
        return BlockSample(gauss_newton + residual, gauss_newton)

    def signs(self, index: int, shape: Sequence[int], seed: int, key: Key) -> torch.Tensor:
        """Random signs for one tensor's probe, of any shape; −1 stands for the tensor's columns."""
        tensor = self.objective.parameters.tensors[index]
        shape = [n if n >= 0 else tensor.shape[1] for n in shape]
        signs = rademacher(math.prod(shape), stream(seed, Purpose.PROBE, *key, index), tensor.dtype)
        return signs.to(self.objective.device).view(shape)
