"""Unbiased samples of tr ∇²L by forward Taylor sweeps, with a probe of its own for every block of tensors.

One probe for all of θ has variance 2(‖H‖²_F − Σ H_ii²), much of it in products between blocks, which have no trace.
With separate probes only 2(‖H_bb‖²_F − Σ H_ii²) is left of each block b, at the price of a tangent for every block.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from villani.curvature.head import LABELS, TiedRows, head_terms
from villani.curvature.probes import rademacher
from villani.curvature.taylor import Jet, Sweep
from villani.errors import InputError
from villani.landscape.graph import LogitGraph, aten, trace_logits
from villani.landscape.objective import IGNORED, Batch, Objective
from villani.landscape.parameters import ParameterSpace
from villani.statistics import Array
from villani.streams import Purpose, stream

Blocks = Literal["whole", "layer", "tensor"]


def blocks_of(space: ParameterSpace, kind: Blocks) -> list[list[int]]:
    """Indices of the tensors of each block: all of θ, a layer (by the first number in the name), or one tensor."""
    blocks: dict[str, list[int]] = {}
    for index, p in enumerate(space.parameters):
        layer = re.match(r"(?:.*?\.)?(\d+)\.", p.name)
        key = {"whole": "", "layer": layer[1] if layer else p.name, "tensor": p.name}[kind]
        blocks.setdefault(key, []).append(index)
    return list(blocks.values())


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
        InputError: the model cannot be traced, an operation has no rule, or the head's matrix is used in the body other
            than as the input embedding.
    """

    def __init__(self, objective: Objective, kind: Blocks = "whole") -> None:
        self.objective = objective
        self.blocks = blocks_of(objective.parameters, kind)
        self._graph = lru_cache(maxsize=4)(self._trace)

    def _trace(self, rows: int, length: int, masked: bool) -> LogitGraph:
        ids = torch.zeros((rows, length), dtype=torch.int64, device=self.objective.device)
        graph = trace_logits(self.objective, Batch(ids, ids, torch.ones_like(ids) if masked else None))
        for node in graph.nodes:
            tied = [a for a in node.all_input_nodes if graph.parameters.get(a) == graph.head.weight]
            if tied and node is not graph.head.node and node.target is not aten.embedding.default:
                raise InputError(f"the head's matrix is also used by {node.target}: use trace='gauss-newton'")
        return graph

    def sample(self, batch: Batch, seed: int, *key: int) -> BlockSample:
        """A sample from (seed, key); probes, and labels for the Gauss–Newton part of the head, are drawn afresh."""
        graph = self._graph(*batch.ids.shape, batch.attention is not None)
        space = self.objective.parameters
        head = graph.head
        in_body = {graph.parameters[a] for n in graph.nodes if n is not head.node for a in n.all_input_nodes
                   if a in graph.parameters}  # fmt: skip
        block_of = {index: k for k, block in enumerate(self.blocks) for index in block}
        tied = self._tied_rows(batch, head.weight, block_of, seed, key) if head.weight in in_body else None

        def parameter(index: int) -> Jet:
            tensor = space.tensors[index].detach()
            if index == head.weight and tied is not None:
                v = torch.zeros_like(tensor)
                v[tied.rows] = tied.values
            else:
                v = self._probe(index, seed, key)
            return Jet(tensor, {block_of[index]: v})

        sweep = Sweep(graph, parameter, range(len(self.blocks)))
        with self.objective.evaluating(), torch.no_grad():
            jet = sweep.features(batch.ids, batch.attention)
            wanted = batch.labels[:, 1:] != IGNORED
            features = Jet(jet.x[:, :-1][wanted], {k: t[:, :-1][wanted] for k, t in jet.first.items()},
                           {c: t[:, :-1][wanted] for c, t in jet.second.items()})  # fmt: skip
            labels = batch.labels[:, 1:][wanted]
            uniform = torch.from_numpy(stream(seed, Purpose.LABELS, *key).random((len(labels), LABELS)))
            bias = None if head.bias is None else space.tensors[head.bias].detach()
            terms = head_terms(
                features, labels, space.tensors[head.weight].detach(), bias, tied, tied.probe if tied else -1, uniform
            )
        gauss_newton = np.zeros(len(space.parameters))
        for k, value in terms.gauss_newton.items():
            gauss_newton[self.blocks[k][0]] += value
        gauss_newton[head.weight] += terms.weight
        if head.bias is not None:
            gauss_newton[head.bias] += terms.bias
        traces = gauss_newton.copy()
        for k, value in terms.residual.items():
            traces[self.blocks[k][0]] += value
        return BlockSample(traces, gauss_newton)

    def _probe(self, index: int, seed: int, key: tuple[int, ...]) -> torch.Tensor:
        tensor = self.objective.parameters.tensors[index]
        signs = rademacher(tensor.numel(), stream(seed, Purpose.PROBE, *key, index), tensor.dtype)
        return signs.to(tensor.device).view(tensor.shape)

    def _tied_rows(
        self, batch: Batch, index: int, block_of: dict[int, int], seed: int, key: tuple[int, ...]
    ) -> TiedRows:
        tensor = self.objective.parameters.tensors[index]
        rows = batch.ids.unique()
        size = len(rows) * tensor.shape[1]
        signs = rademacher(size, stream(seed, Purpose.PROBE, *key, index), tensor.dtype).to(tensor.device)
        return TiedRows(block_of[index], rows, signs.view(len(rows), tensor.shape[1]))
