"""The samplers of tr ∇²L (THEORY.md §6), all unbiased; `curvature/ways.py` has their names.

- `hutchinson`: vᵀ∇²L v with Rademacher probes v, by any of the products of `curvature/products.py`.
- `gauss-newton`: ∇²L = JᵀSJ + Σ_k (p − y)_k ∇²z_k for logits z. The first trace is E‖∇L_ŷ‖²·n over labels ŷ drawn from
  the model's own p, one ordinary backward pass; only the second, residual, part meets probes. It is the Hessian of
  ⟨p − y, z⟩ with p − y held fixed, whose gradient equals ∇L, so that one graph serves both.
- `taylor`: vᵀ∇²L v by a forward sweep that stores nothing (`curvature/taylor.py`), in half the memory.
- `adjoint`: v_iᵀ(∇²L v)_i of every tensor i and the gradient by one sweep there and back (`curvature/adjoint.py`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from villani.curvature.adjoint import AdjointTrace
from villani.curvature.blocks import GRAPHS, BlockTrace
from villani.curvature.deflation import Deflation
from villani.curvature.double_backward import check_double_backward
from villani.curvature.group import GroupPass, TraceSampler, inner_products
from villani.curvature.head import draw_labels
from villani.curvature.probes import rademacher_probe
from villani.curvature.products import (
    Tensors,
    differentiable_gradient,
    finite_difference_product,
    forward_product,
    product,
)
from villani.curvature.streamed import streamed_samples
from villani.curvature.ways import ProductMethod, TraceMethod, Way
from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.objective import Forward, Objective
from villani.objective.parameters import double_dot
from villani.objective.weights import refuse_streamed
from villani.statistics import Array
from villani.streams import Purpose, stream

SWEPT = 4  # probes in one Taylor sweep at most: memory grows with them, and most of what sharing a sweep saves is saved
TOKENS = 256  # in one `adjoint` sweep: memory grows with them, and larger products are hardly faster
_ROWS = 64  # positions whose cumulative distribution is held in float64 at a time: 26 MB at V = 50,257
_NO_LOGITS = "a custom loss_fn has no logits to sample labels from: use trace='hutchinson'"


def sampler_for(objective: Objective, way: Way, deflation: Deflation | None = None) -> TraceSampler:
    """The sampler of a way.

    Args:
        objective: that it belongs to.
        way: which.
        deflation: the directions of a `deflated` way.

    Raises:
        InputError: the objective has no logits for a way that needs them.
    """
    return SAMPLERS[way.trace](objective, way, deflation)


def refusal(objective: Objective, way: Way) -> str:
    """Why a way cannot sample an objective; empty where it can."""
    try:
        sampler_for(objective, way).prepare(0)
    except InputError as error:
        return str(error)
    return ""


def fastest(objective: Objective) -> TraceMethod:
    """The way with the least time and memory: Taylor sweeps where every operation has a rule."""
    if objective.loss_fn is not None:
        return "hutchinson"
    return "gauss-newton" if refusal(objective, Way("taylor")) else "taylor"


def default_way(objective: Objective, groups: Iterable[int]) -> tuple[TraceMethod, str]:
    """The way of `auto`, and why: one sweep there and back where every operation has a rule, else reverse passes."""
    if objective.loss_fn is not None:
        return "hutchinson", "a custom loss_fn has no traced graph"
    if objective.streamed:
        return "gauss-newton", "weights are streamed"
    sampler = AdjointSampler(objective)
    forms: dict[tuple[Any, ...], Batch] = {}
    for group in groups:
        forms |= {piece.form: piece for piece in sampler.pieces(group)}
        if len(forms) > GRAPHS:
            return "gauss-newton", f"a graph is traced for every shape of batch, and there are more than {GRAPHS}"
    try:
        for piece in forms.values():
            sampler.sweeps.check(piece)
    except InputError as error:
        return "gauss-newton", str(error)
    return "adjoint", "every operation has a Taylor rule"


class HutchinsonSampler:
    """Probes, by products that share the graph of the gradient.

    Args:
        objective: any.
        deflation: directions that are taken exactly.
    """

    def __init__(self, objective: Objective, deflation: Deflation | None = None) -> None:
        if deflation is not None:
            refuse_streamed(objective.model, "deflation", "leave --deflate out")
        self.objective, self.deflation = objective, deflation

    def prepare(self, group: int) -> None:  # noqa: ARG002
        """Refuse a backward pass whose derivative is wrong."""
        check_double_backward(self.objective)

    def cost(self, probes: int) -> float:
        """A gradient with a graph, and a product for every probe and direction."""
        return 1.0 + 2.0 * (probes + (len(self.deflation.rows) if self.deflation else 0))

    def sample(self, group: GroupPass, probes: int, seed: int) -> tuple[Array, Array]:
        """See `TraceSampler.sample`."""
        check_double_backward(self.objective)
        tensors = self.objective.parameters.tensors
        traces = np.zeros((probes, len(tensors)))
        if self.objective.streamed:
            return streamed_samples(group, probes, seed, residual=False)
        with self.objective.evaluating():
            for _, forward in group.forwards():
                gradient = differentiable_gradient(forward.loss, tensors)
                group.add_gradient(gradient)
                for direction in self.deflation.vectors if self.deflation else []:  # every probe's sample has it
                    traces += inner_products(product(gradient, direction, tensors, keep_graph=True), direction)
                _add_probes(traces, group, gradient, seed, self.deflation)
        return traces, np.zeros((0, len(tensors)))


class ProductSampler:
    """Probes, by products that take a computation of their own.

    Args:
        objective: any.
        products: `forward-over-reverse`, or `finite-differences`, which leave fused attention and compiled models be.
    """

    def __init__(self, objective: Objective, products: ProductMethod) -> None:
        refuse_streamed(objective.model, f"products={products!r}", "leave --products at reverse-over-reverse")
        self.objective = objective
        self.differences = products == "finite-differences"

    def prepare(self, group: int) -> None:
        """Products tell by themselves what they cannot do."""

    def cost(self, probes: int) -> float:
        """A gradient; then five gradients for a probe, or one with tangents."""
        return 1.0 + (5.0 if self.differences else 3.0) * probes

    def sample(self, group: GroupPass, probes: int, seed: int) -> tuple[Array, Array]:
        """See `TraceSampler.sample`."""
        if not self.differences:
            check_double_backward(self.objective)
        space = self.objective.parameters
        traces = np.zeros((probes, len(space.parameters)))
        with self.objective.evaluating(fused=self.differences):
            for batch in group.differentiated():
                if not self.differences:
                    for probe, row in enumerate(traces):
                        vector = rademacher_probe(space, seed, group.group, probe)
                        row += inner_products(forward_product(self.objective, batch, vector)[0], vector)
        if self.differences:  # of the whole group at once, so that θ moves four times a probe
            for probe, row in enumerate(traces):
                vector = rademacher_probe(space, seed, group.group, probe)
                curved, _ = finite_difference_product(self.objective, vector, group.group)
                row[:] = group.tokens * inner_products(curved, vector)
        return traces, np.zeros((0, len(space.parameters)))


class GaussNewtonSampler:
    """Labels for the Gauss–Newton part, probes for the residual one; a label sample and a probe go together.

    Args:
        objective: of a language model.

    Raises:
        InputError: a loss without logits.
    """

    def __init__(self, objective: Objective) -> None:
        if objective.loss_fn is not None:
            raise InputError(_NO_LOGITS)
        self.objective = objective

    def prepare(self, group: int) -> None:  # noqa: ARG002
        """Refuse a backward pass whose derivative is wrong."""
        check_double_backward(self.objective)

    def cost(self, probes: int) -> float:
        """A gradient with a graph, and for every probe a backward pass and a product."""
        return 1.0 + 2.7 * probes

    def sample(self, group: GroupPass, probes: int, seed: int) -> tuple[Array, Array]:
        """See `TraceSampler.sample`."""
        check_double_backward(self.objective)
        tensors = self.objective.parameters.tensors
        if self.objective.streamed:
            return streamed_samples(group, probes, seed, residual=True)
        residual, gauss_newton = np.zeros((2, probes, len(tensors)))
        labels = [stream(seed, Purpose.LABELS, group.group, probe) for probe in range(probes)]
        with self.objective.evaluating():
            for _, forward in group.forwards():
                logits, targets = _logits(forward)
                for row, generator in zip(gauss_newton, labels, strict=True):
                    row += _gauss_newton_sample(logits, tensors, generator)
                gradient = differentiable_gradient(_residual_root(logits, targets), tensors)
                group.add_gradient(gradient)
                _add_probes(residual, group, gradient, seed)
        return residual + gauss_newton, gauss_newton


class TaylorSampler:
    """Probes, by forward sweeps.

    Args:
        objective: of a language model.
        sweeps: of this objective.
    """

    def __init__(self, objective: Objective, sweeps: BlockTrace) -> None:
        self.objective, self.sweeps = objective, sweeps

    def prepare(self, group: int) -> None:
        """Refuse a model that cannot be traced or has an operation without a rule."""
        self.sweeps.check(next(self.objective.batches(group)))

    def cost(self, probes: int) -> float:
        """A gradient; then a sweep for every `SWEPT` probes, in forward passes of which a gradient is 3.2."""
        return 1.0 + (2.6 * -(-probes // SWEPT) + 1.5 * probes) / 3.2

    def sample(self, group: GroupPass, probes: int, seed: int) -> tuple[Array, Array]:
        """See `TraceSampler.sample`; with `finite` a row for every probe, else their mean."""
        apart = self.objective.finite
        shape = (probes if apart else 1, len(self.objective.parameters.parameters))
        residual, gauss_newton = np.zeros(shape), np.zeros(shape)
        at_once = 1 if apart else SWEPT
        with self.objective.evaluating():
            for index, batch in enumerate(group.differentiated()):
                for first in range(0, probes, at_once):
                    keys = [(group.group, probe, index) for probe in range(first, min(first + at_once, probes))]
                    sample = self.sweeps.sample(batch, seed, *keys)
                    row, share = (first, 1.0) if apart else (0, len(keys) / probes)
                    residual[row] += share * (sample.traces - sample.gauss_newton)
                    gauss_newton[row] += share * sample.gauss_newton
        return residual + gauss_newton, gauss_newton


class AdjointSampler:
    """Probes, by sweeps there and back, the first of which gives the gradient too.

    Args:
        objective: of a language model.

    Raises:
        InputError: a custom loss, or streamed weights.
    """

    def __init__(self, objective: Objective) -> None:
        refuse_streamed(objective.model, "trace='adjoint'", "use 'taylor' or 'gauss-newton'")
        self.objective = objective
        self.sweeps = BlockTrace(objective)
        self._adjoint = AdjointTrace(self.sweeps)

    def prepare(self, group: int) -> None:
        """Refuse a model that cannot be traced or has an operation without a rule."""
        self.sweeps.check(next(self.pieces(group)))

    def cost(self, probes: int) -> float:
        """Five products of every matrix where a gradient takes three; four in a further sweep."""
        return 0.3 + 1.4 * probes

    def sample(self, group: GroupPass, probes: int, seed: int) -> tuple[Array, Array]:
        """See `TraceSampler.sample`."""
        space = self.objective.parameters
        traces, gauss_newton = np.zeros((2, probes, len(space.parameters)))
        with self.objective.evaluating():
            for place, piece in enumerate(self.pieces(group.group)):
                for probe in range(probes):
                    key = (group.group, probe, place)
                    one = self._adjoint.sample(piece, seed, key, None if probe else group.add_part)
                    if not probe:
                        group.add_loss(one.loss, float(piece.tokens))
                    traces[probe] += one.traces
                    gauss_newton[probe, 0] += one.gauss_newton
        return traces, gauss_newton

    def pieces(self, group: int) -> Iterator[Batch]:
        """A group's batches, in pieces of about `TOKENS` tokens and of as few sizes as may be."""
        for batch in self.objective.batches(group):
            count, length = batch.ids.shape
            pieces = min(count, -(-count * length // TOKENS))
            step = -(-count // pieces)
            for start in range(0, count, step):
                piece = batch.rows(start, start + step)
                if piece.tokens:
                    yield piece


def _hutchinson(objective: Objective, way: Way, deflation: Deflation | None) -> TraceSampler:
    if way.products == "reverse-over-reverse":
        return HutchinsonSampler(objective, deflation)
    return ProductSampler(objective, way.products)


SAMPLERS: dict[TraceMethod, Callable[[Objective, Way, Deflation | None], TraceSampler]] = {
    "gauss-newton": lambda objective, _way, _deflation: GaussNewtonSampler(objective),
    "hutchinson": _hutchinson,
    "adjoint": lambda objective, _way, _deflation: AdjointSampler(objective),
    "taylor": lambda objective, way, _deflation: TaylorSampler(objective, BlockTrace(objective, way.blocks)),
}


def _add_probes(
    traces: Array, group: GroupPass, gradient: list[torch.Tensor], seed: int, deflation: Deflation | None = None
) -> None:
    """Add vᵀHv, tensor by tensor, for the probe of each row; the graph of the gradient is used up."""
    space = group.objective.parameters
    for probe, row in enumerate(traces):
        vector = rademacher_probe(space, seed, group.group, probe)
        if deflation:
            vector = deflation.project(vector)
        row += inner_products(product(gradient, vector, space.tensors, keep_graph=probe + 1 < len(traces)), vector)


def _logits(forward: Forward) -> tuple[torch.Tensor, torch.Tensor]:
    if forward.logits is None or forward.labels is None:
        raise InputError(_NO_LOGITS)
    return forward.logits, forward.labels


def _residual_root(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """⟨p − y, z⟩ with p − y held fixed: its gradient is that of the loss sum, its Hessian the residual part."""
    errors = torch.softmax(logits.detach(), dim=-1)
    errors[torch.arange(len(errors), device=errors.device), labels] -= 1.0
    return torch.sum(errors * logits)


def _gauss_newton_sample(logits: torch.Tensor, tensors: Tensors, generator: np.random.Generator) -> Array:
    """(P,) ‖∇_t Σ ℓ(ŷ)‖² with ŷ ~ p: unbiased for each tensor's trace of the Gauss–Newton matrix of the loss sum.

    Scores are conditionally independent with mean zero, so cross terms between positions vanish on average.
    """
    sampled = sample_rows(torch.softmax(logits.detach(), dim=-1), generator)
    loss = nn.functional.cross_entropy(logits, sampled, reduction="sum")
    slopes = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return np.array([0.0 if g is None else double_dot(g, g) for g in slopes])


def sample_rows(probabilities: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """One index from each row of (n, V) probabilities, by inverting the distribution function in float64."""
    uniform = torch.from_numpy(generator.random(len(probabilities))).to(probabilities.device)
    parts = zip(probabilities.split(_ROWS), uniform.split(_ROWS), strict=True)
    return torch.cat([draw_labels(rows, u[:, None])[:, 0] for rows, u in parts])
