"""Per-group statistics at θ.

The design is nested: every group has its own gradient and its own probes, so that one jackknife over groups covers data
and probe noise together.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from villani.curvature.blocks import layers_of
from villani.curvature.deflation import Deflation
from villani.curvature.group import TraceSampler, group_statistics
from villani.curvature.sketch import GradientSketch, buckets_for
from villani.curvature.trace import default_way, sampler_for
from villani.curvature.ways import Auto, Blocks, ProductMethod, TraceMethod, Way
from villani.measurement.design import SHARES, Design, check_design, chosen_groups
from villani.measurement.measurement import LayerStatistics, Measurement, TensorStatistics
from villani.measurement.rows import group_row, group_sums, naive_norm, samples, trace_estimates
from villani.objective.objective import Objective, at_one_theta
from villani.objective.origin import Origin, origin_of
from villani.objective.parameters import ParameterSpace
from villani.objective.spilled import Spilled
from villani.objective.streamed import Tape
from villani.statistics import Estimate, finite_statistics, sampled_statistics
from villani.work.team import Rows
from villani.work.work import Work

SHARING = Way("gauss-newton")  # tells tensors apart where the way of the whole trace, a Taylor sweep, does not


@at_one_theta
def measure(
    objective: Objective,
    probes: int = 1,
    seed: int = 0,
    *,
    trace: TraceMethod | Auto | None = "auto",
    blocks: Blocks = "whole",
    products: ProductMethod = "reverse-over-reverse",
    groups: Sequence[int] | None = None,
    shares: int = SHARES,
    sketch: int | None = None,
    deflate: Deflation | None = None,
    work: Work | None = None,
) -> Measurement:
    """Measure the five statistics of an objective at its current θ.

    Dropout is off during the measurement; θ, `.grad`, train mode and global random state are left as they were.
    Besides the model it needs about three copies of θ and the activations of one double backward pass.

    Args:
        objective: model, groups and mask.
        probes: independent probes (with `gauss-newton`, label samples too) in each group; at least 1, or 2 when
            `objective.finite`.
        seed: a non-negative integer; the same seed gives the same bits.
        trace: `gauss-newton`, `hutchinson`, `taylor`, `adjoint`, or `auto`: `adjoint` where every operation has a rule,
            else as None: `gauss-newton` for language models and `hutchinson` for a custom loss.
        blocks: with `taylor`, what gets a probe of its own: the `whole` of θ, each `layer` or each `tensor`.
        products: with `hutchinson`, how ∇²L·v is had: `reverse-over-reverse`, `forward-over-reverse`, or
            `finite-differences` of gradients, which leave fused attention and compiled models as they are.
        groups: which of the objective's groups to measure; all by default.
        shares: where the way does not tell tensors apart, how many of the groups are also sampled by `gauss-newton`,
            which does; 0 for none. Takes the memory of a double backward pass.
        sketch: buckets of the gradient sketch, used when d is larger; by default 262,139, and fewer beyond 128 groups.
        deflate: with `hutchinson`, directions whose share of the trace is taken exactly; made without these groups.
        work: keeps finished groups, supplies those of an interrupted run, and has the processes that share them, each
            with the same objective; in memory and alone by default.

    Raises:
        InputError: too few groups or probes, a negative seed, ways to the trace that do not go together, a loss or
            derivative that is not finite, finite differences that are off by more than 10⁻³, or a θ that has changed.
        LostProcess: another process of the team is gone.
    """
    supply = len(objective.groups)
    chosen = list(range(supply)) if groups is None else chosen_groups(groups, supply)
    check_design(len(chosen), probes, seed, objective.finite)
    free = trace == "auto" and deflate is None and (blocks, products) == ("whole", "reverse-over-reverse")
    method, reason = default_way(objective, chosen) if free else (_asked(objective, trace), None)
    way = Way(method, blocks, products, deflated=deflate is not None)
    design = Design(len(chosen), probes, seed, objective.finite, way=way, shares=shares, sketch=sketch)
    buckets = sketch or buckets_for(supply)
    gradient_sketch = GradientSketch(objective.parameters, int(seed), buckets)
    sampler = sampler_for(objective, way, deflate)
    sampler.prepare(chosen[0])
    if design.shares and not way.tells_tensors:
        sampler_for(objective, SHARING).prepare(chosen[0])
    units = _units(objective, design, chosen, sampler, gradient_sketch)
    rows = (work or Work()).map(units)
    origin = None if objective.displacements else origin_of(
        objective, "measure", int(seed), len(chosen), probes=int(probes), trace=way.trace, blocks=way.blocks,
        products=way.products, trace_reason=reason, deflated=deflate.checksum if deflate else None,
    )  # fmt: skip
    return _measurement(objective, way, dict(zip(units, rows, strict=True)), gradient_sketch, origin)


def _asked(objective: Objective, trace: TraceMethod | Auto | None) -> TraceMethod:
    """The way by name, else that of reverse passes."""
    if trace and trace != "auto":
        return trace
    return "hutchinson" if objective.loss_fn else "gauss-newton"


def _units(
    objective: Objective, design: Design, chosen: Sequence[int], sampler: TraceSampler, sketch: GradientSketch
) -> dict[str, Callable[[], Rows]]:
    """The units of work: each group; some again for the shares of tensors; with `finite`, the whole gradient."""
    probes, seed, way = int(design.probes), int(design.seed), design.way

    def statistics(group: int) -> Rows:
        return group_row(group_statistics(objective, group, probes, seed, sampler, sketch))

    def share(group: int) -> Rows:
        own = 2 if objective.finite else 1
        nothing = GradientSketch(objective.parameters, seed, 1)
        return group_row(group_statistics(objective, group, own, seed, sampler_for(objective, SHARING), nothing))

    units: dict[str, Callable[[], Rows]] = {f"group/{group}": partial(statistics, group) for group in chosen}
    if design.shares and not way.tells_tensors:
        least = len(chosen) if objective.finite else max(design.shares, 3)  # a whole data set has no group to leave out
        units |= {f"share/{group}": partial(share, group) for group in chosen[:least]}
    if objective.finite:
        units["gradient"] = partial(_whole_gradient, objective, way.products == "finite-differences")
    return units


def _whole_gradient(objective: Objective, fused: bool) -> Rows:
    """‖∇L‖² over all groups: an exact second pass, since a sketch would add an error where there should be none."""
    if objective.streamed:
        return {"norm_squared": np.array([_streamed_norm(objective)])}
    gradient = objective.gradient(fused=fused)
    return {"norm_squared": np.array([sum(float(g.square().sum()) for g in gradient)])}


def _streamed_norm(objective: Objective) -> float:
    """‖∇L‖² over all groups, of a sum on disk."""
    tokens = 0
    with Spilled(objective.parameters, "the gradient over all groups") as total, objective.evaluating():
        for group in range(len(objective.groups)):
            for batch in objective.batches(group):
                tokens += batch.tokens
                for piece in Tape(objective, batch).back():
                    total.add(piece.index, piece.gradient)
                    del piece  # before the next one is made
        parts = (total.part(index) for index in range(len(objective.parameters.parameters)))
        return sum(float(part.div_(tokens).square_().sum()) for part in parts)


def _measurement(
    objective: Objective, way: Way, rows: Mapping[str, Rows], sketch: GradientSketch, origin: Origin | None
) -> Measurement:
    """What the rows of all units say."""
    space, finite = objective.parameters, objective.finite
    groups, shares = ([row for key, row in rows.items() if key.startswith(kind)] for kind in ("group/", "share/"))
    sums = group_sums(objective.parameters.decayed, groups, sketched=sketch.lossy)
    tokens, gauss_newton = samples(groups, "gauss_newton")  # (G,), (G, m or 0, P)
    telling_tensors = groups if way.tells_tensors else shares
    telling_layers = groups if way.blocks == "layer" else telling_tensors
    norms = space.norms_squared()
    return Measurement(
        joint=finite_statistics(sums, float(rows["gradient"]["norm_squared"][0]))
        if finite
        else sampled_statistics(sums),
        naive_gradient_norm_squared=naive_norm(sums),
        gauss_newton_trace=trace_estimates(tokens, gauss_newton.sum(axis=2, keepdims=True), finite)[0]
        if gauss_newton.size
        else None,
        decayed_norm_squared=float(norms[space.decayed].sum()),
        parameters=space.size,
        decayed_parameters=space.decayed_size,
        weight_decay=objective.weight_decay,
        tokens=int(tokens.sum()),
        tensors=tuple(
            TensorStatistics(p.name, tuple(p.tensor.shape), p.decayed, float(norm), estimate)
            for p, norm, estimate in zip(
                space.parameters, norms, _by_tensor(space, telling_tensors, finite), strict=True
            )
        ),
        layers=_by_layer(space, telling_layers, finite),
        sketch=sketch.buckets if sketch.lossy else None,
        origin=origin,
    )


def _by_tensor(space: ParameterSpace, rows: Sequence[Rows], finite: bool) -> Sequence[Estimate | None]:
    """The trace of each tensor's block; None where no rows tell it."""
    return trace_estimates(*samples(rows, "traces"), finite) if rows else [None] * len(space.parameters)


def _by_layer(space: ParameterSpace, rows: Sequence[Rows], finite: bool) -> tuple[LayerStatistics, ...]:
    """The share of each layer."""
    layers = layers_of(space)
    estimates: Sequence[Estimate | None] = [None] * len(layers)
    if rows:
        tokens, traces = samples(rows, "traces")
        summed = np.stack([traces[:, :, indices].sum(axis=2) for indices in layers.values()], axis=2)
        estimates = trace_estimates(tokens, summed, finite)
    return tuple(
        LayerStatistics(name, sum(space.parameters[i].tensor.numel() for i in indices), estimate)
        for (name, indices), estimate in zip(layers.items(), estimates, strict=True)
    )
