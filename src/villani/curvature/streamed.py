"""Samples of tr ∇²L where weights are streamed: the same probes and labels as in `curvature/trace.py`, by segments."""

from functools import partial

import numpy as np
import torch

from villani.curvature.group import GroupPass
from villani.curvature.head import draw_labels
from villani.curvature.probes import rademacher
from villani.objective.parameters import ParameterSpace, double_dot
from villani.objective.streamed import Tape
from villani.statistics import Array
from villani.streams import Purpose, stream


def probe_part(space: ParameterSpace, seed: int, group: int, probe: int, index: int) -> torch.Tensor:
    """One tensor of `rademacher_probe`."""
    tensor = space.parameters[index].tensor
    signs = rademacher(tensor.numel(), stream(seed, Purpose.PROBE, group, probe, index), tensor.dtype)
    return signs.to(space.device).view(tensor.shape)


def streamed_samples(group: GroupPass, probes: int, seed: int, *, residual: bool) -> tuple[Array, Array]:
    """What `TraceSampler.sample` gives: Hutchinson's samples, or with `residual` those of the Gauss–Newton split."""
    space = group.objective.parameters
    traces, gauss_newton = np.zeros((2, probes, len(space.parameters)))
    labels = [stream(seed, Purpose.LABELS, group.group, probe) for probe in range(probes)]
    vectors = [partial(probe_part, space, seed, group.group, probe) for probe in range(probes)]
    with group.objective.evaluating():
        for batch in group.objective.batches(group.group):
            tape = group.tape(batch, vectors)
            for piece in tape.back(residual=residual, wanted="curvatures"):
                group.add_piece(piece)
                traces[:, piece.index] += piece.curvatures
                del piece  # before the next one is made
            for row, generator in zip(gauss_newton, labels if residual else (), strict=False):
                for piece in tape.back(_drawn(tape, generator), wanted="gradients"):
                    row[piece.index] += double_dot(piece.gradient, piece.gradient)
                    del piece
    return traces + gauss_newton, gauss_newton if residual else gauss_newton[:0]


def _drawn(tape: Tape, generator: np.random.Generator) -> torch.Tensor:
    """(n,) labels from the model's own distribution."""
    uniform = torch.from_numpy(generator.random(len(tape.labels))).to(tape.labels.device)
    drawn = [draw_labels(p, uniform[part, None])[:, 0] for part, p in tape.predictions.probabilities()]
    return torch.cat(drawn) if drawn else tape.labels
